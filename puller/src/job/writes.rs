//! Writes of one delivery that may still be under way at the server.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::error::clickhouse::WarehouseError;

/// Longest answer of a query or an insert.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(120);
/// How long the rows of one insert may be on their way to the server. Over a slow line fewer rows an insert must do.
pub(crate) const SENDING_MAX: Duration = Duration::from_secs(60);
/// How long an insert may take: it is sent, then answered.
pub(crate) const INSERT_MAX: Duration = SENDING_MAX.saturating_add(TIMEOUT);

/// How long after it was given up a statement may still change a table: its longest time, for it may be another unit's too
/// and go on, and some for what lies between this worker and the server.
pub(crate) const WRITES_LAND_WITHIN: Duration = INSERT_MAX.saturating_add(Duration::from_secs(10));

/// Counts the writes of one delivery that were sent and not answered.
///
/// A unit that is handed back while one of them may still land could be worked on meanwhile: a later revision could be
/// loaded, and the rows of this one come after everybody has looked whether there are any. So it is handed back with a
/// delay, and whoever gets it then finds them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Writes(Arc<Mutex<WritesState>>);

#[derive(Debug, Default)]
struct WritesState {
    loading: Unanswered,
    outranking: Unanswered,
}

/// Writes of one kind that are open, or were given up.
#[derive(Debug, Default)]
struct Unanswered {
    open: usize,
    since: Option<Instant>,
}

/// What a write is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Written {
    /// Archives' rows, or the ledger's. Where this revision is recorded, it makes no difference that they land once more.
    Archives,
    /// Rows and tombstones with a rank epoch. Each was right by the ledger as it was read then; what is recorded meanwhile
    /// may have made it wrong, and nothing outranks it by itself.
    Outranking,
}

/// A write that was begun; dropped without an answer it may still land.
pub(crate) struct OpenWrite {
    writes: Writes,
    written: Written,
    answered: bool,
}

impl Unanswered {
    fn may_still_land(&self) -> Option<Duration> {
        if self.open > 0 {
            return Some(WRITES_LAND_WITHIN);
        }
        let left = WRITES_LAND_WITHIN.saturating_sub(self.since?.elapsed());
        (!left.is_zero()).then_some(left)
    }
}

impl WritesState {
    fn of(&mut self, written: Written) -> &mut Unanswered {
        match written {
            Written::Archives => &mut self.loading,
            Written::Outranking => &mut self.outranking,
        }
    }
}

impl Writes {
    fn state(&self) -> MutexGuard<'_, WritesState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be called before a write is sent.
    pub(crate) fn begin(&self, written: Written) -> OpenWrite {
        self.state().of(written).open += 1;
        OpenWrite { writes: self.clone(), written, answered: false }
    }

    /// How long a write of this delivery may still land; `None`: none can.
    pub(crate) fn may_still_land(&self) -> Option<Duration> {
        let state = self.state();
        state.loading.may_still_land().max(state.outranking.may_still_land())
    }

    /// The same of [`Written::Outranking`] alone.
    pub(crate) fn may_still_outrank(&self) -> Option<Duration> {
        self.state().outranking.may_still_land()
    }
}

impl OpenWrite {
    /// Ends it: the server has said what came of it.
    pub(crate) fn answered(mut self) {
        self.answered = true;
    }

    /// Ends it, as its result says: the server may have said that it did it, or that it did not.
    pub(crate) fn end<T>(mut self, result: Result<T, WarehouseError>) -> Result<T, WarehouseError> {
        self.answered = result.as_ref().err().is_none_or(|error| !error.unanswered);
        result
    }
}

impl Drop for OpenWrite {
    fn drop(&mut self) {
        let mut state = self.writes.state();
        let unanswered = state.of(self.written);
        unanswered.open -= 1;
        if !self.answered {
            unanswered.since = Some(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_write_without_an_answer_may_land_for_a_while() {
        let writes = Writes::default();
        assert_eq!(writes.may_still_land(), None);
        let open = writes.begin(Written::Archives);
        assert_eq!(writes.may_still_land(), Some(WRITES_LAND_WITHIN));
        assert!(open.end(Ok(())).is_ok());
        assert_eq!(writes.may_still_land(), None, "the server said that it is done");
        assert!(writes.begin(Written::Archives).end::<()>(Err(WarehouseError::wrong("refused"))).is_err());
        assert_eq!(writes.may_still_land(), None, "the server said that it is not done");
        drop(writes.begin(Written::Archives));
        tokio::time::advance(Duration::from_secs(30)).await;
        assert_eq!(writes.may_still_land(), Some(WRITES_LAND_WITHIN - Duration::from_secs(30)));
        tokio::time::advance(WRITES_LAND_WITHIN).await;
        assert_eq!(writes.may_still_land(), None);
    }
    #[tokio::test(start_paused = true)]
    async fn a_write_that_outranks_others_is_known_by_itself() {
        let writes = Writes::default();
        drop(writes.begin(Written::Archives));
        assert_eq!((writes.may_still_outrank(), writes.may_still_land()), (None, Some(WRITES_LAND_WITHIN)));
        tokio::time::advance(Duration::from_secs(30)).await;
        drop(writes.begin(Written::Outranking));
        assert_eq!(writes.may_still_outrank(), Some(WRITES_LAND_WITHIN));
        tokio::time::advance(WRITES_LAND_WITHIN).await;
        assert_eq!(writes.may_still_outrank(), None);
    }
}
