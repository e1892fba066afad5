//! How an attempt ended: for `ingest_log`, logs, metrics and tasks.

use common::unit::Unit;
use jiff::Timestamp;
use nats::TaskState;

use crate::destination::Work;
use crate::error::{ErrorClass, WorkError};
use crate::job::Job;
use crate::outcome::Disposition;

/// How a delivery ended, as `ingest_log`, logs and metrics call it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    Loaded,
    Skipped,
    Superseded,
    TooOld,
    Cancelled,
    Retry,
    DeadLetter,
}

/// Why a delivery is done although its archives were not all brought to the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stopped {
    /// A newer revision has overwritten its objects, and has a marker of its own.
    Superseded,
    /// Older than a new destination wants: see `initial_days`.
    TooOld,
    /// The replay it belongs to was cancelled.
    Cancelled,
}

impl Ending {
    pub(super) fn task_state(self) -> TaskState {
        match self {
            Self::Loaded | Self::Skipped | Self::Superseded | Self::TooOld => TaskState::Success,
            Self::Cancelled => TaskState::Cancelled,
            Self::Retry => TaskState::Reassigning,
            Self::DeadLetter => TaskState::Failed,
        }
    }

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Loaded => "loaded",
            Self::Skipped => "skipped",
            Self::Superseded => "superseded",
            Self::TooOld => "too_old",
            Self::Cancelled => "cancelled",
            Self::Retry => "retry",
            Self::DeadLetter => "dead_letter",
        }
    }
}

/// One attempt that has come to an end.
pub(super) struct Finished<'a> {
    pub(super) job: Option<&'a Job>,
    pub(super) unit: Option<&'a Unit>,
    pub(super) started_at: Timestamp,
    pub(super) result: &'a Result<Work, WorkError>,
    /// `None`: see `stopped`.
    pub(super) disposition: Option<Disposition>,
    pub(super) stopped: Option<Stopped>,
}

impl Finished<'_> {
    pub(super) fn ending(&self) -> Ending {
        match self.stopped {
            Some(Stopped::Superseded) => return Ending::Superseded,
            Some(Stopped::TooOld) => return Ending::TooOld,
            Some(Stopped::Cancelled) => return Ending::Cancelled,
            None => {}
        }
        match &self.disposition {
            None | Some(Disposition::Ack | Disposition::Wait) => match self.result {
                Ok(work) if work.loaded == 0 => Ending::Skipped,
                _ => Ending::Loaded,
            },
            Some(Disposition::Retry { .. }) => Ending::Retry,
            Some(Disposition::DeadLetter { .. }) => Ending::DeadLetter,
        }
    }

    pub(super) fn class(&self) -> &'static str {
        match &self.disposition {
            Some(Disposition::Retry { class, .. } | Disposition::DeadLetter { class }) => ErrorClass::as_str(*class),
            None | Some(Disposition::Ack | Disposition::Wait) => "",
        }
    }

    /// All that is wrong, one line each.
    pub(super) fn error(&self) -> String {
        match self.result {
            Ok(work) => work.faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"),
            Err(error) => describe(error),
        }
    }
}

/// An error with what to do about it.
pub(super) fn describe(error: &WorkError) -> String {
    match error {
        WorkError::Store(store) => {
            store.advice().map_or_else(|| error.to_string(), |advice| format!("{error} ({advice})"))
        }
        WorkError::Warehouse(warehouse) => format!("{error} ({})", warehouse.advice()),
        other => other.to_string(),
    }
}
