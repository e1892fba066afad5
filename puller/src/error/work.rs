//! What can go wrong with a delivery.

use std::path::PathBuf;

use common::catalogue::one_of;
use common::marker::{Elsewhere, MarkerError};
use jiff::SignedDuration;
use nats::BusError;
use store::StoreError;

use crate::error::clickhouse::WarehouseError;
use archive::DecodeError;

/// What is wrong with one object of a unit; the unit's other objects are loaded all the same.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub(crate) enum ObjectFault {
    #[error("it is not in the bucket")]
    Missing,
    #[error("it is not what the marker says: {0}")]
    Differs(String),
    #[error("{0}")]
    Damaged(#[from] DecodeError),
    #[error("it is refused: {0}")]
    Refused(String),
    #[error(
        "this correction would take away {gone} of the {rows} rows that the archive had, more than corrections.shrink_limit \
         allows; look at the archive before you accept it"
    )]
    Shrunk { gone: u64, rows: u64 },
    #[error("ClickHouse does not show what was inserted: {0}")]
    NotReadBack(String),
    /// Of an archive that is loaded, and that may belong to another unit.
    #[error(
        "a correction of {unit} takes rows away that this archive may have too, and this archive, which is loaded, cannot be \
         fetched again: {fault}; put this object back, or upload this archive's own unit again, then retry"
    )]
    Needed { unit: String, fault: Box<ObjectFault> },
    #[error("it cannot be read, and others can: {0}")]
    Unreadable(String),
    #[error("its file cannot be read or written, and others can: {0}")]
    Unwritable(String),
    /// In a directory destination.
    #[error(
        "another file lies where it belongs, {}, which did not come from the stream and may be the only copy of what it \
         holds; it stays: move it away, then retry",
        .0.display()
    )]
    NotOurs(PathBuf),
}

impl ObjectFault {
    /// From the closed set of error classes.
    pub(crate) fn class(&self) -> ErrorClass {
        match self {
            Self::Missing => ErrorClass::Missing,
            Self::Differs(_) => ErrorClass::Mismatch,
            Self::Damaged(_) => ErrorClass::Damaged,
            Self::Refused(_) => ErrorClass::Refused,
            Self::Shrunk { .. } => ErrorClass::Shrunk,
            Self::NotReadBack(_) => ErrorClass::ReadBack,
            Self::Needed { fault, .. } => fault.class(),
            Self::Unreadable(_) => ErrorClass::Unreadable,
            Self::Unwritable(_) | Self::NotOurs(_) => ErrorClass::Unwritable,
        }
    }
}

/// An object and what is wrong with it.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{key}: {fault}")]
pub(crate) struct FaultyObject {
    pub key: String,
    pub fault: ObjectFault,
}

/// Why a unit could not be worked through.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WorkError {
    #[error(transparent)]
    Marker(#[from] MarkerError),
    #[error("there is no decoder for {0}: update the workers, then retry")]
    NoDecoder(String),
    /// Of the marker's manifest; an archive's faults are part of a finished [`crate::job::work::Work`].
    #[error("manifest {0}")]
    Manifest(FaultyObject),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Warehouse(#[from] WarehouseError),
    #[error("{path}: {source}", path = path.display())]
    Disk { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Queue(#[from] BusError),
    #[error(transparent)]
    Elsewhere(#[from] Elsewhere),
    #[error(
        "this machine's clock is {} s behind the NATS server's: synchronise it (NTP); nothing is judged by such a clock",
        .0.as_secs()
    )]
    ClockBehind(SignedDuration),
    #[error("a blocking step was lost: {0}")]
    Panicked(String),
    #[error(
        "it was delivered {deliveries} times, and {lost} times nobody said how that ended: the worker crashed, was killed, \
         or lost its lease; look in the workers' logs for a crash, for memory running out or for units without progress, \
         then retry"
    )]
    Exhausted { deliveries: u32, lost: u32 },
}

/// Stable names of what goes wrong, for `ingest_log`, dead letters and metrics; ordered by how final they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum ErrorClass {
    /// An object is not in the bucket.
    Missing,
    /// An object's bytes are not those the marker names.
    Mismatch,
    /// Inserted, but not found as inserted.
    ReadBack,
    /// An object cannot be read, while others can.
    Unreadable,
    /// A file cannot be read or written, while others can.
    Unwritable,
    /// ClickHouse gives up what is asked for this unit, and answers what is asked for others.
    TooHeavy,
    /// A server's answer that another try may change.
    Transient,
    /// A correction would remove too much.
    Shrunk,
    /// The message is not a marker.
    Malformed,
    /// The marker is of a schema this version does not read.
    Schema,
    /// The marker breaks a rule, or names what may not be loaded.
    Refused,
    /// No decoder for the dataset or the interval.
    Unsupported,
    /// The archive cannot be decoded.
    Damaged,
    /// A defect of ours.
    Internal,
    /// Delivered again and again, and no worker says how that ended.
    Exhausted,
}

impl ErrorClass {
    const ALL: [Self; 15] = [
        Self::Missing,
        Self::Mismatch,
        Self::ReadBack,
        Self::Unreadable,
        Self::Unwritable,
        Self::TooHeavy,
        Self::Transient,
        Self::Shrunk,
        Self::Malformed,
        Self::Schema,
        Self::Refused,
        Self::Unsupported,
        Self::Damaged,
        Self::Internal,
        Self::Exhausted,
    ];

    /// From the command line.
    ///
    /// # Errors
    /// It is none: what there is, and the nearest.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let names = Self::ALL.map(Self::as_str);
        one_of(text, &names)?;
        Self::ALL.into_iter().find(|class| class.as_str() == text).ok_or_else(|| format!("'{text}' is no class"))
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Mismatch => "mismatch",
            Self::ReadBack => "read_back",
            Self::Unreadable => "unreadable",
            Self::Unwritable => "unwritable",
            Self::TooHeavy => "too_heavy",
            Self::Transient => "transient",
            Self::Shrunk => "shrunk",
            Self::Malformed => "malformed",
            Self::Schema => "schema",
            Self::Refused => "refused",
            Self::Unsupported => "unsupported",
            Self::Damaged => "damaged",
            Self::Internal => "internal",
            Self::Exhausted => "exhausted",
        }
    }
}
