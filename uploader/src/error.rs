//! What can go wrong, by what follows from it: the end of a pass, or one unit held back.

use std::io;
use std::path::PathBuf;

use common::exit;
use common::object_store::{StoreError, StoreErrorKind};
use nats::BusError;

/// Ends a pass: nothing else would fare better.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum PassError {
    #[error("local.data_dir: {} cannot be read: {why}", dir.display())]
    DataDir { dir: PathBuf, why: String },
    #[error("bucket: {0}; {advice}", advice = .0.advice())]
    Bucket(StoreError),
    #[error("{0}; check nats.url and its credentials")]
    Queue(BusError),
    #[error("stopped by a signal")]
    Stopped,
    #[error(
        "nowhere to keep archives while they are checked: {0}; set local.state_dir to a folder that can be written"
    )]
    Scratch(String),
}

impl PassError {
    pub(crate) fn data_dir(dir: PathBuf, error: &io::Error) -> Self {
        Self::DataDir { dir, why: error.to_string() }
    }

    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::DataDir { .. } | Self::Queue(_) | Self::Scratch(_) => exit::USAGE,
            Self::Bucket(error) => match error.kind {
                StoreErrorKind::NoSuchBucket | StoreErrorKind::Denied | StoreErrorKind::ClockSkew => exit::USAGE,
                StoreErrorKind::Unavailable => exit::UNREACHABLE,
                StoreErrorKind::NotFound | StoreErrorKind::TooLarge | StoreErrorKind::Other => exit::SOME_FAILED,
            },
            Self::Stopped => exit::SOME_FAILED,
        }
    }
}

/// Ends the work on one unit.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnitError {
    /// The unit is not announced; one line a reason. The next run looks again.
    #[error("{}", .0.join("; "))]
    HeldBack(Vec<String>),
    #[error("{0}")]
    Pass(PassError),
}

impl UnitError {
    pub(crate) fn held_back(reason: impl Into<String>) -> Self {
        Self::HeldBack(vec![reason.into()])
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
            StoreErrorKind::NotFound | StoreErrorKind::TooLarge | StoreErrorKind::Other => {
                Self::held_back(format!("bucket: {error}"))
            }
        }
    }
}
