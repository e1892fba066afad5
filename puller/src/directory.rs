//! The destination that is a directory.

pub(crate) mod mirror;
