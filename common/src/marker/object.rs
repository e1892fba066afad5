//! An object, as a manifest lists it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::checksum::Sha256Sum;

/// One archive of a unit, as it lies in the bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    pub key: String,
    pub symbol: String,
    /// Bytes.
    pub size: u64,
    pub sha256: Sha256Sum,
    /// When the exchange generated the archive; the archive generated last wins each open_time.
    pub generated_at: Timestamp,
}
