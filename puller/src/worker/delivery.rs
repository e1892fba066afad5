//! One delivery, from the queue to the destination and back to the queue.

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::failpoint::failpoint;
use common::output::Failure;
use common::unit::Unit;
use nats::{AckError, DeadLetter, Delivery, DeliveryRecord, Leased, MarkerSubject, TaskState};
use tracing::Instrument;

use crate::error::clickhouse::WarehouseErrorKind;
use crate::error::work::{ObjectFault, WorkError};
use crate::fetch::fetcher::Fetcher;
use crate::job::beginning::{announced_at, is_too_old};
use crate::job::resolve::{Job, is_superseded, resolve};
use crate::job::work::Work;
use crate::job::writes::Writes;
use crate::worker::circuit::Circuit;
use crate::worker::context::{ClockFault, Ends, HandBack, InFlight, Worker};
use crate::worker::destination::Destination;
use crate::worker::ending::{DeliveryEnd, Ending, Finished, Stopped, failure};
use crate::worker::outcome::{Disposition, Evidence, decide, decide_before, may_be_its_own};
use crate::worker::task_report::TaskReport;

/// Tries, 30 s in all, after which a unit is put off whose error may be its own: others shall have its place.
const WAITS_MAX: u32 = 6;
const PUT_OFF: Duration = Duration::from_secs(30);
/// How long it is tried to hand a unit back whose lease is lost: it may be another worker's already.
const LOST_HAND_BACK: Duration = Duration::from_secs(5);

impl Worker {
    /// Works a delivery through and acknowledges it, or hands it back when the worker is to end.
    pub(crate) async fn deliver(&self, leased: Leased, ends: Ends) {
        let delivery = &leased.delivery;
        let unit = MarkerSubject::parse(&delivery.subject).map(|subject| subject.unit).ok();
        let name = unit.as_ref().map_or_else(|| delivery.subject.clone(), Unit::to_string);
        let in_flight = self.stats.enter(&name);
        self.metrics.in_flight(&self.destination_name, self.stats.in_flight_count());
        let span = tracing::info_span!(
            "delivery",
            unit = name,
            attempt = delivery.attempt,
            sequence = delivery.stream_sequence,
            destination = self.destination_name,
        );
        let report = TaskReport::of(&self.bus, &self.name, delivery);
        let clock = self.deliver_in_span(&leased, unit.as_ref(), report.as_ref(), &ends).instrument(span).await;
        drop(in_flight);
        drop(report);
        drop(leased);
        self.metrics.in_flight(&self.destination_name, self.stats.in_flight_count());
        if let Some(fault) = clock {
            self.wait_for_the_clock(fault, unit.as_ref(), &ends.stop).await;
        }
    }

    async fn deliver_in_span(
        &self,
        leased: &Leased,
        unit: Option<&Unit>,
        report: Option<&TaskReport<'_>>,
        ends: &Ends,
    ) -> Option<ClockFault> {
        // Where the worker is to end, the delivery is handed back below.
        let record = ends.abort.run_until_cancelled(self.read_record(&leased.delivery)).await.flatten();
        let in_flight = InFlight { leased, unit, report, record, writes: Writes::default(), stop: &ends.stop };
        tokio::select! {
            back = self.work_and_finish(&in_flight) => if let Some(back) = back {
                let clock = back.clock;
                self.hand_back(&in_flight, back).await;
                return clock;
            },
            () = leased.lease.lost() => {
                tracing::warn!("lease lost, leaving the unit to another worker");
                self.metrics.lease_lost(&self.destination_name);
                // If it was this unit that waited for a server, nobody else may be there to notice its return.
                self.circuit.close();
                self.report(report, TaskState::Reassigning, "lease lost").await;
                // Whatever was written is found or written again by whoever has the unit next, if that is late enough. A
                // nak that comes too late for this delivery changes nothing.
                if in_flight.writes.may_still_land().is_some() {
                    let put_off = leased.delivery.nak(in_flight.delay(Duration::ZERO));
                    if !matches!(tokio::time::timeout(LOST_HAND_BACK, put_off).await, Ok(Ok(()))) {
                        tracing::warn!("the unit may be delivered again while a write of it is under way");
                    }
                }
            }
            () = ends.abort.cancelled() => {
                self.hand_back(&in_flight, HandBack::after(Duration::ZERO, "the worker ends")).await;
            }
        }
        None
    }

    async fn hand_back(&self, in_flight: &InFlight<'_>, HandBack { after, why, .. }: HandBack) {
        let delivery = &in_flight.leased.delivery;
        let after = in_flight.delay(after);
        tracing::info!(why, after_s = after.as_secs(), "handed back");
        self.record_end(in_flight, DeliveryRecord::with_hand_back).await;
        if !after.is_zero() {
            self.stats.schedule_retry(&in_flight.name(), why, after);
        }
        if let Err(error) = delivery.nak(after).await {
            tracing::warn!(%error, "handing the unit back");
        }
        self.metrics.ended(&self.destination_name, "handed_back");
        self.report(in_flight.report, TaskState::Reassigning, "handed back").await;
    }

    /// Some: it is not acknowledged, and is to be handed back.
    async fn work_and_finish(&self, in_flight: &InFlight<'_>) -> Option<HandBack> {
        let InFlight { leased, unit, report, .. } = *in_flight;
        self.report(report, TaskState::Running, "").await;
        let mut others_worked = false;
        for waits in 1.. {
            let (started, started_at) = (Instant::now(), common::clock::now());
            let attempt = self.attempt(in_flight, waits > 1);
            let waited_for_nothing = async {
                in_flight.stop.cancelled().await;
                // One that finds its server back may finish within the grace.
                if waits == 1 || self.circuit.reason().is_none() {
                    std::future::pending::<()>().await;
                }
            };
            let (job, result, stopped) = tokio::select! {
                attempted = attempt => attempted,
                () = waited_for_nothing => return Some(HandBack::at_the_end()),
            };
            let evidence = match stopped {
                Some(_) => Evidence::None,
                None => self.evidence(in_flight, &result).await,
            };
            // What was wrong with the server may have passed between the unit's question and the small one. Only what fails
            // after that is the unit's own.
            let failed_before = std::mem::replace(&mut others_worked, evidence == Evidence::OthersWork);
            if others_worked && !failed_before {
                leased.lease.activity.bump();
                continue;
            }
            let end = match (stopped, decide(&result, in_flight.attempt(), &self.retry, evidence), &result) {
                (Some(stopped), _, _) => Some(DeliveryEnd::Stopped(stopped)),
                (None, Disposition::Leave, Err(error)) => {
                    self.circuit.open(failure(error));
                    return Some(HandBack::for_the_clock(error));
                }
                (None, disposition, _) => DeliveryEnd::of(disposition),
            };
            let Some(end) = end else {
                match self.wait(in_flight, &result, waits).await {
                    Some(back) => return Some(back),
                    None => continue,
                }
            };
            let finished = Finished { job: job.as_deref(), unit, started_at, result: &result, end };
            if let Some(after) = finished.must_wait(&in_flight.writes) {
                return Some(HandBack::after(after, "a write of it may still be under way"));
            }
            // Before the ack. When it cannot be written the server is away: the unit is gone through again, and what is
            // loaded is skipped.
            if let Err(error) = self.record(in_flight, &finished).await {
                match self.wait(in_flight, &Err(error), waits).await {
                    Some(back) => return Some(back),
                    None => continue,
                }
            }
            failpoint("puller.attempt_recorded");
            self.circuit.close();
            self.finish(in_flight, &finished, started.elapsed()).await;
            failpoint("puller.ended");
            return None;
        }
        None
    }

    /// One go at the unit. The last value says why nothing needs to be done about what went wrong, or at all.
    async fn attempt(
        &self,
        in_flight: &InFlight<'_>,
        again: bool,
    ) -> (Option<Arc<Job>>, Result<Work, WorkError>, Option<Stopped>) {
        let InFlight { leased, unit, report, record, .. } = *in_flight;
        if self.is_before_this_destination(&leased.delivery, unit) {
            return (None, Ok(Work::default()), Some(Stopped::TooOld));
        }
        if let Some(report) = report
            && report.is_cancelled().await
        {
            return (None, Ok(Work::default()), Some(Stopped::Cancelled));
        }
        if let Some(record) = record
            && let Err(error) = decide_before(leased.delivery.attempt, record, &self.retry)
        {
            return (None, Err(error), None);
        }
        let mut job = match self.resolve(leased).await {
            Ok(job) => job,
            Err(error) => return self.unresolved(in_flight, error).await,
        };
        job.tried_before = again || leased.delivery.attempt > 1;
        job.writes = in_flight.writes.clone();
        let job = Arc::new(job);
        let result = self.destination.deliver(&job, &leased.lease.activity).await;
        match self.superseded(in_flight, &job, &result).await {
            Ok(superseded) => (Some(job), result, superseded.then_some(Stopped::Superseded)),
            Err(error) => (Some(job), Err(error), None),
        }
    }

    async fn resolve(&self, leased: &Leased) -> Result<Job, WorkError> {
        let Fetcher { store, prefix, .. } = &self.fetcher;
        resolve(store, prefix, &self.memory, &leased.delivery, &leased.lease.activity).await
    }

    /// A marker of another bucket or prefix is no trouble when the unit was announced again since.
    async fn unresolved(
        &self,
        in_flight: &InFlight<'_>,
        error: WorkError,
    ) -> (Option<Arc<Job>>, Result<Work, WorkError>, Option<Stopped>) {
        if let (WorkError::Elsewhere(_), Some(unit)) = (&error, in_flight.unit) {
            match is_superseded(&self.bus, &in_flight.leased.delivery, unit, None).await {
                Ok(true) => return (None, Ok(Work::default()), Some(Stopped::Superseded)),
                Ok(false) => {}
                Err(error) => return (None, Err(error.into()), None),
            }
        }
        (None, Err(error), None)
    }

    /// Whether a marker was there before the destination, and its period lies further back than the destination wants.
    fn is_before_this_destination(&self, delivery: &Delivery, unit: Option<&Unit>) -> bool {
        let Some(unit) = unit else { return false };
        let Ok(subject) = MarkerSubject::parse(&delivery.subject) else { return false };
        let since = self.tables_since.map_or(delivery.served_since, |since| since.min(delivery.served_since));
        let announced_at = || announced_at(&delivery.payload, delivery.stored_at);
        is_too_old(self.initial_days, unit, subject.lane, announced_at, since)
    }

    async fn report(&self, report: Option<&TaskReport<'_>>, state: TaskState, error: &str) {
        if let Some(report) = report {
            report.say(state, None, error).await;
        }
    }

    /// Whether what went wrong is explained by a newer revision of the unit, which has a marker of its own.
    async fn superseded(
        &self,
        in_flight: &InFlight<'_>,
        job: &Job,
        result: &Result<Work, WorkError>,
    ) -> Result<bool, WorkError> {
        let Ok(work) = result else { return Ok(false) };
        let differs = work.faults.iter().any(|faulty| matches!(faulty.fault, ObjectFault::Differs(_)));
        if !differs {
            return Ok(false);
        }
        let delivery = &in_flight.leased.delivery;
        Ok(is_superseded(&self.bus, delivery, &job.unit, Some(job.published_at)).await?
            || self.fetcher.is_replaced(&self.bus, job).await?)
    }

    /// Something everything depends on may be away: keep the delivery, pull nothing, try again soon. Some: it is to be
    /// handed back, because the worker ends, or because the unit alone may be at fault and others wait behind it.
    async fn wait(&self, in_flight: &InFlight<'_>, result: &Result<Work, WorkError>, waits: u32) -> Option<HandBack> {
        let away = || Failure::unreachable("a server is away");
        self.circuit.open(result.as_ref().err().map_or_else(away, failure));
        if let (Destination::ClickHouse(loader), Err(WorkError::Warehouse(error))) = (&self.destination, result)
            && error.kind == WarehouseErrorKind::MissingSchema
            && let Ok(_only_one) = loader.preparing.try_lock()
            && let Err(error) = loader.warehouse.prepare_tables().await
        {
            // Unlike the statement that failed, it says what to do.
            tracing::warn!(%error, "creating the tables");
            self.circuit.open(error.into());
        }
        if let Err(error) = result
            && waits >= WAITS_MAX
            && may_be_its_own(error)
            && self.is_answered(in_flight, error).await
        {
            self.circuit.try_others();
            return Some(HandBack::after(PUT_OFF, "it failed again and again, and others may not"));
        }
        let paused = in_flight.stop.run_until_cancelled(tokio::time::sleep(Circuit::pause(waits))).await;
        // Waiting for a server is no stall of this unit.
        in_flight.leased.lease.activity.bump();
        paused.is_none().then(HandBack::at_the_end)
    }

    async fn finish(&self, in_flight: &InFlight<'_>, finished: &Finished<'_>, elapsed: Duration) {
        let InFlight { leased, report, .. } = *in_flight;
        let delivery = &leased.delivery;
        let ending = finished.ending();
        let error = finished.error();
        let class = finished.class();
        if let Some(report) = report {
            report.say(ending.task_state(), finished.result.as_ref().ok(), &error).await;
        }
        let ended = match finished.end {
            DeliveryEnd::Done | DeliveryEnd::Stopped(_) => delivery.ack().await,
            DeliveryEnd::Retry { after, .. } => {
                let after = in_flight.delay(after);
                tracing::warn!(class, error, after_s = after.as_secs(), "failed, will be delivered again");
                self.record_end(in_flight, DeliveryRecord::with_failure).await;
                self.stats.schedule_retry(&in_flight.name(), &format!("{class}: {error}"), after);
                delivery.nak(after).await
            }
            DeliveryEnd::DeadLetter { .. } => {
                let letter = DeadLetter { destination: &self.destination_name, class, error: &error };
                // A stream that was made anew has its own word on the unit.
                if !delivery.is_current().await {
                    tracing::warn!(class, error, "failed, and the stream was made anew since: left to the new one");
                    return;
                }
                self.store_letter(leased, &letter).await;
                failpoint("puller.dead_letter_stored");
                tracing::error!(class, error, "dead letter");
                delivery.term(class).await
            }
        };
        match ended {
            Ok(()) => {}
            Err(error @ AckError::Replaced) => tracing::warn!(%error, "the unit is left to the new stream"),
            Err(error) => tracing::warn!(%error, "the unit will be delivered again, and found to be done"),
        }
        self.metrics.ended(&self.destination_name, ending.as_str());
        if ending != Ending::Retry {
            self.stats.count(ending);
        }
        if ending == Ending::Loaded {
            self.suspects.loaded(&delivery.consumer, delivery.stream_sequence);
        }
        if let Ok(work) = finished.result {
            self.metrics.archives(&self.destination_name, "loaded", work.loaded);
            self.metrics.archives(&self.destination_name, "skipped", work.skipped);
            self.metrics.archives(&self.destination_name, "failed", work.faults.len() as u64);
            self.metrics.volume(&self.destination_name, work.rows, work.bytes);
            self.metrics.stages(&self.destination_name, &work.times);
            self.stats.add(work);
            tracing::info!(
                outcome = ending.as_str(),
                archives = work.loaded,
                skipped = work.skipped,
                rows = work.rows,
                duration_ms = elapsed.as_millis(),
                "unit finished"
            );
        }
    }

    /// Stores a dead letter, for as long as it takes: a delivery is never terminated without, and to hand it back would
    /// only bring it closer to the server's last delivery. The others go on meanwhile, while there are slots.
    async fn store_letter(&self, leased: &Leased, letter: &DeadLetter<'_>) {
        let part = format!("dead letters of {}", self.destination_name);
        let (mut waits, mut waiting) = (0, None);
        while let Err(error) = self.bus.store_dead_letter(&leased.delivery, letter).await {
            waits += 1;
            tracing::warn!(%error, waits, "the dead letter could not be stored, trying again");
            self.circuit.readiness().not_ready(&part, error.to_string());
            waiting.get_or_insert_with(|| self.stats.wait_with_letter(error.into()));
            tokio::time::sleep(Circuit::pause(waits)).await;
            leased.lease.activity.bump();
        }
        if waiting.take().is_some() {
            self.circuit.readiness().ready(&part);
        }
    }
}
