//! Where a verified archive goes: what happens to it follows from the destination's type.

use std::sync::Arc;
use std::time::Duration;

use nats::Activity;

use crate::error::{FaultyObject, WorkError};
use crate::job::Job;
use crate::load::Loader;
use crate::mirror::Mirror;

pub(crate) enum Destination {
    ClickHouse(Box<Loader>),
    Directory(Box<Mirror>),
}

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

impl Destination {
    /// Waits until more units can be worked on than those in hand; returns how many more.
    pub(crate) async fn room(&self, in_hand: impl Fn() -> usize) -> usize {
        match self {
            Self::ClickHouse(loader) => loader.demand.room(in_hand).await,
            // Objects are kept one by one.
            Self::Directory(_) => usize::MAX,
        }
    }

    /// Brings every object of the job to the destination that is not there yet.
    ///
    /// # Errors
    /// Something stopped the whole unit; faults of single objects are in the returned [`Work`] instead.
    pub(crate) async fn bring(&self, job: &Arc<Job>, activity: &Activity) -> Result<Work, WorkError> {
        match self {
            Self::ClickHouse(loader) => loader.load(job, activity).await,
            Self::Directory(mirror) => mirror.keep(job, activity).await,
        }
    }
}
