//! A republished archive: taking away the rows its former self had and it no longer has.
//!
//! Rows tell by their version which archive brought them: [`version`] is even for a day's archive and odd for a month's,
//! and no other archive of a series covers the same time. So the rows in an archive's period that are shown with its
//! kind of version, and an older one than its own, are its former self's, and the new one lacks them. They get
//! tombstones of the newest version that is recorded. A month takes nothing away from a day, nor a day from a month.
//!
//! This needs no memory of what was loaded before: also a load that a crash cut off before it was recorded leaves
//! nothing behind.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use clickhouse::Row;
use common::marker::Object;
use common::unit::{Period, Unit};
use jiff::Timestamp;
use serde::Deserialize;

use crate::error::ObjectFault;
use crate::ledger::{Entry, unit_condition};
use crate::native::{Rows, Slice, UnitColumns};
use crate::series::{Window, by_series, range_of};
use crate::warehouse::{Warehouse, WarehouseError, quoted};

/// The version of an archive's rows: when it was generated, in ms, made even for a day's archive; a month's is one less.
///
/// Zip time stamps are whole pairs of seconds, so they are even as they are, and a day generated at the same time as its
/// month wins.
pub(crate) fn version(generated_at: Timestamp, period: Period) -> u64 {
    let even = u64::try_from(generated_at.as_millisecond()).unwrap_or_default() & !1;
    if period.is_month() { even.saturating_sub(1) } else { even }
}

/// A fault when this archive would take away more of its former self's rows than it may.
pub(crate) async fn check_shrink(
    warehouse: &Warehouse,
    unit: &Unit,
    object: &Object,
    open_times: &[i64],
    former: Option<&Entry>,
    shrink_limit: f64,
) -> Result<Result<(), ObjectFault>, WarehouseError> {
    let version = version(object.generated_at, unit.period);
    // An archive that was generated earlier than the one loaded corrects nothing: its rows lose where both have one.
    let Some(former) = former.filter(|former| !former.is(object) && former.version(unit.period) < version) else {
        return Ok(Ok(()));
    };
    let shown = leftovers(warehouse, unit, &[(&object.symbol, version)]).await?;
    let kept: HashSet<i64> = open_times.iter().copied().collect();
    let gone = shown.values().flatten().filter(|open_time| !kept.contains(open_time)).count();
    if gone as f64 > former.rows as f64 * shrink_limit {
        return Ok(Err(ObjectFault::Shrunk { gone: gone as u64, rows: former.rows }));
    }
    Ok(Ok(()))
}

/// A unit's archives as they are recorded: symbols and the versions of their rows.
#[derive(Debug)]
pub(crate) struct Recorded {
    pub unit: Unit,
    pub versions: HashMap<String, u64>,
}

#[derive(Debug, Row, Deserialize)]
struct OtherVersion {
    symbol: String,
    bucket: u32,
    version: u64,
}

/// Tells which of these units have rows of another revision of a recorded archive, shown or not. Usually none; so this
/// reads no more than times and versions, and those of many units at once.
///
/// To be asked at the end of every attempt, after its own archives are recorded: of two workers that load two revisions at
/// the same time, whoever asks last sees the rows of both, and that both are recorded.
pub(crate) async fn have_other_versions(
    warehouse: &Warehouse,
    units: &[Arc<Recorded>],
) -> Result<Vec<bool>, WarehouseError> {
    let mut answers = vec![false; units.len()];
    for series in by_series(units, |recorded| &recorded.unit) {
        let Some((_, first)) = series.first() else { continue };
        let mut window = Window::new(&first.unit);
        for (_, recorded) in series.iter().filter(|(_, recorded)| !recorded.versions.is_empty()) {
            let (start, end) = range_of(recorded.unit.period);
            window.add(recorded.versions.keys().map(String::as_str), start, end);
        }
        if window.is_empty() {
            continue;
        }
        let sql = format!(
            "SELECT symbol::String AS symbol, {bucket} AS bucket, version FROM {{database}}.klines \
             WHERE {condition} AND version % 2 = {kind} GROUP BY symbol, bucket, version",
            bucket = window.bucket(),
            condition = window.condition(),
            kind = u8::from(first.unit.period.is_month()),
        );
        let found: Vec<OtherVersion> = warehouse.select(&sql).await?;
        for (index, recorded) in series {
            let bucket = window.bucket_of(recorded.unit.period.start().as_microsecond());
            answers[index] = found
                .iter()
                .filter(|found| found.bucket == bucket)
                .any(|found| recorded.versions.get(&found.symbol).is_some_and(|version| *version != found.version));
        }
    }
    Ok(answers)
}

/// Takes away what former revisions of these objects left, as far as newer ones are recorded.
///
/// The newest revision's rows are all there by then, because it is recorded only after they were read back.
pub(crate) async fn settle(warehouse: &Warehouse, unit: &Unit, objects: &[Object]) -> Result<(), WarehouseError> {
    let ledger = warehouse.ledger(unit).await?;
    let recorded: Vec<(&str, u64)> = objects
        .iter()
        .filter_map(|object| Some((object.symbol.as_str(), ledger.get(&object.key)?.version(unit.period))))
        .collect();
    let left = leftovers(warehouse, unit, &recorded).await?;
    if left.is_empty() {
        return Ok(());
    }
    let versions: HashMap<&str, u64> = recorded.iter().copied().collect();
    let rows: usize = left.values().map(Vec::len).sum();
    tracing::info!(%unit, archives = left.len(), rows, "taking away rows that only a former revision had");
    let tombstones: Vec<Slice<'_>> = left
        .iter()
        .filter_map(|(symbol, open_times)| {
            let version = *versions.get(symbol.as_str())?;
            Some(Slice { unit: columns(unit), symbol, version, rows: Rows::Tombstones(open_times) })
        })
        .collect();
    insert(warehouse, &tombstones, || ()).await?;
    match leftovers(warehouse, unit, &recorded).await? {
        still if still.is_empty() => Ok(()),
        // Another worker inserted some more in between. The attempt fails, and the next one takes these away too.
        still => Err(WarehouseError::wrong(format!("{} archives still show rows of a former revision", still.len()))),
    }
}

#[derive(Debug, Row, Deserialize)]
struct Leftover {
    symbol: String,
    open_time: i64,
}

/// open_times (µs), by symbol, that are shown with an older version of the same kind than the given one.
async fn leftovers(
    warehouse: &Warehouse,
    unit: &Unit,
    versions: &[(&str, u64)],
) -> Result<BTreeMap<String, Vec<i64>>, WarehouseError> {
    if versions.is_empty() {
        return Ok(BTreeMap::new());
    }
    let list = |items: Vec<String>| items.join(", ");
    let symbols = list(versions.iter().map(|(symbol, _)| quoted(symbol)).collect());
    let numbers = list(versions.iter().map(|(_, version)| format!("toUInt64({version})")).collect());
    let sql = format!(
        "SELECT symbol::String AS symbol, toUnixTimestamp64Micro(open_time) AS open_time FROM {{database}}.klines FINAL \
         WHERE {series} AND symbol IN ({symbols}) \
         AND klines.open_time >= fromUnixTimestamp64Micro({start}, 'UTC') \
         AND klines.open_time < fromUnixTimestamp64Micro({end}, 'UTC') \
         AND version % 2 = {kind} AND version < transform(klines.symbol::String, [{symbols}], [{numbers}], toUInt64(0)) \
         ORDER BY symbol, open_time SETTINGS do_not_merge_across_partitions_select_final = 1",
        series = unit_condition(unit, false),
        start = unit.period.start().as_microsecond(),
        end = unit.period.end().as_microsecond(),
        kind = u8::from(unit.period.is_month()),
    );
    let mut by_symbol: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    for row in warehouse.select::<Leftover>(&sql).await? {
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
    fn versions_tell_days_from_months() {
        let at = |ms| Timestamp::from_millisecond(ms).expect("a time");
        let (day, month) = ("2026-02-14".parse().expect("a day"), "2026-02".parse().expect("a month"));
        assert_eq!(version(at(1_771_116_240_000), day), 1_771_116_240_000);
        assert_eq!(version(at(1_771_116_240_001), day), 1_771_116_240_000);
        assert_eq!(version(at(1_771_116_240_000), month), 1_771_116_239_999);
        assert!(version(at(1_771_116_240_002), month) > version(at(1_771_116_240_000), day));
    }
}
