//! The proof: what ClickHouse now holds is what the archive held.
//!
//! Per archive the rows of its version are counted and hashed by the server and compared with our own count and hash:
//! first as they are stored, for many units in one query. Where that differs, because the same rows were inserted twice
//! or a correction took some away, they are looked at as they are shown; and where that differs too, because other
//! archives have rows among ours, each open_time by itself, for many archives in one query. Where a correction has written
//! rows or tombstones that outrank what is loaded, [`crate::load::superseded_rows`] proves that what is shown is right.
//!
//! The number of queries follows the number of rows, not that of archives, and each query that ends is a sign of progress.

mod hash_function;

use std::collections::HashMap;

use clickhouse::Row;
use common::unit::Unit;
use serde::Deserialize;

use crate::clickhouse::client::{Warehouse, quoted};
use crate::clickhouse::ledger::unit_condition;
use crate::clickhouse::series::{Window, between, by_series, range_of};
use crate::clickhouse::version::{OWN_VERSION, RANKED};
use crate::error::clickhouse::WarehouseError;
use archive::{Interval, Klines, Outline};

pub(crate) use hash_function::check_hash_function;

/// The server's hash of a row. ClickHouse computes the same for the same column types in all versions since 1.1, since
/// sharding depends on it; [`check_hash_function`] asks each server all the same.
pub(crate) const ROW_HASH: &str = "cityHash64(open_time, close_time, open, high, low, close, volume, quote_volume, \
     taker_buy_volume, taker_buy_quote_volume, trades)";

/// open_times that one query compares one by one, unless they are of a single archive.
const ROWS_COMPARED_MAX: usize = 100_000;
/// Symbols that such a query names, three times each.
const SYMBOLS_COMPARED_MAX: usize = 1_000;

/// How far archives are compared whose rows are not stored exactly as they were inserted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Depth {
    /// By counts and hashes only, which takes a query or two a unit. Before an insert: what is not found is inserted, and
    /// read back then.
    Sums,
    /// To every open_time.
    Rows,
}

/// One archive's rows as they must be found.
#[derive(Clone, Copy)]
pub(crate) struct Expected<'a> {
    pub symbol: &'a str,
    pub version: u64,
    pub rows: ExpectedRows<'a>,
    pub rows_hash: u64,
}

#[derive(Clone, Copy)]
pub(crate) enum ExpectedRows<'a> {
    Klines(&'a Klines),
    Outline(&'a Outline),
}

impl<'a> ExpectedRows<'a> {
    /// µs, ascending.
    pub(crate) fn open_times(self) -> &'a [i64] {
        match self {
            Self::Klines(klines) => &klines.open_time,
            Self::Outline(outline) => &outline.open_times,
        }
    }

    fn hash_of(self, row: usize) -> u64 {
        match self {
            Self::Klines(klines) => klines.row_hash(row),
            Self::Outline(outline) => outline.row_hashes.get(row).copied().unwrap_or_default(),
        }
    }

    /// First and last open_time; `None` without rows.
    fn range(self) -> Option<(i64, i64)> {
        let times = self.open_times();
        Some((*times.first()?, *times.last()?))
    }
}

/// What is to be found of one unit.
pub(crate) struct Sought<'a> {
    pub unit: &'a Unit,
    pub archives: Vec<Expected<'a>>,
    pub depth: Depth,
}

/// One answer an archive, `Err` saying what is not there.
pub(crate) type Answers = Vec<Result<(), String>>;

/// What was found of one unit.
#[derive(Debug, Clone, Default)]
pub(crate) struct ReadBack {
    pub answers: Answers,
    /// Whether there may be rows of another revision of one of the archives, or rows that outrank what is loaded: see
    /// [`crate::clickhouse::unproven::unproven_symbols`].
    pub other_versions: bool,
    /// The server's clock when the rows were looked at, in ms.
    pub at: i64,
}

/// The rows that ClickHouse shows of one symbol and own version.
#[derive(Debug, Row, Deserialize)]
pub(crate) struct Group {
    pub symbol: String,
    pub version: u64,
    pub rows: u64,
    pub hash: u64,
}

/// How an archive's rows compare with those that ClickHouse shows.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Comparison {
    /// Rows that are not there, or are those of an archive generated earlier.
    pub missing: u64,
    /// Rows with other values.
    pub differing: u64,
    /// The first thing found wrong.
    pub first: Option<String>,
}

#[derive(Debug, Row, Deserialize)]
struct StoredRow {
    name: String,
    at: i64,
    newest: u64,
    deleted: u8,
    hashes: Vec<u64>,
}

#[derive(Debug, Row, Deserialize)]
struct StoredRows {
    symbol: String,
    version: u64,
    bucket: u32,
    rows: u64,
    tombstones: u64,
    hash: u64,
    now: i64,
}

impl Warehouse {
    /// Compares what is stored of these units with what they must have; answers in their order. `progress` is called after
    /// each query.
    pub(crate) async fn read_back(
        &self,
        sought: &[Sought<'_>],
        progress: &(impl Fn() + Sync),
    ) -> Result<Vec<ReadBack>, WarehouseError> {
        let mut found = vec![ReadBack::default(); sought.len()];
        for series in by_series(sought, |sought| sought.unit) {
            let stored = self.stored(&series).await?;
            progress();
            for (index, sought) in series {
                let doubtful: Vec<&Expected<'_>> =
                    sought.archives.iter().filter(|archive| !stored.is(archive)).collect();
                let answers = match sought.depth {
                    // Of a unit that was never inserted nothing is stored.
                    Depth::Sums if doubtful.iter().any(|archive| stored.lacks_rows_of(archive)) => {
                        doubtful.iter().map(|archive| Err(format!("{}: not all is stored", archive.symbol))).collect()
                    }
                    depth => self.shown(sought.unit, &doubtful, depth, progress).await?,
                };
                let mut answers = answers.into_iter();
                let answer = |archive| if stored.is(archive) { Some(Ok(())) } else { answers.next() };
                found[index] = ReadBack {
                    other_versions: stored.has_other_versions(sought),
                    at: stored.at,
                    answers: sought.archives.iter().map_while(answer).collect(),
                };
                if found[index].answers.len() != sought.archives.len() {
                    return Err(WarehouseError::wrong("a read-back has no answer for an archive"));
                }
            }
        }
        Ok(found)
    }

    /// Counts and hashes what is stored, shown or not, in these units' periods: by archives of their kind, and what outranks
    /// such rows.
    async fn stored<'a>(&self, series: &[(usize, &'a Sought<'a>)]) -> Result<StoredSums<'a>, WarehouseError> {
        let Some((_, Sought { unit, .. })) = series.first() else { unreachable!("a series has a unit") };
        let mut window = Window::new(unit);
        for (_, sought) in series {
            // A candle of days may have begun before its period.
            let (start, end) = range_of(sought.unit.period);
            let ranges = || sought.archives.iter().filter_map(|archive| archive.rows.range());
            let first = ranges().map(|range| range.0).fold(start, i64::min);
            let last = ranges().map(|range| range.1).fold(end, i64::max);
            window.add(sought.archives.iter().map(|archive| archive.symbol), first, last);
        }
        let sql = format!(
            "SELECT symbol::String AS symbol, version, {bucket} AS bucket, count() AS rows, \
             countIf(is_deleted = 1) AS tombstones, sum({ROW_HASH}) AS hash, toUnixTimestamp64Milli(now64(3)) AS now \
             FROM {{database}}.klines \
             PREWHERE {condition} AND (version % 2 = {kind} OR version >= {RANKED} OR is_deleted = 1) \
             GROUP BY symbol, version, bucket",
            bucket = window.bucket(),
            condition = window.condition(),
            kind = u8::from(unit.period.is_month()),
        );
        let mut sums: HashMap<(String, u64), Vec<StoredRows>> = HashMap::new();
        let mut versions: HashMap<(String, u32), Vec<u64>> = HashMap::new();
        let mut at = i64::MAX;
        for rows in self.select::<StoredRows>(&sql).await? {
            at = at.min(rows.now);
            versions.entry((rows.symbol.clone(), rows.bucket)).or_default().push(rows.version);
            sums.entry((rows.symbol.clone(), rows.version)).or_default().push(rows);
        }
        Ok(StoredSums { window, sums, versions, at })
    }

    /// Compares what is shown of a unit; rows of archives generated later may be among them. One answer an archive.
    async fn shown(
        &self,
        unit: &Unit,
        expected: &[&Expected<'_>],
        depth: Depth,
        progress: &(impl Fn() + Sync),
    ) -> Result<Answers, WarehouseError> {
        // An archive without a row is as it must be.
        let mut answers: Answers = vec![Ok(()); expected.len()];
        let ranges = || expected.iter().filter_map(|archive| archive.rows.range());
        let (Some(first), Some(last)) = (ranges().map(|range| range.0).min(), ranges().map(|range| range.1).max())
        else {
            return Ok(answers);
        };
        let groups = self.groups(unit, expected.iter().map(|e| e.symbol), (first, last)).await?;
        progress();
        let groups: HashMap<(&str, u64), &Group> =
            groups.iter().map(|group| ((group.symbol.as_str(), group.version), group)).collect();
        let same = |archive: &Expected<'_>| {
            let rows = archive.rows.open_times().len() as u64;
            let group = groups.get(&(archive.symbol, archive.version));
            group.is_some_and(|group| group.rows == rows && group.hash == archive.rows_hash)
        };
        let differing: Vec<usize> = (0..expected.len()).filter(|&index| !same(expected[index])).collect();
        if depth == Depth::Sums {
            for index in differing {
                answers[index] = Err(format!("{}: not all is shown", expected[index].symbol));
            }
            return Ok(answers);
        }
        let archives: Vec<&Expected<'_>> = differing.iter().map(|&index| expected[index]).collect();
        let compared = self.compare_rows(unit, &archives, progress).await?;
        for (index, comparison) in differing.into_iter().zip(compared) {
            answers[index] = comparison.first.map_or(Ok(()), Err);
        }
        Ok(answers)
    }

    /// [`Warehouse::compare_rows`] of one archive.
    pub(crate) async fn row_by_row(&self, unit: &Unit, expected: &Expected<'_>) -> Result<Comparison, WarehouseError> {
        Ok(self.compare_rows(unit, &[expected], &|| ()).await?.pop().unwrap_or_default())
    }

    /// Every open_time of an archive must show its own row, or what an archive generated later says of it. Where a
    /// correction has written what outranks all that is loaded, nothing can be said here. One answer an archive.
    async fn compare_rows(
        &self,
        unit: &Unit,
        expected: &[&Expected<'_>],
        progress: &(impl Fn() + Sync),
    ) -> Result<Vec<Comparison>, WarehouseError> {
        let mut comparisons = Vec::with_capacity(expected.len());
        let mut rest = expected;
        while !rest.is_empty() {
            let archives;
            (archives, rest) =
                rest.split_at(compared_at_once(rest.iter().map(|archive| archive.rows.open_times().len())));
            let ranges = || archives.iter().filter_map(|archive| archive.rows.range());
            let range = ranges().map(|range| range.0).min().zip(ranges().map(|range| range.1).max());
            let stored = match range {
                Some(range) => self.stored_rows(unit, archives, range).await?,
                None => Vec::new(),
            };
            progress();
            let mut by_symbol: HashMap<&str, HashMap<i64, &StoredRow>> = HashMap::new();
            for row in &stored {
                by_symbol.entry(row.name.as_str()).or_default().insert(row.at, row);
            }
            let nothing = HashMap::new();
            comparisons.extend(
                archives.iter().map(|archive| compare(archive, by_symbol.get(archive.symbol).unwrap_or(&nothing))),
            );
        }
        Ok(comparisons)
    }

    async fn stored_rows(
        &self,
        unit: &Unit,
        archives: &[&Expected<'_>],
        (first, last): (i64, i64),
    ) -> Result<Vec<StoredRow>, WarehouseError> {
        let symbols = archives.iter().map(|archive| quoted(archive.symbol)).collect::<Vec<_>>().join(", ");
        let versions = archives.iter().map(|archive| archive.version.to_string()).collect::<Vec<_>>().join(", ");
        // Several rows may share the highest version, where two archives were generated in the same two seconds.
        let sql = format!(
            "SELECT klines.symbol::String AS name, toUnixTimestamp64Micro(open_time) AS at, max(version) AS newest, \
             argMax(is_deleted, version) AS deleted, groupUniqArrayIf({ROW_HASH}, is_deleted = 0 \
             AND version = transform(klines.symbol::String, [{symbols}], [{versions}]::Array(UInt64), toUInt64(0))) AS hashes \
             FROM {{database}}.klines WHERE {series} AND klines.symbol IN ({symbols}) AND {range} GROUP BY name, open_time",
            series = unit_condition(unit, false),
            range = between(first, last),
        );
        self.select(&sql).await
    }

    /// Counts and hashes what ClickHouse shows of these symbols of a series in a range (µs).
    pub(crate) async fn groups(
        &self,
        unit: &Unit,
        symbols: impl Iterator<Item = &str>,
        range: (i64, i64),
    ) -> Result<Vec<Group>, WarehouseError> {
        let sql = format!(
            "SELECT symbol::String AS symbol, {OWN_VERSION} AS version, count() AS rows, sum({ROW_HASH}) AS hash \
             FROM {{database}}.klines FINAL WHERE {} AND symbol IN ({}) AND {} GROUP BY 1, 2 \
             SETTINGS do_not_merge_across_partitions_select_final = 1",
            unit_condition(unit, false),
            symbols.map(quoted).collect::<Vec<_>>().join(", "),
            between(range.0, range.1),
        );
        self.select(&sql).await
    }

    /// How many rows ClickHouse shows with this archive's version and other values than the archive's.
    ///
    /// Stricter than reading back an insert: there another archive of the same version may have rows of its own.
    pub(crate) async fn shown_otherwise(&self, unit: &Unit, expected: &Expected<'_>) -> Result<u64, WarehouseError> {
        let Some((first, last)) = expected.rows.range() else { return Ok(0) };
        let sql = format!(
            "SELECT toUnixTimestamp64Micro(open_time), {ROW_HASH} FROM {{database}}.klines FINAL \
             WHERE {} AND symbol = {} AND {} AND {OWN_VERSION} = {} \
             SETTINGS do_not_merge_across_partitions_select_final = 1",
            unit_condition(unit, false),
            quoted(expected.symbol),
            between(first, last),
            expected.version,
        );
        let shown: Vec<(i64, u64)> = self.select(&sql).await?;
        let own: HashMap<i64, usize> = expected.rows.open_times().iter().copied().zip(0..).collect();
        let other = |(at, hash): &&(i64, u64)| own.get(at).is_some_and(|row| expected.rows.hash_of(*row) != *hash);
        Ok(shown.iter().filter(other).count() as u64)
    }

    /// Which of these symbols have any row at all in a range (µs), also one that is not shown.
    pub(crate) async fn symbols_with_rows(
        &self,
        unit: &Unit,
        symbols: impl Iterator<Item = &str>,
        range: (i64, i64),
    ) -> Result<Vec<String>, WarehouseError> {
        let sql = format!(
            "SELECT DISTINCT symbol::String FROM {{database}}.klines WHERE {} AND symbol IN ({}) AND {}",
            unit_condition(unit, false),
            symbols.map(quoted).collect::<Vec<_>>().join(", "),
            between(range.0, range.1),
        );
        self.select(&sql).await
    }
}

/// What is stored of some units of a series.
struct StoredSums<'a> {
    window: Window<'a>,
    /// By symbol and version.
    sums: HashMap<(String, u64), Vec<StoredRows>>,
    /// By symbol and bucket.
    versions: HashMap<(String, u32), Vec<u64>>,
    /// The server's clock, in ms.
    at: i64,
}

impl StoredSums<'_> {
    /// Whether exactly the archive's rows are stored with its version, each once.
    fn is(&self, archive: &Expected<'_>) -> bool {
        let Some((rows, tombstones, hash)) = self.sums_of(archive) else { return true };
        rows == archive.rows.open_times().len() as u64 && tombstones == 0 && hash == archive.rows_hash
    }

    /// Whether fewer rows are stored with the archive's version than it has. More may be the same rows, inserted twice.
    fn lacks_rows_of(&self, archive: &Expected<'_>) -> bool {
        self.sums_of(archive).is_some_and(|(rows, ..)| rows < archive.rows.open_times().len() as u64)
    }

    /// Rows, tombstones and hash of what is stored with the archive's version; `None` of an archive without rows.
    fn sums_of(&self, archive: &Expected<'_>) -> Option<(u64, u64, u64)> {
        let (first, last) = archive.rows.range()?;
        let buckets = self.window.bucket_of(first)..=self.window.bucket_of(last);
        let stored = self.sums.get(&(archive.symbol.to_owned(), archive.version));
        let stored = stored.into_iter().flatten().filter(|rows| buckets.contains(&rows.bucket));
        Some(stored.fold((0, 0, 0), |(rows, tombstones, hash): (u64, u64, u64), found| {
            (rows + found.rows, tombstones + found.tombstones, hash.wrapping_add(found.hash))
        }))
    }

    fn has_other_versions(&self, sought: &Sought<'_>) -> bool {
        // Rows that open before the period are in another bucket, where the neighbour's are.
        if sought.unit.interval.as_str().parse::<Interval>().is_ok_and(Interval::may_open_before_period) {
            return true;
        }
        let bucket = self.window.bucket_of(range_of(sought.unit.period).0);
        sought.archives.iter().any(|archive| {
            let versions = self.versions.get(&(archive.symbol.to_owned(), bucket));
            versions.into_iter().flatten().any(|version| *version != archive.version)
        })
    }
}

/// How many of the next archives one query compares: as many as its limits allow, and at least one.
fn compared_at_once(rows: impl Iterator<Item = usize>) -> usize {
    let mut sum = 0_usize;
    let fits = |rows: &usize| {
        sum = sum.saturating_add(*rows);
        sum <= ROWS_COMPARED_MAX
    };
    rows.take(SYMBOLS_COMPARED_MAX).take_while(fits).count().max(1)
}

/// Compares an archive with the rows of its symbol, by open_time.
fn compare(expected: &Expected<'_>, stored: &HashMap<i64, &StoredRow>) -> Comparison {
    let mut comparison = Comparison::default();
    for (index, open_time) in expected.rows.open_times().iter().enumerate() {
        let (count, wrong) = match stored.get(open_time) {
            None => (&mut comparison.missing, "is not there"),
            Some(row) if row.newest >= RANKED || row.newest > expected.version => continue,
            Some(row) if row.deleted == 1 => (&mut comparison.missing, "was taken away"),
            Some(row) if row.newest < expected.version => (&mut comparison.missing, "is that of an older archive"),
            Some(row) if row.hashes.contains(&expected.rows.hash_of(index)) => continue,
            Some(_) => (&mut comparison.differing, "has other values"),
        };
        *count += 1;
        comparison
            .first
            .get_or_insert_with(|| format!("{}: the row of open_time {open_time} µs {wrong}", expected.symbol));
    }
    comparison
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_compares_a_bounded_number_of_rows_and_symbols() {
        assert_eq!(compared_at_once([24; 600].into_iter()), 600);
        assert_eq!(compared_at_once([24; 2_000].into_iter()), SYMBOLS_COMPARED_MAX);
        assert_eq!(compared_at_once([1_440; 600].into_iter()), 69);
        assert_eq!(compared_at_once([2_678_400, 24].into_iter()), 1, "an archive is not cut");
    }
}
