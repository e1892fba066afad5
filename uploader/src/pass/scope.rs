//! What a pass is about.

use std::sync::Arc;

use common::unit::Unit;
use common::unit_filter::UnitFilter;
use tokio_util::sync::CancellationToken;

use crate::local::arrivals::FileEvents;
use crate::local::events::Folders;

/// What a pass is about.
#[derive(Debug, Clone)]
pub(crate) enum Scope {
    Everything(UnitFilter),
    Units(Vec<Unit>),
}

/// What a service knows beside the units.
#[derive(Default)]
pub(crate) struct Watching {
    /// Where to listen for events.
    pub(crate) folders: Option<Arc<Folders>>,
    /// What events told of single archives.
    pub(crate) events: FileEvents,
    /// Cancelled when something more urgent has come: no more units are begun then.
    pub(crate) interrupt: CancellationToken,
}
