//! Writes of one delivery that may still be under way at the server.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::warehouse::{TIMEOUT, WarehouseError};

/// How long after it was given up a statement may still change a table: its longest time, and some for what lies between
/// this worker and the server.
pub(crate) const WRITES_LAND_WITHIN: Duration = TIMEOUT.saturating_add(Duration::from_secs(10));

/// Counts the writes of one delivery that were sent and not answered.
///
/// A unit that is handed back while one of them may still land could be worked on meanwhile: a later revision could be
/// loaded, and the rows of this one come after everybody has looked whether there are any. So it is handed back with a
/// delay, and whoever gets it then finds them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Writes(Arc<Mutex<WritesState>>);

#[derive(Debug, Default)]
struct WritesState {
    open: usize,
    unanswered_since: Option<Instant>,
}

/// A write that was begun; dropped without an answer it may still land.
pub(crate) struct OpenWrite {
    writes: Writes,
    answered: bool,
}

impl Writes {
    fn state(&self) -> MutexGuard<'_, WritesState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be called before a write is sent.
    pub(crate) fn begin(&self) -> OpenWrite {
        self.state().open += 1;
        OpenWrite { writes: self.clone(), answered: false }
    }

    /// How long a write of this delivery may still land; `None`: none can.
    pub(crate) fn may_still_land(&self) -> Option<Duration> {
        let state = self.state();
        if state.open > 0 {
            return Some(WRITES_LAND_WITHIN);
        }
        let left = WRITES_LAND_WITHIN.saturating_sub(state.unanswered_since?.elapsed());
        (!left.is_zero()).then_some(left)
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
        state.open -= 1;
        if !self.answered {
            state.unanswered_since = Some(Instant::now());
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
        let open = writes.begin();
        assert_eq!(writes.may_still_land(), Some(WRITES_LAND_WITHIN));
        assert!(open.end(Ok(())).is_ok());
        assert_eq!(writes.may_still_land(), None, "the server said that it is done");
        assert!(writes.begin().end::<()>(Err(WarehouseError::wrong("refused"))).is_err());
        assert_eq!(writes.may_still_land(), None, "the server said that it is not done");
        drop(writes.begin());
        tokio::time::advance(Duration::from_secs(30)).await;
        assert_eq!(writes.may_still_land(), Some(WRITES_LAND_WITHIN - Duration::from_secs(30)));
        tokio::time::advance(WRITES_LAND_WITHIN).await;
        assert_eq!(writes.may_still_land(), None);
    }
}
