//! After an attempt ClickHouse shows what the recorded archives say, and nothing else: per open_time the row of the archive
//! generated last that has one, or no row.
//!
//! Rows as they are loaded show just that by the engine's own rule, except where an archive came again without some of its
//! rows. A row that only its former revision had is superseded. What belongs in its place, another archive's row or none,
//! is in no table any more, for merges drop what is outranked. So it is derived from the archives themselves
//! ([`derivation`]), and written with a rank epoch above all that is stored of that open_time
//! ([`crate::clickhouse::version`]). From then on the engine's rule says nothing about this open_time, and whoever loads an archive
//! that may have it derives again.
//!
//! An open_time is to be proven if a row of it has a rank epoch or is a tombstone, or if the row it shows was not brought by
//! a recorded archive. Of all others the row that is shown has the highest own version of all rows ever loaded, and a
//! recorded archive has it: so it is right.
//!
//! # Two workers
//!
//! Each worker inserts its rows, looks at what is stored (the read-back does), records, and acts on what it saw. One that saw
//! nothing to prove relies on that if it recorded within five seconds of its look, by the server's clock and by its own;
//! otherwise it looks again after its record. One that writes reads the ledger again six seconds later, and derives again
//! until nothing differs.
//!
//! | | A loads a day | B has loaded a correction of the month |
//! |---|---|---|
//! | 1 | | records; reads the ledger: no day |
//! | 2 | inserts | |
//! | 3 | looks: nothing to prove | |
//! | 4 | | writes a tombstone where the month has no row any more |
//! | 5 | records, relies on 3, acks | |
//! | 6 | | reads the ledger again: the day is there, for 5 came within five seconds of 3; writes the day's row |
//!
//! Had A taken longer, its second look, after 5, would see the tombstone, or come before 4; then 6 sees the record.
//!
//! | | A loads the older revision of an archive | B loads the newer one |
//! |---|---|---|
//! | 1 | | inserts, looks: no row of A's |
//! | 2 | inserts, looks: rows of a newer revision, which is not recorded | |
//! | 3 | waits for the record, six seconds at most | |
//! | 4 | | records, relies on 1, acks |
//! | 5 | reads the ledger: its own rows are superseded; derives | |
//!
//! If 4 comes after A has given up waiting, it is more than five seconds after 1: B looks again and sees A's rows.
//!
//! A worker that dies is followed by a redelivery, which skips what is recorded and looks after it. It cannot know when the
//! dead one wrote; so it waits six seconds and derives once more, as if it had written itself. An insert that ClickHouse
//! still has in flight when its worker is gone may land after all that: `puller verify` finds its rows.

mod derivation;

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use common::failpoint::failpoint;
use common::unit::Unit;
use nats::Activity;

use crate::clickhouse::client::quoted;
use crate::clickhouse::insert::{columns, insert};
use crate::clickhouse::ledger::unit_condition;
use crate::clickhouse::native::{Rows, Slice};
use crate::clickhouse::series::{between, range_of};
use crate::clickhouse::unproven::{QUERY_SYMBOLS_MAX, Recorded, unproven_symbols};
use crate::clickhouse::version::{RANKED, outranking};
use crate::error::clickhouse::WarehouseError;
use crate::error::work::{FaultyObject, WorkError};
use crate::load::loader::Loader;

use derivation::{Derivation, Differences, ranges_of};

/// How long a worker may rely on a look at what is stored: from the look to the end of its record.
const RELIED_ON_WITHIN: Duration = Duration::from_secs(5);
/// How long one that acts waits for others' records: a little longer.
const RECORD_WAIT: Duration = Duration::from_secs(6);
const RECORD_POLL: Duration = Duration::from_millis(200);
/// Times that rows are derived in one attempt: each but the last was followed by another worker's record.
const ROUNDS_MAX: usize = 5;
/// What the read-backs of a unit's parts saw: if nothing is to be proven, nobody need ask [`unproven_symbols`].
#[derive(Debug)]
pub(crate) struct EarlyCheck {
    to_prove: AtomicBool,
    begun: OnceLock<Instant>,
    /// The server's clock at the first look and at the end of the last record, in ms.
    checked_at: AtomicI64,
    recorded_at: AtomicI64,
}

impl Default for EarlyCheck {
    fn default() -> Self {
        Self {
            to_prove: AtomicBool::new(false),
            begun: OnceLock::new(),
            checked_at: AtomicI64::new(i64::MAX),
            recorded_at: AtomicI64::new(i64::MIN),
        }
    }
}

impl EarlyCheck {
    /// To be called before a part is read back.
    pub(crate) fn begins(&self) {
        self.begun.get_or_init(Instant::now);
    }

    pub(crate) fn saw(&self, to_prove: bool, server_ms: i64) {
        self.to_prove.fetch_or(to_prove, Ordering::Relaxed);
        self.checked_at.fetch_min(server_ms, Ordering::Relaxed);
    }

    pub(crate) fn recorded(&self, server_ms: i64) {
        self.recorded_at.fetch_max(server_ms, Ordering::Relaxed);
    }

    /// To be asked after all parts are recorded.
    ///
    /// Two clocks: the server's goes on while this machine sleeps or is paused, ours while somebody sets the server's back.
    pub(crate) fn proves_all(&self) -> bool {
        let in_time = self.begun.get().is_some_and(|begun| begun.elapsed() < RELIED_ON_WITHIN);
        let server_ms = self.recorded_at.load(Ordering::Relaxed).checked_sub(self.checked_at.load(Ordering::Relaxed));
        let in_server_time = server_ms
            .and_then(|ms| u64::try_from(ms).ok())
            .is_some_and(|ms| Duration::from_millis(ms) < RELIED_ON_WITHIN);
        !self.to_prove.load(Ordering::Relaxed) && in_time && in_server_time
    }
}

/// Rows of one symbol that are not shown as the recorded archives say.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct WronglyShown {
    /// Rows shown that no archive has, or that another archive's row is to stand in for.
    pub superseded: u64,
    /// Rows hidden by a tombstone that an archive has.
    pub hidden: u64,
    /// µs
    pub first_open_time: Option<i64>,
    /// Why it could not be told.
    pub undecided: Option<String>,
}

impl Loader {
    /// Makes ClickHouse show what the recorded archives say in the unit's period of these symbols. Returns the archives
    /// whose rows are needed for that and cannot be had.
    ///
    /// `resumed`: an earlier attempt may have done this in part.
    pub(crate) async fn show_current_rows(
        &self,
        unit: &Unit,
        symbols: &BTreeSet<String>,
        resumed: bool,
        activity: &Activity,
    ) -> Result<Vec<FaultyObject>, WorkError> {
        let symbols: Vec<&str> = symbols.iter().map(String::as_str).collect();
        self.wait_for_newer_records(unit, &symbols, activity).await?;
        let derivation = Derivation::new(self, unit, activity)?;
        for round in 0..ROUNDS_MAX {
            let (mut faults, mut written, mut ranked) = (Vec::new(), 0, false);
            for (symbols, range) in ranges_of(unit, &symbols)? {
                let found = derivation.differences(symbols, range).await?;
                written += self.outrank(unit, &found, activity).await?;
                ranked |= found.ranked;
                faults.extend(found.undecided.into_iter().map(|(_, faulty)| faulty));
            }
            if written == 0 && !(round == 0 && resumed && ranked) {
                faults.sort_by(|a: &FaultyObject, b| a.key.cmp(&b.key));
                faults.dedup();
                return Ok(faults);
            }
            if written > 0 {
                tracing::info!(%unit, rows = written, "showing what the archives say where a former revision had rows");
                failpoint("puller.rows_outranked");
            }
            activity.while_waiting(tokio::time::sleep(RECORD_WAIT)).await;
        }
        let message = format!("{unit}: other workers record archives faster than their rows can be compared");
        Err(WarehouseError::wrong(message).into())
    }

    /// What [`Loader::show_current_rows`] would change, by symbol.
    pub(crate) async fn wrongly_shown(
        &self,
        unit: &Unit,
        versions: HashMap<String, u64>,
    ) -> Result<HashMap<String, WronglyShown>, WorkError> {
        let activity = Activity::default();
        let derivation = Derivation::new(self, unit, &activity)?;
        let mut wrong: HashMap<String, WronglyShown> = HashMap::new();
        let versions: Vec<(String, u64)> = versions.into_iter().collect();
        for part in versions.chunks(QUERY_SYMBOLS_MAX) {
            let recorded = Recorded { unit: unit.clone(), versions: part.iter().cloned().collect() };
            let unproven = unproven_symbols(&self.warehouse, &[Arc::new(recorded)]).await?;
            let symbols: Vec<&str> = unproven.iter().flatten().map(String::as_str).collect();
            for (symbols, range) in ranges_of(unit, &symbols)? {
                let Differences { outranked, undecided, .. } = derivation.differences(symbols, range).await?;
                for row in outranked {
                    let wrong = wrong.entry(row.symbol).or_default();
                    let count = if row.hidden { &mut wrong.hidden } else { &mut wrong.superseded };
                    *count += 1;
                    wrong.first_open_time.get_or_insert(row.open_time);
                }
                for (symbol, faulty) in undecided {
                    wrong.entry(symbol).or_default().undecided.get_or_insert_with(|| faulty.to_string());
                }
            }
        }
        Ok(wrong)
    }

    /// Writes what is to be shown above what is stored.
    async fn outrank(&self, unit: &Unit, found: &Differences, activity: &Activity) -> Result<usize, WorkError> {
        if found.outranked.is_empty() {
            return Ok(0);
        }
        let mut slices = Vec::with_capacity(found.outranked.len());
        for row in &found.outranked {
            let version = outranking(row.outranked, row.own_version)
                .ok_or_else(|| WarehouseError::wrong(format!("{unit} {}: no rank epoch is left", row.symbol)))?;
            let rows = match row.row {
                Some(index) => Rows::Klines { klines: &found.rows, range: index..index + 1 },
                None => Rows::Tombstones(std::slice::from_ref(&row.open_time)),
            };
            slices.push(Slice { unit: columns(unit), symbol: &row.symbol, version, rows });
        }
        insert(&self.warehouse, &slices, || activity.bump()).await?;
        Ok(slices.len())
    }

    /// Waits while rows of a newer revision than the recorded one are stored: somebody is about to record it.
    async fn wait_for_newer_records(
        &self,
        unit: &Unit,
        symbols: &[&str],
        activity: &Activity,
    ) -> Result<(), WorkError> {
        let asked = Instant::now();
        loop {
            // Told before the ledger is read: the last look at it must not be older than the wait.
            let at_last = asked.elapsed() > RECORD_WAIT;
            let mut newer = false;
            for part in symbols.chunks(QUERY_SYMBOLS_MAX) {
                newer = newer || self.has_newer_than_recorded(unit, part).await?;
            }
            if at_last || !newer {
                return Ok(());
            }
            activity.while_waiting(tokio::time::sleep(RECORD_POLL)).await;
        }
    }

    async fn has_newer_than_recorded(&self, unit: &Unit, symbols: &[&str]) -> Result<bool, WorkError> {
        let Some((_, range)) = ranges_of(unit, symbols)?.into_iter().next() else { return Ok(false) };
        let range = (range.0, range_of(unit.period).1);
        let archives = self.warehouse.archives_of_range(unit, symbols, range).await?;
        let sql = format!(
            "SELECT DISTINCT klines.symbol::String, version FROM {{database}}.klines WHERE {series} \
             AND klines.symbol IN ({symbols}) AND {range} AND version % 2 = {kind} AND version < {RANKED} \
             AND is_deleted = 0",
            series = unit_condition(unit, false),
            symbols = symbols.iter().copied().map(quoted).collect::<Vec<_>>().join(", "),
            range = between(range.0, range.1),
            kind = u8::from(unit.period.is_month()),
        );
        let stored: Vec<(String, u64)> = self.warehouse.select(&sql).await?;
        Ok(stored.iter().any(|(symbol, version)| {
            let archives = archives.get(symbol).map(Vec::as_slice).unwrap_or_default();
            let recorded = archives.iter().find(|archive| archive.unit.period == unit.period);
            let is_recorded = || archives.iter().any(|archive| archive.version == *version);
            recorded.is_some_and(|recorded| *version > recorded.version && !is_recorded())
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_is_relied_on_for_five_seconds_of_both_clocks() {
        let check = |checks: &[(bool, i64)], recorded: &[i64], proves: bool| {
            let check = EarlyCheck::default();
            check.begins();
            checks.iter().for_each(|&(to_prove, at)| check.saw(to_prove, at));
            recorded.iter().for_each(|&at| check.recorded(at));
            assert_eq!(check.proves_all(), proves, "{checks:?} {recorded:?}");
        };
        check(&[(false, 1_000)], &[1_500], true);
        check(&[(false, 1_000), (false, 3_000)], &[3_500, 5_999], true);
        check(&[(false, 1_000), (false, 3_000)], &[3_500, 6_000], false);
        check(&[(false, 1_000), (true, 1_100)], &[1_500], false);
        // The server's clock was set back in between.
        check(&[(false, 1_000)], &[900], false);
        check(&[(false, 1_000)], &[], false);
        check(&[], &[1_000], false);
        assert!(!EarlyCheck::default().proves_all());
    }
}
