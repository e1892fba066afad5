//! Exit codes: users' scripts read them.

/// Everything was done.
pub const DONE: u8 = 0;
/// Some of the work failed; stderr says what.
pub const SOME_FAILED: u8 = 1;
/// Wrong usage or configuration.
pub const USAGE: u8 = 2;
/// A server could not be reached.
pub const UNREACHABLE: u8 = 3;
/// Checked, and found wanting.
pub const WANTING: u8 = 4;
