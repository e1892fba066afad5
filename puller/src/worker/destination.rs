//! Where a verified archive goes: what happens to it follows from the destination's type.

use std::sync::Arc;

use nats::Activity;

use crate::directory::mirror::Mirror;
use crate::error::work::WorkError;
use crate::job::resolve::Job;
use crate::job::work::Work;
use crate::load::loader::Loader;

pub(crate) enum Destination {
    ClickHouse(Box<Loader>),
    Directory(Box<Mirror>),
}

impl Destination {
    /// Waits until more units can be worked on than those in flight; returns how many more.
    pub(crate) async fn free_slots(&self, in_flight: impl Fn() -> usize) -> usize {
        match self {
            Self::ClickHouse(loader) => loader.demand.free_slots(in_flight).await,
            // Objects are stored one by one.
            Self::Directory(_) => usize::MAX,
        }
    }

    /// Stores every object of the job that the destination does not have.
    ///
    /// # Errors
    /// Something stopped the whole unit; faults of single objects are in the returned [`Work`] instead.
    pub(crate) async fn deliver(&self, job: &Arc<Job>, activity: &Activity) -> Result<Work, WorkError> {
        match self {
            Self::ClickHouse(loader) => loader.load(job, activity).await,
            Self::Directory(mirror) => mirror.store(job, activity).await,
        }
    }
}
