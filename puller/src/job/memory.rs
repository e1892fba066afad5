//! The memory that units in flight share.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// What the process takes beside archives and rows: its code and connections, the texts being decoded (one a processor),
/// and the blocks on their way to the server. Set aside of `puller.memory`, up to half of it.
const RESERVE_BYTES: u64 = 128 << 20;

/// Bytes that archives in flight and decoded rows may take, shared by all destinations of a process.
#[derive(Clone)]
pub(crate) struct MemoryBudget {
    free_kib: Arc<Semaphore>,
    total_kib: u32,
}

impl MemoryBudget {
    /// Of `puller.memory`, in bytes.
    pub(crate) fn new(memory: u64) -> Self {
        let budget = memory - RESERVE_BYTES.min(memory / 2);
        let total_kib = u32::try_from(budget / 1024).unwrap_or(u32::MAX).max(1);
        Self { free_kib: Arc::new(Semaphore::new(total_kib as usize)), total_kib }
    }

    pub(crate) fn total_bytes(&self) -> u64 {
        u64::from(self.total_kib) * 1024
    }

    /// Waits for this many bytes, or for all there are. Taken at once for a whole part: taking piece by piece could
    /// leave every worker waiting for the others' pieces.
    pub(crate) async fn acquire(&self, bytes: u64) -> OwnedSemaphorePermit {
        let kib = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX).min(self.total_kib);
        Arc::clone(&self.free_kib).acquire_many_owned(kib).await.expect("the semaphore is never closed")
    }
}

/// Units taken while nothing is known yet of how large they are.
const FIRST_UNITS: u64 = 4;

/// How much memory the units in flight want, so that no worker takes more of them than it can work on: those that only wait
/// for memory could be with another worker.
pub(crate) struct Demand {
    /// What may be wanted together, in bytes: somewhat more than there is, so that nothing lies idle.
    bytes_max: u64,
    state: Mutex<DemandState>,
    changed: Notify,
}

#[derive(Default)]
struct DemandState {
    units: u64,
    bytes: u64,
    /// What a unit wanted of late, in bytes.
    usual: Option<u64>,
}

/// A unit whose size is known, until dropped.
pub(crate) struct DemandGuard<'d> {
    demand: &'d Demand,
    bytes: u64,
}

impl Demand {
    pub(crate) fn new(budget: &MemoryBudget) -> Self {
        let bytes_max = budget.total_bytes() + budget.total_bytes() / 2;
        Self { bytes_max, state: Mutex::default(), changed: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, DemandState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a unit in flight wants this much.
    pub(crate) fn enter(&self, bytes: u64) -> DemandGuard<'_> {
        {
            let mut state = self.state();
            state.units += 1;
            state.bytes += bytes;
            state.usual = Some(state.usual.map_or(bytes, |usual| (3 * usual + bytes) / 4));
        }
        self.changed.notify_waiters();
        DemandGuard { demand: self, bytes }
    }

    /// Waits until there is room for more units than the given number, all that are in flight; returns for how many.
    pub(crate) async fn free_slots(&self, in_flight: impl Fn() -> usize) -> usize {
        loop {
            let changed = self.changed.notified();
            match self.free_slots_now(in_flight() as u64) {
                0 => changed.await,
                free_slots => return usize::try_from(free_slots).unwrap_or(usize::MAX),
            }
        }
    }

    fn free_slots_now(&self, in_flight: u64) -> u64 {
        let state = self.state();
        let Some(usual) = state.usual else { return FIRST_UNITS.saturating_sub(in_flight) };
        let unknown = in_flight.saturating_sub(state.units);
        let demand = state.bytes + unknown * usual;
        let free_slots = self.bytes_max.saturating_sub(demand) / usual.max(1);
        if in_flight == 0 { free_slots.max(1) } else { free_slots }
    }
}

impl Drop for DemandGuard<'_> {
    fn drop(&mut self) {
        {
            let mut state = self.demand.state();
            state.units -= 1;
            state.bytes -= self.bytes;
        }
        self.demand.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_units_are_taken_than_fit() {
        let demand = Demand::new(&MemoryBudget::new(512 << 20));
        assert_eq!(demand.free_slots_now(0), 4, "nothing is known yet");
        assert_eq!(demand.free_slots_now(4), 0);
        let large = demand.enter(192 << 20);
        assert_eq!(demand.free_slots_now(1), 2);
        assert_eq!(demand.free_slots_now(2), 1, "one more, of unknown size, is taken to be like the others");
        let others = [demand.enter(192 << 20), demand.enter(192 << 20)];
        assert_eq!(demand.free_slots_now(3), 0);
        drop(others);
        assert_eq!(demand.free_slots_now(1), 2);
        drop(large);
        drop([demand.enter(10 << 30)]);
        assert_eq!(demand.free_slots_now(0), 1, "one is always taken, however large");
    }

    #[tokio::test]
    async fn room_comes_when_a_unit_goes() {
        let demand = Demand::new(&MemoryBudget::new(512 << 20));
        let large = demand.enter(1 << 30);
        let in_flight = std::cell::Cell::new(1);
        let finishing = async {
            tokio::task::yield_now().await;
            in_flight.set(0);
            drop(large);
        };
        let (free_slots, ()) = futures::join!(demand.free_slots(|| in_flight.get()), finishing);
        assert_eq!(free_slots, 1);
    }
}
