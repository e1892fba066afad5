//! One pass over `data_dir`, or over some units of it: what is complete is processed, the newest periods first.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::backoff::Backoff;
use common::failpoint::hang;
use common::output::Failure;
use common::service::shutdown;
use common::unit::Unit;
use common::unit_filter::UnitFilter;
use futures::{StreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use nats::Stamp;
use tokio_util::sync::CancellationToken;

use crate::bucket::multipart;
use crate::bucket::upload::Transferred;
use crate::error::PassError;
use crate::local::complete::{Reason, Wait};
use crate::local::seen::Seen;
use crate::local::strays::Strays;
use crate::local::tree::{Found, Walk};
use crate::local::{marks, strays};
use crate::pass::candidate;
use crate::pass::candidate::{Candidate, Handled};
use crate::pass::memory::UnitMemory;
use crate::pass::report::{OlderUnit, PassReport};
use crate::pass::scope::{Scope, Watching};
use crate::site::context::{Site, UNITS_MAX, blocking};
use crate::site::metrics::UnitOutcome;
use crate::site::queue::QueueError;
use crate::unit::process::{Mode, Outcome, Processed};

/// Units that are only looked at, at once: each waits for two answers of the queue.
const CHECKS_MAX: usize = 32;
/// Up to this many units are asked of the stream one by one; more are asked for all at once.
const ASKED_SINGLY_MAX: usize = 16;

/// What is in flight when the time to drain is over ends a little later.
const STOP_SLACK: Duration = Duration::from_secs(2);

/// Archives that should have left the disk and are still there are looked at again after this time.
const CLEANUP_AGAIN: SignedDuration = SignedDuration::from_hours(1);

/// Does all there is to do now.
pub(crate) async fn run(
    site: &Site,
    scope: &Scope,
    mode: Mode,
    memory: &mut UnitMemory,
    watching: &Watching,
) -> PassReport {
    let started = Instant::now();
    let read_before = site.metrics.archives_read();
    let mut pass = Pass { site, mode, memory, report: PassReport::new(mode.dry_run, site.completeness.by_archives()) };
    // Told to stop, it ends by itself, or else here: whatever it waits for then.
    let overdue = async {
        shutdown::overdue(site.shutdown.clone()).await;
        tokio::time::sleep(STOP_SLACK).await;
    };
    let outcome = tokio::select! {
        outcome = pass.every_unit(scope, watching) => outcome,
        () = overdue => Err(PassError::Stopped),
    };
    site.progress.end();
    if let Err(error) = &outcome {
        match error {
            PassError::Stopped => tracing::info!("the pass was stopped by a signal"),
            // The command ends with it, and says it.
            PassError::Elsewhere { .. } => {}
            _ if !mode.service => {}
            _ => tracing::error!(%error, "the pass ended early"),
        }
        pass.report.misconfigured = matches!(error, PassError::Elsewhere { .. });
        pass.report.fail(error.clone().into());
    }
    let Pass { mut report, memory, .. } = pass;
    report.archives.read = site.metrics.archives_read() - read_before;
    report.end(started.elapsed());
    if outcome.is_ok() {
        site.metrics.pass(started.elapsed(), memory.counts());
    }
    report
}

struct Pass<'s> {
    site: &'s Site,
    mode: Mode,
    memory: &'s mut UnitMemory,
    report: PassReport,
}

/// A unit that is in the bucket and not yet on the stream.
struct Unannounced {
    marked: bool,
    processed: Processed,
}

impl Pass<'_> {
    async fn every_unit(&mut self, scope: &Scope, watching: &Watching) -> Result<(), PassError> {
        let site = self.site;
        let found = self.find(scope, watching).await?;
        hang("uploader.pass").await;
        let interrupt = &watching.interrupt;
        // Wrong credentials are told before anything is uploaded; a server that is away is waited for afterwards.
        let Some(confirmed) = site.shutdown.run_until_cancelled(site.standing.confirm(site)).await else {
            return Err(PassError::Stopped);
        };
        let (connects, away) = match confirmed? {
            Ok(connects) => (Some(connects), None),
            Err(QueueError::Refused(error)) => return Err(PassError::Queue(error)),
            Err(error @ (QueueError::Away(_) | QueueError::Lost)) => {
                // A command says at its end why, and a dry run waits for nothing.
                if !self.mode.service && !self.mode.dry_run {
                    tracing::warn!("uploading without the queue, units are announced when it is back");
                } else if self.mode.service && self.memory.is_news(&error.to_string()) {
                    tracing::warn!(%error, "uploading without the queue, units are announced when it is back");
                }
                (None, Some(error))
            }
        };
        self.report.queue = away.clone().map(Failure::from);
        let everything = matches!(scope, Scope::Everything(_));
        let asking = everything && connects.is_some_and(|connects| self.memory.is_to_ask(connects));
        let units: HashSet<Unit> = found.iter().map(|(unit, ..)| unit.clone()).collect();
        self.report.units.total = found.len();
        if let Scope::Everything(filter) = scope
            && found.is_empty()
            && !filter.is_empty()
            && self.report.unreadable.is_empty()
        {
            // What the filters leave out was not looked at.
            return Err(PassError::NoMatch(Box::new(filter.clone()), None));
        }
        self.report.units.marked = found.iter().filter(|(.., marked)| *marked).count();

        let mut candidates = Vec::new();
        for (unit, seen, marked) in found {
            match self.memory.unchanged(&unit, marked, &seen, asking, away.is_some()) {
                Some(outcome) => self.count(Processed::new(unit, outcome)),
                None => {
                    let known = self.memory.get(&unit);
                    let published = known.is_some_and(|known| known.published);
                    let same = known.filter(|known| known.archives == Some(seen.digest));
                    let same_since = same.map_or_else(common::clock::now, |known| known.since);
                    candidates.push(Candidate { unit, seen, same_since, marked, published });
                }
            }
        }
        if let Scope::Units(asked) = scope {
            let absent: Vec<Unit> = asked.iter().filter(|unit| !units.contains(unit)).cloned().collect();
            absent.iter().for_each(|unit| self.memory.forget(unit));
            if !self.mode.service && !absent.is_empty() {
                self.report.fail(PassError::NoUnit(absent).into());
            }
        }
        let bytes = candidates.iter().map(|candidate| candidate.seen.bytes).sum();
        site.progress.begin(candidates.len(), bytes);
        let stamps = if connects.is_some() {
            let asking = self.stamps(candidates.len());
            site.shutdown.run_until_cancelled(asking).await.ok_or(PassError::Stopped)?
        } else {
            None
        };
        let unannounced = self.process_all(candidates, stamps.as_ref(), interrupt).await?;
        if let Scope::Everything(filter) = scope
            && filter.is_empty()
            && !units.is_empty()
            && !self.mode.dry_run
        {
            self.memory.retain(&units);
            if asking {
                let cache = Arc::clone(&site.cache);
                blocking(move || cache.retain(&units)).await;
            }
        }
        if let Some(connects) = connects.filter(|_| asking && !interrupt.is_cancelled()) {
            self.memory.asked(connects);
        }
        if self.mode.dry_run {
            if let Some(error) = away {
                let failure = Failure::from(error);
                let text = format!("{}; what is said here is what the bucket says", failure.text);
                self.report.fail(Failure { text, ..failure });
            }
            return Ok(());
        }
        multipart::abort_stale(site).await;
        self.announce_later(unannounced).await
    }

    /// The units that lie on disk or have a mark, and whether they do.
    async fn find(&mut self, scope: &Scope, watching: &Watching) -> Result<Vec<(Unit, Seen, bool)>, PassError> {
        let site = self.site;
        let (data_dir, rule, stop) = (site.data_dir.clone(), Arc::clone(&site.completeness), site.shutdown.clone());
        let (events, folders, puts_back) = (watching.events.clone(), watching.folders.clone(), !self.mode.dry_run);
        let filter = match scope {
            Scope::Everything(filter) => filter.clone(),
            Scope::Units(_) => UnitFilter::default(),
        };
        let is_everything = matches!(scope, Scope::Everything(filter) if filter.is_empty());
        let scope = scope.clone();
        let walking = move || -> io::Result<(Found, HashSet<Unit>, Vec<String>)> {
            let mut walk = Walk {
                data_dir: &data_dir,
                rule: &rule,
                events: &events,
                folders: folders.as_deref(),
                puts_back,
                stop: &stop,
            };
            match scope {
                Scope::Everything(filter) => {
                    if let Some(folders) = walk.folders {
                        folders.watch(&data_dir, "");
                    }
                    let mut marks = marks::read(&data_dir)?;
                    if !rule.marks() {
                        marks = marks::Marks::default();
                    }
                    marks.units.retain(|unit| filter.matches(unit));
                    let marked = marks.units.iter().cloned().collect();
                    let found = if rule.by_archives() {
                        walk.everything(marks.units, &filter)
                    } else {
                        walk.units(marks.units)
                    };
                    Ok((found, marked, marks.bad))
                }
                Scope::Units(mut units) => {
                    // Told of events, which lead where a walk has been.
                    walk.folders = None;
                    let is_marked = |unit: &&Unit| rule.marks() && marks::is_marked(&data_dir, unit);
                    let marked: HashSet<Unit> = units.iter().filter(is_marked).cloned().collect();
                    units.retain(|unit| marked.contains(unit) || rule.by_archives() && rule.allows(unit));
                    Ok((walk.units(units), marked, Vec::new()))
                }
            }
        };
        let walk = Arc::clone(&site.walks).acquire_owned();
        let Some(walk) = site.shutdown.run_until_cancelled(walk).await else { return Err(PassError::Stopped) };
        let walking = move || {
            let _walk = walk;
            walking()
        };
        let (found, marked, bad) =
            blocking(walking).await.map_err(|error| PassError::data_dir(site.data_dir.clone(), &error))?;
        if site.shutdown.is_cancelled() {
            return Err(PassError::Stopped);
        }
        for name in &bad {
            if self.memory.is_news(name) {
                tracing::warn!(name, "not a completion mark; it would be called {}", marks::right_name(name));
            }
        }
        self.report.bad_marks = bad;
        let mut unreadable = found.unreadable;
        let mut units = Vec::new();
        for (unit, seen) in found.units {
            let marked = marked.contains(&unit);
            if !marked && seen.archives == 0 && seen.unreadable.is_empty() {
                continue;
            }
            if filter.matches(&unit) {
                units.push((unit, seen, marked));
            } else {
                // The folder may hold archives of units that the filter takes.
                unreadable.extend(seen.unreadable.iter().map(ToString::to_string));
            }
        }
        unreadable.sort_unstable();
        unreadable.dedup();
        for problem in found.problems.iter().chain(&unreadable) {
            if self.memory.is_news(problem) {
                tracing::warn!("{problem}");
            }
        }
        if is_everything {
            self.find_strays().await?;
        }
        self.report.problems = found.problems;
        self.report.add_unreadable(unreadable);
        Ok(units)
    }

    /// Finds files that look like archives or marks and are not taken; a service does so once.
    async fn find_strays(&mut self) -> Result<(), PassError> {
        let site = self.site;
        if self.mode.service && self.memory.strays_reported {
            return Ok(());
        }
        let (data_dir, rule, stop) = (site.data_dir.clone(), Arc::clone(&site.completeness), site.shutdown.clone());
        let walk = Arc::clone(&site.walks).acquire_owned();
        let Some(walk) = site.shutdown.run_until_cancelled(walk).await else { return Err(PassError::Stopped) };
        hang("uploader.strays").await;
        let search = move || {
            let _walk = walk;
            strays::find(&data_dir, &rule, &stop)
        };
        let found = blocking(search).await.map_err(|error| PassError::data_dir(site.data_dir.clone(), &error))?;
        if site.shutdown.is_cancelled() {
            return Err(PassError::Stopped);
        }
        // Not before: a pass that was given up has reported nothing.
        self.memory.strays_reported = true;
        found.strays.iter().for_each(Strays::log);
        self.report.add_strays(found);
        Ok(())
    }

    /// What the stream has of each unit, if so many are to be looked at that asking for all is cheaper.
    async fn stamps(&mut self, candidates: usize) -> Option<HashMap<Unit, Stamp>> {
        if candidates <= ASKED_SINGLY_MAX {
            return None;
        }
        match self.site.queue.stamps().await {
            Ok(stamps) => Some(stamps),
            Err(error) => {
                // Also where nobody made the consumers reader-1 to reader-3.
                if self.memory.is_news("stamps") {
                    tracing::info!(%error, "asking the stream unit by unit");
                }
                None
            }
        }
    }

    /// Processes every unit; returns those that the queue could not be told about.
    async fn process_all(
        &mut self,
        candidates: Vec<Candidate>,
        stamps: Option<&HashMap<Unit, Stamp>>,
        interrupt: &CancellationToken,
    ) -> Result<Vec<Unannounced>, PassError> {
        let (site, mode) = (self.site, self.mode);
        let mut unannounced = Vec::new();
        // One stage, not a stage of looks before a stage of work: a stage that is not polled, because the one after it is
        // full, could hold the lock that the one after it waits for.
        let handled = stream::iter(candidates)
            .take_until(site.shutdown.cancelled())
            .take_until(interrupt.cancelled())
            .map(async |candidate| {
                let bytes = candidate.seen.bytes;
                let handled = candidate::handle(site, candidate, stamps, mode, interrupt).await;
                let sends = |handled: &Handled| matches!(handled.processed.outcome, Outcome::Published { .. });
                if !matches!(&handled, Ok(Some(handled)) if sends(handled)) {
                    site.progress.present(bytes);
                }
                handled
            })
            .buffer_unordered(CHECKS_MAX)
            .take_until(shutdown::overdue(site.shutdown.clone()));
        let mut handled = std::pin::pin!(handled);
        while let Some(handled) = handled.next().await {
            let Some(handled) = handled? else { continue };
            if matches!(handled.processed.outcome, Outcome::Unannounced { .. }) && !mode.service {
                tracing::info!(unit = %handled.processed.unit, "stored, not announced yet");
                unannounced.push(Unannounced { marked: handled.marked, processed: handled.processed });
            } else {
                self.done(handled);
            }
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
                .map(async |unit| {
                    let handled = candidate::process_anew(site, unit.processed.unit.clone(), unit.marked, mode).await?;
                    Ok::<_, PassError>((unit, handled))
                })
                .buffer_unordered(UNITS_MAX);
            let mut results = std::pin::pin!(results);
            while let Some(result) = results.next().await {
                let (Unannounced { marked, mut processed }, handled) = result?;
                processed.carry_on(handled.processed);
                match processed.outcome {
                    Outcome::Unannounced { .. } => unannounced.push(Unannounced { marked, processed }),
                    _ => self.done(Handled { processed, ..handled }),
                }
            }
        }
        for Unannounced { marked, processed } in unannounced {
            self.done(Handled { processed, marked, archives: None });
        }
        outcome
    }

    /// Remembers, logs, counts and reports what came of a unit.
    fn done(&mut self, handled: Handled) {
        let Handled { processed, marked, archives } = handled;
        let unit = &processed.unit;
        let removable_at = self.removable_at(&processed, archives.is_some());
        let news = self.memory.record(unit, marked, archives, &processed.outcome, removable_at);
        match &processed.outcome {
            Outcome::Published { subject, objects, .. } => {
                let Transferred { uploaded, bytes, .. } = processed.transferred;
                tracing::info!(%unit, subject, objects, uploaded, bytes, "published");
                if let Some(incomplete) = processed.incomplete.as_ref().filter(|_| !processed.incomplete_before) {
                    tracing::warn!(%unit, "published without {incomplete}");
                }
            }
            Outcome::HeldBack(reasons) if news => {
                reasons.iter().for_each(|reason| tracing::error!(%unit, reason, "unit held back"));
            }
            // A command has said so of each unit, and says at its end why.
            Outcome::Unannounced { why } if news && self.mode.service => {
                tracing::warn!(%unit, why, "stored, not announced yet");
            }
            // All of a new tree may wait for a quiet time.
            Outcome::Waiting { wait, .. } if matches!(wait.reason, Reason::Written | Reason::Quiet) => {
                tracing::debug!(%unit, until = %wait.until, "{}", wait.reason);
            }
            Outcome::Waiting { wait: Wait { reason: reason @ Reason::Open(_), .. }, .. } if news => {
                tracing::info!(%unit, "{reason}");
            }
            Outcome::Waiting { wait, missing } if news => {
                tracing::info!(%unit, until = %wait.until, missing = missing.join(","), "{}", wait.reason);
            }
            Outcome::HeldBack(_)
            | Outcome::Unannounced { .. }
            | Outcome::Waiting { .. }
            | Outcome::Unchanged { .. }
            | Outcome::Planned { .. } => {}
        }
        if !processed.older.is_empty() {
            let remark = OlderUnit::of(unit, &processed.older).to_string();
            if self.memory.is_news(&remark) {
                tracing::warn!("{remark}");
            }
        }
        for problem in &processed.removed.problems {
            tracing::warn!(%unit, problem, "not removed from disk");
        }
        self.site.progress.unit_done();
        self.count(processed);
    }

    /// When to look at the unit again because its archives may leave the disk.
    fn removable_at(&self, processed: &Processed, sure: bool) -> Option<Timestamp> {
        let at = self.mode.cleanup.removable_at(&processed.unit, processed.published_at?)?;
        let now = common::clock::now();
        // What could not be removed now is not tried again at once.
        if sure && at > now { Some(at) } else { now.checked_add(CLEANUP_AGAIN).ok() }
    }

    fn count(&mut self, processed: Processed) {
        let outcome = match &processed.outcome {
            Outcome::Published { .. } => Some(UnitOutcome::Published),
            Outcome::Unchanged { .. } => Some(UnitOutcome::Unchanged),
            Outcome::HeldBack(_) => Some(UnitOutcome::HeldBack),
            Outcome::Unannounced { .. } => Some(UnitOutcome::Unannounced),
            Outcome::Waiting { .. } => Some(UnitOutcome::Waiting),
            Outcome::Planned { .. } => None,
        };
        if let Some(outcome) = outcome {
            self.site.metrics.unit(outcome);
        }
        self.report.add(processed);
    }
}
