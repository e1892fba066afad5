//! A marker becomes work: its objects, their limits, the memory they share.

pub(crate) mod beginning;
pub(crate) mod memory;
pub(crate) mod place;
pub(crate) mod resolve;
pub(crate) mod spec;
pub(crate) mod work;
pub(crate) mod writes;
