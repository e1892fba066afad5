//! What is stored of single open_times.

use std::collections::{BTreeMap, HashMap, HashSet};

use archive::Kline;
use clickhouse::Row;
use common::unit::Unit;
use serde::Deserialize;

use crate::clickhouse::client::{Warehouse, quoted};
use crate::clickhouse::ledger::{RecordedArchive, unit_condition};
use crate::clickhouse::read_back::ROW_HASH;
use crate::clickhouse::series::between;
use crate::clickhouse::version::{OWN_VERSION, RANKED};
use crate::error::clickhouse::WarehouseError;

/// An open_time of a symbol, and the row of it with the highest version.
#[derive(Debug, Row, Deserialize)]
pub(crate) struct StoredKey {
    pub name: String,
    pub at: i64,
    pub top: u64,
    pub deleted: u8,
    pub hash: u64,
}

/// Rows of an archive, by open_time.
pub(crate) type RowsOfArchive = HashMap<i64, Kline>;
/// A row of `klines` as it is stored: decimals scaled by 10^8.
#[derive(Debug, Row, Deserialize)]
struct StoredKline {
    open_us: i64,
    close_us: i64,
    open_: i64,
    high_: i64,
    low_: i64,
    close_: i64,
    volume_: i128,
    quote_volume_: i128,
    taker_buy_volume_: i128,
    taker_buy_quote_volume_: i128,
    trades: u64,
}

impl From<StoredKline> for Kline {
    fn from(row: StoredKline) -> Self {
        Self {
            open_time: row.open_us,
            close_time: row.close_us,
            open: row.open_,
            high: row.high_,
            low: row.low_,
            close: row.close_,
            volume: row.volume_,
            quote_volume: row.quote_volume_,
            taker_buy_volume: row.taker_buy_volume_,
            taker_buy_quote_volume: row.taker_buy_quote_volume_,
            trades: row.trades,
        }
    }
}

impl Warehouse {
    /// What is stored of open_times with rows that have a rank epoch, are tombstones, or are shown and of the unit's kind
    /// with another version than the recorded archive's.
    pub(crate) async fn unproven_keys(
        &self,
        unit: &Unit,
        recorded: &BTreeMap<&str, u64>,
        (first, last): (i64, i64),
    ) -> Result<Vec<StoredKey>, WarehouseError> {
        let symbols = recorded.keys().copied().map(quoted).collect::<Vec<_>>().join(", ");
        let versions = recorded.values().map(u64::to_string).collect::<Vec<_>>().join(", ");
        let sql = format!(
            "SELECT klines.symbol::String AS name, toUnixTimestamp64Micro(open_time) AS at, max(version) AS top, \
             argMax(is_deleted, version) AS deleted, argMax({ROW_HASH}, version) AS hash \
             FROM {{database}}.klines WHERE {series} AND klines.symbol IN ({symbols}) AND {range} \
             GROUP BY name, open_time HAVING top >= {RANKED} OR deleted = 1 OR (top % 2 = {kind} \
             AND top != transform(name, [{symbols}], [{versions}]::Array(UInt64), toUInt64(0))) ORDER BY name, at",
            series = unit_condition(unit, false),
            range = between(first, last),
            kind = u8::from(unit.period.is_month()),
        );
        self.select(&sql).await
    }

    /// The archive's rows of these open_times from what is stored, if all of its rows still are.
    pub(crate) async fn stored_rows_of(
        &self,
        archive: &RecordedArchive,
        times: &HashSet<i64>,
    ) -> Result<Option<RowsOfArchive>, WarehouseError> {
        let rows = format!(
            "{series} AND symbol = {symbol} AND {range} AND {OWN_VERSION} = {version} AND is_deleted = 0",
            series = unit_condition(&archive.unit, false),
            symbol = quoted(&archive.object.symbol),
            range = between(archive.first_open_time, archive.last_open_time),
            version = archive.version,
        );
        let all = format!(
            "SELECT count(), sum(hash) FROM (SELECT any({ROW_HASH}) AS hash FROM {{database}}.klines WHERE {rows} \
             GROUP BY open_time)"
        );
        if self.select_one::<(u64, u64)>(&all).await? != (archive.rows, archive.rows_hash) {
            return Ok(None);
        }
        let times = times.iter().map(i64::to_string).collect::<Vec<_>>().join(", ");
        let sql = format!(
            "SELECT toUnixTimestamp64Micro(open_time) AS open_us, toUnixTimestamp64Micro(close_time) AS close_us, \
             reinterpret(open, 'Int64') AS open_, reinterpret(high, 'Int64') AS high_, reinterpret(low, 'Int64') AS low_, \
             reinterpret(close, 'Int64') AS close_, reinterpret(volume, 'Int128') AS volume_, \
             reinterpret(quote_volume, 'Int128') AS quote_volume_, \
             reinterpret(taker_buy_volume, 'Int128') AS taker_buy_volume_, \
             reinterpret(taker_buy_quote_volume, 'Int128') AS taker_buy_quote_volume_, trades \
             FROM {{database}}.klines WHERE {rows} AND toUnixTimestamp64Micro(open_time) IN ({times}) \
             LIMIT 1 BY open_time"
        );
        let stored: Vec<StoredKline> = self.select(&sql).await?;
        Ok(Some(stored.into_iter().map(Kline::from).map(|row| (row.open_time, row)).collect()))
    }
}
