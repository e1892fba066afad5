//! The proof: what ClickHouse now shows is what the archive held.
//!
//! Per archive the rows of its version are counted and hashed by the server and compared with our own count and hash.
//! Where they differ, other archives have rows among ours, and each open_time is looked at by itself.

use std::collections::HashMap;

use clickhouse::Row;
use common::unit::Unit;
use serde::Deserialize;

use crate::decode::{Kline, Klines};
use crate::ledger::unit_condition;
use crate::warehouse::{Warehouse, WarehouseError, quoted};

/// The server's hash of a row. ClickHouse computes the same for the same column types in all versions since 1.1, since
/// sharding depends on it; [`check_hash_function`] asks each server all the same.
const ROW_HASH: &str = "cityHash64(open_time, close_time, open, high, low, close, volume, quote_volume, \
     taker_buy_volume, taker_buy_quote_volume, trades)";

/// One archive's rows as they must be found.
pub(crate) struct Expected<'a> {
    pub symbol: &'a str,
    pub version: u64,
    pub klines: &'a Klines,
    pub rows_hash: u64,
}

#[derive(Debug, Row, Deserialize)]
struct Group {
    symbol: String,
    version: u64,
    rows: u64,
    hash: u64,
}

#[derive(Debug, Row, Deserialize)]
struct Stored {
    at: i64,
    newest: u64,
    hashes: Vec<u64>,
}

impl Warehouse {
    /// Compares; returns one answer per expected archive, `Err` saying what is not there.
    pub(crate) async fn read_back(
        &self,
        unit: &Unit,
        expected: &[Expected<'_>],
    ) -> Result<Vec<Result<(), String>>, WarehouseError> {
        let first = expected.iter().filter_map(|e| e.klines.first_open_time()).min();
        let last = expected.iter().filter_map(|e| e.klines.last_open_time()).max();
        let (Some(first), Some(last)) = (first, last) else { return Ok(Vec::new()) };
        let symbols: Vec<String> = expected.iter().map(|e| quoted(e.symbol)).collect();
        let sql = format!(
            "SELECT symbol::String AS symbol, version, count() AS rows, sum({ROW_HASH}) AS hash FROM {{database}}.klines FINAL \
             WHERE {} AND symbol IN ({}) AND {} GROUP BY symbol, version \
             SETTINGS do_not_merge_across_partitions_select_final = 1",
            unit_condition(unit, false),
            symbols.join(", "),
            between(first, last),
        );
        let groups: Vec<Group> = self.select(&sql).await?;
        let found: HashMap<(&str, u64), &Group> =
            groups.iter().map(|group| ((group.symbol.as_str(), group.version), group)).collect();
        let mut answers = Vec::with_capacity(expected.len());
        for archive in expected {
            let same = found
                .get(&(archive.symbol, archive.version))
                .is_some_and(|group| group.rows == archive.klines.len() as u64 && group.hash == archive.rows_hash);
            answers.push(if same { Ok(()) } else { self.row_by_row(unit, archive).await? });
        }
        Ok(answers)
    }

    /// Every open_time of the archive must show its own row, or what an archive generated later says of it.
    async fn row_by_row(&self, unit: &Unit, expected: &Expected<'_>) -> Result<Result<(), String>, WarehouseError> {
        let range = (expected.klines.first_open_time(), expected.klines.last_open_time());
        let (Some(first), Some(last)) = range else { return Ok(Ok(())) };
        // Several rows may share the highest version, where two archives were generated in the same two seconds.
        let sql = format!(
            "SELECT toUnixTimestamp64Micro(open_time) AS at, max(version) AS newest, \
             groupUniqArrayIf({ROW_HASH}, version = {version} AND is_deleted = 0) AS hashes \
             FROM {{database}}.klines WHERE {series} AND symbol = {symbol} AND {range} GROUP BY open_time",
            version = expected.version,
            series = unit_condition(unit, false),
            symbol = quoted(expected.symbol),
            range = between(first, last),
        );
        let stored: Vec<Stored> = self.select(&sql).await?;
        let stored: HashMap<i64, Stored> = stored.into_iter().map(|row| (row.at, row)).collect();
        for (index, open_time) in expected.klines.open_time.iter().enumerate() {
            let wrong = match stored.get(open_time) {
                None => "is not there",
                Some(row) if row.newest > expected.version => continue,
                Some(row) if row.newest < expected.version => "is that of an older archive",
                Some(row) if row.hashes.contains(&expected.klines.row_hash(index)) => continue,
                Some(_) => "has other values",
            };
            return Ok(Err(format!("{}: the row of open_time {open_time} µs {wrong}", expected.symbol)));
        }
        Ok(Ok(()))
    }
}

/// Asks the server to hash two known rows, so that a server that hashes otherwise is noticed before it makes every
/// load look wrong.
pub(crate) async fn check_hash_function(warehouse: &Warehouse) -> Result<(), WarehouseError> {
    let rows = [
        Kline {
            open_time: 1_735_689_600_000_000,
            close_time: 1_735_689_659_999_999,
            open: 9_357_600_000_000,
            high: 9_361_098_000_000,
            low: 9_353_745_000_000,
            close: -1,
            volume: 827_151_000,
            quote_volume: 77_390_228_290_000_000_000_000_000,
            taker_buy_volume: 0,
            taker_buy_quote_volume: -77_390,
            trades: 1_631,
        },
        Kline {
            open_time: 0,
            close_time: 0,
            open: 0,
            high: 0,
            low: 0,
            close: 0,
            volume: 0,
            quote_volume: 0,
            taker_buy_volume: 0,
            taker_buy_quote_volume: 0,
            trades: 0,
        },
    ];
    let mut klines = Klines::default();
    rows.iter().for_each(|row| klines.push(row));
    let literal = |row: &Kline| {
        let price = |value: i64| format!("reinterpret(toInt64({value}), 'Decimal(18, 8)')");
        let volume = |value: i128| format!("reinterpret(toInt128('{value}'), 'Decimal(38, 8)')");
        format!(
            "cityHash64(fromUnixTimestamp64Micro({}, 'UTC'), fromUnixTimestamp64Micro({}, 'UTC'), {}, {}, {}, {}, {}, {}, {}, {}, toUInt64({}))",
            row.open_time,
            row.close_time,
            price(row.open),
            price(row.high),
            price(row.low),
            price(row.close),
            volume(row.volume),
            volume(row.quote_volume),
            volume(row.taker_buy_volume),
            volume(row.taker_buy_quote_volume),
            row.trades,
        )
    };
    let sql = format!("SELECT {} + {}", literal(&rows[0]), literal(&rows[1]));
    let answer: u64 = warehouse.select_one(&sql).await?;
    if answer == klines.hash() {
        return Ok(());
    }
    Err(WarehouseError::wrong("it computes cityHash64 of a row otherwise than known; rows could not be verified"))
}

fn between(first: i64, last: i64) -> String {
    format!("open_time BETWEEN fromUnixTimestamp64Micro({first}, 'UTC') AND fromUnixTimestamp64Micro({last}, 'UTC')")
}
