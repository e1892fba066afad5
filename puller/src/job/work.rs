//! What an attempt at a unit did.

use std::time::Duration;

use crate::error::work::FaultyObject;

/// What one attempt at a unit did.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Work {
    /// Archives brought to the destination and verified there.
    pub loaded: u64,
    /// Archives that were there already.
    pub skipped: u64,
    pub rows: u64,
    /// Bytes fetched.
    pub bytes: u64,
    pub faults: Vec<FaultyObject>,
    pub times: StageTimes,
}

/// Time spent in each stage, added up over archives that were handled side by side.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StageTimes {
    pub fetch: Duration,
    pub decode: Duration,
    pub insert: Duration,
    pub read_back: Duration,
}

impl Work {
    /// Adds what was done of another part of the unit.
    pub(crate) fn add(&mut self, part: Self) {
        let Self { loaded, skipped, rows, bytes, faults, times } = part;
        self.loaded += loaded;
        self.skipped += skipped;
        self.rows += rows;
        self.bytes += bytes;
        self.faults.extend(faults);
        self.times.fetch += times.fetch;
        self.times.decode += times.decode;
        self.times.insert += times.insert;
        self.times.read_back += times.read_back;
    }
}
