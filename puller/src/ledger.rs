//! The tables `archives` and `ingest_log`: what is loaded, and what was tried.

use std::collections::HashMap;

use clickhouse::Row;
use common::marker::Object;
use common::unit::{Period, Unit};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::corrections::version;
use crate::warehouse::{Warehouse, WarehouseError, quoted};

/// What the ledger holds of one archive of a unit.
#[derive(Debug, Clone, PartialEq, Eq, Row, Deserialize)]
pub(crate) struct Entry {
    pub object_key: String,
    pub sha256: String,
    /// ms
    pub generated_at: i64,
    pub rows: u64,
    /// µs
    pub first_open_time: i64,
    /// µs
    pub last_open_time: i64,
    pub rows_hash: u64,
}

impl Entry {
    /// The version its rows carry.
    pub(crate) fn version(&self, period: Period) -> u64 {
        version(Timestamp::from_millisecond(self.generated_at).unwrap_or_default(), period)
    }

    pub(crate) fn is(&self, object: &Object) -> bool {
        self.sha256 == object.sha256.to_string()
    }
}

/// A row of `archives`.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Loaded<'a> {
    #[serde(flatten)]
    pub unit: &'a Unit,
    pub symbol: &'a str,
    pub object_key: &'a str,
    pub sha256: String,
    pub size: u64,
    pub generated_at: Timestamp,
    pub rows: u64,
    pub expected_rows: u64,
    pub first_open_time: Timestamp,
    pub last_open_time: Timestamp,
    pub missing_rows: u64,
    pub rows_hash: u64,
    pub loaded_at: Timestamp,
    pub marker_id: &'a str,
    pub worker: &'a str,
}

/// A row of `ingest_log`.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Attempt<'a> {
    pub finished_at: Timestamp,
    pub started_at: Timestamp,
    pub destination: &'a str,
    #[serde(flatten)]
    pub unit: &'a Unit,
    pub revision: String,
    pub marker_id: &'a str,
    pub stream_sequence: u64,
    pub attempt: u32,
    pub worker: &'a str,
    pub outcome: &'a str,
    pub error_class: &'a str,
    pub error: &'a str,
    pub archives: u64,
    pub archives_loaded: u64,
    pub archives_skipped: u64,
    pub archives_failed: u64,
    pub rows: u64,
    pub bytes: u64,
    pub fetch_ms: u64,
    pub decode_ms: u64,
    pub insert_ms: u64,
    pub read_back_ms: u64,
    /// Empty for now.
    pub trace_id: &'a str,
}

impl Warehouse {
    /// The archives of a unit that are loaded, by object key: of each the one generated last.
    pub(crate) async fn ledger(&self, unit: &Unit) -> Result<HashMap<String, Entry>, WarehouseError> {
        let entries: Vec<Entry> = self.select(&entries_sql(unit)).await?;
        Ok(entries.into_iter().map(|entry| (entry.object_key.clone(), entry)).collect())
    }

    /// A text that changes with every attempt at the unit that ends, and with everything loaded of it.
    pub(crate) async fn unit_state(&self, unit: &Unit, destination: &str) -> Result<String, WarehouseError> {
        let unit = unit_condition(unit, true);
        self.select_one(&format!(
            "SELECT concat(ifNull(toString((SELECT max(loaded_at) FROM {{database}}.archives WHERE {unit})), ''), ' ', \
             toString(max(finished_at)), ' ', toString(count())) FROM {{database}}.ingest_log \
             WHERE destination = {} AND {unit}",
            quoted(destination)
        ))
        .await
    }

    pub(crate) async fn record_archives(&self, loaded: &[Loaded<'_>]) -> Result<(), WarehouseError> {
        self.insert_json("archives", loaded).await
    }

    pub(crate) async fn record_attempts(&self, attempts: &[Attempt<'_>]) -> Result<(), WarehouseError> {
        self.insert_json("ingest_log", attempts).await
    }

    async fn insert_json<T: Serialize>(&self, table: &str, rows: &[T]) -> Result<(), WarehouseError> {
        if rows.is_empty() {
            return Ok(());
        }
        let mut text = Vec::new();
        for row in rows {
            serde_json::to_writer(&mut text, row).expect("strings and numbers always serialise");
            text.push(b'\n');
        }
        let mut insert = self.insert(table, "JSONEachRow");
        insert.send(text).await?;
        insert.end().await
    }

    /// When this database last loaded an archive.
    pub(crate) async fn last_loaded(&self) -> Result<Option<Timestamp>, WarehouseError> {
        let ms: i64 = self.select_one("SELECT toUnixTimestamp64Milli(max(loaded_at)) FROM {database}.archives").await?;
        Ok(Timestamp::from_millisecond(ms).ok().filter(|at| *at > Timestamp::UNIX_EPOCH))
    }
}

fn entries_sql(unit: &Unit) -> String {
    format!(
        "SELECT object_key, sha256, toUnixTimestamp64Milli(generated_at) AS generated_at, rows, \
         toUnixTimestamp64Micro(first_open_time) AS first_open_time, \
         toUnixTimestamp64Micro(last_open_time) AS last_open_time, rows_hash \
         FROM {{database}}.archives FINAL WHERE {}",
        unit_condition(unit, true)
    )
}

/// The rows of a unit, or of its series over all periods.
pub(crate) fn unit_condition(unit: &Unit, period: bool) -> String {
    let series = format!(
        "exchange = {} AND market = {} AND dataset = {} AND interval = {}",
        quoted(unit.exchange.as_str()),
        quoted(unit.market.as_str()),
        quoted(unit.dataset.as_str()),
        quoted(unit.interval.as_str()),
    );
    if period { format!("{series} AND period = {}", quoted(&unit.period.to_string())) } else { series }
}
