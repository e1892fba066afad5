//! `puller pull`: drains what is pending now, then exits.

mod dry_run;
mod pace;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::config::{Config, Destination as DestinationConfig};
use common::output::{FailureClass, Finding, Reply, count, grouped, list};
use common::service::http::Readiness;
use indicatif::{HumanBytes, HumanCount, ProgressBar};
use nats::Bus;
use prometheus_client::registry::Registry;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::cli::context::{Shared, served, worker_name};
use crate::cli::progress::progress_bar;
use crate::cli::{moment, place};
use crate::clickhouse::lost_stream;
use crate::clickhouse::lost_stream::LostUnits;
use crate::clickhouse::schema::MissingTables;
use crate::commands::dead::letters;
use crate::worker::metrics::Metrics;
use crate::worker::runner::Runner;
use crate::worker::stats::Totals;
use clap::Args;
use common::bwlimit::BwLimit;
use common::output::{Failure, ListArgs};
use pace::Pace;

#[derive(Debug, Args)]
pub struct Pull {
    /// Only list what is pending: nothing is loaded, and no stream or consumer is made
    #[arg(long)]
    pub dry_run: bool,

    /// Fill the directory destination `mirror` (local.data_dir) and leave the others' progress alone
    #[arg(long)]
    pub no_ingest: bool,

    /// Stop after this time even if something is left, e.g. 10m
    #[arg(long, value_name = "TIME", value_parser = moment::duration)]
    pub max_wait: Option<Duration>,

    /// How fast bytes may come, instead of storage.bwlimit: 10M, 512K, off, or a timetable '08:00,512K 19:00,off'
    #[arg(long, value_name = "LIMIT")]
    pub bwlimit: Option<BwLimit>,

    #[command(flatten)]
    pub list: ListArgs,
}

/// How often the queue is asked how much is left.
const POLL: Duration = Duration::from_millis(200);
/// How long a server may be away before a command gives up.
const GIVE_UP: Duration = Duration::from_secs(60);

/// What a run did for one destination.
#[derive(Debug, Default, Serialize)]
struct PullSummary {
    destination: String,
    units: u64,
    archives: u64,
    archives_skipped: u64,
    rows: u64,
    bytes: u64,
    dead_letters: u64,
    /// Of the units, those passed over, because they are older than the destination's `initial_days`.
    too_old: u64,
    /// Markers still pending or unfinished when the run ended.
    left: u64,
    /// Units that were loaded from a stream MARKERS that is no more, and that the present one does not announce.
    lost: u64,
    /// Whether some of these are in the bucket, so that they can be announced again.
    lost_in_bucket: bool,
    seconds: f64,
}

#[derive(Debug, PartialEq, Eq)]
enum Ended {
    Drained,
    TimeIsUp,
    Stopped,
    /// Nothing will be delivered until somebody resumes it.
    Paused,
    GaveUp(Failure),
}

pub(crate) async fn run(args: &Pull, config: Config, stop: CancellationToken) -> Result<Reply, Failure> {
    let destinations = if args.no_ingest { config.mirror().into_iter().collect() } else { served(&config) };
    let name = worker_name();
    let bus = Bus::connect(&config.nats, &name).await?;
    let metrics = Metrics::new(&mut Registry::default());
    let shared = Shared::new(config, name, bus, Readiness::default(), metrics);
    let reply = if args.dry_run {
        Ok(dry_run::run(&shared, &destinations, args.list.all).await)
    } else {
        drain_all(&shared, &destinations, args, stop).await
    };
    shared.bus.close().await;
    reply
}

async fn drain_all(
    shared: &Shared,
    destinations: &[DestinationConfig],
    args: &Pull,
    stop: CancellationToken,
) -> Result<Reply, Failure> {
    // One destination's failure must not end the others' work.
    let (mut ready, mut failures) = (Vec::new(), Vec::new());
    for destination in destinations {
        match shared.prepare_queue(&destination.name).await {
            Ok(()) => ready.push(destination),
            Err(error) => failures.push(Failure::from(error).of_destination(&destination.name)),
        }
    }
    let deadline = args.max_wait.map(|wait| Instant::now() + wait);
    let drains = ready.iter().map(|destination| drain(shared, destination, deadline, stop.child_token()));
    let (mut summaries, mut findings) = (Vec::new(), Vec::new());
    for (destination, drained) in ready.iter().zip(futures::future::join_all(drains).await) {
        match drained {
            Ok(drained) => {
                failures.extend(drained.ended.failure(&drained.summary));
                findings.extend(drained.dead);
                summaries.push(drained.summary);
            }
            Err(failure) => failures.push(failure.of_destination(&destination.name)),
        }
    }
    let mut lines: Vec<String> = summaries.iter().map(ToString::to_string).collect();
    lines.extend(list(&findings, args.list.all));
    let (gravest, others) = Failure::gravest(failures);
    others.iter().for_each(|failure| lines.push(failure.to_string()));
    Ok(Reply::default().destinations(&summaries).findings(findings).text(lines.join("\n")).failed(gravest))
}

/// What came of a destination.
struct Drained {
    summary: PullSummary,
    ended: Ended,
    /// The dead letters of this run.
    dead: Vec<Finding>,
}

impl Ended {
    /// Why the run is not all that was asked for.
    fn failure(&self, summary: &PullSummary) -> Option<Failure> {
        let (name, left) = (&summary.destination, count(summary.left, "marker"));
        let is_left = if summary.left == 1 { "is" } else { "are" };
        match self {
            Self::GaveUp(reason) => {
                let text = format!("{name}: giving up after {} s: {reason}", GIVE_UP.as_secs());
                // What only a person can change would stop the next run too.
                let advice = (reason.class == FailureClass::Unreachable).then(|| "the next run goes on".to_owned());
                Some(Failure { advice, ..Failure::new(reason.class, text) })
            }
            Self::Paused => Some(
                Failure::failed(format!("{name} is paused, so nothing is delivered"))
                    .advice(format!("`puller resume --destination {name}`")),
            ),
            Self::TimeIsUp if summary.left > 0 => {
                Some(Failure::stopped(format!("{name}: --max-wait is over, {left} {is_left} not finished yet")))
            }
            Self::Stopped if summary.left > 0 => {
                Some(Failure::stopped(format!("{name}: stopped by a signal, {left} {is_left} not finished yet")))
            }
            Self::Drained | Self::TimeIsUp | Self::Stopped if summary.lost_in_bucket => summary.lost().failure(name),
            Self::Drained | Self::TimeIsUp | Self::Stopped if summary.dead_letters > 0 => Some(
                Failure::failed(format!("{name}: {}", count(summary.dead_letters, "dead letter")))
                    .advice("`puller dead ls` lists them"),
            ),
            Self::Drained if summary.left > 0 => Some(
                Failure::failed(format!(
                    "{name}: {left} {is_left} not finished: announced since, or taken by another worker"
                ))
                .advice("run `puller pull` again; `puller status` shows who has what"),
            ),
            Self::Drained | Self::TimeIsUp | Self::Stopped => None,
        }
    }
}

async fn drain(
    shared: &Shared,
    destination: &DestinationConfig,
    deadline: Option<Instant>,
    stop: CancellationToken,
) -> Result<Drained, Failure> {
    let (started, started_at) = (Instant::now(), common::clock::now());
    // What was found is part of the result.
    let lost = lost_stream::known(&shared.bus, &shared.config, destination);
    let lost = match deadline {
        Some(deadline) => tokio::time::timeout_at(deadline.into(), lost).await.unwrap_or_default(),
        None => lost.await,
    };
    let lost = lost.unwrap_or_default();
    let before = shared.bus.destination_progress(&destination.name).await?;
    let (totals, ended) = if before.is_drained() {
        (Totals::default(), Ended::Drained)
    } else if before.paused {
        (Totals::default(), Ended::Paused)
    } else {
        place::check(shared).await?;
        let runner = Arc::new(shared.open(destination, MissingTables::Make).await?);
        let bar = progress_bar(&destination.name, before.pending + before.unacknowledged);
        let watching = async {
            let ended = watch(shared, &runner, &bar, deadline, &stop).await;
            stop.cancel();
            ended
        };
        let (ended, ()) = futures::join!(watching, runner.run(stop.clone(), false));
        bar.finish_and_clear();
        (runner.worker.stats.totals(), ended?)
    };
    let after = shared.bus.destination_progress(&destination.name).await?;
    let summary = PullSummary {
        destination: destination.name.clone(),
        units: totals.units,
        archives: totals.archives,
        archives_skipped: totals.skipped,
        rows: totals.rows,
        bytes: totals.bytes,
        dead_letters: totals.dead,
        too_old: totals.too_old,
        left: after.pending + after.unacknowledged,
        lost: lost.units,
        lost_in_bucket: lost.in_bucket,
        seconds: started.elapsed().as_secs_f64(),
    };
    let mut dead = Vec::new();
    if totals.dead > 0 {
        let collect = |letter: nats::Letter| {
            if letter.at >= started_at {
                dead.push(letters::LetterSummary::of(&letter).finding());
            }
        };
        shared.bus.each_letter(Some(&destination.name), &[], collect).await?;
    }
    Ok(Drained { summary, ended, dead })
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
    let mut pace = Pace::default();
    loop {
        if stop.is_cancelled() {
            return Ok(Ended::Stopped);
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Ok(Ended::TimeIsUp);
        }
        let mut away = runner.worker.circuit.failure().or_else(|| runner.worker.stats.letters_wait_for());
        match shared.bus.destination_progress(&runner.settings.destination).await {
            Ok(progress) if progress.is_drained() => return Ok(Ended::Drained),
            Ok(progress) if progress.paused && runner.worker.stats.in_flight().is_empty() => {
                return Ok(Ended::Paused);
            }
            Ok(progress) => {
                unasked = 0;
                let totals = runner.worker.stats.totals();
                let reason = away.as_ref().map(ToString::to_string);
                pace.show(
                    bar,
                    &runner.worker.stats,
                    totals,
                    progress.pending + progress.unacknowledged,
                    reason.as_deref(),
                );
            }
            Err(error) => {
                unasked += 1;
                tracing::debug!(%error, unasked, "asking how much is left");
                away = away.or_else(|| Some(error.into()));
            }
        }
        match away {
            None => away_since = None,
            Some(reason) if away_since.get_or_insert_with(Instant::now).elapsed() > GIVE_UP => {
                return Ok(Ended::GaveUp(reason));
            }
            Some(_) => {}
        }
        let pause = async {
            tokio::select! {
                () = tokio::time::sleep(POLL) => {}
                // Likely the end.
                () = runner.worker.stats.idle() => {}
            }
        };
        stop.run_until_cancelled(pause).await;
    }
}

impl PullSummary {
    fn lost(&self) -> LostUnits {
        LostUnits { units: self.lost, in_bucket: self.lost_in_bucket, no_stream: false }
    }
}

impl std::fmt::Display for PullSummary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = &self.destination;
        if self.units == 0 && self.left == 0 && self.lost == 0 {
            return write!(f, "{name}: nothing to do, no marker is pending");
        }
        write!(
            f,
            "{name}: {}, {} loaded, {} there already, {}, {} in {:.1} s",
            grouped(self.units, "unit"),
            grouped(self.archives, "archive"),
            HumanCount(self.archives_skipped),
            grouped(self.rows, "row"),
            HumanBytes(self.bytes),
            self.seconds,
        )?;
        if self.dead_letters > 0 {
            write!(
                f,
                "; {}",
                if self.dead_letters == 1 {
                    "1 DEAD LETTER".to_owned()
                } else {
                    format!("{} DEAD LETTERS", self.dead_letters)
                }
            )?;
        }
        if self.too_old > 0 {
            write!(f, "; {} passed over as older than initial_days", count(self.too_old, "unit"))?;
        }
        if self.left > 0 {
            write!(f, "; {} not finished yet", count(self.left, "marker"))?;
        }
        f.write_str(&self.lost().clause())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn giving_up_has_the_exit_code_of_the_reason() {
        let summary = PullSummary { destination: "primary".into(), left: 3, ..PullSummary::default() };
        let check = |reason: Failure, code, advice: Option<&str>| {
            let failure = Ended::GaveUp(reason).failure(&summary).expect("it gave up");
            assert_eq!((failure.exit_code(), failure.advice.as_deref()), (code, advice), "{failure}");
            assert!(failure.text.starts_with("primary: giving up after 60 s: "), "{failure}");
        };
        check(Failure::unreachable("no server"), 3, Some("the next run goes on"));
        check(Failure::config("another prefix"), 2, None);
        check(Failure::missing("no table"), 4, None);
        check(Failure::failed("the disk is full"), 1, None);
    }
}
