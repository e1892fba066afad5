//! How an attempt ended: for `ingest_log`, logs, metrics and tasks.

use std::time::Duration;

use common::output::Failure;
use common::unit::Unit;
use jiff::Timestamp;
use nats::TaskState;

use crate::error::work::{ErrorClass, WorkError};
use crate::job::resolve::Job;
use crate::job::work::Work;
use crate::job::writes::Writes;
use crate::worker::outcome::Disposition;

/// How a delivery ended, as `ingest_log`, logs and metrics call it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
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

/// How a delivery ends, and why. What is still waited for has no end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DeliveryEnd {
    /// Acked: everything is at the destination and verified.
    Done,
    /// Acked: nothing needs to be done about the rest.
    Stopped(Stopped),
    /// To be delivered again; spends an attempt.
    Retry { after: Duration, class: ErrorClass },
    /// Terminated, after its dead letter is stored.
    DeadLetter { class: ErrorClass },
}

impl DeliveryEnd {
    /// `None`: it is waited, and tried again here, or by another worker.
    pub(super) fn of(disposition: Disposition) -> Option<Self> {
        match disposition {
            Disposition::Ack => Some(Self::Done),
            Disposition::Retry { after, class } => Some(Self::Retry { after, class }),
            Disposition::DeadLetter { class } => Some(Self::DeadLetter { class }),
            Disposition::Wait | Disposition::Leave => None,
        }
    }
}

/// One attempt that has come to an end.
pub(super) struct Finished<'a> {
    pub(super) job: Option<&'a Job>,
    pub(super) unit: Option<&'a Unit>,
    pub(super) started_at: Timestamp,
    pub(super) result: &'a Result<Work, WorkError>,
    pub(super) end: DeliveryEnd,
}

impl Finished<'_> {
    pub(super) fn ending(&self) -> Ending {
        match (self.end, self.result) {
            (DeliveryEnd::Done, Ok(work)) if work.loaded == 0 => Ending::Skipped,
            (DeliveryEnd::Done, _) => Ending::Loaded,
            (DeliveryEnd::Stopped(Stopped::Superseded), _) => Ending::Superseded,
            (DeliveryEnd::Stopped(Stopped::TooOld), _) => Ending::TooOld,
            (DeliveryEnd::Stopped(Stopped::Cancelled), _) => Ending::Cancelled,
            (DeliveryEnd::Retry { .. }, _) => Ending::Retry,
            (DeliveryEnd::DeadLetter { .. }, _) => Ending::DeadLetter,
        }
    }

    /// How long it must not be acknowledged, because what was written for it and not answered may still land and be wrong then.
    pub(super) fn must_wait(&self, writes: &Writes) -> Option<Duration> {
        match self.ending() {
            Ending::Superseded | Ending::DeadLetter | Ending::Cancelled => writes.may_still_land(),
            // All of this revision is recorded: the same rows once more change nothing.
            Ending::Loaded | Ending::Skipped => writes.may_still_outrank(),
            // Nothing was written; and it is delivered again late enough.
            Ending::TooOld | Ending::Retry => None,
        }
    }

    pub(super) fn class(&self) -> &'static str {
        match self.end {
            DeliveryEnd::Retry { class, .. } | DeliveryEnd::DeadLetter { class } => class.as_str(),
            DeliveryEnd::Done | DeliveryEnd::Stopped(_) => "",
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
fn describe(error: &WorkError) -> String {
    match error {
        WorkError::Store(_) | WorkError::Warehouse(_) => failure(error).to_string(),
        other => other.to_string(),
    }
}

/// The same for a command that ends with it, which has one exit code for a condition, whoever meets it.
pub(super) fn failure(error: &WorkError) -> Failure {
    match error {
        WorkError::Store(error) => error.clone().into(),
        WorkError::Warehouse(error) => error.clone().into(),
        WorkError::Queue(error) => error.clone().into(),
        // The configuration is of another place, or the machine's clock is wrong: the uploader's classes, too.
        WorkError::Elsewhere(_) | WorkError::ClockBehind(_) => Failure::config(error.to_string()),
        WorkError::Marker(_)
        | WorkError::NoDecoder(_)
        | WorkError::Manifest(_)
        | WorkError::Disk { .. }
        | WorkError::Panicked(_)
        | WorkError::Exhausted { .. } => Failure::failed(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::writes::Written;

    fn finished(end: DeliveryEnd, result: &Result<Work, WorkError>) -> Finished<'_> {
        Finished { job: None, unit: None, started_at: Timestamp::UNIX_EPOCH, result, end }
    }

    #[test]
    fn every_disposition_but_waiting_settles() {
        let (after, class) = (Duration::from_secs(1), ErrorClass::Missing);
        let check = |disposition, work: Work, ending, name: &str| {
            let end = DeliveryEnd::of(disposition).expect("an end");
            let result = Ok(work);
            let finished = finished(end, &result);
            assert_eq!((finished.ending(), finished.class()), (ending, name));
        };
        check(Disposition::Ack, Work { loaded: 1, ..Work::default() }, Ending::Loaded, "");
        check(Disposition::Ack, Work::default(), Ending::Skipped, "");
        check(Disposition::Retry { after, class }, Work::default(), Ending::Retry, "missing");
        check(Disposition::DeadLetter { class }, Work::default(), Ending::DeadLetter, "missing");
        assert_eq!(DeliveryEnd::of(Disposition::Wait), None);
        assert_eq!(DeliveryEnd::of(Disposition::Leave), None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_may_land_and_be_wrong_is_waited_for() {
        let result = Ok(Work::default());
        let ends = [
            (DeliveryEnd::Done, false, true),
            (DeliveryEnd::Stopped(Stopped::Superseded), true, true),
            (DeliveryEnd::Stopped(Stopped::Cancelled), true, true),
            (DeliveryEnd::Stopped(Stopped::TooOld), false, false),
            (DeliveryEnd::DeadLetter { class: ErrorClass::Damaged }, true, true),
            (DeliveryEnd::Retry { after: Duration::ZERO, class: ErrorClass::Missing }, false, false),
        ];
        for (end, for_archives, for_outranking) in ends {
            for (written, waits) in [(Written::Archives, for_archives), (Written::Outranking, for_outranking)] {
                let writes = Writes::default();
                let finished = finished(end, &result);
                assert_eq!(finished.must_wait(&writes), None, "{end:?}: nothing is written");
                drop(writes.begin(written));
                assert_eq!(finished.must_wait(&writes).is_some(), waits, "{end:?} {written:?}");
            }
        }
    }
}
