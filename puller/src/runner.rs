//! Keeps a destination's slots filled until told to stop, then drains.

use std::sync::Arc;
use std::time::Duration;

use nats::{BusError, BusErrorKind, ConsumerSettings, Held, Intake, WorkerState};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::worker::Worker;

/// Pause after the queue failed us.
const PULL_PAUSE: Duration = Duration::from_secs(1);
/// How long handing back may take after the drain's time is over.
const HAND_BACK: Duration = Duration::from_secs(5);

pub(crate) struct Runner {
    pub worker: Arc<Worker>,
    pub settings: ConsumerSettings,
    pub slots: usize,
    pub stall_timeout: Duration,
    pub shutdown_grace: Duration,
    /// Whether streams and consumers that are gone may be created again.
    pub manage: bool,
}

impl Runner {
    /// Works until `stop`, then finishes what is in hand within the grace and hands the rest back.
    pub(crate) async fn run(&self, stop: CancellationToken) {
        let abort = CancellationToken::new();
        let slots = Arc::new(Semaphore::new(self.slots));
        let mut jobs = JoinSet::new();
        let answering = self.answer_roster(&stop).await;
        if let Err(error) = answering {
            tracing::warn!(%error, "`puller status` will not see this worker");
        }
        while !stop.is_cancelled() {
            let Some(mut intake) = stop.run_until_cancelled(self.open()).await else { break };
            stop.run_until_cancelled(self.pull(&mut intake, &slots, &mut jobs, &abort)).await;
        }
        self.drain(jobs, &abort).await;
    }

    /// Looks the consumers up, for as long as it takes.
    async fn open(&self) -> Intake {
        let part = format!("consumers of {}", self.settings.destination);
        loop {
            let error = match Intake::open(&self.worker.bus, &self.settings, self.stall_timeout).await {
                Ok(intake) => {
                    self.worker.circuit.readiness().ready(&part);
                    return intake;
                }
                Err(error) => error,
            };
            let error = match (error.kind, self.manage) {
                (BusErrorKind::Missing, true) => match self.create().await {
                    Ok(()) => continue,
                    Err(error) => error,
                },
                _ => error,
            };
            tracing::warn!(%error, "the consumers cannot be opened");
            self.worker.circuit.readiness().not_ready(&part, error.to_string());
            tokio::time::sleep(PULL_PAUSE).await;
        }
    }

    async fn create(&self) -> Result<(), BusError> {
        self.worker.bus.create_streams().await?;
        self.worker.bus.create_consumers(&self.settings).await
    }

    /// Pulls until the consumers are gone.
    async fn pull(
        &self,
        intake: &mut Intake,
        slots: &Arc<Semaphore>,
        jobs: &mut JoinSet<()>,
        abort: &CancellationToken,
    ) {
        loop {
            self.worker.circuit.closed().await;
            // A slot first: a delivery that waits for one would use up its lease.
            let mut permit = Some(acquire(slots).await);
            let board = &self.worker.board;
            let in_hand = || (self.slots - 1 - slots.available_permits()).saturating_sub(board.letters_waiting());
            let room = tokio::select! {
                room = self.worker.destination.room(in_hand) => room,
                // A unit that ended before its size was known has made room too, as has one that waits for its dead letter.
                Some(ended) = jobs.join_next() => {
                    report(ended);
                    continue;
                }
                () = board.letter_waits() => continue,
            };
            let held = match intake.next(room.min(1 + slots.available_permits())).await {
                Ok(held) => held,
                Err(error) => {
                    tracing::warn!(%error, "pulling failed");
                    tokio::time::sleep(PULL_PAUSE).await;
                    if error.kind == BusErrorKind::Missing || !self.consumers_are_there().await {
                        return;
                    }
                    continue;
                }
            };
            for held in held {
                let permit = match permit.take() {
                    Some(permit) => permit,
                    None => acquire(slots).await,
                };
                jobs.spawn(deliver(self.worker.clone(), held, abort.clone(), permit));
            }
            reap(jobs);
        }
    }

    /// A deleted consumer shows as pulls that fail in many ways; asking tells.
    async fn consumers_are_there(&self) -> bool {
        let opened = Intake::open(&self.worker.bus, &self.settings, self.stall_timeout).await;
        !matches!(opened, Err(error) if error.kind == BusErrorKind::Missing)
    }

    async fn drain(&self, mut jobs: JoinSet<()>, abort: &CancellationToken) {
        reap(&mut jobs);
        if jobs.is_empty() {
            return;
        }
        tracing::info!(units = jobs.len(), grace_s = self.shutdown_grace.as_secs(), "finishing what is in hand");
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

    async fn answer_roster(&self, stop: &CancellationToken) -> Result<(), BusError> {
        let worker = self.worker.clone();
        let started_at = common::clock::now();
        let state = move || WorkerState {
            worker: worker.name.clone(),
            started_at,
            in_hand: worker.board.in_hand(),
            parked: worker.board.parked(),
            waiting_for: worker.circuit.reason().or_else(|| worker.board.letters_wait_for()),
        };
        self.worker.bus.answer_roster(&self.settings.destination, state, stop.clone()).await
    }
}

/// Takes the deliveries that have ended out of the set.
fn reap(jobs: &mut JoinSet<()>) {
    while let Some(ended) = jobs.try_join_next() {
        report(ended);
    }
}

fn report(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a delivery was lost to a defect; it comes back when its lease ends");
    }
}

async fn acquire(slots: &Arc<Semaphore>) -> OwnedSemaphorePermit {
    slots.clone().acquire_owned().await.expect("the semaphore is never closed")
}

async fn deliver(worker: Arc<Worker>, held: Held, abort: CancellationToken, _permit: OwnedSemaphorePermit) {
    worker.deliver(held, abort).await;
}
