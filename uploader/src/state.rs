//! What local.state_dir remembers.

pub(crate) mod cache;
pub(crate) mod file;
pub(crate) mod pending;
