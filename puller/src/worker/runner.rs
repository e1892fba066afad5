//! Keeps a destination's slots filled until told to stop, then drains.

use std::sync::Arc;
use std::time::Duration;

use nats::{BusError, BusErrorKind, ConsumerSettings, Intake, Leased, WorkerState, within};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::worker::context::{Ends, Worker};

/// How long it may take to look the streams and consumers up, or to make them.
pub(crate) const OPEN_MAX: Duration = Duration::from_secs(30);

/// Pause after the queue failed us.
const PULL_PAUSE: Duration = Duration::from_secs(1);
/// How long handing back may take after the drain's time is over.
const HAND_BACK: Duration = Duration::from_secs(5);
/// A worker that has a free slot and whose pulls are not answered for so long says so, and opens its consumers anew. Every
/// pull ends within half of it, so this is also what becomes of a pull that does not.
const UNANSWERED_MAX: Duration = Duration::from_secs(60);

pub(crate) struct Runner {
    pub worker: Arc<Worker>,
    pub settings: ConsumerSettings,
    pub slots: usize,
    pub stall_timeout: Duration,
    pub shutdown_grace: Duration,
    /// Whether streams and consumers that are gone may be created again.
    pub manage: bool,
    /// Told each time that the consumers were opened: the stream may be another one than before.
    pub opened: Notify,
}

impl Runner {
    /// Works until `stop`, then finishes what is in flight within the grace and hands the rest back.
    ///
    /// With `hands_back` also what comes while the last idle pulls end: those who stay away for long should.
    pub(crate) async fn run(&self, stop: CancellationToken, hands_back: bool) {
        let abort = CancellationToken::new();
        let slots = Arc::new(Semaphore::new(self.slots));
        let mut jobs = JoinSet::new();
        let answering = self.answer_presence(&stop).await;
        if let Err(error) = answering {
            tracing::warn!(%error, "`puller status` will not see this worker");
        }
        let ends = Ends { stop: stop.clone(), abort: abort.clone() };
        let mut last = None;
        while let Some(mut intake) = stop.run_until_cancelled(self.open()).await {
            self.opened.notify_one();
            if stop.run_until_cancelled(self.pull(&mut intake, &slots, &mut jobs, &ends)).await.is_none() {
                last = Some(intake);
                break;
            }
        }
        let hand_back = async {
            if let Some(intake) = last {
                intake.close(hands_back, HAND_BACK).await;
            }
        };
        futures::join!(hand_back, self.drain(jobs, &abort));
    }

    /// Looks the consumers up, for as long as it takes.
    async fn open(&self) -> Intake {
        let part = format!("consumers of {}", self.settings.destination);
        loop {
            let reason = match within(OPEN_MAX, "opening the consumers", self.open_or_create()).await {
                Ok(intake) => {
                    self.worker.circuit.readiness().ready(&part);
                    return intake;
                }
                Err(error) => error.to_string(),
            };
            tracing::warn!(reason, "the consumers cannot be opened");
            self.worker.circuit.readiness().not_ready(&part, reason);
            tokio::time::sleep(PULL_PAUSE).await;
        }
    }

    async fn open_or_create(&self) -> Result<Intake, BusError> {
        match Intake::open(&self.worker.bus, &self.settings, self.stall_timeout).await {
            Err(error) if self.manage && matches!(error.kind, BusErrorKind::Missing | BusErrorKind::Refused) => {
                if error.kind == BusErrorKind::Missing {
                    self.worker.bus.create_streams().await?;
                }
                self.worker.bus.create_consumers(&self.settings).await?;
                Intake::open(&self.worker.bus, &self.settings, self.stall_timeout).await
            }
            opened => opened,
        }
    }

    /// Pulls until the consumers are gone, or answer no more.
    async fn pull(&self, intake: &mut Intake, slots: &Arc<Semaphore>, jobs: &mut JoinSet<()>, ends: &Ends) {
        let part = format!("pulls of {}", self.settings.destination);
        let readiness = self.worker.circuit.readiness();
        let mut unanswered_from = None;
        loop {
            // A slot first: a delivery that waits for one would use up its lease. That of a unit in flight comes free when the
            // unit is done, or its lease lost.
            let permit = acquire(slots).await;
            let free = tokio::select! {
                biased;
                arrived = intake.arrived() => Err(arrived),
                free = self.may_pull(slots, jobs) => Ok(free),
            };
            let (came, from) = match free {
                Err(arrived) => (Ok(arrived.map(Some)), Instant::now()),
                Ok(free) => {
                    let from = *unanswered_from.get_or_insert_with(Instant::now);
                    (tokio::time::timeout_at(from + UNANSWERED_MAX, intake.next(free)).await, from)
                }
            };
            let error = match came {
                Ok(Ok(leased)) => {
                    unanswered_from = None;
                    readiness.ready(&part);
                    if let Some(leased) = leased {
                        jobs.spawn(deliver(self.worker.clone(), leased, ends.clone(), permit));
                    }
                    self.reap(jobs);
                    continue;
                }
                Ok(Err(error)) => Some(error),
                Err(_) => None,
            };
            if error.is_none() || from.elapsed() >= UNANSWERED_MAX {
                let why = error.map_or_else(|| "the queue does not answer".into(), |error| error.to_string());
                let reason = format!("no pull was answered for {} s: {why}", UNANSWERED_MAX.as_secs());
                tracing::error!(reason, "opening the consumers anew");
                readiness.not_ready(&part, reason);
                self.worker.metrics.pulls_restarted(&self.settings.destination);
                return;
            }
            if let Some(error) = error {
                tracing::warn!(%error, "pulling failed");
            }
            tokio::time::sleep(PULL_PAUSE).await;
            // A consumer that was deleted, or made anew, shows as pulls that fail in many ways; asking tells.
            if let Err(error) = intake.is_same().await
                && matches!(error.kind, BusErrorKind::Missing | BusErrorKind::Refused)
            {
                tracing::warn!(%error, "opening the consumers anew");
                return;
            }
        }
    }

    /// Waits until units may be pulled; returns how many, at least one.
    async fn may_pull(&self, slots: &Semaphore, jobs: &mut JoinSet<()>) -> usize {
        let stats = &self.worker.stats;
        let in_flight = || (self.slots - 1 - slots.available_permits()).saturating_sub(stats.letters_waiting());
        loop {
            // No timer: whoever opened the circuit tries again and again, and so does the memory come free that units have.
            self.worker.circuit.closed().await;
            tokio::select! {
                free_slots = self.worker.destination.free_slots(in_flight) => return free_slots.min(1 + slots.available_permits()),
                // A unit that ended before its size was known has made room too, as has one that waits for its dead letter.
                Some(ended) = jobs.join_next() => self.report(ended),
                () = stats.letter_waits() => {}
            }
        }
    }

    async fn drain(&self, mut jobs: JoinSet<()>, abort: &CancellationToken) {
        self.reap(&mut jobs);
        if jobs.is_empty() {
            return;
        }
        tracing::info!(units = jobs.len(), grace_s = self.shutdown_grace.as_secs(), "finishing what is in flight");
        let finish = async { while jobs.join_next().await.is_some() {} };
        if tokio::time::timeout(self.shutdown_grace, finish).await.is_err() {
            tracing::warn!(units = jobs.len(), "the grace is over, handing the rest back");
            abort.cancel();
            let hand_back = async { while jobs.join_next().await.is_some() {} };
            if tokio::time::timeout(HAND_BACK, hand_back).await.is_err() {
                tracing::warn!("not everything could be handed back; it comes back when its lease ends");
            }
        }
    }

    /// Takes the deliveries that have ended out of the set.
    fn reap(&self, jobs: &mut JoinSet<()>) {
        while let Some(ended) = jobs.try_join_next() {
            self.report(ended);
        }
    }

    fn report(&self, ended: Result<(), JoinError>) {
        if let Err(error) = ended {
            tracing::error!(%error, "a delivery was lost to a defect; it comes back when its lease ends");
            // It may have been the one that waited for a server: nobody else would notice its return.
            self.worker.circuit.close();
        }
    }

    async fn answer_presence(&self, stop: &CancellationToken) -> Result<(), BusError> {
        let worker = self.worker.clone();
        let started_at = common::clock::now();
        let state = move || WorkerState {
            worker: worker.name.clone(),
            started_at,
            in_flight: worker.stats.in_flight(),
            retries_scheduled: worker.stats.retries_scheduled(),
            waiting_for: worker.circuit.reason().or_else(|| Some(worker.stats.letters_wait_for()?.text)),
        };
        self.worker.bus.answer_presence(&self.settings.destination, state, stop.clone()).await
    }
}

async fn acquire(slots: &Arc<Semaphore>) -> OwnedSemaphorePermit {
    slots.clone().acquire_owned().await.expect("the semaphore is never closed")
}

async fn deliver(worker: Arc<Worker>, leased: Leased, ends: Ends, _permit: OwnedSemaphorePermit) {
    worker.deliver(leased, ends).await;
}
