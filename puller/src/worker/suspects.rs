//! Units that fail while others of their destination are loaded.
//!
//! A server that refuses everything and one that refuses a single unit give the same answer. What tells them apart is
//! that other units are loaded between two failures of this one.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

/// Most units that are remembered.
const SUSPECTS_MAX: usize = 4096;
/// Failures after another unit was loaded, until this is no coincidence: a server may go away twice.
const STRIKES_MAX: u32 = 2;

#[derive(Default)]
pub(crate) struct Suspects(Mutex<SuspectsState>);

#[derive(Default)]
struct SuspectsState {
    loaded_at: Option<Instant>,
    suspects: HashMap<(String, u64), Suspect>,
}

struct Suspect {
    failed_at: Instant,
    strikes: u32,
}

impl Suspects {
    fn state(&self) -> MutexGuard<'_, SuspectsState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a unit was brought to the destination.
    pub(crate) fn loaded(&self, consumer: &str, sequence: u64) {
        let mut state = self.state();
        state.loaded_at = Some(Instant::now());
        state.suspects.remove(&(consumer.to_owned(), sequence));
    }

    /// Whether any unit was brought to the destination by this process.
    pub(crate) fn any_loaded(&self) -> bool {
        self.state().loaded_at.is_some()
    }

    /// Notes a failure that may be the unit's own. True: another unit was loaded since it failed first, and it failed
    /// again and again all the same. That stays true until it is loaded.
    pub(crate) fn fails_alone(&self, consumer: &str, sequence: u64) -> bool {
        let mut state = self.state();
        let loaded_at = state.loaded_at;
        let key = (consumer.to_owned(), sequence);
        if state.suspects.len() >= SUSPECTS_MAX && !state.suspects.contains_key(&key) {
            let oldest = state.suspects.iter().min_by_key(|(_, suspect)| suspect.failed_at).map(|(key, _)| key.clone());
            oldest.map(|oldest| state.suspects.remove(&oldest));
        }
        let suspect = state.suspects.entry(key).or_insert(Suspect { failed_at: Instant::now(), strikes: 0 });
        if loaded_at.is_some_and(|at| at > suspect.failed_at) {
            suspect.strikes += 1;
        }
        suspect.strikes >= STRIKES_MAX
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_unit_is_suspected_when_others_are_loaded() {
        let suspects = Suspects::default();
        let next = async || tokio::time::advance(Duration::from_secs(1)).await;
        for _ in 0..10 {
            next().await;
            assert!(!suspects.fails_alone("ingest-a", 1), "nobody is loaded");
        }
        next().await;
        assert!(!suspects.any_loaded());
        suspects.loaded("ingest-a", 2);
        assert!(suspects.any_loaded());
        next().await;
        assert!(!suspects.fails_alone("ingest-a", 1), "once is a coincidence");
        assert!(!suspects.fails_alone("backfill-a", 1), "it fails for the first time");
        assert!(suspects.fails_alone("ingest-a", 1));
        next().await;
        assert!(suspects.fails_alone("ingest-a", 1), "also at its next attempt");
        suspects.loaded("ingest-a", 1);
        assert!(!suspects.fails_alone("ingest-a", 1), "it was loaded since");
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_units_are_remembered_than_there_is_room_for() {
        let suspects = Suspects::default();
        for sequence in 0..=SUSPECTS_MAX as u64 {
            tokio::time::advance(Duration::from_millis(1)).await;
            assert!(!suspects.fails_alone("ingest-a", sequence));
        }
        assert_eq!(suspects.state().suspects.len(), SUSPECTS_MAX);
        assert!(!suspects.state().suspects.contains_key(&("ingest-a".to_owned(), 0)), "the oldest went");
    }
}
