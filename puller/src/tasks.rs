//! `puller tasks`: replays, and how far they are.

use std::collections::BTreeSet;

use comfy_table::{Table, presets};
use common::config::Config;
use common::exit;
use nats::{Bus, Task, TaskState, TaskUnit};
use serde::Serialize;

use crate::cli::Tasks;
use crate::service::{Failure, ROSTER_WAIT, worker_name};
use crate::status::print;

/// A task's units by state.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Progress {
    pub(crate) init: u64,
    pub(crate) running: u64,
    pub(crate) reassigning: u64,
    pub(crate) success: u64,
    pub(crate) failed: u64,
    pub(crate) cancelled: u64,
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
    /// Finished units a second, from the task's start to the last unit that finished.
    units_per_second: Option<f64>,
    eta_seconds: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Shown<'t> {
    #[serde(flatten)]
    task: &'t Task,
    state: &'static str,
    progress: Progress,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unit_states: Vec<TaskUnit>,
}

pub(crate) async fn run(args: &Tasks, config: &Config) -> Result<u8, Failure> {
    let bus = Bus::connect(&config.nats, &worker_name()).await?;
    let code = match args {
        Tasks::Ls { json } => list(&bus, *json).await,
        Tasks::Show { id, json } => show(&bus, id, *json).await,
        Tasks::Cancel { id } => cancel(&bus, id).await,
    };
    bus.close().await;
    code
}

impl Progress {
    pub(crate) async fn of(bus: &Bus, task: &Task) -> Result<Self, Failure> {
        Ok(Self::count(task, &units(bus, task).await?))
    }

    fn count(task: &Task, units: &[TaskUnit]) -> Self {
        let mut progress = Self::default();
        for unit in units {
            *match unit.state {
                TaskState::Init => &mut progress.init,
                TaskState::Running => &mut progress.running,
                TaskState::Reassigning => &mut progress.reassigning,
                TaskState::Success => &mut progress.success,
                TaskState::Failed => &mut progress.failed,
                TaskState::Cancelled => &mut progress.cancelled,
            } += 1;
            progress.rows += unit.rows;
            progress.bytes += unit.bytes;
        }
        let last = units.iter().filter(|unit| is_final(unit.state)).map(|unit| unit.at).max();
        let seconds = last.map(|last| last.duration_since(task.created_at).as_secs_f64());
        if let Some(seconds) = seconds.filter(|seconds| *seconds > 0.0) {
            let rate = progress.finished() as f64 / seconds;
            progress.units_per_second = Some(rate);
            let left = task.units.saturating_sub(progress.finished());
            progress.eta_seconds = Some((left as f64 / rate).ceil() as u64);
        }
        progress
    }

    pub(crate) fn finished(&self) -> u64 {
        self.success + self.failed + self.cancelled
    }

    pub(crate) fn is_finished(&self, task: &Task) -> bool {
        task.published && self.init + self.running + self.reassigning == 0
    }

    /// The state of the whole task.
    fn state(&self, task: &Task) -> &'static str {
        if task.cancelled_at.is_some() {
            "CANCELLED"
        } else if !self.is_finished(task) {
            if self.finished() + self.running + self.reassigning == 0 { "INIT" } else { "RUNNING" }
        } else if self.failed > 0 {
            "FAILED"
        } else if task.follows {
            // What is published from now on is delivered anyway; the task says so until it is cancelled.
            "FOLLOWING"
        } else {
            "SUCCESS"
        }
    }
}

fn is_final(state: TaskState) -> bool {
    matches!(state, TaskState::Success | TaskState::Failed | TaskState::Cancelled)
}

/// The units of a task. One whose worker no longer answers is between two workers.
async fn units(bus: &Bus, task: &Task) -> Result<Vec<TaskUnit>, Failure> {
    let mut units = bus.task_units(&task.id).await?;
    if units.iter().any(|unit| unit.state == TaskState::Running) {
        let roster = bus.roster(&task.destination, ROSTER_WAIT).await?;
        let alive: BTreeSet<String> = roster.workers.into_iter().map(|worker| worker.worker).collect();
        for unit in units.iter_mut().filter(|unit| unit.state == TaskState::Running) {
            if !alive.contains(&unit.worker) {
                unit.state = TaskState::Reassigning;
            }
        }
    }
    Ok(units)
}

async fn list(bus: &Bus, json: bool) -> Result<u8, Failure> {
    let tasks = bus.tasks().await?;
    let mut shown = Vec::new();
    for task in &tasks {
        let progress = Progress::of(bus, task).await?;
        shown.push(Shown { task, state: progress.state(task), progress, unit_states: Vec::new() });
    }
    if json {
        print(&serde_json::to_string_pretty(&shown).expect("strings and numbers always serialise"));
    } else if shown.is_empty() {
        print("no replay was asked for");
    } else {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(["TASK", "STATE", "DESTINATION", "MODE", "SELECTION", "UNITS", "FINISHED", "FAILED"]);
        for one in &shown {
            table.add_row([
                one.task.id.clone(),
                one.state.to_owned(),
                one.task.destination.clone(),
                one.task.mode.clone(),
                one.task.selection.clone(),
                one.task.units.to_string(),
                one.progress.finished().to_string(),
                one.progress.failed.to_string(),
            ]);
        }
        print(&table.to_string());
    }
    Ok(exit::DONE)
}

async fn show(bus: &Bus, id: &str, json: bool) -> Result<u8, Failure> {
    let task = find(bus, id).await?;
    let units = units(bus, &task).await?;
    let progress = Progress::count(&task, &units);
    let state = progress.state(&task);
    if json {
        let shown = Shown { task: &task, state, progress, unit_states: units };
        print(&serde_json::to_string_pretty(&shown).expect("strings and numbers always serialise"));
        return Ok(exit::DONE);
    }
    print(&format!("{} to {}: {state}, {} of {} units", task.id, task.destination, progress.finished(), task.units));
    print(&format!("  mode {}, {}{}", task.mode, task.selection, if task.force { ", forced" } else { "" }));
    if !task.reason.is_empty() {
        print(&format!("  reason: {}", task.reason));
    }
    if let (Some(rate), Some(eta)) = (progress.units_per_second, progress.eta_seconds) {
        print(&format!("  {rate:.1} units/s, {eta} s left"));
    }
    for unit in &units {
        let state = serde_json::to_string(&unit.state).unwrap_or_default();
        let error = if unit.error.is_empty() { String::new() } else { format!("  {}", unit.error) };
        print(&format!("  {:12} {}  {}{error}", state.trim_matches('"'), unit.unit, unit.worker));
    }
    Ok(exit::DONE)
}

async fn cancel(bus: &Bus, id: &str) -> Result<u8, Failure> {
    let mut task = find(bus, id).await?;
    if task.cancelled_at.is_none() {
        task.cancelled_at = Some(common::clock::now());
        bus.put_task(&task).await?;
    }
    print(&format!("{id}: cancelled; what is in a worker's hands is finished, the rest is passed over"));
    Ok(exit::DONE)
}

async fn find(bus: &Bus, id: &str) -> Result<Task, Failure> {
    let missing = || Failure { message: format!("there is no task '{id}'; see `puller tasks ls`"), code: exit::USAGE };
    bus.task(id).await?.ok_or_else(missing)
}
