//! A republished archive: taking away the rows its former self had and it no longer has.
//!
//! Rows tell by their version which archive brought them: [`version`] is even for a day's archive and odd for a month's,
//! and no other archive of a series covers the same time. So the rows in an archive's period that are shown with its
//! kind of version, and an older one than its own, are its former self's, and the new one lacks them. They get
//! tombstones of the newest version that is recorded. A month takes nothing away from a day, nor a day from a month. Only
//! of 3d, 1w and 1mo may the last candles of a month be in the next month's archive; they stay.
//!
//! This needs no memory of what was loaded before: also a load that a crash cut off before it was recorded leaves
//! nothing behind.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use clickhouse::Row;
use common::marker::Object;
use common::unit::{Period, Unit};
use jiff::Timestamp;
use serde::Deserialize;

use crate::decode::Interval;
use crate::error::ObjectFault;
use crate::ledger::{Ledger, unit_condition};
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

/// An archive that is decoded and not loaded yet.
pub(crate) struct Candidate<'a> {
    pub object: &'a Object,
    /// µs
    pub open_times: &'a [i64],
}

/// The archives of a unit that would take away more of their former selves' rows than they may, by object key.
pub(crate) async fn shrunk(
    warehouse: &Warehouse,
    unit: &Unit,
    candidates: impl Iterator<Item = Candidate<'_>>,
    ledger: &Ledger,
    shrink_limit: f64,
) -> Result<HashMap<String, ObjectFault>, WarehouseError> {
    let mut corrections = Vec::new();
    for candidate in candidates {
        let version = version(candidate.object.generated_at, unit.period);
        let former = ledger.get(&candidate.object.key).filter(|former| !former.is(candidate.object));
        // An archive that was generated earlier than the one loaded corrects nothing: its rows lose where both have one.
        if let Some(former) = former.filter(|former| former.version(unit.period) < version) {
            corrections.push((candidate, version, former.rows));
        }
    }
    let versions: Vec<(&str, u64)> =
        corrections.iter().map(|(candidate, version, _)| (candidate.object.symbol.as_str(), *version)).collect();
    let shown = leftovers(warehouse, unit, &versions).await?;
    let mut faults = HashMap::new();
    for (Candidate { object, open_times }, _, rows) in corrections {
        let kept: HashSet<i64> = open_times.iter().copied().collect();
        let shown = shown.get(&object.symbol).into_iter().flatten();
        let gone = shown.filter(|open_time| !kept.contains(open_time)).count() as u64;
        if gone as f64 > rows as f64 * shrink_limit {
            faults.insert(object.key.clone(), ObjectFault::Shrunk { gone, rows });
        }
    }
    Ok(faults)
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
/// To be asked at the end of an attempt, after its own archives are recorded, unless [`EarlyLook`] has the answer: of two
/// workers that load two revisions at the same time, whoever asks last sees the rows of both, and that both are recorded.
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
             PREWHERE {condition} AND version % 2 = {kind} GROUP BY symbol, bucket, version",
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

/// So long may a worker take from the beginning of its read-back to the end of its record, and rely on the read-back's
/// having seen no other revision's rows. Of two workers with two revisions whoever reads back last sees the rows of both,
/// but perhaps not yet that the other one has recorded the newer revision; so it waits for that, and a little longer than
/// the other one may take. A worker that takes longer looks again after its record.
const RECORDED_WITHIN: Duration = Duration::from_secs(5);
const RECORD_WAIT: Duration = Duration::from_secs(6);
const RECORD_LOOK_EVERY: Duration = Duration::from_millis(200);

/// What the read-backs of a unit's parts see of other revisions: then nobody need ask for them, see
/// [`have_other_versions`].
#[derive(Debug, Default)]
pub(crate) struct EarlyLook {
    others: AtomicBool,
    /// By a clock that does not stop, and by one that goes on while the machine sleeps.
    since: OnceLock<(Instant, Timestamp)>,
}

impl EarlyLook {
    /// To be called before a part is read back.
    pub(crate) fn begins(&self) {
        self.since.get_or_init(|| (Instant::now(), Timestamp::now()));
    }

    pub(crate) fn saw(&self, others: bool) {
        self.others.fetch_or(others, Ordering::Relaxed);
    }

    /// To be asked after all parts are recorded.
    pub(crate) fn rules_others_out(&self) -> bool {
        let in_time = |(since, at): &(Instant, Timestamp)| {
            let slept = Duration::try_from(Timestamp::now().duration_since(*at)).unwrap_or_default();
            since.elapsed().max(slept) < RECORDED_WITHIN
        };
        !self.others.load(Ordering::Relaxed) && self.since.get().is_some_and(in_time)
    }
}

/// Takes away what former revisions of these objects left, as far as newer ones are recorded.
///
/// The newest revision's rows are all there by then, because it is recorded only after they were read back.
pub(crate) async fn settle(warehouse: &Warehouse, unit: &Unit, objects: &[Object]) -> Result<(), WarehouseError> {
    let asked = Instant::now();
    let recorded = loop {
        // Told before the ledger is read: the last look at it must not be older than the wait.
        let at_last = asked.elapsed() > RECORD_WAIT;
        let ledger = warehouse.ledger(unit).await?;
        let recorded: HashMap<&str, u64> = objects
            .iter()
            .filter_map(|object| Some((object.symbol.as_str(), ledger.get(&object.key)?.version(unit.period))))
            .collect();
        if at_last || !has_newer(warehouse, unit, &recorded).await? {
            break recorded;
        }
        tokio::time::sleep(RECORD_LOOK_EVERY).await;
    };
    let recorded: Vec<(&str, u64)> = recorded.into_iter().collect();
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

/// Whether there are rows of a newer revision than the recorded one: somebody is about to record it.
async fn has_newer(warehouse: &Warehouse, unit: &Unit, recorded: &HashMap<&str, u64>) -> Result<bool, WarehouseError> {
    if recorded.is_empty() {
        return Ok(false);
    }
    let mut window = Window::new(unit);
    let (start, end) = range_of(unit.period);
    window.add(recorded.keys().copied(), start, end);
    let sql = format!(
        "SELECT symbol::String, max(version) FROM {{database}}.klines WHERE {condition} AND version % 2 = {kind} \
         GROUP BY symbol",
        condition = window.condition(),
        kind = u8::from(unit.period.is_month()),
    );
    let newest: Vec<(String, u64)> = warehouse.select(&sql).await?;
    Ok(newest.iter().any(|(symbol, newest)| recorded.get(symbol.as_str()).is_some_and(|recorded| newest > recorded)))
}

#[derive(Debug, Row, Deserialize)]
struct Leftover {
    symbol: String,
    open_time: i64,
}

/// From when on (µs) a row of the period may be the next archive's: a candle of days may open before its archive's period.
/// To take away a right row would be worse than to leave one that a correction no longer has.
fn ends_for_sure(unit: &Unit) -> i64 {
    let end = unit.period.end().as_microsecond();
    let interval = unit.interval.as_str().parse::<Interval>().ok().filter(|interval| interval.may_open_before_period());
    interval.map_or(end, |interval| end - interval.length_us() + 1)
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
    let numbers = list(versions.iter().map(|(_, version)| version.to_string()).collect());
    let sql = format!(
        "SELECT symbol::String AS symbol, toUnixTimestamp64Micro(open_time) AS open_time FROM {{database}}.klines FINAL \
         WHERE {series} AND symbol IN ({symbols}) \
         AND klines.open_time >= fromUnixTimestamp64Micro({start}, 'UTC') \
         AND klines.open_time < fromUnixTimestamp64Micro({end}, 'UTC') \
         AND version % 2 = {kind} AND version < transform(klines.symbol::String, [{symbols}], [{numbers}]::Array(UInt64), toUInt64(0)) \
         ORDER BY symbol, open_time SETTINGS do_not_merge_across_partitions_select_final = 1",
        series = unit_condition(unit, false),
        start = unit.period.start().as_microsecond(),
        end = ends_for_sure(unit),
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
}
