//! What a unit consists of: its archives, their hashes, and those of earlier revisions.

pub(crate) mod digest;
pub(crate) mod unit_plan;
