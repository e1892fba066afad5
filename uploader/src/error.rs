//! What can go wrong, by what follows from it: the end of a pass, or one unit held back.

use std::io;
use std::path::PathBuf;

use common::output::Failure;
use common::unit::Unit;
use common::unit_filter::UnitFilter;
use jiff::Timestamp;
use nats::BusError;
use store::{StoreError, StoreErrorKind};

/// Ends a pass: nothing else would fare better.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum PassError {
    #[error("local.data_dir: {} cannot be read: {why}", dir.display())]
    DataDir { dir: PathBuf, why: String },
    #[error("bucket: {}", .0.advised())]
    Bucket(StoreError),
    #[error("{0}; check nats.url and its credentials")]
    Queue(BusError),
    #[error(
        "the units on the stream are announced from {announced}, and this uploader is configured with {configured}; \
         nothing is announced from there"
    )]
    Elsewhere { announced: String, configured: String },
    #[error(
        "this machine's clock says {now}, and NATS has stored a message at {stored_at}: archives cannot be dated before \
         both agree"
    )]
    ClockBehind { stored_at: Timestamp, now: Timestamp },
    #[error("{}: no archive lies in data_dir, or the unit is neither marked nor collected", listed(.0))]
    NoUnit(Vec<Unit>),
    #[error("--accept-rollback {}: the bucket has no archive of the unit, or the filters leave it out", listed(.0))]
    NotAdopted(Vec<Unit>),
    #[error("stopped by a signal")]
    Stopped,
    /// Of how many units, if that is known.
    #[error("the filters match no unit")]
    NoMatch(Box<UnitFilter>, Option<u64>),
    #[error(
        "nowhere to keep archives while they are checked: {0}; set local.state_dir to a folder that can be written"
    )]
    Scratch(String),
}

fn listed(units: &[Unit]) -> String {
    units.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl PassError {
    pub(crate) fn data_dir(dir: PathBuf, error: &io::Error) -> Self {
        Self::DataDir { dir, why: error.to_string() }
    }
}

impl From<PassError> for Failure {
    fn from(error: PassError) -> Self {
        match error {
            PassError::DataDir { .. } => Self::config(error.to_string()),
            PassError::Scratch(why) => Self::config(format!("nowhere to keep archives while they are checked: {why}"))
                .advice("set local.state_dir to a folder that can be written"),
            PassError::Bucket(error) => {
                let failure = Self::from(error);
                Self { text: format!("bucket: {}", failure.text), ..failure }
            }
            PassError::Elsewhere { .. } => Self::config(error.to_string()).advice(
                "check storage.r2.bucket and storage.r2.prefix; if the archives have moved, `uploader upload \
                 --accept-move` announces them from here",
            ),
            PassError::ClockBehind { .. } => Self::config(error.to_string()).advice("synchronise the clocks (NTP)"),
            PassError::NoUnit(_) | PassError::NotAdopted(_) => Self::no_match(error.to_string()),
            PassError::Queue(error) => error.into(),
            PassError::Stopped => Self::stopped("stopped by a signal"),
            PassError::NoMatch(filter, all) => filter.none_of(all, "unit", &[]),
        }
    }
}

/// Ends the work on one unit.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnitError {
    /// The unit is not announced; one line a reason. The next run looks again.
    #[error("{}", .0.join("; "))]
    HeldBack(Vec<String>),
    /// Another uploader works on the unit too: it must be planned anew from what is published now. What was found.
    #[error("{0}")]
    Overtaken(String),
    #[error("{0}")]
    Pass(PassError),
}

impl UnitError {
    /// Whether the bucket, or the way to it, was at fault for the moment.
    pub(crate) fn is_of_the_link(&self) -> bool {
        matches!(self, Self::Pass(PassError::Bucket(error)) if error.kind == StoreErrorKind::Unavailable)
    }

    pub(crate) fn held_back(reason: impl Into<String>) -> Self {
        Self::HeldBack(vec![reason.into()])
    }

    /// This object is no longer the one that was to be replaced.
    pub(crate) fn replaced(key: &str) -> Self {
        Self::Overtaken(format!("bucket: {key} was stored by another uploader meanwhile; the next run looks again"))
    }

    /// Why the unit is held back, one line a reason.
    ///
    /// # Errors
    /// The pass ends.
    pub(crate) fn into_reasons(self) -> Result<Vec<String>, PassError> {
        match self {
            Self::HeldBack(reasons) => Ok(reasons),
            Self::Overtaken(reason) => Ok(vec![reason]),
            Self::Pass(error) => Err(error),
        }
    }
}

impl From<PassError> for UnitError {
    fn from(error: PassError) -> Self {
        Self::Pass(error)
    }
}

impl From<StoreError> for UnitError {
    /// A bucket that is away, or refuses us, does so for every unit; anything else is about this object.
    fn from(error: StoreError) -> Self {
        match error.kind {
            StoreErrorKind::NoSuchBucket
            | StoreErrorKind::Denied
            | StoreErrorKind::ClockSkew
            | StoreErrorKind::Unavailable => Self::Pass(PassError::Bucket(error)),
            StoreErrorKind::NotFound | StoreErrorKind::TooLarge | StoreErrorKind::BadKey | StoreErrorKind::Other => {
                Self::held_back(format!("bucket: {error}"))
            }
        }
    }
}
