//! What this process holds, has to retry and has done for one destination: for `status`, `pull` and the metrics.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use common::output::Failure;
use tokio::sync::Notify;

use crate::job::work::Work;
use crate::worker::ending::Ending;

/// What a destination's workers in this process hold, have to retry and have done.
#[derive(Clone, Default)]
pub(crate) struct WorkerStats {
    state: Arc<Mutex<StatsState>>,
    /// Told when the last unit in flight is off the board.
    idle: Arc<Notify>,
    /// Told when a unit begins to wait for its dead letter to be stored.
    letter_waits: Arc<Notify>,
}

#[derive(Default)]
struct StatsState {
    next_id: u64,
    in_flight: BTreeMap<u64, String>,
    retries_scheduled: Vec<ScheduledRetry>,
    totals: Totals,
    letters_waiting: usize,
    letters_wait_for: Option<Failure>,
}

/// A unit that was handed back, to be delivered again later.
struct ScheduledRetry {
    unit: String,
    why: String,
    until: Instant,
}

/// The retry that comes next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NextRetry {
    pub unit: String,
    pub why: String,
    pub in_seconds: u64,
}

/// What this process has finished since it started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    /// Units that need no further delivery, dead ones included.
    pub units: u64,
    pub dead: u64,
    /// Passed over, because the destination does not want units that old.
    pub too_old: u64,
    pub archives: u64,
    pub skipped: u64,
    pub rows: u64,
    pub bytes: u64,
}

/// A unit that needs nothing any more but a place for its dead letter; until dropped.
pub(crate) struct WaitingLetter(WorkerStats);

impl Drop for WaitingLetter {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.letters_waiting -= 1;
        if state.letters_waiting == 0 {
            state.letters_wait_for = None;
        }
    }
}

/// Takes a unit off the board when dropped.
pub(crate) struct InFlightUnit {
    stats: WorkerStats,
    id: u64,
}

impl WorkerStats {
    fn state(&self) -> MutexGuard<'_, StatsState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn enter(&self, unit: &str) -> InFlightUnit {
        let mut state = self.state();
        let id = state.next_id;
        state.next_id += 1;
        state.in_flight.insert(id, unit.to_owned());
        InFlightUnit { stats: self.clone(), id }
    }

    /// Returns when no unit is in flight any more, since the last call.
    pub(crate) async fn idle(&self) {
        self.idle.notified().await;
    }

    pub(crate) fn schedule_retry(&self, unit: &str, why: &str, after: Duration) {
        let until = Instant::now() + after;
        let mut state = self.state();
        state.retries_scheduled.retain(|retries_scheduled| retries_scheduled.unit != unit);
        state.retries_scheduled.push(ScheduledRetry { unit: unit.to_owned(), why: why.to_owned(), until });
    }

    pub(crate) fn next_retry(&self) -> Option<NextRetry> {
        let now = Instant::now();
        let state = self.state();
        let next = state
            .retries_scheduled
            .iter()
            .filter(|retries_scheduled| retries_scheduled.until > now)
            .min_by_key(|retries_scheduled| retries_scheduled.until)?;
        let in_seconds = (next.until - now).as_secs_f64().ceil() as u64;
        Some(NextRetry { unit: next.unit.clone(), why: next.why.clone(), in_seconds })
    }

    /// Notes that a unit waits until its dead letter can be stored.
    pub(crate) fn wait_with_letter(&self, reason: Failure) -> WaitingLetter {
        {
            let mut state = self.state();
            state.letters_waiting += 1;
            state.letters_wait_for = Some(reason);
        }
        self.letter_waits.notify_one();
        WaitingLetter(self.clone())
    }

    /// How many units wait for that: they hold a slot, and want no memory.
    pub(crate) fn letters_waiting(&self) -> usize {
        self.state().letters_waiting
    }

    /// Why dead letters cannot be stored, if they cannot.
    pub(crate) fn letters_wait_for(&self) -> Option<Failure> {
        self.state().letters_wait_for.clone()
    }

    /// Returns when a unit has begun to wait for its dead letter, since the last call.
    pub(crate) async fn letter_waits(&self) {
        self.letter_waits.notified().await;
    }

    /// Counts a unit that needs no further delivery.
    pub(crate) fn count(&self, ending: Ending) {
        let totals = &mut self.state().totals;
        totals.units += 1;
        totals.dead += u64::from(ending == Ending::DeadLetter);
        totals.too_old += u64::from(ending == Ending::TooOld);
    }

    pub(crate) fn add(&self, work: &Work) {
        let totals = &mut self.state().totals;
        totals.archives += work.loaded;
        totals.skipped += work.skipped;
        totals.rows += work.rows;
        totals.bytes += work.bytes;
    }

    pub(crate) fn in_flight_count(&self) -> usize {
        self.state().in_flight.len()
    }

    pub(crate) fn in_flight(&self) -> Vec<String> {
        self.state().in_flight.values().cloned().collect()
    }

    pub(crate) fn retries_scheduled(&self) -> u64 {
        let mut state = self.state();
        let now = Instant::now();
        state.retries_scheduled.retain(|retries_scheduled| retries_scheduled.until > now);
        state.retries_scheduled.len() as u64
    }

    pub(crate) fn totals(&self) -> Totals {
        self.state().totals
    }
}

impl Drop for InFlightUnit {
    fn drop(&mut self) {
        let mut state = self.stats.state();
        state.in_flight.remove(&self.id);
        if state.in_flight.is_empty() {
            self.stats.idle.notify_one();
        }
    }
}
