//! Days that are expected and not loaded.

use clickhouse::Row;
use serde::{Deserialize, Serialize};

use crate::clickhouse::client::Warehouse;
use crate::error::clickhouse::WarehouseError;

/// Days of a symbol that lie side by side, or would if a candle opened on each.
#[derive(Debug, Row, Serialize, Deserialize)]
pub(crate) struct DayRange {
    pub series: String,
    pub symbol: String,
    pub state: String,
    pub first: String,
    pub last: String,
    pub days: u64,
}

/// Two kinds of days: those that no archive covers, and those of which the archive of their month, which is short of so
/// many rows, has none, and no archive of a day either. Days before the symbol's first row and after its last are not
/// among the latter: it was listed later, or delisted. Days side by side are one range: each is ahead of its place among
/// the symbol's days by the same number. An archive may stand in the ledger under several keys.
const RANGES: &str = "\
    WITH partial AS ( \
        SELECT DISTINCT exchange, market, dataset, interval, symbol, toDate(concat(period, '-01')) AS month \
        FROM {database}.coverage \
        WHERE state = 'partial' AND length(period) = 7 AND interval NOT IN ('3d', '1w', '1mo') \
            AND missing_rows * 32 > expected_rows AND {conditions} \
    ), traded AS ( \
        SELECT exchange, market, dataset, interval, symbol, \
            toDate(min(first_open_time)) AS first_day, toDate(max(last_open_time)) AS last_day \
        FROM {database}.archives FINAL \
        WHERE rows > 0 AND (exchange, market, dataset, interval, symbol) IN ( \
                SELECT exchange, market, dataset, interval, symbol FROM partial) \
        GROUP BY exchange, market, dataset, interval, symbol \
    ), present AS ( \
        SELECT exchange, market, dataset, interval, symbol, groupUniqArray(toDate(open_time)) AS days \
        FROM {database}.klines_latest \
        WHERE (exchange, market, dataset, interval, symbol) IN ( \
                SELECT exchange, market, dataset, interval, symbol FROM partial) \
            AND toStartOfMonth(open_time) IN (SELECT month FROM partial) \
        GROUP BY exchange, market, dataset, interval, symbol \
    ), days AS ( \
        SELECT DISTINCT exchange, market, dataset, interval, symbol, 'missing' AS kind, toDate(period) AS day \
        FROM {database}.coverage WHERE state = 'missing' AND {conditions} \
        UNION ALL \
        SELECT exchange, market, dataset, interval, symbol, 'empty' AS kind, day \
        FROM partial INNER JOIN traded USING (exchange, market, dataset, interval, symbol) \
            LEFT JOIN present USING (exchange, market, dataset, interval, symbol) \
        ARRAY JOIN arrayFilter(day -> day > first_day AND day < last_day AND NOT has(days, day), \
            arrayMap(n -> addDays(month, n), range(toUInt32(toDayOfMonth(toLastDayOfMonth(month)))))) AS day \
    ) \
    SELECT series, symbol, kind AS state, toString(min(day)) AS first, toString(max(day)) AS last, count() AS days \
    FROM ( \
        SELECT concat(exchange, '/', market, '/', dataset, '/', interval)::String AS series, symbol::String AS symbol, \
            kind, day, \
            multiIf(interval = '3d', intDiv(toRelativeDayNum(day), 3), interval = '1w', toRelativeWeekNum(day), \
                interval = '1mo', toRelativeMonthNum(day), toRelativeDayNum(day)) \
                - row_number() OVER (PARTITION BY exchange, market, dataset, interval, symbol, kind ORDER BY day) AS island \
        FROM days \
    ) GROUP BY series, symbol, kind, island ORDER BY series, symbol, first";

impl Warehouse {
    /// Missing days among the archives for which a condition holds.
    pub(crate) async fn missing_days(&self, condition: &str) -> Result<Vec<DayRange>, WarehouseError> {
        self.select(&RANGES.replace("{conditions}", condition)).await
    }

    /// How many archives of the ledger a condition holds for; all of them without one.
    pub(crate) async fn loaded_archives(&self, condition: Option<&str>) -> Result<u64, WarehouseError> {
        let condition = condition.unwrap_or("true");
        self.select_one(&format!("SELECT count() FROM {{database}}.archives FINAL WHERE {condition}")).await
    }
}
