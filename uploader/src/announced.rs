//! What the stream says of a unit.

pub(crate) mod basis;
pub(crate) mod standing;
