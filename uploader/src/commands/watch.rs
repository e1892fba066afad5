//! The service: looks at what the file system says has changed, at what has waited long enough, and at everything every
//! `watch.rescan`, until it is told to stop.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use common::backoff::{Backoff, Growth};
use common::failpoint::bound;
use common::output::{Failure, count};
use common::service::http::Readiness;
use common::unit::Unit;
use common::unit_filter::UnitFilter;
use tokio_util::sync::CancellationToken;

use crate::cli::context::site;
use crate::commands::download;
use crate::local::arrivals::{Arrivals, FileEvents};
use crate::local::events::{Events, Hint};
use crate::local::signs;
use crate::pass::memory::UnitMemory;
use crate::pass::report::PassReport;
use crate::pass::run as pass;
use crate::pass::scope::{Scope, Watching};
use crate::site::context::Site;
use crate::site::metrics::UnitCounts;
use crate::site::progress::Progress;
use crate::unit::cleanup;
use crate::unit::cleanup::Policy;
use crate::unit::process::Mode;
use clap::Args;
use common::bwlimit::BwLimit;
use common::config::Config;
use common::output::Reply;
use common::service::http;
use prometheus_client::registry::Registry;

pub(super) const WATCH_EXAMPLES: &str = "\
Examples:
  uploader watch --config /etc/marketferry/config.yaml
  uploader watch --bwlimit '08:00,512K 19:00,off'
  FERRY__WATCH__RESCAN=5m FERRY__HTTP__LISTEN=0.0.0.0:9100 uploader watch";

#[derive(Debug, Args)]
pub struct Watch {
    /// How fast bytes may go, instead of storage.bwlimit: 10M, 512K, off, or a timetable '08:00,512K 19:00,off'
    #[arg(long, value_name = "LIMIT")]
    pub(super) bwlimit: Option<BwLimit>,
}

/// The service.
pub(super) async fn serve(config: &Config, progress: Progress, shutdown: CancellationToken) -> Result<Reply, Failure> {
    cleanup::allowed(&config.storage, Policy::of(&config.publish, false, None)).map_err(Failure::config)?;
    let mut registry = Registry::default();
    let site = site(config, &mut registry, progress, shutdown)?;
    let bandwidth = site.store.bandwidth().clone();
    let schedule =
        download::schedule(config, &mut registry, bandwidth, site.shutdown.clone()).map_err(Failure::config)?;
    let readiness = Readiness::default();
    starting(&readiness);
    if let Some(listen) = config.http_listen {
        let serving = http::serve(listen, readiness.clone(), registry, site.shutdown.clone()).await;
        serving.map_err(|error| Failure::config(format!("http.listen: cannot listen on {listen}: {error}")))?;
    }
    let download = async {
        if let Some(schedule) = schedule {
            schedule.follow(&readiness).await;
        }
    };
    let watching = async {
        let ended = run(&site, config.watch.rescan, &readiness).await;
        // It may have ended by itself.
        site.shutdown.cancel();
        ended
    };
    let following = readiness.follow("nats", || site.queue.is_connected());
    let following = async {
        site.shutdown.run_until_cancelled(following).await;
    };
    let (ended, (), ()) = tokio::join!(watching, download, following);
    site.queue.close().await;
    ended.map(|()| Reply::default())
}

/// The parts `/readyz` gives reasons for.
const PASS: &str = "pass";
const STALL: &str = "progress";
const QUEUE: &str = "queue";

/// Events come in bursts: this long nothing may have come before they are acted on,
const QUIET: Duration = Duration::from_millis(200);
/// but no longer than this.
const PATIENCE: Duration = Duration::from_secs(1);
/// Hints to more units than this are a hint to look at everything.
const HINTS_MAX: usize = 1000;
/// After a walk of everything, events alone do not start another for so many times as long as it took.
const REST: u32 = 4;
/// How often to try whether the queue is back.
const ATTEMPT_PAUSE: Backoff = Backoff {
    initial: Duration::from_millis(500),
    growth: Growth::Exponential { factor: 2.0 },
    max: Duration::from_secs(5),
};
/// How long a pass goes on before it makes room for what came meanwhile: today's units do not wait for a backlog.
const INTERRUPT_AFTER: Duration = Duration::from_secs(10);
/// After a pass that ended early; as long as it took, up to a minute, if that is longer. The longest is short: who waits
/// for the network waits that much more.
const RETRY: Backoff = Backoff {
    initial: Duration::from_secs(1),
    growth: Growth::Exponential { factor: 2.0 },
    max: Duration::from_secs(10),
};
const RETRY_MAX: Duration = Duration::from_secs(60);
/// A pass without any sign of progress for so long is not as it should be, and that is said.
const SILENCE_SHOWN: Duration = Duration::from_secs(60);
/// Then it is begun anew. Longer than any one request is waited for, of which those to the bucket take the longest.
const SILENCE_MAX: Duration = Duration::from_secs(150);
/// How often a pass is looked after.
const TICK: Duration = Duration::from_secs(1);

/// Runs until shutdown. What fails is logged, shown by `/readyz`, and tried again, unless only another configuration would
/// help.
pub(crate) async fn run(site: &Site, rescan: Duration, readiness: &Readiness) -> Result<(), Failure> {
    let mode = Mode { dry_run: false, cleanup: Policy::of(&site.publish, false, None), service: true };
    let mut memory = UnitMemory::default();
    let (mut events, folders) = Events::open().unzip();
    let mut schedule = Schedule::new(rescan);
    loop {
        let Some(scope) = next(site, &mut schedule, &mut memory, &mut events).await else { return Ok(()) };
        let mut started = Instant::now();
        let watching =
            Watching { folders: folders.clone(), events: schedule.events(), interrupt: CancellationToken::new() };
        let ended = {
            let pass = pass::run(site, &scope, mode, &mut memory, &watching);
            listen_meanwhile(site, pass, &mut schedule, &mut events, &watching.interrupt, readiness).await
        };
        if site.shutdown.is_cancelled() {
            return Ok(());
        }
        // One that hung has been waited for long enough.
        let report = ended.unwrap_or_else(|hung| {
            started = Instant::now();
            hung
        });
        if let Some(failure) = report.misconfigured() {
            return Err(failure);
        }
        if let Some(folders) = &folders {
            site.metrics.watched_folders(folders.count());
        }
        schedule.ended(&scope, &report, started, watching.interrupt.is_cancelled(), memory.counts());
        show(&report, memory.counts(), readiness);
    }
}

/// A service that has begun and not finished a pass is not ready.
pub(crate) fn starting(readiness: &Readiness) {
    readiness.not_ready(PASS, "the first pass has not ended");
}

/// Waits until there is something to look at; `None`: told to stop.
async fn next(
    site: &Site,
    schedule: &mut Schedule,
    memory: &mut UnitMemory,
    events: &mut Option<Events>,
) -> Option<Scope> {
    loop {
        if let Some(scope) = schedule.ready(memory) {
            return Some(scope);
        }
        let wake = schedule.wake(memory);
        tokio::select! {
            () = site.shutdown.cancelled() => return None,
            hint = hint(events) => schedule.add(hint),
            () = tokio::time::sleep_until(wake.into()) => {}
        }
        if schedule.attempts(Instant::now()) {
            let reached = tokio::select! {
                () = site.shutdown.cancelled() => return None,
                bus = site.queue.bus() => bus.is_ok(),
            };
            if reached {
                return Some(Scope::Units(memory.unannounced()));
            }
            schedule.knocked();
        }
    }
}

async fn hint(events: &mut Option<Events>) -> Hint {
    match events {
        Some(events) => events.next().await,
        None => std::future::pending().await,
    }
}

/// Runs a pass to its end, and takes notice of what happens meanwhile. One that makes no progress is given up, as by a kill: then
/// what is said of it is the error.
async fn listen_meanwhile(
    site: &Site,
    pass: impl Future<Output = PassReport>,
    schedule: &mut Schedule,
    events: &mut Option<Events>,
    interrupt: &CancellationToken,
    readiness: &Readiness,
) -> Result<PassReport, PassReport> {
    let signs = || signs::count() + site.store.bandwidth().grants();
    let (mut seen, mut seen_at) = (signs(), Instant::now());
    let silence_shown = bound(SILENCE_SHOWN, "FERRY_SILENCE_SHOWN_S");
    let silence_max = bound(SILENCE_MAX, "FERRY_SILENCE_MAX_S");
    let mut ticks = tokio::time::interval(TICK);
    let long = Instant::now() + INTERRUPT_AFTER;
    let mut pass = std::pin::pin!(pass);
    loop {
        let urgent = schedule.hints_at().filter(|_| !interrupt.is_cancelled()).map(|at| at.max(long));
        let interrupted = async {
            match urgent {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            report = &mut pass => {
                readiness.ready(STALL);
                return Ok(report);
            }
            hint = hint(events) => schedule.add(hint),
            () = interrupted => interrupt.cancel(),
            _ = ticks.tick() => {
                let now = signs();
                if now != seen {
                    (seen, seen_at) = (now, Instant::now());
                    readiness.ready(STALL);
                } else if seen_at.elapsed() >= silence_shown {
                    let silent = seen_at.elapsed();
                    let reason = format!(
                        "the pass has heard nothing of the disk, the bucket and the queue for {} s",
                        silent.as_secs()
                    );
                    if silent >= silence_max {
                        tracing::error!(reason, "beginning it anew");
                        site.metrics.pass_restarted();
                        let mut report = PassReport::new(false, false);
                        report.fail(Failure::unreachable(reason));
                        return Err(report);
                    }
                    readiness.not_ready(STALL, reason);
                }
            }
        }
    }
}

/// What to look at, and when.
struct Schedule {
    rescan: Duration,
    /// When everything is to be looked at again,
    rescan_at: Instant,
    /// or before that, because of an event or a failure,
    asked_at: Option<Instant>,
    /// but not before this.
    everything_from: Instant,
    /// Units that something happened to, since when there are any, and when the last came.
    hinted: HashSet<Unit>,
    hinted_since: Option<Instant>,
    last_hint: Instant,
    arrivals: Arrivals,
    /// Passes in a row that ended early.
    failures: u32,
    /// When to try whether the queue is back, if units wait for it, and how often that was tried.
    next_attempt_at: Option<Instant>,
    attempts: u32,
}

impl Schedule {
    fn new(rescan: Duration) -> Self {
        let now = Instant::now();
        Self {
            rescan,
            rescan_at: now,
            asked_at: None,
            everything_from: now,
            hinted: HashSet::new(),
            hinted_since: None,
            last_hint: now,
            arrivals: Arrivals::default(),
            failures: 0,
            next_attempt_at: None,
            attempts: 0,
        }
    }

    /// What is to be looked at now.
    fn ready(&mut self, memory: &mut UnitMemory) -> Option<Scope> {
        let now = Instant::now();
        let everything = now >= self.everything_at();
        let hinted = self.hints_at().is_some_and(|at| now >= at);
        if everything || hinted {
            self.hinted_since = None;
            let hinted: Vec<Unit> = self.hinted.drain().collect();
            hinted.iter().for_each(|unit| memory.doubt(unit));
            if everything {
                (self.rescan_at, self.asked_at) = (now + self.rescan, None);
                return Some(Scope::Everything(UnitFilter::default()));
            }
            return Some(Scope::Units(hinted));
        }
        let due = if self.failures == 0 { memory.due(now, common::clock::now()) } else { Vec::new() };
        (!due.is_empty()).then_some(Scope::Units(due))
    }

    /// When there will be something to look at, as far as is known now.
    fn wake(&self, memory: &UnitMemory) -> Instant {
        let now = Instant::now();
        let due = memory.next_due(now, common::clock::now()).filter(|_| self.failures == 0);
        // A clock of many steps: what is due in no time would be asked for again and again.
        let due = due.map(|left| now + left.max(Duration::from_millis(10)));
        let others = [due, self.hints_at(), self.next_attempt_at];
        others.into_iter().flatten().fold(self.everything_at(), Instant::min)
    }

    fn everything_at(&self) -> Instant {
        self.asked_at.map_or(self.rescan_at, |at| at.max(self.everything_from).min(self.rescan_at))
    }

    /// When the hints there are, are to be acted on.
    fn hints_at(&self) -> Option<Instant> {
        self.hinted_since.map(|since| (self.last_hint + QUIET).min(since + PATIENCE))
    }

    fn add(&mut self, hint: Hint) {
        let now = Instant::now();
        let unit = match hint {
            Hint::Unit(unit) => unit,
            Hint::Archive { unit, path, moved: true } => {
                self.arrivals.moved(path);
                unit
            }
            Hint::Archive { unit, path, moved: false } => {
                self.arrivals.closed(&path);
                unit
            }
            // It is looked at when it is closed.
            Hint::Written { path } => return self.arrivals.written(path),
            Hint::Everything => return self.ask(now + QUIET),
            Hint::Lost => {
                self.arrivals.lost();
                return self.ask(now + QUIET);
            }
        };
        self.hinted.insert(unit);
        self.hinted_since.get_or_insert(now);
        self.last_hint = now;
        if self.hinted.len() > HINTS_MAX {
            self.ask(now);
        }
    }

    /// Has everything looked at before the next rescan.
    fn ask(&mut self, at: Instant) {
        self.asked_at = Some(self.asked_at.map_or(at, |before| before.min(at)));
    }

    fn events(&mut self) -> FileEvents {
        self.arrivals.events()
    }

    /// Whether to try now if the queue is back.
    fn attempts(&self, now: Instant) -> bool {
        self.failures == 0 && self.next_attempt_at.is_some_and(|at| now >= at)
    }

    fn knocked(&mut self) {
        self.attempts += 1;
        self.next_attempt_at = Some(Instant::now() + ATTEMPT_PAUSE.delay(self.attempts));
    }

    fn ended(&mut self, scope: &Scope, report: &PassReport, started: Instant, interrupted: bool, counts: UnitCounts) {
        let now = Instant::now();
        if report.error.is_some() {
            self.failures += 1;
            let pause = RETRY.delay(self.failures).max((now - started).min(RETRY_MAX));
            self.everything_from = now + pause.min(self.rescan);
            self.ask(self.everything_from);
        } else {
            self.failures = 0;
            if interrupted {
                self.everything_from = now;
                self.ask(now + PATIENCE);
            } else if matches!(scope, Scope::Everything(_)) {
                self.everything_from = now + (now - started) * REST;
                self.rescan_at = now + self.rescan;
            }
        }
        if counts.unannounced == 0 {
            (self.next_attempt_at, self.attempts) = (None, 0);
        } else {
            self.knocked();
        }
    }
}

fn show(report: &PassReport, counts: UnitCounts, readiness: &Readiness) {
    match &report.error {
        Some(error) => readiness.not_ready(PASS, error.to_string()),
        None => readiness.ready(PASS),
    }
    match counts.unannounced {
        0 => readiness.ready(QUEUE),
        units => readiness.not_ready(QUEUE, format!("{} stored and not announced", count(units as u64, "unit"))),
    }
    let units = &report.units;
    if units.published + report.units.unannounced > 0 {
        tracing::info!(
            units.published,
            units.unchanged,
            units.held_back,
            units.unannounced,
            units.waiting,
            archives.uploaded = report.archives.uploaded,
            archives.read = report.archives.read,
            seconds = report.seconds,
            "pass ended"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(day: u32) -> Unit {
        format!("binance/um/klines/1h/2026-02-{day:02}").parse().expect("a unit")
    }

    fn quiet(schedule: &mut Schedule) {
        let report = PassReport::new(false, false);
        let started = Instant::now();
        schedule.ended(&Scope::Everything(UnitFilter::default()), &report, started, false, UnitCounts::default());
    }

    #[test]
    fn a_burst_of_events_is_one_look() {
        let (mut schedule, mut memory) = (Schedule::new(Duration::from_secs(3600)), UnitMemory::default());
        assert!(matches!(schedule.ready(&mut memory), Some(Scope::Everything(_))), "the first thing to do");
        quiet(&mut schedule);
        for day in [1, 2, 1] {
            schedule.add(Hint::Unit(unit(day)));
        }
        assert!(schedule.ready(&mut memory).is_none(), "more may come");
        schedule.last_hint -= QUIET;
        let Some(Scope::Units(units)) = schedule.ready(&mut memory) else { panic!("nothing to do") };
        assert_eq!(units.len(), 2);
        assert!(schedule.ready(&mut memory).is_none());
        assert!(schedule.wake(&memory) > Instant::now() + Duration::from_secs(3000));
    }

    #[test]
    fn many_hints_are_a_hint_to_look_at_everything() {
        let (mut schedule, mut memory) = (Schedule::new(Duration::from_secs(3600)), UnitMemory::default());
        quiet(&mut schedule);
        schedule.everything_from = Instant::now();
        for n in 0..=HINTS_MAX {
            let unit = format!("binance/um/klines/1h/{:04}-01-01", 1000 + n).parse().expect("a unit");
            schedule.add(Hint::Unit(unit));
        }
        assert!(matches!(schedule.ready(&mut memory), Some(Scope::Everything(_))));
    }

    #[test]
    fn what_is_being_written_is_looked_at_when_it_is_closed() {
        let (mut schedule, mut memory) = (Schedule::new(Duration::from_secs(3600)), UnitMemory::default());
        quiet(&mut schedule);
        schedule.add(Hint::Written { path: "a".into() });
        assert!(schedule.events().written.contains("a") && schedule.hints_at().is_none());
        schedule.add(Hint::Archive { unit: unit(1), path: "a".into(), moved: false });
        schedule.last_hint -= QUIET;
        assert!(schedule.events().is_empty() && matches!(schedule.ready(&mut memory), Some(Scope::Units(_))));
    }
}
