//! Whether a republished archive may take away as many rows of its former revision as it lacks.

use std::collections::{BTreeMap, HashMap, HashSet};

use archive::Interval;
use clickhouse::Row;
use common::marker::Object;
use common::unit::Unit;
use serde::Deserialize;

use crate::clickhouse::client::{Warehouse, quoted};
use crate::clickhouse::ledger::{Ledger, unit_condition};
use crate::clickhouse::series::between;
use crate::clickhouse::version::{OWN_VERSION, version};
use crate::error::clickhouse::WarehouseError;
use crate::error::work::ObjectFault;

/// An archive that is decoded and not loaded yet.
pub(crate) struct Candidate<'a> {
    pub object: &'a Object,
    /// µs
    pub open_times: &'a [i64],
}

/// The archives of a unit that would take away more of their former revisions' rows than they may, by object key.
///
/// To be asked before an archive is inserted whose former revision is recorded, and once more for the others after their
/// read-back has seen rows of another revision: a worker that died may have inserted a former revision without recording
/// it.
pub(crate) async fn exceeding_shrink_limit(
    warehouse: &Warehouse,
    unit: &Unit,
    candidates: impl Iterator<Item = Candidate<'_>>,
    ledger: &Ledger,
    shrink_limit: f64,
) -> Result<HashMap<String, ObjectFault>, WarehouseError> {
    let mut corrections = Vec::new();
    for candidate in candidates {
        let version = version(candidate.object.generated_at, unit.period);
        let former = ledger.get(&candidate.object.key);
        // An archive that was generated earlier than the one loaded corrects nothing: its rows lose where both have one.
        if former.is_none_or(|former| !former.is(candidate.object) && former.version(unit.period) < version) {
            corrections.push((candidate, version, former.map(|former| former.rows)));
        }
    }
    let versions: Vec<(&str, u64)> =
        corrections.iter().map(|(candidate, version, _)| (candidate.object.symbol.as_str(), *version)).collect();
    let shown = shown_of_older_revisions(warehouse, unit, &versions).await?;
    let mut faults = HashMap::new();
    for (Candidate { object, open_times }, _, recorded_rows) in corrections {
        let remaining: HashSet<i64> = open_times.iter().copied().collect();
        let shown = shown.get(&object.symbol).map(Vec::as_slice).unwrap_or_default();
        let gone = shown.iter().filter(|open_time| !remaining.contains(open_time)).count() as u64;
        let rows = match recorded_rows {
            // A revision that was inserted and not recorded may have had more.
            Some(rows) => rows.max(shown.len() as u64),
            // Looked at after the insert: beside those that go, the former revision had at most those that are replaced.
            None => gone + remaining.len() as u64,
        };
        if gone as f64 > rows as f64 * shrink_limit {
            faults.insert(object.key.clone(), ObjectFault::Shrunk { gone, rows });
        }
    }
    Ok(faults)
}

#[derive(Debug, Row, Deserialize)]
struct ShownRow {
    symbol: String,
    open_time: i64,
}

/// From when on (µs) a row of the period may be the next archive's: a candle of days may open before its archive's period.
fn ends_for_sure(unit: &Unit) -> i64 {
    let end = unit.period.end().as_microsecond();
    let interval = unit.interval.as_str().parse::<Interval>().ok().filter(|interval| interval.may_open_before_period());
    interval.map_or(end, |interval| end - interval.length_us() + 1)
}

/// open_times (µs), by symbol, that are shown with an older own version of the same kind than the given one.
async fn shown_of_older_revisions(
    warehouse: &Warehouse,
    unit: &Unit,
    versions: &[(&str, u64)],
) -> Result<BTreeMap<String, Vec<i64>>, WarehouseError> {
    if versions.is_empty() {
        return Ok(BTreeMap::new());
    }
    let list = |items: Vec<String>| items.join(", ");
    let symbols = list(versions.iter().map(|(symbol, _)| quoted(symbol)).collect());
    let numbers = list(versions.iter().map(|(_, version)| version.to_string()).collect());
    let sql = format!(
        "SELECT symbol::String AS symbol, toUnixTimestamp64Micro(open_time) AS open_time FROM {{database}}.klines FINAL \
         WHERE {series} AND symbol IN ({symbols}) AND {range} AND version % 2 = {kind} \
         AND {OWN_VERSION} < transform(klines.symbol::String, [{symbols}], [{numbers}]::Array(UInt64), toUInt64(0)) \
         ORDER BY symbol, open_time SETTINGS do_not_merge_across_partitions_select_final = 1",
        series = unit_condition(unit, false),
        range = between(unit.period.start().as_microsecond(), ends_for_sure(unit) - 1),
        kind = u8::from(unit.period.is_month()),
    );
    let mut by_symbol: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    for row in warehouse.select::<ShownRow>(&sql).await? {
        by_symbol.entry(row.symbol).or_default().push(row.open_time);
    }
    Ok(by_symbol)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    #[test]
    fn a_week_at_the_end_of_a_month_may_be_the_next_ones() {
        let last = |unit: &str| {
            let unit: Unit = unit.parse().expect("a unit");
            Timestamp::from_microsecond(ends_for_sure(&unit) - 1).expect("a time").to_string()
        };
        assert_eq!(last("binance/um/klines/1h/2026-01"), "2026-01-31T23:59:59.999999Z");
        assert_eq!(last("binance/um/klines/1w/2026-01"), "2026-01-25T00:00:00Z");
        assert_eq!(last("binance/um/klines/1mo/2026-01"), "2026-01-01T00:00:00Z");
    }
}
