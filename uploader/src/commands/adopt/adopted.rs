//! What came of a unit.

use crate::unit::process::Processed;

/// What came of a unit, and what it took.
pub(super) struct Adopted {
    pub(super) processed: Processed,
    /// Archives of the unit that the bucket has.
    pub(super) archives: usize,
    /// Archives that no manifest named: fetched, or to be fetched.
    pub(super) new: usize,
    pub(super) bytes: u64,
}
