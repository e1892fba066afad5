//! The tables `archives` and `ingest_log`: what is loaded, and what was tried.

use std::collections::HashMap;

use clickhouse::Row;
use common::marker::Object;
use common::unit::{Period, Unit};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::clickhouse::client::{Warehouse, quoted};
use crate::clickhouse::version::version;
use crate::error::clickhouse::WarehouseError;
use archive::{Interval, Outline};

/// The archives of one unit that are loaded, by object key.
pub(crate) type Ledger = HashMap<String, LedgerEntry>;

/// What the ledger holds of one archive of a unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LedgerEntry {
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

impl LedgerEntry {
    /// The version its rows carry.
    pub(crate) fn version(&self, period: Period) -> u64 {
        version(Timestamp::from_millisecond(self.generated_at).unwrap_or_default(), period)
    }

    pub(crate) fn is(&self, object: &Object) -> bool {
        self.sha256 == object.sha256.to_string()
    }

    /// Whether loading the object would change nothing. An archive that came back after another one of its own time stamp
    /// is announced with a later time than it was loaded with, and its rows must outrank that other one's.
    pub(crate) fn covers(&self, object: &Object, period: Period) -> bool {
        self.is(object) && self.version(period) >= version(object.generated_at, period)
    }

    /// Whether what is recorded was generated later than the object: the archive generated last decides, so the object
    /// changes nothing. An exchange that goes back to former bytes is shown only once the uploader dates them anew.
    pub(crate) fn outranks(&self, object: &Object, period: Period) -> bool {
        !self.is(object) && self.version(period) > version(object.generated_at, period)
    }

    /// What is to be said of an object of this unit that the recorded one outranks.
    pub(crate) fn stays(&self, object: &Object, unit: &Unit) -> String {
        let loaded = Timestamp::from_millisecond(self.generated_at).unwrap_or_default();
        format!(
            "what is loaded, of {loaded}, was generated later than what is announced, of {}: it stays; `uploader upload \
             --accept-rollback {unit}` announces the earlier bytes as new",
            object.generated_at
        )
    }
}

/// An archive of a series that is recorded, of any of its periods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RecordedArchive {
    pub unit: Unit,
    pub object: Object,
    pub version: u64,
    pub rows: u64,
    /// µs
    pub first_open_time: i64,
    /// µs
    pub last_open_time: i64,
    pub rows_hash: u64,
}

impl RecordedArchive {
    /// Whether it may have a row of this open_time (µs).
    pub(crate) fn may_have(&self, open_time: i64) -> bool {
        (self.first_open_time..=self.last_open_time).contains(&open_time)
    }
}

#[derive(Debug, Row, Deserialize)]
struct ArchiveLine {
    symbol: String,
    period: String,
    object_key: String,
    sha256: String,
    size: u64,
    generated_at: i64,
    rows: u64,
    first_open_time: i64,
    last_open_time: i64,
    rows_hash: u64,
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

pub(crate) const ARCHIVES: &str = "archives";
pub(crate) const LOG: &str = "ingest_log";

/// Rows for [`Warehouse::insert_lines`].
pub(crate) fn json_lines<T: Serialize>(rows: &[T]) -> Vec<u8> {
    let mut text = Vec::new();
    for row in rows {
        serde_json::to_writer(&mut text, row).expect("strings and numbers always serialise");
        text.push(b'\n');
    }
    text
}

impl Warehouse {
    /// The archives of a unit that are loaded, by object key: of each the one generated last.
    pub(crate) async fn ledger(&self, unit: &Unit) -> Result<Ledger, WarehouseError> {
        Ok(self.ledgers(std::slice::from_ref(unit)).await?.pop().unwrap_or_default())
    }

    /// The same of several units, in their order.
    pub(crate) async fn ledgers(&self, units: &[Unit]) -> Result<Vec<Ledger>, WarehouseError> {
        let sql = format!(
            "SELECT concat(exchange, '/', market, '/', dataset, '/', interval, '/', period) AS unit, \
             object_key, sha256, toUnixTimestamp64Milli(generated_at) AS generated_at, rows, \
             toUnixTimestamp64Micro(first_open_time) AS first_open_time, \
             toUnixTimestamp64Micro(last_open_time) AS last_open_time, rows_hash \
             FROM {{database}}.archives FINAL WHERE (exchange, market, dataset, interval, period) IN ({})",
            units.iter().map(unit_tuple).collect::<Vec<_>>().join(", "),
        );
        let mut ledgers: HashMap<String, Ledger> = HashMap::new();
        for (unit, object_key, sha256, generated_at, rows, first_open_time, last_open_time, rows_hash) in
            self.select::<(String, String, String, i64, u64, i64, i64, u64)>(&sql).await?
        {
            let entry = LedgerEntry { sha256, generated_at, rows, first_open_time, last_open_time, rows_hash };
            ledgers.entry(unit).or_default().insert(object_key, entry);
        }
        Ok(units.iter().map(|unit| ledgers.get(&unit.to_string()).cloned().unwrap_or_default()).collect())
    }

    /// The recorded archives of these symbols, of all periods that may have rows in a range (µs) of the unit's series, by
    /// symbol.
    pub(crate) async fn archives_of_range(
        &self,
        unit: &Unit,
        symbols: &[&str],
        (first, last): (i64, i64),
    ) -> Result<HashMap<String, Vec<RecordedArchive>>, WarehouseError> {
        // A candle of days may open before the period of its archive.
        let interval =
            unit.interval.as_str().parse::<Interval>().ok().filter(|interval| interval.may_open_before_period());
        let last_period = last + interval.map_or(0, Interval::length_us);
        let month = |us: i64| Timestamp::from_microsecond(us).unwrap_or_default().strftime("%Y-%m").to_string();
        let sql = format!(
            "SELECT symbol::String AS symbol, period, object_key, sha256, size, \
             toUnixTimestamp64Milli(generated_at) AS generated_at, rows, \
             toUnixTimestamp64Micro(first_open_time) AS first_open_time, \
             toUnixTimestamp64Micro(last_open_time) AS last_open_time, rows_hash FROM {{database}}.archives FINAL \
             WHERE {series} AND period BETWEEN {from} AND {to} AND archives.symbol IN ({symbols}) ORDER BY loaded_at",
            series = unit_condition(unit, false),
            from = quoted(&month(first)),
            // The last day's name is after the month's and those of its other days.
            to = quoted(&format!("{}-31", month(last_period))),
            symbols = symbols.iter().copied().map(quoted).collect::<Vec<_>>().join(", "),
        );
        let mut archives: HashMap<String, Vec<RecordedArchive>> = HashMap::new();
        for line in self.select::<ArchiveLine>(&sql).await? {
            let ArchiveLine { symbol, period, object_key: key, sha256, size, generated_at, .. } = line;
            let wrong = |what: &str| WarehouseError::wrong(format!("the ledger's {what} of {key} is not understood"));
            let period: Period = period.parse().map_err(|_| wrong("period"))?;
            let sha256 = sha256.parse().map_err(|_| wrong("sha256"))?;
            let generated_at = Timestamp::from_millisecond(generated_at).map_err(|_| wrong("generated_at"))?;
            let version = version(generated_at, period);
            let unit = Unit { period, ..unit.clone() };
            let object = Object { key, symbol: symbol.clone(), size, sha256, generated_at };
            let ArchiveLine { rows, first_open_time, last_open_time, rows_hash, .. } = line;
            let archive = RecordedArchive { unit, object, version, rows, first_open_time, last_open_time, rows_hash };
            let archives = archives.entry(symbol).or_default();
            // Where the bucket's prefix was another one before, the ledger has an archive under both keys.
            match archives.iter_mut().find(|known| known.unit.period == period) {
                Some(known) if known.version > version => {}
                Some(known) => *known = archive,
                None => archives.push(archive),
            }
        }
        Ok(archives)
    }

    /// The server's clock, in ms.
    pub(crate) async fn clock(&self) -> Result<i64, WarehouseError> {
        self.select_one("SELECT toUnixTimestamp64Milli(now64(3))").await
    }

    pub(crate) async fn record_attempts(&self, attempts: &[Attempt<'_>]) -> Result<(), WarehouseError> {
        self.insert_lines(LOG, &[json_lines(attempts)]).await
    }

    /// Inserts rows that are JSON objects, one a line.
    pub(crate) async fn insert_lines(&self, table: &str, texts: &[Vec<u8>]) -> Result<(), WarehouseError> {
        let text = texts.concat();
        if text.is_empty() {
            return Ok(());
        }
        let mut insert = self.insert(table, "JSONEachRow");
        insert.send(text).await?;
        insert.end().await
    }

    /// Since when this database is a destination: when its tables were made, or the first of its archives was loaded.
    pub(crate) async fn served_since(&self) -> Result<Option<Timestamp>, WarehouseError> {
        // The least of no rows is the epoch, as is that of an empty table. Migrations are dated to the second: its beginning
        // may lie before a marker that was there already.
        let sql = "SELECT min(ms) FROM (\
                   SELECT toInt64(toUnixTimestamp(min(applied_at)) + 1) * 1000 AS ms FROM {database}.schema_migrations \
                   UNION ALL SELECT toUnixTimestamp64Milli(min(loaded_at)) AS ms FROM {database}.archives) \
                   WHERE ms > 1000";
        let ms: i64 = self.select_one(sql).await?;
        Ok(Timestamp::from_millisecond(ms).ok().filter(|at| *at > Timestamp::UNIX_EPOCH))
    }

    /// When this database last loaded an archive.
    pub(crate) async fn last_loaded(&self) -> Result<Option<Timestamp>, WarehouseError> {
        let ms: i64 = self.select_one("SELECT toUnixTimestamp64Milli(max(loaded_at)) FROM {database}.archives").await?;
        Ok(Timestamp::from_millisecond(ms).ok().filter(|at| *at > Timestamp::UNIX_EPOCH))
    }
}

fn unit_tuple(unit: &Unit) -> String {
    let columns = [&unit.exchange, &unit.market, &unit.dataset, &unit.interval].map(|token| quoted(token.as_str()));
    format!("({}, {})", columns.join(", "), quoted(&unit.period.to_string()))
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
/// What the ledger says of an archive, beside its names.
pub(crate) struct ArchiveFacts {
    pub rows: u64,
    pub expected_rows: u64,
    pub missing_rows: u64,
    pub first_open_time: Option<i64>,
    pub last_open_time: Option<i64>,
    pub rows_hash: u64,
}

impl ArchiveFacts {
    pub(crate) fn of(outline: &Outline) -> Self {
        Self {
            rows: outline.open_times.len() as u64,
            expected_rows: outline.expected_rows,
            missing_rows: outline.missing_rows,
            first_open_time: outline.open_times.first().copied(),
            last_open_time: outline.open_times.last().copied(),
            rows_hash: outline.hash(),
        }
    }
}
