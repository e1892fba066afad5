//! Loading a unit into ClickHouse: fetch, decode, insert, read back, record; in parts that fit the memory.

mod huge;
mod part;

use std::collections::HashMap;
use std::sync::Arc;

use common::config::Corrections;
use common::layout;
use common::marker::Object;
use common::object_key::Prefix;
use common::unit::Unit;
use futures::StreamExt;
use nats::Activity;
use tokio::sync::Semaphore;

use crate::corrections::version;
use crate::destination::Work;
use crate::error::{FaultyObject, ObjectFault, WorkError};
use crate::fetch::Fetcher;
use crate::job::Job;
use crate::ledger::Ledger;
use crate::memory::{Demand, MemoryBudget, Wants};
use crate::statements::Statements;
use crate::superseded_rows::{Decisions, EarlyLook, Recorded};
use crate::warehouse::Warehouse;
use crate::writes::Written;
use archive::{Interval, ROW_BYTES, Spec};

use part::Cut;
pub(crate) use part::{Facts, Part};

/// Datasets whose archives are klines: the same twelve columns.
const KLINE_DATASETS: [&str; 4] = ["klines", "markPriceKlines", "indexPriceKlines", "premiumIndexKlines"];
/// One insert is whole or not at all only within one block of the server: 1,048,449 rows.
const PART_ROWS_MAX: u64 = 1_000_000;
/// A unit of more rows goes in several parts, so that one is inserted while another is fetched and decoded.
const PART_ROWS_GOOD: u64 = 300_000;
/// Parts of one unit in flight at once, as far as there is memory.
const PARTS_MAX: usize = 3;
/// Longest row accepted on average; genuine ones have 145 to 160 bytes.
const CSV_ROW_BYTES_MAX: u64 = 256;
/// Archives of one part in flight at once.
pub(crate) const FETCHES_MAX: usize = 64;
/// Room for a header line, and for a few rows more than the interval implies, as early files have.
const CSV_SLACK_BYTES: u64 = 64 * 1024;
/// Rows that an archive may have beyond what its interval implies: one in so many, and so many more.
const ROWS_SPARE_PART: u64 = 20;
const ROWS_SPARE: u64 = 16;

pub(crate) struct Loader {
    pub warehouse: Warehouse,
    pub statements: Statements,
    pub fetcher: Fetcher,
    pub memory: MemoryBudget,
    pub demand: Demand,
    /// Archives decoded at once: as many as there are processors.
    pub decodings: Arc<Semaphore>,
    pub corrections: Corrections,
    pub decisions: Decisions,
    /// Held by the one unit that makes missing tables again: as many as there are slots may miss them.
    pub preparing: tokio::sync::Mutex<()>,
    pub worker: String,
}

impl Loader {
    pub(crate) async fn load(&self, job: &Arc<Job>, activity: &Activity) -> Result<Work, WorkError> {
        let _in_hand = self.statements.enter();
        let spec = spec(job)?;
        let ledger = self.statements.ledger(&job.unit, activity).await?;
        let mut work = Work::default();
        let mut open = Vec::new();
        for object in &job.objects {
            let entry = ledger.get(&object.key);
            let is_loaded = !job.options.force && entry.is_some_and(|entry| entry.covers(object, job.unit.period));
            if is_loaded || entry.is_some_and(|entry| entry.outranks(object, job.unit.period)) {
                work.skipped += 1;
            } else if let Err(fault) = acceptable(job, object, &self.fetcher.prefix, &self.memory) {
                work.faults.push(FaultyObject { key: object.key.clone(), fault });
            } else {
                open.push(object);
            }
        }
        let rows = spec.rows_max;
        let _wants = self.wants(job, &open, rows);
        let (huge, usual): (Vec<&Object>, Vec<&Object>) =
            open.iter().partition(|object| footprint(object, rows) > self.part_bytes_max());
        let parts = self.parts(&usual, rows);
        // One part is fetched and decoded at a time, so that the next one is while this one is inserted.
        let fetching = Semaphore::new(1);
        let look = EarlyLook::default();
        let loads: Vec<_> = parts
            .into_iter()
            .map(|objects| {
                self.load_part(job, &spec, Cut { objects, fetching: &fetching, look: &look }, &ledger, activity)
            })
            .collect();
        let mut loads = std::pin::pin!(futures::stream::iter(loads).buffer_unordered(PARTS_MAX));
        while let Some(loaded) = loads.next().await {
            work.add(loaded?);
        }
        for object in &huge {
            work.add(self.load_huge(job, &spec, object, &ledger, activity).await?);
        }
        // In the order of the marker, whatever was done first.
        let place: HashMap<&str, usize> = job.objects.iter().map(|object| object.key.as_str()).zip(0..).collect();
        work.faults.sort_by_key(|faulty| place.get(faulty.key.as_str()).copied());
        // What was skipped or failed may have rows of an earlier attempt, which died before it looked.
        let looked_at_all = work.loaded == job.objects.len() as u64 && huge.is_empty();
        if !(looked_at_all && look.proves_all()) {
            let needed = self.remove_superseded_rows(job, &ledger, &work, activity).await?;
            work.faults.extend(needed);
        }
        Ok(work)
    }

    /// See [`crate::superseded_rows`]; returns archives that are needed for it and cannot be had.
    async fn remove_superseded_rows(
        &self,
        job: &Job,
        before: &Ledger,
        work: &Work,
        activity: &Activity,
    ) -> Result<Vec<FaultyObject>, WorkError> {
        let faulty = |object: &&Object| work.faults.iter().any(|faulty| faulty.key == object.key);
        let mut versions: HashMap<String, u64> = HashMap::new();
        for object in &job.objects {
            let former = before.get(&object.key).map(|entry| entry.version(job.unit.period));
            let now = (!faulty(&object)).then(|| version(object.generated_at, job.unit.period));
            if let Some(version) = former.max(now) {
                versions.insert(object.symbol.clone(), version);
            }
        }
        let symbols = self.statements.unproven_symbols(Recorded { unit: job.unit.clone(), versions }, activity).await?;
        if symbols.is_empty() {
            return Ok(Vec::new());
        }
        let resumed = work.loaded < job.objects.len() as u64;
        let write = job.writes.begin(Written::Outranking);
        let shown = self.show_current_rows(&job.unit, &symbols, resumed, activity).await;
        if !matches!(&shown, Err(WorkError::Warehouse(error)) if error.unanswered) {
            write.answered();
        }
        shown
    }

    /// Several parts must fit into memory together.
    fn part_bytes_max(&self) -> u64 {
        self.memory.total_bytes() / PARTS_MAX as u64
    }

    /// Cuts the objects into parts of about the same size.
    fn parts<'a, 'j>(&self, objects: &'a [&'j Object], rows: u64) -> Vec<&'a [&'j Object]> {
        let rows_all = rows * objects.len() as u64;
        let bytes_all: u64 = objects.iter().map(|object| footprint(object, rows)).sum();
        let count = (rows_all.div_ceil(PART_ROWS_MAX))
            .max(bytes_all.div_ceil(self.part_bytes_max()))
            .max(rows_all.div_ceil(PART_ROWS_GOOD).min(PARTS_MAX as u64));
        let (rows_good, bytes_good) = (rows_all.div_ceil(count.max(1)), bytes_all.div_ceil(count.max(1)));
        let mut parts = Vec::new();
        let (mut start, mut bytes) = (0, 0);
        for (index, object) in objects.iter().enumerate() {
            let next = footprint(object, rows);
            let full = (index - start) as u64 * rows >= rows_good
                || bytes >= bytes_good
                || bytes + next > self.part_bytes_max()
                || (index - start + 1) as u64 * rows > PART_ROWS_MAX;
            if index > start && full {
                parts.push(&objects[start..index]);
                (start, bytes) = (index, 0);
            }
            bytes += next;
        }
        if start < objects.len() {
            parts.push(&objects[start..]);
        }
        parts
    }

    /// What all of it wants that is still to be loaded.
    fn wants(&self, job: &Job, open: &[&Object], rows: u64) -> Wants<'_> {
        let bytes: u64 = open.iter().map(|object| footprint(object, rows)).sum();
        // Its list stays in memory as long as it is worked on, whatever is loaded of it.
        let list: usize = job.objects.iter().map(|object| size_of::<Object>() + object.key.len()).sum();
        let bytes = bytes + list as u64;
        self.demand.enter(bytes.min(self.memory.total_bytes()))
    }
}

/// What can be said of an object before it is fetched. A key is of one unit and symbol: all of its path says which, for the
/// same file name stands under every market and dataset.
pub(crate) fn acceptable(
    job: &Job,
    object: &Object,
    prefix: &Prefix,
    memory: &MemoryBudget,
) -> Result<(), ObjectFault> {
    in_its_place(&job.unit, object, prefix)?;
    if object.size > memory.total_bytes() / 2 {
        return Err(ObjectFault::Refused(format!(
            "it has {} bytes, more than fit into puller.memory; raise puller.memory, then retry",
            object.size
        )));
    }
    Ok(())
}

fn in_its_place(unit: &Unit, object: &Object, prefix: &Prefix) -> Result<(), ObjectFault> {
    let refused = |why: String| Err(ObjectFault::Refused(why));
    let path = match prefix.archive_path(&object.key) {
        Ok(path) => path,
        Err(error) => return refused(error.to_string()),
    };
    match layout::place_of(unit, &object.symbol) {
        Some(place) if place == path => Ok(()),
        Some(place) => refused(format!("its key is not that of the unit's archive of this symbol, …/{place}")),
        None => refused(format!(
            "where archives of {}/{} lie is not known here: update the workers, then retry",
            unit.exchange, unit.market
        )),
    }
}

/// How the unit's archives are to be decoded.
pub(crate) fn spec(job: &Job) -> Result<Spec, WorkError> {
    spec_of(&job.unit)
}

/// The same of any unit.
pub(crate) fn spec_of(unit: &Unit) -> Result<Spec, WorkError> {
    let dataset = unit.dataset.as_str();
    if !KLINE_DATASETS.contains(&dataset) {
        return Err(WorkError::NoDecoder(format!("dataset {dataset}")));
    }
    let interval = unit.interval.as_str().parse::<Interval>();
    let interval = interval.map_err(|error| WorkError::NoDecoder(error.to_string()))?;
    let (period_start, period_end) = (unit.period.start(), unit.period.end());
    let mut spec = Spec { interval, period_start, period_end, csv_bytes_max: 0, rows_max: 0 };
    let rows = expected_rows(&spec);
    spec.csv_bytes_max = rows * CSV_ROW_BYTES_MAX + CSV_SLACK_BYTES;
    spec.rows_max = rows + rows / ROWS_SPARE_PART + ROWS_SPARE;
    Ok(spec)
}

pub(crate) fn expected_rows(spec: &Spec) -> u64 {
    spec.interval.expected_rows(spec.period_start, spec.period_end).max(1)
}

/// Memory an archive takes from fetch to read-back: its bytes and its decoded rows, as many as it may have.
pub(crate) fn footprint(object: &Object, rows: u64) -> u64 {
    object.size + rows * ROW_BYTES as u64
}

#[cfg(test)]
mod tests {
    use common::checksum::Sha256Sum;

    use super::*;

    fn placed(unit: &str, symbol: &str, key: &str) -> Result<(), ObjectFault> {
        let object = Object {
            key: key.into(),
            symbol: symbol.into(),
            size: 3,
            sha256: Sha256Sum::of(b"abc"),
            generated_at: jiff::Timestamp::UNIX_EPOCH,
        };
        in_its_place(&unit.parse().expect(unit), &object, &Prefix::new("download"))
    }

    #[test]
    fn a_key_is_of_its_unit_and_symbol() {
        let good = [
            ("binance/spot/klines/1h/2025-03-01", "data/spot/daily/klines/ABC/1h/ABC-1h-2025-03-01.zip"),
            ("binance/um/klines/1h/2025-03-01", "data/futures/um/daily/klines/ABC/1h/ABC-1h-2025-03-01.zip"),
            ("binance/cm/klines/1mo/2025-03", "data/futures/cm/monthly/klines/ABC/1mo/ABC-1mo-2025-03.zip"),
            (
                "binance/um/markPriceKlines/1m/2025-03",
                "data/futures/um/monthly/markPriceKlines/ABC/1m/ABC-1m-2025-03.zip",
            ),
            ("binance/um/metrics/all/2025-03-01", "data/futures/um/daily/metrics/ABC/ABC-metrics-2025-03-01.zip"),
        ];
        for (unit, path) in good {
            assert_eq!(placed(unit, "ABC", &format!("download/{path}")), Ok(()), "{unit}");
        }
        let bad = [
            // Another market, span, dataset, symbol, interval, period.
            ("ABC", "download/data/spot/daily/klines/ABC/1h/ABC-1h-2025-03-01.zip"),
            ("ABC", "download/data/futures/um/monthly/klines/ABC/1h/ABC-1h-2025-03-01.zip"),
            ("ABC", "download/data/futures/um/daily/markPriceKlines/ABC/1h/ABC-1h-2025-03-01.zip"),
            ("ABC", "download/data/futures/um/daily/klines/ABD/1h/ABC-1h-2025-03-01.zip"),
            ("ABD", "download/data/futures/um/daily/klines/ABC/1h/ABC-1h-2025-03-01.zip"),
            ("ABC", "download/data/futures/um/daily/klines/ABC/1m/ABC-1h-2025-03-01.zip"),
            ("ABC", "download/data/futures/um/daily/klines/ABC/1h/ABC-1m-2025-03-01.zip"),
            ("ABC", "download/data/futures/um/daily/klines/ABC/1h/ABC-1h-2025-03-02.zip"),
            // Elsewhere in the bucket, deeper, and as it is spelt nowhere.
            ("ABC", "data/futures/um/daily/klines/ABC/1h/ABC-1h-2025-03-01.zip"),
            ("ABC", "download/x/data/futures/um/daily/klines/ABC/1h/ABC-1h-2025-03-01.zip"),
            ("ABC", "download/data/futures/um/daily/klines/ABC/1h/x/ABC-1h-2025-03-01.zip"),
            ("ABC", "download/data/futures/UM/daily/klines/ABC/1h/ABC-1h-2025-03-01.zip"),
            ("ABC", "download/data/futures/um/daily/klines/ABC/1h/ABC-1h-2025-03-01.zip.tmp"),
            ("../ABC", "download/data/futures/um/daily/klines/../ABC/1h/../ABC-1h-2025-03-01.zip"),
        ];
        let unit = "binance/um/klines/1h/2025-03-01";
        assert_eq!(placed(unit, "ABC", "download/data/futures/um/daily/klines/ABC/1h/ABC-1h-2025-03-01.zip"), Ok(()));
        for (symbol, key) in bad {
            assert!(matches!(placed(unit, symbol, key), Err(ObjectFault::Refused(_))), "{symbol} {key}");
        }
        let unknown = placed("kraken/spot/klines/1h/2025-03-01", "ABC", "download/data/spot/ABC-1h-2025-03-01.zip");
        assert!(unknown.expect_err("refused").to_string().contains("kraken/spot lie is not known here"));
    }
}
