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
