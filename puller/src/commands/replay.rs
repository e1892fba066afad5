//! `puller replay`: sends markers to a destination again, as a task that workers share.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use common::config::{Config, DestinationKind};
use common::marker::{Content, Marker};
use common::output::{Finding, Reply, count, grouped, list};
use common::unit::Unit;
use futures::{StreamExt, TryStreamExt};
use indicatif::{HumanBytes, HumanDuration};
use jiff::Timestamp;
use nats::{Bus, BusErrorKind, ReplayOptions, Task, TaskState, TaskUnit};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::cli::attendance::Attendance;
use crate::cli::context::{connect_to_stream, named_or_served, worker_name};
use crate::cli::moment;
use crate::cli::progress::progress_bar;
use crate::cli::standstill::{POLL, Standstill};
use crate::clickhouse::client::Warehouse;
use crate::clickhouse::lost_stream;
use crate::commands::tasks::progress::TaskProgress;
use clap::{Args, ValueEnum};
use common::output::{Failure, ListArgs};
use common::unit_filter::{SymbolFilter, UnitFilter};

#[derive(Debug, Args)]
pub struct Replay {
    /// Only this destination [default: all that are served here]
    #[arg(long, value_name = "NAME")]
    pub destination: Option<String>,

    #[command(flatten)]
    pub filter: UnitFilter,

    #[command(flatten)]
    pub symbols: SymbolFilter,

    /// Which markers: full (0), every current one; since (1), those announced at --since or later; continuous (2), as full
    ///
    /// Each is sent once. What is announced later is delivered anyway, whatever the mode; with since and continuous the task
    /// stays FOLLOWING until it is cancelled, and full ends with its last unit.
    #[arg(long, value_enum, default_value_t = ReplayMode::Full)]
    pub mode: ReplayMode,

    /// Only markers announced since a time (2026-02-14T08:00:00Z), a day (2026-02-14, from 00:00 UTC) or this long ago (3d);
    /// implies --mode since
    #[arg(long, value_name = "TIME", required_if_eq("mode", "since"), value_parser = moment::past)]
    pub since: Option<Timestamp>,

    /// Write also what is loaded and verified
    #[arg(long)]
    pub force: bool,

    /// Why; kept with the task
    #[arg(long)]
    pub reason: Option<String>,

    /// Wait until every unit is finished; exit 1 if one failed or was cancelled, 3 if no worker is there for 60 s, or for
    /// --max-wait where that is less
    #[arg(long)]
    pub wait: bool,

    /// With --wait: how long to wait while no worker takes part [default: 60s], and at most altogether if given
    #[arg(long, value_name = "TIME", requires = "wait", value_parser = moment::duration)]
    pub max_wait: Option<Duration>,

    /// Only say what would be sent: units, archives, bytes, and an estimate
    #[arg(long)]
    pub dry_run: bool,

    #[command(flatten)]
    pub list: ListArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ReplayMode {
    #[value(alias = "0")]
    Full,
    #[value(alias = "1")]
    Since,
    #[value(alias = "2")]
    Continuous,
}

impl ReplayMode {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Since => "since",
            Self::Continuous => "continuous",
        }
    }
}

/// Markers published at once.
const PUBLISHES: usize = 32;
const ESTIMATE_WAIT: Duration = Duration::from_secs(3);
/// How often the command that sends asks whether somebody has cancelled it.
const CANCEL_POLL: Duration = Duration::from_secs(1);

/// A unit that is to be sent again.
struct ChosenMarker {
    unit: Unit,
    sequence: u64,
    stored_at: Timestamp,
    holds_symbols: bool,
    /// Unknown where the list is in the manifest only.
    archives: u64,
    bytes: u64,
}

/// What a replay consists of, for people and scripts.
#[derive(Debug, Serialize)]
struct Plan {
    destination: String,
    /// `None` for a dry run.
    task: Option<String>,
    units: u64,
    archives: u64,
    bytes: u64,
    /// From the speed of what was loaded last; `None` when nothing was.
    estimated_seconds: Option<u64>,
}

pub(crate) async fn run(args: &Replay, config: &Config, stop: CancellationToken) -> Result<Reply, Failure> {
    args.filter.check()?;
    let destinations = named_or_served(config, args.destination.as_deref())?;
    let bus = connect_to_stream(config).await?;
    let (chosen, announced) = choose(&bus, args).await?;
    if chosen.is_empty() && args.has_filters() {
        return Err(args.none_of(announced));
    }
    if chosen.is_empty() {
        for destination in &destinations {
            let lost = lost_stream::lost_units(&bus, config, destination).await?;
            if lost.units > 0 && lost.in_bucket {
                return Err(Failure::missing(lost.text(&destination.name)).advice(lost_stream::ADVICE));
            }
        }
    }
    let mut plans: Vec<Plan> = Vec::new();
    let mut tasks = Vec::new();
    let mut failures = Vec::new();
    for destination in &destinations {
        let mut plan = Plan {
            destination: destination.name.clone(),
            task: None,
            units: chosen.len() as u64,
            archives: chosen.iter().map(|unit| unit.archives).sum(),
            bytes: chosen.iter().map(|unit| unit.bytes).sum(),
            estimated_seconds: estimate(&destination.kind, chosen.iter().map(|unit| unit.bytes).sum()).await,
        };
        if !args.dry_run {
            let mut task = task(args, &destination.name, &plan);
            match publish(&bus, config, &mut task, args, &chosen).await {
                Ok(()) => tasks.push(task.clone()),
                Err(failure) => failures.push(failure),
            }
            plan.task = Some(task.id);
        }
        plans.push(plan);
    }
    let mut findings = Vec::new();
    let mut lines: Vec<String> = plans.iter().map(ToString::to_string).collect();
    if args.dry_run {
        findings = chosen.iter().map(ChosenMarker::finding).collect();
        lines.extend(list(&findings, args.list.all));
    }
    if args.wait {
        for task in &tasks {
            match wait(&bus, task, args.max_wait, &stop).await {
                Ok(progress) => {
                    lines.push(format!("{}: {}", task.id, progress.ending()));
                    failures.extend(progress.failure(task));
                }
                Err(failure) => {
                    failures.push(failure);
                    break;
                }
            }
        }
    }
    bus.close().await;
    let (gravest, others) = Failure::gravest(failures);
    lines.extend(others.iter().map(ToString::to_string));
    Ok(Reply::default().destinations(&plans).findings(findings).text(lines.join("\n")).failed(gravest))
}

impl ChosenMarker {
    fn finding(&self) -> Finding {
        let text = if self.archives == 0 { String::new() } else { count(self.archives, "archive") };
        Finding::of_unit(&self.unit, "queued", text)
            .sign(" ")
            .in_state_since(self.stored_at)
            .field("archives", &self.archives)
            .field("bytes", &self.bytes)
    }
}

/// The current markers that the arguments select, and how many there are.
async fn choose(bus: &Bus, args: &Replay) -> Result<(Vec<ChosenMarker>, u64), Failure> {
    let symbols: BTreeSet<&str> = args.symbols.symbol.iter().map(String::as_str).collect();
    // A unit may have a marker on each of two subjects; the later one counts.
    let mut newest: BTreeMap<Unit, ChosenMarker> = BTreeMap::new();
    bus.survey(|marker| {
        let objects = match Marker::parse(&marker.payload) {
            Ok(Marker { content: Content::Objects(objects), .. }) => Some(objects),
            Ok(_) | Err(_) => None,
        };
        let requested = objects.as_ref().map(|objects| {
            let requested = objects.iter().filter(|o| symbols.is_empty() || symbols.contains(o.symbol.as_str()));
            requested.fold((0, 0), |(count, bytes), object| (count + 1, bytes + object.size))
        });
        let (archives, bytes) = requested.unwrap_or_default();
        let chosen = ChosenMarker {
            // A list that is in the manifest only may hold the symbols; the worker will see.
            holds_symbols: requested.is_none() || archives > 0,
            sequence: marker.sequence,
            stored_at: marker.stored_at,
            unit: marker.subject.unit.clone(),
            archives,
            bytes,
        };
        match newest.get(&marker.subject.unit) {
            Some(known) if known.sequence > marker.sequence => {}
            _ => drop(newest.insert(marker.subject.unit, chosen)),
        }
    })
    .await?;
    let announced = newest.len() as u64;
    let chosen = newest.into_values().filter(|chosen| chosen.holds_symbols && args.selects(chosen)).collect();
    Ok((chosen, announced))
}

impl Replay {
    fn selects(&self, chosen: &ChosenMarker) -> bool {
        self.filter.matches(&chosen.unit) && self.since.is_none_or(|since| chosen.stored_at >= since)
    }

    fn has_filters(&self) -> bool {
        !self.filter.is_empty() || !self.symbols.symbol.is_empty() || self.since.is_some()
    }

    fn none_of(&self, announced: u64) -> Failure {
        self.filter.none_of(Some(announced), "announced unit", &self.other_filters())
    }

    /// Those that are not of units, as they were given.
    fn other_filters(&self) -> Vec<String> {
        let since = self.since.map(|since| format!("since {since}"));
        self.symbols.describe().into_iter().chain(since).collect()
    }

    fn selection(&self) -> String {
        let mut words = vec![self.filter.describe()];
        words.extend(self.other_filters());
        words.retain(|word| !word.is_empty());
        if words.is_empty() { "everything".into() } else { words.join(", ") }
    }

    fn mode(&self) -> ReplayMode {
        if self.since.is_some() { ReplayMode::Since } else { self.mode }
    }
}

fn task(args: &Replay, destination: &str, plan: &Plan) -> Task {
    let now = common::clock::now();
    Task {
        id: format!("{destination}-{}", now.strftime("%Y%m%d-%H%M%S-%3f")),
        destination: destination.to_owned(),
        mode: args.mode().as_str().to_owned(),
        selection: args.selection(),
        force: args.force,
        reason: args.reason.clone().unwrap_or_default(),
        created_at: now,
        created_by: worker_name(),
        units: plan.units,
        archives: plan.archives,
        bytes: plan.bytes,
        published: false,
        last_sequence: 0,
        cut_short: String::new(),
        follows: args.mode() != ReplayMode::Full,
        cancelled_at: None,
    }
}

/// Sends the units of a task; until somebody cancels it.
async fn publish(
    bus: &Bus,
    config: &Config,
    task: &mut Task,
    args: &Replay,
    chosen: &[ChosenMarker],
) -> Result<(), Failure> {
    if config.nats.manage {
        bus.create_streams().await?;
    }
    bus.put_task(task).await?;
    let options = ReplayOptions {
        force: args.force,
        accept_shrink: false,
        symbols: args.symbols.symbol.iter().cloned().collect(),
        task: Some(task.id.clone()),
        failures: 0,
    };
    let bar = progress_bar(&format!("replay to {}", task.destination), task.units);
    let sending = futures::stream::iter(chosen)
        .map(|unit| publish_one(bus, &task.destination, unit, &options, &task.id))
        .buffer_unordered(PUBLISHES)
        .try_fold(0, async |last: u64, sequence| {
            bar.inc(1);
            Ok(last.max(sequence))
        });
    let sent = tokio::select! {
        sent = sending => sent,
        () = cancelled(bus, &task.id) => {
            let sent = format!("{} of {} units", bar.position(), task.units);
            Err(Failure::failed(format!("{} was cancelled while it was sent, after {sent}", task.id)))
        }
    };
    bar.finish_and_clear();
    let ended = |task: &mut Task| match &sent {
        Ok(last_sequence) => (task.published, task.last_sequence) = (true, *last_sequence),
        Err(failure) => task.cut_short.clone_from(&failure.text),
    };
    ended(task);
    let written = match bus.change_task(&task.id, ended).await {
        Ok(Some(stored)) => {
            *task = stored;
            Ok(())
        }
        // The stream has given its place to newer tasks.
        Ok(None) => bus.put_task(task).await,
        Err(error) => Err(error),
    };
    match (&sent, written) {
        (Ok(_), written) => written?,
        // Without it `puller tasks` sees that nothing goes on.
        (Err(_), Err(error)) => tracing::debug!(%error, task = task.id, "noting that not all was sent"),
        (Err(_), Ok(())) => {}
    }
    sent?;
    tracing::info!(
        task = task.id,
        destination = task.destination,
        units = task.units,
        reason = task.reason,
        "replay published"
    );
    Ok(())
}

/// Returns once somebody has cancelled a task.
async fn cancelled(bus: &Bus, task: &str) {
    loop {
        tokio::time::sleep(CANCEL_POLL).await;
        match bus.task(task).await {
            Ok(Some(Task { cancelled_at: Some(_), .. })) => return,
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, task, "asking whether it is cancelled"),
        }
    }
}

async fn publish_one(
    bus: &Bus,
    destination: &str,
    chosen: &ChosenMarker,
    options: &ReplayOptions,
    task: &str,
) -> Result<u64, Failure> {
    let unit_tokens = chosen.unit.subject_tokens();
    let Some(payload) = bus.marker_payload(chosen.sequence).await? else {
        // A newer revision came in between, and is delivered by itself.
        tracing::debug!(unit = %chosen.unit, "the marker is no longer there");
        return Ok(0);
    };
    let init = TaskUnit {
        unit: chosen.unit.to_string(),
        state: TaskState::Init,
        worker: String::new(),
        attempt: 0,
        archives: 0,
        rows: 0,
        bytes: 0,
        error: String::new(),
        started_at: None,
        at: common::clock::now(),
    };
    // Before the marker: a worker that is quick writes its own state after this one.
    bus.put_task_unit(task, &unit_tokens, &init).await?;
    let mut standstill = Standstill::default();
    loop {
        let error = match bus.publish_replay(destination, &unit_tokens, payload.to_vec(), options, task).await {
            Ok(sequence) => return Ok(sequence),
            Err(error) => error,
        };
        // Workers make room by loading what is there.
        if error.kind != BusErrorKind::Full || standstill.is_over(bus).await? {
            return Err(error.into());
        }
    }
}

/// Waits until every unit of a task is finished; not for ever where no worker takes part.
async fn wait(
    bus: &Bus,
    task: &Task,
    max_wait: Option<Duration>,
    stop: &CancellationToken,
) -> Result<TaskProgress, Failure> {
    let bar = progress_bar(&task.id, task.units);
    let (mut attendance, mut seen) = (Attendance::new(&task.destination, &task.id, max_wait), (0, 0));
    let waiting = async {
        loop {
            let done = match TaskProgress::of(bus, task).await {
                Ok(progress) => {
                    attendance.answered();
                    let now = (progress.finished(), progress.running);
                    if now != seen || progress.running > 0 {
                        seen = now;
                        attendance.worked();
                    }
                    bar.set_position(progress.finished());
                    bar.set_message(progress.to_message(attendance.unattended()));
                    if progress.is_finished(task) {
                        return Ok(progress);
                    }
                    format!("{} of {} units", progress.finished(), task.units)
                }
                Err(failure) => {
                    attendance.bear(failure)?;
                    "NATS does not answer".into()
                }
            };
            attendance.check(bus, &done).await?;
            if stop.run_until_cancelled(tokio::time::sleep(POLL)).await.is_none() {
                let stopped = Failure::stopped("stopped by a signal");
                return Err(attendance.failure(stopped).advice(format!("`puller tasks show {}` follows it", task.id)));
            }
        }
    };
    let ended = waiting.await;
    bar.finish_and_clear();
    ended
}

/// How long so many bytes will take, judged by the last attempts that loaded something.
async fn estimate(kind: &DestinationKind, bytes: u64) -> Option<u64> {
    let DestinationKind::ClickHouse(server) = kind else { return None };
    // The time in which any of them was at work; what lies between them counts for nothing.
    let sql = "SELECT sum(bytes) / greatest(toFloat64(intervalLengthSum( \
                   toUnixTimestamp64Milli(started_at), toUnixTimestamp64Milli(finished_at))), 1) FROM \
               (SELECT * FROM {database}.ingest_log WHERE outcome = 'loaded' ORDER BY finished_at DESC LIMIT 200)";
    // An estimate is not worth waiting for.
    let asked = async { Warehouse::read_only(server).await?.select_one::<f64>(sql).await };
    match tokio::time::timeout(ESTIMATE_WAIT, asked).await {
        Ok(Ok(bytes_per_ms)) if bytes_per_ms > 0.0 => Some((bytes as f64 / bytes_per_ms / 1000.0).ceil() as u64),
        Ok(Ok(_)) | Err(_) => None,
        Ok(Err(error)) => {
            tracing::debug!(%error, "no estimate");
            None
        }
    }
}

impl std::fmt::Display for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let task = self.task.as_ref().map_or_else(|| "dry run".into(), |task| format!("task {task}"));
        write!(
            f,
            "{}: {task}: {}, {}, {}",
            self.destination,
            grouped(self.units, "unit"),
            grouped(self.archives, "archive"),
            HumanBytes(self.bytes)
        )?;
        match self.estimated_seconds {
            Some(seconds) => write!(f, ", about {}", HumanDuration(Duration::from_secs(seconds))),
            None => write!(f, ", no estimate"),
        }
    }
}
