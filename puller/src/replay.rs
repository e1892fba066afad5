//! `puller replay`: sends markers to a destination again, as a task that workers share.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use common::config::{Config, DestinationKind};
use common::exit;
use common::marker::{Content, Marker};
use common::unit::{Period, Unit};
use futures::{StreamExt, TryStreamExt};
use indicatif::{HumanBytes, HumanCount, HumanDuration};
use jiff::Timestamp;
use nats::{Bus, ReplayOptions, Task, TaskState, TaskUnit};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::cli::{Replay, ReplayMode};
use crate::pull::progress_bar;
use crate::service::{Failure, served, worker_name};
use crate::status::print;
use crate::tasks::Progress;
use crate::warehouse::Warehouse;

/// Markers published at once.
const PUBLISHES: usize = 32;
const ESTIMATE_WAIT: Duration = Duration::from_secs(3);
const POLL: Duration = Duration::from_millis(500);

/// A unit that is to be sent again.
struct Chosen {
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

pub(crate) async fn run(args: &Replay, config: &Config, stop: CancellationToken) -> Result<u8, Failure> {
    let destinations = match &args.destination {
        None => served(config),
        Some(name) => vec![config.destination(name).cloned().ok_or_else(|| Failure {
            message: format!("--destination: '{name}' is not configured"),
            code: exit::USAGE,
        })?],
    };
    let bus = Bus::connect(&config.nats, &worker_name()).await?;
    let chosen = choose(&bus, args).await?;
    let mut plans = Vec::new();
    let mut tasks = Vec::new();
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
            if config.nats.manage {
                bus.apply_streams(config.nats.replicas, false).await?;
            }
            let task = publish(&bus, args, &destination.name, &chosen, &plan).await?;
            plan.task = Some(task.id.clone());
            tasks.push(task);
        }
        plans.push(plan);
    }
    if args.json {
        print(&serde_json::to_string_pretty(&plans).expect("strings and numbers always serialise"));
    } else {
        for plan in &plans {
            print(&plan.to_string());
        }
        if args.dry_run {
            chosen.iter().for_each(|unit| print(&format!("  {}  {} archives", unit.unit, unit.archives)));
        }
    }
    let mut code = exit::DONE;
    if args.wait {
        for task in &tasks {
            code = code.max(wait(&bus, task, &stop).await?);
        }
    }
    bus.close().await;
    Ok(code)
}

/// The current markers that the arguments select.
async fn choose(bus: &Bus, args: &Replay) -> Result<Vec<Chosen>, Failure> {
    let symbols: BTreeSet<&str> = args.symbol.iter().map(String::as_str).collect();
    // A unit may have a marker on each of two subjects; the later one counts.
    let mut newest: BTreeMap<Unit, Chosen> = BTreeMap::new();
    bus.survey(|marker| {
        let objects = match Marker::parse(&marker.payload) {
            Ok(Marker { content: Content::Objects(objects), .. }) => Some(objects),
            Ok(_) | Err(_) => None,
        };
        let wanted = objects.as_ref().map(|objects| {
            let wanted = objects.iter().filter(|o| symbols.is_empty() || symbols.contains(o.symbol.as_str()));
            wanted.fold((0, 0), |(count, bytes), object| (count + 1, bytes + object.size))
        });
        let (archives, bytes) = wanted.unwrap_or_default();
        let chosen = Chosen {
            // A list that is in the manifest only may hold the symbols; the worker will see.
            holds_symbols: wanted.is_none() || archives > 0,
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
    Ok(newest.into_values().filter(|chosen| chosen.holds_symbols && args.selects(chosen)).collect())
}

impl Replay {
    fn selects(&self, chosen: &Chosen) -> bool {
        let unit = &chosen.unit;
        let (from, to) = (self.from.map(Period::first_day), self.to.map(Period::last_day));
        self.market.as_ref().is_none_or(|market| market == unit.market.as_str())
            && self.interval.as_ref().is_none_or(|interval| interval == unit.interval.as_str())
            && self.dataset.as_ref().is_none_or(|dataset| dataset == unit.dataset.as_str())
            && self.unit.as_ref().is_none_or(|wanted| wanted == unit)
            && from.is_none_or(|from| unit.period.last_day() >= from)
            && to.is_none_or(|to| unit.period.first_day() <= to)
            && self.since.is_none_or(|since| chosen.stored_at >= since)
    }

    fn selection(&self) -> String {
        let mut words = Vec::new();
        let mut add = |name: &str, value: Option<String>| words.extend(value.map(|value| format!("{name} {value}")));
        add("unit", self.unit.as_ref().map(ToString::to_string));
        add("market", self.market.clone());
        add("dataset", self.dataset.clone());
        add("interval", self.interval.clone());
        add("symbol", (!self.symbol.is_empty()).then(|| self.symbol.join(",")));
        add("from", self.from.map(|period| period.to_string()));
        add("to", self.to.map(|period| period.to_string()));
        add("since", self.since.map(|time| time.to_string()));
        if words.is_empty() { "everything".into() } else { words.join(", ") }
    }

    fn mode(&self) -> ReplayMode {
        if self.since.is_some() { ReplayMode::Since } else { self.mode }
    }
}

async fn publish(bus: &Bus, args: &Replay, destination: &str, chosen: &[Chosen], plan: &Plan) -> Result<Task, Failure> {
    let now = common::clock::now();
    let mut task = Task {
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
        follows: args.mode() != ReplayMode::Full,
        cancelled_at: None,
    };
    bus.put_task(&task).await?;
    let options = ReplayOptions {
        force: args.force,
        accept_shrink: false,
        symbols: args.symbol.iter().cloned().collect(),
        task: Some(task.id.clone()),
    };
    let bar = progress_bar(&format!("replay to {destination}"), plan.units);
    futures::stream::iter(chosen)
        .map(|unit| publish_one(bus, destination, unit, &options, &task.id))
        .buffer_unordered(PUBLISHES)
        .try_for_each(async |()| {
            bar.inc(1);
            Ok(())
        })
        .await?;
    bar.finish_and_clear();
    task.published = true;
    bus.put_task(&task).await?;
    tracing::info!(task = task.id, destination, units = plan.units, reason = task.reason, "replay published");
    Ok(task)
}

async fn publish_one(
    bus: &Bus,
    destination: &str,
    chosen: &Chosen,
    options: &ReplayOptions,
    task: &str,
) -> Result<(), Failure> {
    let unit_tokens = chosen.unit.subject_tokens();
    let Some(payload) = bus.marker_payload(chosen.sequence).await? else {
        // A newer revision came in between, and is delivered by itself.
        tracing::debug!(unit = %chosen.unit, "the marker is no longer there");
        return Ok(());
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
        at: common::clock::now(),
    };
    // Before the marker: a worker that is quick writes its own state after this one.
    bus.put_task_unit(task, &unit_tokens, &init).await?;
    bus.publish_replay(destination, &unit_tokens, payload.to_vec(), options, task).await?;
    Ok(())
}

/// Waits until every unit of a task is finished.
async fn wait(bus: &Bus, task: &Task, stop: &CancellationToken) -> Result<u8, Failure> {
    let bar = progress_bar(&task.id, task.units);
    loop {
        let progress = Progress::of(bus, task).await?;
        bar.set_position(progress.finished());
        bar.set_message(format!("{} rows", HumanCount(progress.rows)));
        if progress.is_finished(task) {
            bar.finish_and_clear();
            print(&format!("{}: {} succeeded, {} failed", task.id, progress.success, progress.failed));
            return Ok(if progress.failed > 0 { exit::SOME_FAILED } else { exit::DONE });
        }
        if stop.run_until_cancelled(tokio::time::sleep(POLL)).await.is_none() {
            bar.finish_and_clear();
            print(&format!("{}: goes on without this command; see `puller tasks show {}`", task.id, task.id));
            return Ok(exit::SOME_FAILED);
        }
    }
}

/// How long so many bytes will take, judged by the last attempts that loaded something.
async fn estimate(kind: &DestinationKind, bytes: u64) -> Option<u64> {
    let DestinationKind::ClickHouse(server) = kind else { return None };
    let sql = "SELECT sum(bytes) / greatest(dateDiff('millisecond', min(started_at), max(finished_at)), 1) FROM \
               (SELECT * FROM {database}.ingest_log WHERE outcome = 'loaded' ORDER BY finished_at DESC LIMIT 200)";
    // An estimate is not worth waiting for.
    let warehouse = Warehouse::new(server);
    match tokio::time::timeout(ESTIMATE_WAIT, warehouse.select_one::<f64>(sql)).await {
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
            "{}: {task}: {} units, {} archives, {}",
            self.destination,
            HumanCount(self.units),
            HumanCount(self.archives),
            HumanBytes(self.bytes)
        )?;
        match self.estimated_seconds {
            Some(seconds) => write!(f, ", about {}", HumanDuration(Duration::from_secs(seconds))),
            None => write!(f, ", no estimate"),
        }
    }
}
