//! What a walk over `data_dir` sees of a unit.

use std::sync::Arc;

use jiff::Timestamp;

use crate::local::scan::SetDigest;

/// What the walk saw of a unit.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    pub(crate) archives: usize,
    /// Of all of them together.
    pub(crate) bytes: u64,
    /// Of these, those of symbols that are configured by name.
    pub(crate) listed: usize,
    pub(crate) digest: SetDigest,
    /// Modification time of the archive written to last, of those that may still be written to.
    pub(crate) written_ns: i64,
    /// When the first and the last archive got here: their change times, which no copying program sets.
    pub(crate) first_arrived_ns: i64,
    pub(crate) arrived_ns: i64,
    /// One of those that somebody is writing.
    pub(crate) open: Option<Arc<str>>,
    pub(crate) unreadable: Vec<Arc<str>>,
}

impl Seen {
    /// Times that are later than this are those of a file server whose clock is ahead of ours, and count as this one.
    pub(crate) fn not_later_than(&mut self, at: Timestamp) {
        let at = i64::try_from(at.as_nanosecond()).unwrap_or(i64::MAX);
        let now = i64::try_from(common::clock::now().as_nanosecond()).unwrap_or(i64::MAX);
        for time in [&mut self.written_ns, &mut self.first_arrived_ns, &mut self.arrived_ns] {
            if *time > now {
                *time = at;
            }
        }
    }
}
