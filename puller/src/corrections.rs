//! A republished archive: its version, and whether it may take away as many rows of its former revision as it lacks.
//!
//! A row's `version` has two parts:
//!
//! | bits | name | meaning |
//! |---|---|---|
//! | low 48 | own version | when the archive that brought the row was generated, in ms: even for a day's archive, odd for a month's |
//! | high 16 | rank epoch | 0 as an archive's rows are loaded; 1 and more where [`crate::superseded_rows`] wrote a row again, or a tombstone |
//!
//! Own versions decide which archive's row is right; the rank epoch makes the engine show it where own versions alone would
//! show another one: a row that only a former revision had, or a tombstone above a row that another archive has.

use std::collections::{BTreeMap, HashMap, HashSet};

use clickhouse::Row;
use common::marker::Object;
use common::unit::{Period, Unit};
use jiff::Timestamp;
use serde::Deserialize;

use crate::error::ObjectFault;
use crate::ledger::{Ledger, unit_condition};
use crate::native::{Slice, UnitColumns};
use crate::series::between;
use crate::warehouse::{Warehouse, WarehouseError, quoted};
use archive::Interval;

const OWN_VERSION_BITS: u32 = 48;
/// The lowest version with a rank epoch of 1.
pub(crate) const RANKED: u64 = 1 << OWN_VERSION_BITS;
/// [`own_version`] of a row of `klines`, in SQL.
pub(crate) const OWN_VERSION: &str = "bitAnd(klines.version, 281474976710655)";

/// The version of an archive's rows as they are loaded: when it was generated, in ms, made even for a day's archive; a
/// month's is one less.
///
/// Zip time stamps are whole pairs of seconds, so they are even as they are, and a day generated at the same time as its
/// month wins.
pub(crate) fn version(generated_at: Timestamp, period: Period) -> u64 {
    let even = u64::try_from(generated_at.as_millisecond()).unwrap_or_default().min(RANKED - 1) & !1;
    if period.is_month() { even.saturating_sub(1) } else { even }
}

/// What [`version`] was of the archive that brought a row with this version.
pub(crate) fn own_version(version: u64) -> u64 {
    version & (RANKED - 1)
}

/// The version with which a row of this own version outranks a row that is stored with `outranked`; `None` if there are no
/// more rank epochs.
pub(crate) fn outranking(outranked: u64, own_version: u64) -> Option<u64> {
    let epoch = (outranked >> OWN_VERSION_BITS) + 1;
    (epoch < 1 << (u64::BITS - OWN_VERSION_BITS)).then_some(epoch << OWN_VERSION_BITS | own_version)
}

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
        let kept: HashSet<i64> = open_times.iter().copied().collect();
        let shown = shown.get(&object.symbol).map(Vec::as_slice).unwrap_or_default();
        let gone = shown.iter().filter(|open_time| !kept.contains(open_time)).count() as u64;
        let rows = match recorded_rows {
            // A revision that was inserted and not recorded may have had more.
            Some(rows) => rows.max(shown.len() as u64),
            // Looked at after the insert: beside those that go, the former revision had at most those that are replaced.
            None => gone + kept.len() as u64,
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

/// Inserts slices into `klines`; `progress` is called after every block.
pub(crate) async fn insert(
    warehouse: &Warehouse,
    slices: &[Slice<'_>],
    progress: impl Fn(),
) -> Result<(), WarehouseError> {
    let mut insert = warehouse.insert("klines", "Native");
    for block in crate::native::blocks(slices) {
        insert.send(block).await?;
        progress();
    }
    insert.end().await
}

pub(crate) fn columns(unit: &Unit) -> UnitColumns<'_> {
    UnitColumns {
        exchange: unit.exchange.as_str(),
        market: unit.market.as_str(),
        dataset: unit.dataset.as_str(),
        interval: unit.interval.as_str(),
    }
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn versions_tell_days_from_months() {
        let at = |ms| Timestamp::from_millisecond(ms).expect("a time");
        let (day, month) = ("2026-02-14".parse().expect("a day"), "2026-02".parse().expect("a month"));
        assert_eq!(version(at(1_771_116_240_000), day), 1_771_116_240_000);
        assert_eq!(version(at(1_771_116_240_001), day), 1_771_116_240_000);
        assert_eq!(version(at(1_771_116_240_000), month), 1_771_116_239_999);
        assert!(version(at(1_771_116_240_002), month) > version(at(1_771_116_240_000), day));
    }

    #[test]
    fn a_rank_epoch_outranks_every_own_version_below_it() {
        let loaded = version(
            Timestamp::from_millisecond(1_771_116_240_000).expect("a time"),
            "2026-02".parse().expect("a month"),
        );
        let first = outranking(loaded, 6).expect("an epoch");
        assert!(first > loaded && own_version(first) == 6);
        let second = outranking(first, loaded).expect("an epoch");
        assert!(second > first && own_version(second) == loaded);
        assert_eq!(second % 2, 1, "the kind stays");
        assert_eq!(outranking(u64::MAX, loaded), None);
        assert_eq!(own_version(loaded), loaded);
    }
}
