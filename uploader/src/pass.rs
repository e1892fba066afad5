//! One pass over `data_dir`: every marked unit, the newest periods first.

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::backoff::Backoff;
use common::unit::Unit;
use futures::{StreamExt, stream};

use crate::error::{PassError, UnitError};
use crate::marks;
use crate::metrics::UnitOutcome;
use crate::queue::QueueError;
use crate::report::Report;
use crate::scan::{self, Filter, LocalUnit};
use crate::settle::{self, Look, Mode, Outcome, Settled};
use crate::site::{Site, UNITS_MAX, blocking};
use crate::upload::Transferred;

/// Units that are only looked at, at once: each waits for two answers of the queue.
const LOOKS_MAX: usize = 32;
/// A long pass keeps its hashes now and then, so that being killed costs little.
const SAVE_EVERY: Duration = Duration::from_secs(30);

/// Does all there is to do now.
pub(crate) async fn run(site: &Site, filter: &Filter, mode: Mode) -> Report {
    let started = Instant::now();
    let mut pass = Pass { site, mode, report: Report::new(mode.dry_run), saved: started };
    let outcome = pass.every_unit(filter).await;
    site.progress.end();
    if let Err(error) = &outcome {
        tracing::error!(%error, "the pass ended early");
        pass.report.fail(error.to_string(), error.exit_code());
    }
    if !mode.dry_run {
        let (cache, whole) = (Arc::clone(&site.cache), outcome.is_ok() && filter.takes_all());
        blocking(move || cache.save(whole)).await;
    }
    let mut report = pass.report;
    report.end(started.elapsed());
    if outcome.is_ok() {
        site.metrics.pass(started.elapsed(), report.units.held_back, report.units.unannounced);
    }
    report
}

struct Pass<'s> {
    site: &'s Site,
    mode: Mode,
    report: Report,
    saved: Instant,
}

/// A unit that is in the bucket and not yet on the stream.
struct Unannounced {
    local: LocalUnit,
    settled: Settled,
}

impl Pass<'_> {
    async fn every_unit(&mut self, filter: &Filter) -> Result<(), PassError> {
        let site = self.site;
        let units = self.marked(filter).await?;
        // Wrong credentials are told before anything is uploaded; a server that is away is waited for afterwards.
        let away = match site.queue.bus().await {
            Ok(_) => None,
            Err(QueueError::Refused(error)) => return Err(PassError::Queue(error)),
            Err(error @ (QueueError::Away(_) | QueueError::Lost)) => {
                tracing::warn!(%error, "uploading without the queue, units are announced when it is back");
                Some(error)
            }
        };
        let data_dir = site.data_dir.clone();
        let local = blocking(move || scan::scan(&data_dir, units)).await;
        site.progress.begin(local.len());
        let unannounced = self.settle_all(local).await?;
        if self.mode.dry_run {
            if let Some(error) = away {
                let code = common::exit::UNREACHABLE;
                self.report.fail(format!("{error}; what is said here is what the bucket says"), code);
            }
            return Ok(());
        }
        self.announce_later(unannounced).await
    }

    async fn marked(&mut self, filter: &Filter) -> Result<Vec<Unit>, PassError> {
        let data_dir = self.site.data_dir.clone();
        let marks = blocking(move || marks::read(&data_dir)).await;
        let mut marks = marks.map_err(|error| PassError::data_dir(self.site.data_dir.clone(), &error))?;
        for name in &marks.bad {
            tracing::warn!(name, "not a completion mark; it would be called {}", marks::SHAPE);
        }
        marks.units.retain(|unit| filter.takes(unit));
        self.report.bad_marks = marks.bad;
        self.report.units.marked = marks.units.len();
        Ok(marks.units)
    }

    /// Settles every unit; returns those that the queue could not be told about.
    async fn settle_all(&mut self, local: Vec<LocalUnit>) -> Result<Vec<Unannounced>, PassError> {
        let (site, mode) = (self.site, self.mode);
        let mut unannounced = Vec::new();
        // One stage, not a stage of looks before a stage of work: a stage that is not polled, because the one after it is
        // full, could hold the lock that the one after it waits for.
        let settled = stream::iter(local)
            .take_until(site.shutdown.cancelled())
            .map(|local| look_and_settle(site, local, mode))
            .buffer_unordered(LOOKS_MAX);
        let mut settled = std::pin::pin!(settled);
        while let Some(result) = settled.next().await {
            match result? {
                (Some(local), settled @ Settled { outcome: Outcome::Unannounced { .. }, .. }) => {
                    tracing::info!(unit = %settled.unit, "stored, not announced yet");
                    unannounced.push(Unannounced { local, settled });
                }
                (_, settled) => self.done(settled),
            }
            self.save_sometimes().await;
        }
        if site.shutdown.is_cancelled() { Err(PassError::Stopped) } else { Ok(unannounced) }
    }

    /// Tries for `publish.timeout` to announce what could not be announced.
    async fn announce_later(&mut self, mut unannounced: Vec<Unannounced>) -> Result<(), PassError> {
        let (site, mode) = (self.site, self.mode);
        let deadline = Instant::now() + site.publish.timeout;
        let mut attempt = 0;
        let mut outcome = Ok(());
        while !unannounced.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            site.progress.doing(format!("waiting for NATS to announce {}", unannounced.len()));
            attempt += 1;
            tokio::select! {
                () = site.shutdown.cancelled() => {
                    outcome = Err(PassError::Stopped);
                    break;
                }
                () = tokio::time::sleep(Backoff::RECONNECT.delay(attempt).min(left)) => {}
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if !matches!(tokio::time::timeout(left, site.queue.bus()).await, Ok(Ok(_))) {
                continue;
            }
            let again = std::mem::take(&mut unannounced);
            let results = stream::iter(again)
                .map(async |unit| settle_one(site, &unit.local, mode).await.map(|settled| (unit, settled)))
                .buffer_unordered(UNITS_MAX);
            let mut results = std::pin::pin!(results);
            while let Some(result) = results.next().await {
                let (mut unit, settled) = result?;
                unit.settled.carry_on(settled);
                match unit.settled.outcome {
                    Outcome::Unannounced { .. } => unannounced.push(unit),
                    _ => self.done(unit.settled),
                }
            }
        }
        if let Some(Unannounced { settled: Settled { outcome: Outcome::Unannounced { why }, .. }, .. }) =
            unannounced.first()
        {
            tracing::error!(
                units = unannounced.len(),
                why,
                "uploaded and not announced; the next run announces them without uploading again"
            );
        }
        unannounced.into_iter().for_each(|unit| self.done(unit.settled));
        outcome
    }

    /// Logs, counts and reports what came of a unit.
    fn done(&mut self, settled: Settled) {
        let unit = &settled.unit;
        let outcome = match &settled.outcome {
            Outcome::Published { subject, objects, .. } => {
                let Transferred { uploaded, bytes, .. } = settled.transferred;
                tracing::info!(%unit, subject, objects, uploaded, bytes, "published");
                Some(UnitOutcome::Published)
            }
            Outcome::Unchanged { .. } => Some(UnitOutcome::Unchanged),
            Outcome::HeldBack(reasons) => {
                reasons.iter().for_each(|reason| tracing::error!(%unit, reason, "unit held back"));
                Some(UnitOutcome::HeldBack)
            }
            Outcome::Unannounced { .. } => Some(UnitOutcome::Unannounced),
            Outcome::Planned { .. } => None,
        };
        for problem in &settled.removed.problems {
            tracing::warn!(%unit, problem, "not removed from disk");
        }
        if let Some(outcome) = outcome {
            self.site.metrics.unit(outcome);
        }
        self.site.progress.unit_done();
        self.report.add(settled);
    }

    async fn save_sometimes(&mut self) {
        if self.saved.elapsed() > SAVE_EVERY && !self.mode.dry_run {
            let cache = Arc::clone(&self.site.cache);
            blocking(move || cache.save(false)).await;
            self.saved = Instant::now();
        }
    }
}

/// Looks at a unit, and waits for its turn if it needs work; the unit comes back too, unless the look was enough.
async fn look_and_settle(site: &Site, local: LocalUnit, mode: Mode) -> Result<(Option<LocalUnit>, Settled), PassError> {
    match settle::look(site, local, mode).await {
        Look::Done(settled) => Ok((None, settled)),
        Look::NeedsWork(local) => {
            let _turn = site.unit().await?;
            let settled = settle_one(site, &local, mode).await?;
            Ok((Some(local), settled))
        }
    }
}

/// Settles a unit; one that is held back is settled too.
async fn settle_one(site: &Site, local: &LocalUnit, mode: Mode) -> Result<Settled, PassError> {
    site.progress.doing(local.unit.to_string());
    match settle::settle(site, local, mode).await {
        Ok(settled) => Ok(settled),
        Err(UnitError::HeldBack(reasons)) => Ok(Settled::new(local.unit.clone(), Outcome::HeldBack(reasons))),
        Err(UnitError::Pass(error)) => Err(error),
    }
}
