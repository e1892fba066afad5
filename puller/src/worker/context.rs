//! What the deliveries of a destination share, and what goes with one of them.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use common::config::Retry;
use common::unit::Unit;
use jiff::Timestamp;
use nats::{Bus, DeliveryRecord, Leased};
use tokio_util::sync::CancellationToken;

use crate::error::work::WorkError;
use crate::fetch::fetcher::Fetcher;
use crate::job::memory::MemoryBudget;
use crate::job::writes::Writes;
use crate::worker::circuit::Circuit;
use crate::worker::destination::Destination;
use crate::worker::metrics::Metrics;
use crate::worker::stats::WorkerStats;
use crate::worker::suspects::Suspects;
use crate::worker::task_report::TaskReport;

/// A unit that is handed back may come to an open pull of this worker: not at once again and again.
const LEFT_FOR: Duration = Duration::from_secs(1);

/// Everything that is the same for all deliveries of one destination.
pub(crate) struct Worker {
    pub name: String,
    pub destination_name: String,
    pub destination: Destination,
    pub bus: Bus,
    pub fetcher: Fetcher,
    pub memory: MemoryBudget,
    pub suspects: Suspects,
    pub retry: Retry,
    pub circuit: Circuit,
    pub clock_watch: ClockWatch,
    pub metrics: Metrics,
    pub stats: WorkerStats,
    /// See [`common::config::Destination::initial_days`].
    pub initial_days: Option<u32>,
    /// Since when the destination is served, as its tables tell it: they outlive the consumers.
    pub tables_since: Option<Timestamp>,
}

/// How a worker is told to end.
#[derive(Clone)]
pub(crate) struct Ends {
    /// Finish what makes progress, hand back what only waits.
    pub stop: CancellationToken,
    /// Hand everything back.
    pub abort: CancellationToken,
}

/// What goes with a delivery while it is in flight.
pub(super) struct InFlight<'w> {
    pub leased: &'w Leased,
    pub unit: Option<&'w Unit>,
    pub report: Option<&'w TaskReport<'w>>,
    /// How the earlier deliveries ended; `None` where that cannot be read.
    pub record: Option<DeliveryRecord>,
    pub writes: Writes,
    pub stop: &'w CancellationToken,
}

impl InFlight<'_> {
    /// Counted by failures, from 1: deliveries that were handed back are no attempts.
    pub(super) fn attempt(&self) -> u32 {
        self.record.unwrap_or_default().failed.saturating_add(1)
    }

    pub(super) fn name(&self) -> String {
        self.unit.map_or_else(|| self.leased.delivery.subject.clone(), Unit::to_string)
    }

    /// The delay with which it may be delivered again: not before what is written for it has landed or never will.
    pub(super) fn delay(&self, least: Duration) -> Duration {
        least.max(self.writes.may_still_land().unwrap_or_default())
    }
}

/// A delivery that is to be handed back without an attempt having failed.
pub(super) struct HandBack {
    pub after: Duration,
    pub why: &'static str,
    /// Some: until this has passed nothing is pulled.
    pub clock: Option<ClockFault>,
}

impl HandBack {
    /// Of what only waits. Another worker may have more luck, or the same, once it is started again: it is not made to wait
    /// for either.
    pub(super) fn at_the_end() -> Self {
        Self::after(Duration::ZERO, "the worker ends, and the unit only waits")
    }

    pub(super) fn after(after: Duration, why: &'static str) -> Self {
        Self { after, why, clock: None }
    }
}

/// Who says that the clock is off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClockFault {
    /// The NATS server has stored a marker later.
    Behind,
    /// The store refuses requests for their time.
    Refused,
}

/// Whether a task of a worker asks for the time already.
#[derive(Default)]
pub(crate) struct ClockWatch(pub(super) AtomicBool);

impl ClockFault {
    fn of(error: &WorkError) -> Self {
        if matches!(error, WorkError::ClockBehind(_)) { Self::Behind } else { Self::Refused }
    }
}

impl HandBack {
    /// For this machine's clock: others have a better one.
    pub(super) fn for_the_clock(error: &WorkError) -> Self {
        let clock = Some(ClockFault::of(error));
        Self { after: LEFT_FOR, why: "this machine's clock is off, and others' may not be", clock }
    }
}
