//! What is to be shown of single open_times, derived from the archives that may have them.
//!
//! An archive is fetched again and decoded for the open_times in question. One that the bucket does not have any more, or has
//! in a newer revision, is read from the rows of it that are still stored, if they are all there: merges drop rows that are
//! outranked.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};

use common::unit::Unit;
use futures::{StreamExt, TryStreamExt, stream};
use nats::Activity;
use tokio::sync::OwnedSemaphorePermit;

use crate::clickhouse::ledger::RecordedArchive;
use crate::clickhouse::series::range_of;
use crate::clickhouse::stored_rows::{RowsOfArchive, StoredKey};
use crate::clickhouse::unproven::QUERY_SYMBOLS_MAX;
use crate::clickhouse::version::{RANKED, own_version};
use crate::error::work::{FaultyObject, ObjectFault, WorkError};
use crate::job::spec::{expected_rows, spec_of};
use crate::load::decisions::Shown;
use crate::load::loader::Loader;
use archive::{CHUNK_ROWS, Kline, Klines, ROW_BYTES};

/// open_times that are looked at in one query, and so held at most.
const OPEN_TIMES_MAX: u64 = 100_000;
/// What a row takes that is kept for its open_time: doubled while a table grows.
const STORED_ROW_BYTES: u64 = 2 * size_of::<(i64, Kline)>() as u64;
/// Archives fetched and decoded at once.
const ARCHIVES_AT_ONCE: usize = 8;
/// An open_time that is not shown as the archives say, and what is to outrank what is stored of it.
pub(super) struct OutrankedRow {
    pub symbol: String,
    /// µs
    pub open_time: i64,
    /// The highest version that is stored.
    pub outranked: u64,
    /// A tombstone hides an archive's row.
    pub hidden: bool,
    /// Of the archive whose row is to be shown, or of the unit's archive, which lacks the row.
    pub own_version: u64,
    /// In [`Differences::rows`]; `None`: no archive has it.
    pub row: Option<usize>,
}

#[derive(Default)]
pub(super) struct Differences {
    pub outranked: Vec<OutrankedRow>,
    pub rows: Klines,
    /// By symbol, archives that are needed and cannot be had.
    pub undecided: Vec<(String, FaultyObject)>,
    /// Whether there are rows with a rank epoch, or tombstones.
    pub ranked: bool,
    /// Of the rows.
    _memory: Option<OwnedSemaphorePermit>,
}

/// The same of several archives, by object key.
type RowsByKey = HashMap<String, Result<RowsOfArchive, ObjectFault>>;

fn what_shows(key: &StoredKey) -> Shown {
    if key.deleted == 1 {
        return Shown::Nothing;
    }
    Shown::Row { own_version: own_version(key.top), hash: key.hash }
}

pub(super) struct Derivation<'l> {
    loader: &'l Loader,
    unit: &'l Unit,
    activity: &'l Activity,
}

/// Symbols, and first and last open_time (µs).
type SymbolsInRange<'s, 'a> = (&'s [&'a str], (i64, i64));

/// The symbols in parts, each with the range of open_times (µs, both included) in which an archive of the unit may have rows;
/// so that a query looks at no more than [`OPEN_TIMES_MAX`].
pub(super) fn ranges_of<'s, 'a>(unit: &Unit, symbols: &'s [&'a str]) -> Result<Vec<SymbolsInRange<'s, 'a>>, WorkError> {
    let spec = spec_of(unit)?;
    let (start, last) = range_of(unit.period);
    let length = spec.interval.length_us();
    let first = if spec.interval.may_open_before_period() { start - length + 1 } else { start };
    let symbols_max = usize::try_from(OPEN_TIMES_MAX / expected_rows(&spec)).unwrap_or(usize::MAX);
    let step = length.saturating_mul(OPEN_TIMES_MAX.cast_signed());
    let mut ranges = Vec::new();
    for symbols in symbols.chunks(symbols_max.clamp(1, QUERY_SYMBOLS_MAX)) {
        let mut from = first;
        while from <= last {
            let to = last.min(from.saturating_add(step - 1));
            ranges.push((symbols, (from, to)));
            from = to + 1;
        }
    }
    Ok(ranges)
}

impl<'l> Derivation<'l> {
    pub(super) fn new(loader: &'l Loader, unit: &'l Unit, activity: &'l Activity) -> Result<Self, WorkError> {
        spec_of(unit)?;
        Ok(Self { loader, unit, activity })
    }

    /// What is shown of these symbols in this range and is not what the archives say that are recorded now.
    pub(super) async fn differences(&self, symbols: &[&str], range: (i64, i64)) -> Result<Differences, WorkError> {
        let mut found = Differences::default();
        // The ledger first: what is recorded after it was read is seen by whoever recorded it, or in the next round.
        let mut archives = self.loader.warehouse.archives_of_range(self.unit, symbols, range).await?;
        archives.values_mut().for_each(|archives| archives.sort_by_key(|archive| Reverse(archive.version)));
        let recorded: BTreeMap<&str, u64> = archives
            .iter()
            .filter_map(|(symbol, archives)| {
                let own = archives.iter().find(|archive| archive.unit.period == self.unit.period)?;
                Some((symbol.as_str(), own.version))
            })
            .collect();
        if recorded.is_empty() {
            return Ok(found);
        }
        let stored = self.loader.warehouse.unproven_keys(self.unit, &recorded, range).await?;
        self.activity.bump();
        let mut open = Vec::new();
        for key in &stored {
            let candidates: Vec<&RecordedArchive> =
                archives.get(&key.name).into_iter().flatten().filter(|archive| archive.may_have(key.at)).collect();
            let ranked = key.top >= RANKED;
            found.ranked |= ranked || key.deleted == 1;
            if self.is_proven(key, &candidates, recorded.get(key.name.as_str()).copied().unwrap_or_default()) {
                continue;
            }
            open.push((key, candidates));
        }
        let (rows, memory) = self.fetch_rows(&open).await?;
        found._memory = memory;
        for (key, candidates) in open {
            let mut shown = Ok(None);
            for archive in &candidates {
                match rows.get(archive.object.key.as_str()) {
                    Some(Ok(rows)) => {
                        if let Some(row) = rows.get(&key.at) {
                            shown = Ok(Some((archive.version, *row)));
                            break;
                        }
                    }
                    Some(Err(fault)) => {
                        shown = Err((archive, fault));
                        break;
                    }
                    None => {}
                }
            }
            let (own_version, row) = match shown {
                Ok(Some((version, row))) => {
                    found.rows.push(&row);
                    (version, Some(found.rows.len() - 1))
                }
                Ok(None) => (recorded.get(key.name.as_str()).copied().unwrap_or_default(), None),
                Err((archive, fault)) => {
                    let fault = ObjectFault::Needed { unit: self.unit.to_string(), fault: Box::new(fault.clone()) };
                    found.undecided.push((key.name.clone(), FaultyObject { key: archive.object.key.clone(), fault }));
                    continue;
                }
            };
            let right = match row {
                Some(index) => Shown::Row { own_version, hash: found.rows.row_hash(index) },
                None => Shown::Nothing,
            };
            self.loader.decisions.remember(&candidates, key.at, right);
            if what_shows(key) != right {
                found.outranked.push(OutrankedRow {
                    symbol: key.name.clone(),
                    open_time: key.at,
                    outranked: key.top,
                    hidden: key.deleted == 1,
                    own_version,
                    row,
                });
            }
        }
        Ok(found)
    }

    /// Whether an open_time shows what it should, as far as that can be told without the archives.
    fn is_proven(&self, key: &StoredKey, candidates: &[&RecordedArchive], recorded: u64) -> bool {
        let is_loaded_from = |archive: &&RecordedArchive| archive.version == own_version(key.top);
        if key.deleted == 1 {
            if candidates.is_empty() {
                return true;
            }
        } else if candidates.first().is_some_and(is_loaded_from) {
            // Nothing that is recorded wins over it.
            return true;
        } else if key.top < RANKED && (key.top > recorded || candidates.iter().any(is_loaded_from)) {
            // Of a revision that somebody is about to record, or of the neighbour's archive.
            return true;
        }
        self.loader.decisions.of(candidates, key.at) == Some(what_shows(key))
    }

    /// The rows of the archives that may have one of these open_times, by object key; and the memory that they take.
    async fn fetch_rows(
        &self,
        open: &[(&StoredKey, Vec<&RecordedArchive>)],
    ) -> Result<(RowsByKey, Option<OwnedSemaphorePermit>), WorkError> {
        let mut needed: BTreeMap<&str, (&RecordedArchive, HashSet<i64>)> = BTreeMap::new();
        for (key, candidates) in open {
            for archive in candidates {
                let (_, times) = needed.entry(archive.object.key.as_str()).or_insert_with(|| (archive, HashSet::new()));
                times.insert(key.at);
            }
        }
        if needed.is_empty() {
            return Ok((RowsByKey::new(), None));
        }
        // At once: see `MemoryBudget::acquire`.
        let rows: u64 = open.iter().map(|(_, candidates)| 1 + candidates.len() as u64).sum();
        let mut archives = Vec::with_capacity(needed.len());
        for (archive, _) in needed.values() {
            let rows_max = spec_of(&archive.unit)?.rows_max.min(CHUNK_ROWS as u64);
            archives.push(archive.object.size + rows_max * ROW_BYTES as u64);
        }
        archives.sort_unstable_by_key(|bytes| Reverse(*bytes));
        let bytes = rows * STORED_ROW_BYTES + archives.iter().take(ARCHIVES_AT_ONCE).sum::<u64>();
        let memory = self.activity.while_waiting(self.loader.memory.acquire(bytes)).await;
        let fetches: Vec<_> = needed.into_values().map(|(archive, times)| self.rows_of(archive, times)).collect();
        let rows = stream::iter(fetches).buffer_unordered(ARCHIVES_AT_ONCE).try_collect().await?;
        Ok((rows, Some(memory)))
    }

    async fn rows_of(
        &self,
        archive: &RecordedArchive,
        times: HashSet<i64>,
    ) -> Result<(String, Result<RowsOfArchive, ObjectFault>), WorkError> {
        let rows = match self.loader.fetch_rows_of(archive, times.clone(), self.activity).await? {
            Ok(rows) => Ok(rows),
            Err(fault) => self.loader.warehouse.stored_rows_of(archive, &times).await?.ok_or(fault),
        };
        Ok((archive.object.key.clone(), rows))
    }
}

impl Loader {
    /// The archive's rows of these open_times, from the bucket. The memory for it is its caller's.
    async fn fetch_rows_of(
        &self,
        archive: &RecordedArchive,
        times: HashSet<i64>,
        activity: &Activity,
    ) -> Result<Result<RowsOfArchive, ObjectFault>, WorkError> {
        let spec = spec_of(&archive.unit)?;
        let bytes = match self.fetcher.fetch(&archive.unit, &archive.object, activity).await? {
            Ok(bytes) => bytes,
            Err(fault) => return Ok(Err(fault)),
        };
        let place = activity.while_waiting(self.decodings.acquire()).await;
        let _place = place.expect("the semaphore is never closed");
        let name = archive.object.key.rsplit('/').next().unwrap_or_default().to_owned();
        let decoding = tokio::task::spawn_blocking(move || {
            let mut rows = RowsOfArchive::new();
            let collect = |klines: Klines| {
                let matching = klines.iter().filter(|row| times.contains(&row.open_time));
                rows.extend(matching.map(|row| (row.open_time, row)));
            };
            // These bytes were decoded as a whole before they were loaded.
            archive::chunks(&name, &bytes, &spec, collect).map(|()| rows)
        });
        let decoded = decoding.await.map_err(|error| WorkError::Panicked(error.to_string()))?;
        activity.bump();
        Ok(decoded.map_err(ObjectFault::Damaged))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_looks_at_a_bounded_number_of_open_times() {
        let check = |unit: &str, symbols: usize, queries: usize, symbols_of_first: usize| {
            let unit: Unit = unit.parse().expect("a unit");
            let names = vec!["A"; symbols];
            let ranges = ranges_of(&unit, &names).expect("an interval");
            assert_eq!((ranges.len(), ranges[0].0.len()), (queries, symbols_of_first), "{unit}");
            let (first, last) = (ranges[0].1.0, ranges[ranges.len() - 1].1.1);
            assert_eq!(last, unit.period.end().as_microsecond() - 1);
            let before = unit.period.start().as_microsecond() - first;
            assert_eq!(before > 0, unit.interval.as_str() == "1w");
        };
        check("binance/um/klines/1h/2026-02-14", 2_500, 3, 1_000);
        check("binance/um/klines/1m/2026-02", 5, 3, 2);
        check("binance/um/klines/1s/2026-02", 1, 25, 1);
        check("binance/um/klines/1w/2026-02", 1, 1, 1);
    }
}
