//! A unit's archives become rows: in parts that fit the memory.

pub(crate) mod decisions;
pub(crate) mod huge;
pub(crate) mod loader;
pub(crate) mod part;
pub(crate) mod plan;
pub(crate) mod superseded_rows;
pub(crate) mod unit;
