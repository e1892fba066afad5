//! Attempts, as `ingest_log` has them.

use clickhouse::Row;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::clickhouse::client::{Warehouse, quoted};
use crate::error::clickhouse::WarehouseError;

/// A row of `ingest_log`.
#[derive(Debug, Row, Serialize, Deserialize)]
pub(crate) struct PastAttempt {
    pub finished_at: i64,
    pub destination: String,
    pub unit: String,
    pub outcome: String,
    pub error_class: String,
    pub error: String,
    pub attempt: u32,
    pub revision: String,
    pub stream_sequence: u64,
    pub worker: String,
    pub archives: u64,
    pub archives_loaded: u64,
    pub archives_skipped: u64,
    pub archives_failed: u64,
    pub rows: u64,
    pub bytes: u64,
    pub duration_ms: i64,
}

impl PastAttempt {
    pub(crate) fn at(&self) -> Timestamp {
        Timestamp::from_millisecond(self.finished_at).unwrap_or_default()
    }
}

impl Warehouse {
    /// The newest attempts of a destination for which a condition holds.
    pub(crate) async fn attempts(
        &self,
        destination: &str,
        condition: &str,
        limit: u32,
    ) -> Result<Vec<PastAttempt>, WarehouseError> {
        let sql = format!(
            "SELECT toUnixTimestamp64Milli(finished_at) AS finished_at, destination::String AS destination, \
             concat(exchange, '/', market, '/', dataset, '/', interval, '/', period)::String AS unit, \
             outcome::String AS outcome, error_class::String AS error_class, error, attempt, revision, stream_sequence, \
             worker, archives, archives_loaded, archives_skipped, archives_failed, rows, bytes, \
             finished_at - toUnixTimestamp64Milli(started_at) AS duration_ms \
             FROM {{database}}.ingest_log WHERE destination = {} AND {condition} ORDER BY finished_at DESC LIMIT {limit}",
            quoted(destination)
        );
        self.select(&sql).await
    }
}
