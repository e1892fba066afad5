//! One delivery, from the queue to the destination and back to the queue.

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::config::Retry;
use common::failpoint::failpoint;
use common::object_key::Prefix;
use common::object_store::ObjectStore;
use common::unit::Unit;
use jiff::{SignedDuration, Timestamp};
use nats::{Bus, DeadLetter, Delivery, Held, Lane, MarkerSubject, SettleError, TaskState};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::board::Board;
use crate::circuit::Circuit;
use crate::destination::{Destination, Work};
use crate::error::{ErrorClass, ObjectFault, WorkError};
use crate::job::{Job, is_superseded, resolve};
use crate::ledger::{Attempt, json_lines};
use crate::metrics::Metrics;
use crate::outcome::{Disposition, decide, decide_before};
use crate::task_report::TaskReport;
use crate::warehouse::WarehouseErrorKind;

/// Everything that is the same for all deliveries of one destination.
pub(crate) struct Worker {
    pub name: String,
    pub destination_name: String,
    pub destination: Destination,
    pub bus: Bus,
    pub store: ObjectStore,
    pub prefix: Prefix,
    pub retry: Retry,
    pub circuit: Circuit,
    pub metrics: Metrics,
    pub board: Board,
    /// See [`common::config::Destination::initial_days`].
    pub initial_days: Option<u32>,
}

/// How a delivery ended, as `ingest_log`, logs and metrics call it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Loaded,
    Skipped,
    Superseded,
    TooOld,
    Cancelled,
    Retry,
    DeadLetter,
}

/// Why a delivery is done although its archives were not all brought to the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stopped {
    /// A newer revision has overwritten its objects, and has a marker of its own.
    Superseded,
    /// Older than a new destination wants: see `initial_days`.
    TooOld,
    /// The replay it belongs to was cancelled.
    Cancelled,
}

impl Ending {
    fn task_state(self) -> TaskState {
        match self {
            Self::Loaded | Self::Skipped | Self::Superseded | Self::TooOld => TaskState::Success,
            Self::Cancelled => TaskState::Cancelled,
            Self::Retry => TaskState::Reassigning,
            Self::DeadLetter => TaskState::Failed,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Loaded => "loaded",
            Self::Skipped => "skipped",
            Self::Superseded => "superseded",
            Self::TooOld => "too_old",
            Self::Cancelled => "cancelled",
            Self::Retry => "retry",
            Self::DeadLetter => "dead_letter",
        }
    }
}

impl Worker {
    /// Works a delivery through and settles it. When `abort` is cancelled it is handed back.
    pub(crate) async fn deliver(&self, held: Held, abort: CancellationToken) {
        let delivery = &held.delivery;
        let unit = MarkerSubject::parse(&delivery.subject).map(|subject| subject.unit).ok();
        let name = unit.as_ref().map_or_else(|| delivery.subject.clone(), Unit::to_string);
        let _in_hand = self.board.enter(&name);
        self.metrics.in_hand(&self.destination_name, self.board.in_hand_count());
        let span = tracing::info_span!(
            "delivery",
            unit = name,
            attempt = delivery.attempt,
            sequence = delivery.stream_sequence,
            destination = self.destination_name,
        );
        let report = TaskReport::of(&self.bus, &self.name, delivery);
        let work = async {
            tokio::select! {
                () = self.work_and_settle(&held, unit.as_ref(), report.as_ref()) => {}
                () = held.lease.lost() => {
                    // Another worker has it, or soon will; whatever we wrote, it will find or write again.
                    tracing::warn!("lease lost, leaving the unit to another worker");
                    self.metrics.lease_lost(&self.destination_name);
                    // If it was this unit that waited for a server, nobody else may be there to notice its return.
                    self.circuit.close();
                    self.report(report.as_ref(), TaskState::Reassigning, "lease lost").await;
                }
                () = abort.cancelled() => {
                    if let Err(error) = delivery.nak(Duration::ZERO).await {
                        tracing::warn!(%error, "handing the unit back");
                    }
                    self.metrics.settled(&self.destination_name, "handed_back");
                    self.report(report.as_ref(), TaskState::Reassigning, "handed back").await;
                }
            }
        };
        work.instrument(span).await;
        drop(_in_hand);
        self.metrics.in_hand(&self.destination_name, self.board.in_hand_count());
    }

    async fn work_and_settle(&self, held: &Held, unit: Option<&Unit>, report: Option<&TaskReport<'_>>) {
        let delivery = &held.delivery;
        self.report(report, TaskState::Running, "").await;
        for waits in 1.. {
            let (started, started_at) = (Instant::now(), common::clock::now());
            let (job, result, stopped) = self.attempt(held, unit, report).await;
            let disposition = match stopped {
                Some(_) => None,
                None => Some(decide(&result, delivery.attempt, &self.retry)),
            };
            if disposition == Some(Disposition::Wait) {
                self.wait(held, &result, waits).await;
                continue;
            }
            let finished = Finished { job: job.as_deref(), unit, started_at, result: &result, disposition, stopped };
            // Before the ack. When it cannot be written the server is away: the unit is gone through again, and what is
            // loaded is skipped.
            if let Err(error) = self.record(held, &finished).await {
                self.wait(held, &Err(error), waits).await;
                continue;
            }
            failpoint("puller.attempt_recorded");
            self.circuit.close();
            self.settle(held, &finished, report, started.elapsed()).await;
            failpoint("puller.settled");
            return;
        }
    }

    /// One go at the unit. The last value says why nothing needs to be done about what went wrong, or at all.
    async fn attempt(
        &self,
        held: &Held,
        unit: Option<&Unit>,
        report: Option<&TaskReport<'_>>,
    ) -> (Option<Arc<Job>>, Result<Work, WorkError>, Option<Stopped>) {
        if self.is_before_this_destination(&held.delivery, unit) {
            return (None, Ok(Work::default()), Some(Stopped::TooOld));
        }
        if let Some(report) = report
            && report.is_cancelled().await
        {
            return (None, Ok(Work::default()), Some(Stopped::Cancelled));
        }
        if let Err(error) = decide_before(held.delivery.attempt, &self.retry) {
            return (None, Err(error), None);
        }
        let job = match resolve(&self.store, &self.prefix, &held.delivery).await {
            Ok(job) => Arc::new(job),
            Err(error) => return (None, Err(error), None),
        };
        let result = self.destination.bring(&job, &held.lease.activity).await;
        match self.superseded(&job, &result).await {
            Ok(superseded) => (Some(job), result, superseded.then_some(Stopped::Superseded)),
            Err(error) => (Some(job), Err(error), None),
        }
    }

    /// Whether a marker was there before the destination, and its period lies further back than the destination wants.
    fn is_before_this_destination(&self, delivery: &Delivery, unit: Option<&Unit>) -> bool {
        let (Some(days), Some(unit)) = (self.initial_days, unit) else { return false };
        let Ok(subject) = MarkerSubject::parse(&delivery.subject) else { return false };
        let oldest = delivery.consumer_created_at - SignedDuration::from_hours(24 * i64::from(days));
        // Whoever asks for a replay wants what he asks for.
        subject.lane != Lane::Replay && delivery.stored_at < delivery.consumer_created_at && unit.period.end() <= oldest
    }

    async fn report(&self, report: Option<&TaskReport<'_>>, state: TaskState, error: &str) {
        if let Some(report) = report {
            report.say(state, None, error).await;
        }
    }

    /// Whether what went wrong is explained by a newer revision of the unit, which has a marker of its own.
    async fn superseded(&self, job: &Job, result: &Result<Work, WorkError>) -> Result<bool, WorkError> {
        let Ok(work) = result else { return Ok(false) };
        let differs = work.faults.iter().any(|faulty| matches!(faulty.fault, ObjectFault::Differs(_)));
        Ok(differs && is_superseded(&self.store, &self.prefix, job).await?)
    }

    /// Something everything depends on is away: keep the delivery, pull nothing, try again soon.
    async fn wait(&self, held: &Held, result: &Result<Work, WorkError>, waits: u32) {
        let reason = result.as_ref().err().map_or_else(|| "a server is away".into(), describe);
        self.circuit.open(&reason);
        if let (Destination::ClickHouse(loader), Err(WorkError::Warehouse(error))) = (&self.destination, result)
            && error.kind == WarehouseErrorKind::MissingSchema
            && let Err(error) = loader.warehouse.prepare_tables().await
        {
            tracing::warn!(%error, "creating the tables");
        }
        tokio::time::sleep(Circuit::pause(waits)).await;
        // Waiting for a server is no stall of this unit.
        held.lease.activity.bump();
    }

    async fn settle(&self, held: &Held, finished: &Finished<'_>, report: Option<&TaskReport<'_>>, took: Duration) {
        let delivery = &held.delivery;
        let ending = finished.ending();
        let error = finished.error();
        let class = finished.class();
        if let Some(report) = report {
            report.say(ending.task_state(), finished.result.as_ref().ok(), &error).await;
        }
        let settled = match &finished.disposition {
            None | Some(Disposition::Ack | Disposition::Wait) => delivery.ack().await,
            Some(Disposition::Retry { after, .. }) => {
                tracing::warn!(class, error, after_s = after.as_secs(), "failed, will be delivered again");
                self.board.park(
                    &finished.unit.map_or_else(|| delivery.subject.clone(), Unit::to_string),
                    &format!("{class}: {error}"),
                    *after,
                );
                delivery.nak(*after).await
            }
            Some(Disposition::DeadLetter { .. }) => {
                let letter = DeadLetter { destination: &self.destination_name, class, error: &error };
                // A stream that was made anew has its own word on the unit.
                if !delivery.is_current().await {
                    tracing::warn!(class, error, "failed, and the stream was made anew since: left to the new one");
                    return;
                }
                self.store_letter(held, &letter).await;
                failpoint("puller.dead_letter_stored");
                tracing::error!(class, error, "dead letter");
                delivery.term(class).await
            }
        };
        match settled {
            Ok(()) => {}
            Err(error @ SettleError::Replaced) => tracing::warn!(%error, "the unit is left to the new stream"),
            Err(error) => tracing::warn!(%error, "the unit will be delivered again, and found to be done"),
        }
        self.metrics.settled(&self.destination_name, ending.as_str());
        if ending != Ending::Retry {
            self.board.count(ending == Ending::DeadLetter);
        }
        if let Ok(work) = finished.result {
            self.metrics.archives(&self.destination_name, "loaded", work.loaded);
            self.metrics.archives(&self.destination_name, "skipped", work.skipped);
            self.metrics.archives(&self.destination_name, "failed", work.faults.len() as u64);
            self.metrics.volume(&self.destination_name, work.rows, work.bytes);
            self.metrics.stages(&self.destination_name, &work.times);
            self.board.add(work);
            tracing::info!(
                outcome = ending.as_str(),
                archives = work.loaded,
                skipped = work.skipped,
                rows = work.rows,
                duration_ms = took.as_millis(),
                "unit finished"
            );
        }
    }

    /// Stores a dead letter, for as long as it takes: a delivery is never terminated without, and to hand it back would
    /// only bring it closer to the server's last delivery. The others go on meanwhile, while there are slots.
    async fn store_letter(&self, held: &Held, letter: &DeadLetter<'_>) {
        let part = format!("dead letters of {}", self.destination_name);
        let (mut waits, mut waiting) = (0, None);
        while let Err(error) = self.bus.store_dead_letter(&held.delivery, letter).await {
            waits += 1;
            tracing::warn!(%error, waits, "the dead letter could not be stored, trying again");
            self.circuit.readiness().not_ready(&part, error.to_string());
            waiting.get_or_insert_with(|| self.board.wait_with_letter(error.to_string()));
            tokio::time::sleep(Circuit::pause(waits)).await;
            held.lease.activity.bump();
        }
        if waiting.take().is_some() {
            self.circuit.readiness().ready(&part);
        }
    }

    /// Writes the attempt to `ingest_log`, where the destination has one.
    async fn record(&self, held: &Held, finished: &Finished<'_>) -> Result<(), WorkError> {
        let (Destination::ClickHouse(loader), Some(unit)) = (&self.destination, finished.unit) else { return Ok(()) };
        let (delivery, nothing) = (&held.delivery, Work::default());
        let work = finished.result.as_ref().unwrap_or(&nothing);
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let error = finished.error();
        let attempt = Attempt {
            finished_at: common::clock::now(),
            started_at: finished.started_at,
            destination: &self.destination_name,
            unit,
            revision: finished.job.map(|job| job.revision.to_string()).unwrap_or_default(),
            marker_id: finished.job.map(|job| job.marker_id.as_str()).unwrap_or_default(),
            stream_sequence: delivery.stream_sequence,
            attempt: delivery.attempt,
            worker: &self.name,
            outcome: finished.ending().as_str(),
            error_class: finished.class(),
            error: &error,
            archives: finished.job.map_or(0, |job| job.objects.len() as u64),
            archives_loaded: work.loaded,
            archives_skipped: work.skipped,
            archives_failed: work.faults.len() as u64,
            rows: work.rows,
            bytes: work.bytes,
            fetch_ms: ms(work.times.fetch),
            decode_ms: ms(work.times.decode),
            insert_ms: ms(work.times.insert),
            read_back_ms: ms(work.times.read_back),
            trace_id: "",
        };
        Ok(loader.statements.record_attempts(json_lines(&[attempt]), &held.lease.activity).await?)
    }
}

/// One attempt that has come to an end.
struct Finished<'a> {
    job: Option<&'a Job>,
    unit: Option<&'a Unit>,
    started_at: Timestamp,
    result: &'a Result<Work, WorkError>,
    /// `None`: see `stopped`.
    disposition: Option<Disposition>,
    stopped: Option<Stopped>,
}

impl Finished<'_> {
    fn ending(&self) -> Ending {
        match self.stopped {
            Some(Stopped::Superseded) => return Ending::Superseded,
            Some(Stopped::TooOld) => return Ending::TooOld,
            Some(Stopped::Cancelled) => return Ending::Cancelled,
            None => {}
        }
        match &self.disposition {
            None | Some(Disposition::Ack | Disposition::Wait) => match self.result {
                Ok(work) if work.loaded == 0 => Ending::Skipped,
                _ => Ending::Loaded,
            },
            Some(Disposition::Retry { .. }) => Ending::Retry,
            Some(Disposition::DeadLetter { .. }) => Ending::DeadLetter,
        }
    }

    fn class(&self) -> &'static str {
        match &self.disposition {
            Some(Disposition::Retry { class, .. } | Disposition::DeadLetter { class }) => ErrorClass::as_str(*class),
            None | Some(Disposition::Ack | Disposition::Wait) => "",
        }
    }

    /// All that is wrong, one line each.
    fn error(&self) -> String {
        match self.result {
            Ok(work) => work.faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"),
            Err(error) => describe(error),
        }
    }
}

/// An error with what to do about it.
fn describe(error: &WorkError) -> String {
    match error {
        WorkError::Store(store) => format!("{error} ({})", store.advice()),
        WorkError::Warehouse(warehouse) => format!("{error} ({})", warehouse.advice()),
        other => other.to_string(),
    }
}
