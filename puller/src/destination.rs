//! Where a verified archive goes: what happens to it follows from the destination's type.

use std::time::Duration;

use nats::Activity;

use crate::error::{FaultyObject, WorkError};
use crate::job::Job;
use crate::load::Loader;
use crate::mirror::Mirror;

pub(crate) enum Destination {
    ClickHouse(Box<Loader>),
    Directory(Mirror),
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

impl Destination {
    /// Brings every object of the job to the destination that is not there yet.
    ///
    /// # Errors
    /// Something stopped the whole unit; faults of single objects are in the returned [`Work`] instead.
    pub(crate) async fn bring(&self, job: &Job, activity: &Activity) -> Result<Work, WorkError> {
        match self {
            Self::ClickHouse(loader) => loader.load(job, activity).await,
            Self::Directory(mirror) => mirror.keep(job, activity).await,
        }
    }
}
