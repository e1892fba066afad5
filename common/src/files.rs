//! Files in folders that others write to.

pub mod regular_file;
pub mod same_file;
