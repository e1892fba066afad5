//! `puller tasks`: replays, and how far they are.

pub(crate) mod progress;

use common::config::Config;
use common::output::{Finding, LINES_MAX, Reply, count, exit, list, short_duration, table};
use common::text::printable;
use common::unit::Token;
use nats::{Bus, Task, TaskState, TaskUnit};
use serde::ser::Error as _;
use serde::{Serialize, Serializer};

use crate::cli::context::worker_name;
use clap::Subcommand;
use common::output::{Failure, ListArgs};
use progress::{TaskProgress, units};

#[derive(Debug, Subcommand)]
pub enum Tasks {
    /// List all replays, the newest last
    #[command(after_help = "Examples:\n  puller tasks ls\n  puller tasks ls --all --json")]
    Ls {
        #[command(flatten)]
        list: ListArgs,
    },
    /// Show one replay and each of its units
    #[command(after_help = "Example:\n  puller tasks show primary-20260214-101500-123")]
    Show {
        id: String,
        #[command(flatten)]
        list: ListArgs,
    },
    /// Pass over the units of a replay that no worker has begun
    ///
    /// A replay that is finished stays as it is.
    #[command(after_help = "Example:\n  puller tasks cancel primary-20260214-101500-123")]
    Cancel { id: String },
}

#[derive(Debug, Serialize)]
struct Shown<'t> {
    #[serde(flatten, serialize_with = "by_name")]
    task: &'t Task,
    state: &'static str,
    progress: TaskProgress,
}

/// Its id is called `task`, as in the answer of `puller replay`; in the stream it is `id`.
fn by_name<S: Serializer>(task: &&Task, serializer: S) -> Result<S::Ok, S::Error> {
    let mut shown = serde_json::to_value(task).map_err(S::Error::custom)?;
    if let Some(fields) = shown.as_object_mut()
        && let Some(id) = fields.remove("id")
    {
        fields.insert("task".to_owned(), id);
    }
    shown.serialize(serializer)
}

pub(crate) async fn run(args: &Tasks, config: &Config) -> Result<Reply, Failure> {
    let bus = Bus::connect(&config.nats, &worker_name()).await?;
    bus.expect_tasks().await?;
    let reply = match args {
        Tasks::Ls { list } => ls(&bus, list.all).await,
        Tasks::Show { id, list } => show(&bus, id, list.all).await,
        Tasks::Cancel { id } => cancel(&bus, id).await,
    };
    bus.close().await;
    reply
}

async fn ls(bus: &Bus, all: bool) -> Result<Reply, Failure> {
    let tasks = bus.tasks().await?;
    let mut shown = Vec::new();
    for task in &tasks {
        let progress = TaskProgress::of(bus, task).await?;
        shown.push(Shown { task, state: progress.state(task), progress });
    }
    let text = if shown.is_empty() { "no replay was asked for".to_owned() } else { tasks_table(&shown, all) };
    Ok(Reply::default().field("tasks", &shown).text(text))
}

fn tasks_table(shown: &[Shown<'_>], all: bool) -> String {
    let left = if all { 0 } else { shown.len().saturating_sub(LINES_MAX) };
    let rows = shown.iter().skip(left).map(|one| {
        let failed = if one.progress.failed > 0 { format!(", {} failed", one.progress.failed) } else { String::new() };
        vec![
            one.task.id.clone(),
            one.state.to_owned(),
            format!("{}/{}{failed}", one.progress.finished(), one.task.units),
            one.task.selection.clone(),
        ]
    });
    let mut text = table(&["TASK", "STATE", "UNITS", "SELECTION"], rows);
    if left > 0 {
        text.push_str(&format!("\n… and {left} older ones; --all lists them"));
    }
    text
}

async fn show(bus: &Bus, id: &str, all: bool) -> Result<Reply, Failure> {
    let task = find(bus, id).await?;
    let units = units(bus, &task).await?;
    let progress = TaskProgress::count(&task, &units);
    let state = progress.state(&task);
    let findings: Vec<Finding> = units.iter().map(|unit| finding(&task, unit)).collect();
    let forced = if task.force { ", forced" } else { "" };
    let mut lines = vec![
        format!(
            "{} to {}: {state}, {} of {}",
            task.id,
            task.destination,
            progress.finished(),
            count(task.units, "unit")
        ),
        printable(&format!("  mode {}, {}{forced}", task.mode, task.selection)),
    ];
    if !task.reason.is_empty() {
        lines.push(printable(&format!("  reason: {}", task.reason)));
    }
    if progress.cut_short {
        let why = if task.cut_short.is_empty() { "the command that sent it ended" } else { &task.cut_short };
        lines.push(printable(&format!("  {} of {} sent: {why}", units.len(), count(task.units, "unit"))));
    }
    if let Some(rate) = progress.units_per_second {
        let left =
            progress.eta_seconds.map(|seconds| format!(", {} left", short_duration(seconds))).unwrap_or_default();
        lines.push(format!("  {rate:.1} units/s while workers were at it{left}"));
    }
    lines.extend(list(&findings, all));
    Ok(Reply::of_report(exit::DONE, &Shown { task: &task, state, progress }).findings(findings).text(lines.join("\n")))
}

fn finding(task: &Task, unit: &TaskUnit) -> Finding {
    let state = serde_json::to_value(unit.state).ok();
    let state = state.as_ref().and_then(serde_json::Value::as_str).unwrap_or_default();
    let finding = Finding::named(&unit.unit, state, &unit.error)
        .sign(sign(unit.state))
        .in_state_since(unit.at)
        .destination(&task.destination)
        .field("worker", &unit.worker)
        .field("attempt", &unit.attempt)
        .field("archives", &unit.archives)
        .field("rows", &unit.rows)
        .field("bytes", &unit.bytes);
    if unit.error.is_empty() { Finding { text: state.to_lowercase(), ..finding } } else { finding }
}

fn sign(state: TaskState) -> &'static str {
    match state {
        TaskState::Success => "=",
        TaskState::Failed => "!",
        TaskState::Running => ">",
        TaskState::Init | TaskState::Reassigning => " ",
        TaskState::Cancelled => "-",
    }
}

async fn cancel(bus: &Bus, id: &str) -> Result<Reply, Failure> {
    let mut task = find(bus, id).await?;
    let progress = TaskProgress::of(bus, &task).await?;
    if task.cancelled_at.is_none() && progress.is_finished(&task) && !task.follows {
        let state = progress.state(&task);
        let text = format!("{id}: finished before ({state}), so there is nothing to cancel");
        return Ok(Reply::of_report(exit::DONE, &Shown { task: &task, state, progress }).text(text));
    }
    if task.cancelled_at.is_none() {
        let now = common::clock::now();
        let cancel = |task: &mut Task| task.cancelled_at = task.cancelled_at.or(Some(now));
        task = bus.change_task(id, cancel).await?.unwrap_or(task);
    }
    let state = progress.state(&task);
    let text = format!("{id}: cancelled; workers will finish what they have in flight and pass over the rest");
    Ok(Reply::of_report(exit::DONE, &Shown { task: &task, state, progress }).text(text))
}

async fn find(bus: &Bus, id: &str) -> Result<Task, Failure> {
    let missing =
        || Failure::no_match(format!("there is no task '{id}'")).advice("`puller tasks ls` lists those there are");
    // What is no token of a subject cannot be one either.
    if id.parse::<Token>().is_err() {
        return Err(missing());
    }
    bus.task(id).await?.ok_or_else(missing)
}
