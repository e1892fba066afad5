//! `puller pull`: drains what is pending now, then exits.

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::bars::BARS;
use common::config::{Config, Destination as DestinationConfig};
use common::exit;
use common::http::Readiness;
use common::marker::{Content, Marker};
use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressStyle};
use nats::Bus;
use prometheus_client::registry::Registry;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::board::Totals;
use crate::cli::Pull;
use crate::metrics::Metrics;
use crate::runner::Runner;
use crate::service::{Failure, Shared, served, worker_name};
use crate::status::print;

/// How often the queue is asked how much is left.
const POLL: Duration = Duration::from_millis(200);
/// How long a server may be away before this run gives up; the next one goes on.
const GIVE_UP: Duration = Duration::from_secs(60);
/// Most pending markers that --dry-run lists.
const LISTED_MAX: usize = 100_000;

/// What a run did for one destination.
#[derive(Debug, Serialize)]
struct Summary {
    destination: String,
    units: u64,
    archives: u64,
    archives_skipped: u64,
    rows: u64,
    bytes: u64,
    dead_letters: u64,
    /// Markers still pending or unsettled when the run ended.
    left: u64,
    seconds: f64,
}

#[derive(Debug, PartialEq, Eq)]
enum Ended {
    Drained,
    TimeIsUp,
    Stopped,
    /// Nothing will be delivered until somebody resumes it.
    Paused,
    GaveUp,
}

pub(crate) async fn run(args: &Pull, config: Config, stop: CancellationToken) -> Result<u8, Failure> {
    let destinations = if args.no_ingest { config.mirror().into_iter().collect() } else { served(&config) };
    let name = worker_name();
    let bus = Bus::connect(&config.nats, &name).await?;
    let metrics = Metrics::new(&mut Registry::default());
    let shared = Shared::new(config, name, bus, Readiness::default(), metrics);
    for destination in &destinations {
        shared.prepare_queue(&destination.name).await?;
    }
    let code = if args.dry_run {
        dry_run(&shared, &destinations, args.json).await
    } else {
        drain_all(&shared, &destinations, args, stop).await
    };
    shared.bus.close().await;
    code
}

async fn drain_all(
    shared: &Shared,
    destinations: &[DestinationConfig],
    args: &Pull,
    stop: CancellationToken,
) -> Result<u8, Failure> {
    let deadline = args.max_wait.map(|wait| Instant::now() + wait);
    let drains = destinations.iter().map(|destination| drain(shared, destination, deadline, stop.child_token()));
    let mut code = exit::DONE;
    let mut summaries = Vec::new();
    // One destination's failure must not end the others' work.
    for (destination, drained) in destinations.iter().zip(futures::future::join_all(drains).await) {
        match drained {
            Ok((summary, ended)) => {
                let failed = summary.dead_letters > 0 || summary.left > 0;
                code = code.max(match ended {
                    Ended::GaveUp => exit::UNREACHABLE,
                    Ended::Paused => exit::SOME_FAILED,
                    Ended::Drained | Ended::TimeIsUp | Ended::Stopped if failed => exit::SOME_FAILED,
                    Ended::Drained | Ended::TimeIsUp | Ended::Stopped => exit::DONE,
                });
                summaries.push(summary);
            }
            Err(failure) => {
                tracing::error!(destination = destination.name, "{}", failure.message);
                code = code.max(failure.code);
            }
        }
    }
    if args.json {
        print(&serde_json::to_string_pretty(&summaries).expect("strings and numbers always serialise"));
    } else {
        summaries.iter().for_each(|summary| print(&summary.to_string()));
    }
    Ok(code)
}

async fn drain(
    shared: &Shared,
    destination: &DestinationConfig,
    deadline: Option<Instant>,
    stop: CancellationToken,
) -> Result<(Summary, Ended), Failure> {
    let started = Instant::now();
    let before = shared.bus.destination_progress(&destination.name).await?;
    let (totals, ended) = if before.is_drained() {
        (Totals::default(), Ended::Drained)
    } else if before.paused {
        say_paused(&destination.name);
        (Totals::default(), Ended::Paused)
    } else {
        let runner = Arc::new(shared.open(destination).await?);
        let bar = progress_bar(&destination.name, before.pending + before.unsettled);
        let watching = async {
            let ended = watch(shared, &runner, &bar, deadline, &stop).await;
            stop.cancel();
            ended
        };
        let (ended, ()) = futures::join!(watching, runner.run(stop.clone()));
        bar.finish_and_clear();
        (runner.worker.board.totals(), ended?)
    };
    let after = shared.bus.destination_progress(&destination.name).await?;
    let summary = Summary {
        destination: destination.name.clone(),
        units: totals.units,
        archives: totals.archives,
        archives_skipped: totals.skipped,
        rows: totals.rows,
        bytes: totals.bytes,
        dead_letters: totals.dead,
        left: after.pending + after.unsettled,
        seconds: started.elapsed().as_secs_f64(),
    };
    Ok((summary, ended))
}

/// Watches until there is nothing left to do, or no more time or hope to do it.
async fn watch(
    shared: &Shared,
    runner: &Runner,
    bar: &ProgressBar,
    deadline: Option<Instant>,
    stop: &CancellationToken,
) -> Result<Ended, Failure> {
    let mut away_since = None;
    let mut unasked = 0;
    loop {
        if stop.is_cancelled() {
            return Ok(Ended::Stopped);
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            tracing::warn!("--max-wait is over");
            return Ok(Ended::TimeIsUp);
        }
        let mut away = runner.worker.circuit.reason();
        match shared.bus.destination_progress(&runner.settings.destination).await {
            Ok(progress) if progress.is_drained() => return Ok(Ended::Drained),
            Ok(progress) if progress.paused && runner.worker.board.in_hand().is_empty() => {
                say_paused(&runner.settings.destination);
                return Ok(Ended::Paused);
            }
            Ok(progress) => {
                unasked = 0;
                let totals = runner.worker.board.totals();
                bar.set_length(totals.units + progress.pending + progress.unsettled);
                bar.set_position(totals.units);
                bar.set_message(format!("{} rows, {}", HumanCount(totals.rows), HumanBytes(totals.bytes)));
            }
            Err(error) => {
                unasked += 1;
                tracing::debug!(%error, unasked, "asking how much is left");
                away = away.or_else(|| Some(error.to_string()));
            }
        }
        match away {
            None => away_since = None,
            Some(reason) if away_since.get_or_insert_with(Instant::now).elapsed() > GIVE_UP => {
                tracing::error!(reason, "giving up after {} s; the next run goes on", GIVE_UP.as_secs());
                return Ok(Ended::GaveUp);
            }
            Some(_) => {}
        }
        let pause = async {
            tokio::select! {
                () = tokio::time::sleep(POLL) => {}
                // Likely the end.
                () = runner.worker.board.idle() => {}
            }
        };
        stop.run_until_cancelled(pause).await;
    }
}

fn say_paused(destination: &str) {
    tracing::error!("{destination} is paused, so nothing is delivered; `puller resume --destination {destination}`");
}

pub(crate) fn progress_bar(destination: &str, units: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{prefix} [{bar:30}] {pos}/{len} units, {msg}, {elapsed} (ETA {eta})")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    BARS.add(ProgressBar::new(units)).with_style(style).with_prefix(destination.to_owned())
}

/// One marker that waits.
#[derive(Debug, Serialize)]
struct Pending {
    destination: String,
    subject: String,
    unit: Option<String>,
    /// `None` where the list is in the manifest only, or the message is not a marker.
    archives: Option<usize>,
    bytes: Option<u64>,
}

async fn dry_run(shared: &Shared, destinations: &[DestinationConfig], json: bool) -> Result<u8, Failure> {
    let mut all = Vec::new();
    for destination in destinations {
        let progress = shared.bus.destination_progress(&destination.name).await?;
        let pending = shared.bus.pending_markers(&destination.name, LISTED_MAX).await?;
        if !json {
            print(&format!(
                "{}: {} markers pending, {} in hand or parked",
                destination.name, progress.pending, progress.unsettled
            ));
        }
        all.extend(pending.into_iter().map(|(subject, payload)| {
            let marker = Marker::parse(&payload).ok();
            let objects = marker.as_ref().and_then(|marker| match &marker.content {
                Content::Objects(objects) => Some(objects),
                Content::Manifest(_) => None,
            });
            Pending {
                destination: destination.name.clone(),
                subject,
                unit: marker.as_ref().map(|marker| marker.unit.to_string()),
                archives: objects.map(Vec::len),
                bytes: objects.map(|objects| objects.iter().map(|object| object.size).sum()),
            }
        }));
    }
    if json {
        print(&serde_json::to_string_pretty(&all).expect("strings and numbers always serialise"));
    } else {
        for pending in &all {
            let unit = pending.unit.as_deref().unwrap_or(&pending.subject);
            let archives = pending.archives.map_or_else(|| "?".into(), |count| count.to_string());
            let bytes = pending.bytes.map_or_else(|| "?".into(), |bytes| HumanBytes(bytes).to_string());
            print(&format!("  {unit}  {archives} archives  {bytes}"));
        }
    }
    Ok(exit::DONE)
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = &self.destination;
        if self.units == 0 && self.left == 0 {
            return write!(f, "{name}: nothing to do, no marker is pending");
        }
        write!(
            f,
            "{name}: {} units, {} archives loaded, {} there already, {} rows, {} in {:.1} s",
            self.units,
            HumanCount(self.archives),
            HumanCount(self.archives_skipped),
            HumanCount(self.rows),
            HumanBytes(self.bytes),
            self.seconds,
        )?;
        if self.dead_letters > 0 {
            write!(f, "; {} DEAD LETTERS, see the log and `puller status`", self.dead_letters)?;
        }
        if self.left > 0 {
            write!(f, "; {} markers left", self.left)?;
        }
        Ok(())
    }
}
