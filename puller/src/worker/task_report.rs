//! Telling a replay task how far one of its units is.

use jiff::Timestamp;
use nats::{Bus, Delivery, MarkerSubject, TaskState, TaskUnit};

use crate::job::work::Work;

/// The unit of a task that a delivery is of. What it says is for people; a failure to say it stops nothing.
pub(crate) struct TaskReport<'w> {
    bus: &'w Bus,
    worker: &'w str,
    task: String,
    unit: String,
    unit_tokens: String,
    attempt: u32,
    started_at: Timestamp,
}

impl<'w> TaskReport<'w> {
    /// `None` when the delivery belongs to no task.
    pub(crate) fn of(bus: &'w Bus, worker: &'w str, delivery: &Delivery) -> Option<Self> {
        let task = delivery.options.task.clone()?;
        let unit = MarkerSubject::parse(&delivery.subject).ok()?.unit;
        Some(Self {
            bus,
            worker,
            task,
            unit: unit.to_string(),
            unit_tokens: unit.subject_tokens(),
            attempt: delivery.attempt,
            started_at: common::clock::now(),
        })
    }

    pub(crate) async fn say(&self, state: TaskState, work: Option<&Work>, error: &str) {
        let work_or = |count: fn(&Work) -> u64| work.map(count).unwrap_or_default();
        let state = TaskUnit {
            unit: self.unit.clone(),
            state,
            worker: self.worker.to_owned(),
            attempt: self.attempt,
            archives: work_or(|work| work.loaded + work.skipped),
            rows: work_or(|work| work.rows),
            bytes: work_or(|work| work.bytes),
            error: error.chars().take(2000).collect(),
            started_at: Some(self.started_at),
            at: common::clock::now(),
        };
        if let Err(error) = self.bus.put_task_unit(&self.task, &self.unit_tokens, &state).await {
            tracing::warn!(%error, task = self.task, "`puller tasks` will not see this step");
        }
    }

    /// Whether somebody cancelled the task; not knowing counts as no.
    pub(crate) async fn is_cancelled(&self) -> bool {
        match self.bus.task(&self.task).await {
            Ok(task) => task.is_some_and(|task| task.cancelled_at.is_some()),
            Err(error) => {
                tracing::warn!(%error, task = self.task, "going on without knowing whether it is cancelled");
                false
            }
        }
    }
}
