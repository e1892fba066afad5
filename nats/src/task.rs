//! Replay tasks: what was asked for, and how far each unit of it is.
//!
//! Stream `TASKS` keeps one message a task (`task.<id>`) and one a unit of it (`task.<id>.<unit tokens>`), each the
//! newest. Workers write the state of the units they hold; nothing depends on it but what people see.

use std::time::Duration;

use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::DirectGetErrorKind;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::connection::{Bus, BusError, BusErrorKind};
use crate::refusal::{is_overtaken, publish_error};
use crate::stream_names::TASKS;

const PUT_TIMEOUT: Duration = Duration::from_secs(10);
/// Tries to change a task that others change.
const CHANGES_MAX: u32 = 10;
const CHANGE_PAUSE: Duration = Duration::from_millis(100);

/// A replay that somebody asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    pub id: String,
    pub destination: String,
    pub mode: String,
    /// Which units, as it was asked for.
    pub selection: String,
    pub force: bool,
    #[serde(default)]
    pub reason: String,
    pub created_at: Timestamp,
    pub created_by: String,
    /// Units it consists of.
    pub units: u64,
    pub archives: u64,
    pub bytes: u64,
    /// Whether all of its units are on the stream.
    pub published: bool,
    /// Sequence of its last replay on the stream, once it is published.
    #[serde(default)]
    pub last_sequence: u64,
    /// Why the command that sent it ended before all was sent.
    #[serde(default)]
    pub cut_short: String,
    /// Whether it goes on with what is published later.
    pub follows: bool,
    #[serde(default)]
    pub cancelled_at: Option<Timestamp>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum TaskState {
    /// Waits for a worker.
    Init,
    Running,
    /// Left by a worker; another one, or the same again, will take it.
    Reassigning,
    Success,
    Failed,
    Cancelled,
}

/// How far one unit of a task is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskUnit {
    pub unit: String,
    pub state: TaskState,
    #[serde(default)]
    pub worker: String,
    #[serde(default)]
    pub attempt: u32,
    #[serde(default)]
    pub archives: u64,
    #[serde(default)]
    pub rows: u64,
    #[serde(default)]
    pub bytes: u64,
    #[serde(default)]
    pub error: String,
    /// When the worker began the attempt that this is the state of; none before one has.
    #[serde(default)]
    pub started_at: Option<Timestamp>,
    pub at: Timestamp,
}

impl Bus {
    pub async fn put_task(&self, task: &Task) -> Result<(), BusError> {
        self.put(format!("task.{}", task.id), task).await
    }

    /// Changes a task as the stream has it, and nothing that somebody else changes at the same time; returns what it is then,
    /// `None` where there is no such task.
    pub async fn change_task(&self, id: &str, change: impl Fn(&mut Task)) -> Result<Option<Task>, BusError> {
        let subject = format!("task.{id}");
        let doing = || format!("changing {subject}");
        for _ in 0..CHANGES_MAX {
            let Some(message) = self.last(TASKS, &subject).await? else { return Ok(None) };
            let Ok(mut task) = serde_json::from_slice::<Task>(&message.payload) else { return Ok(None) };
            change(&mut task);
            let changed = PublishMessage::build()
                .payload(serde_json::to_vec(&task).expect("strings and numbers always serialise").into())
                .expected_last_subject_sequence(message.sequence)
                .expected_stream(TASKS);
            let sent = async { self.context.send_publish(subject.clone(), changed).await?.await };
            match tokio::time::timeout(PUT_TIMEOUT, sent).await {
                Ok(Ok(_)) => return Ok(Some(task)),
                // Somebody else was faster, or the replica that was read is behind.
                Ok(Err(error)) if is_overtaken(&error) => tokio::time::sleep(CHANGE_PAUSE).await,
                Ok(Err(error)) => return Err(publish_error(TASKS, doing(), &error)),
                Err(elapsed) => return Err(BusError::unavailable(doing(), &elapsed)),
            }
        }
        Err(BusError::plain(BusErrorKind::Unavailable, doing(), "others change it again and again"))
    }

    /// Writes the state of a unit; `unit_tokens` is the tail of its subject.
    pub async fn put_task_unit(&self, task: &str, unit_tokens: &str, state: &TaskUnit) -> Result<(), BusError> {
        self.put(format!("task.{task}.{unit_tokens}"), state).await
    }

    pub(crate) async fn put(&self, subject: String, content: &impl Serialize) -> Result<(), BusError> {
        let payload = serde_json::to_vec(content).expect("strings and numbers always serialise");
        let sent = async { self.context.publish(subject.clone(), payload.into()).await?.await };
        match tokio::time::timeout(PUT_TIMEOUT, sent).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(publish_error(TASKS, format!("writing {subject}"), &error)),
            Err(elapsed) => Err(BusError::unavailable(format!("writing {subject}"), &elapsed)),
        }
    }

    pub async fn task(&self, id: &str) -> Result<Option<Task>, BusError> {
        let doing = || format!("task {id}");
        let stream = self.context.get_stream_no_info(TASKS).await;
        let stream = stream.map_err(|error| BusError::unavailable(doing(), &error))?;
        match stream.direct_get_last_for_subject(format!("task.{id}")).await {
            Ok(message) => Ok(serde_json::from_slice(&message.payload).ok()),
            Err(error) if error.kind() == DirectGetErrorKind::NotFound => Ok(None),
            Err(error) => Err(BusError::unavailable(doing(), &error)),
        }
    }

    /// All tasks, the oldest first.
    pub async fn tasks(&self) -> Result<Vec<Task>, BusError> {
        self.read_all("task.*".into()).await.map(|mut tasks: Vec<Task>| {
            tasks.sort_by_key(|task| task.created_at);
            tasks
        })
    }

    pub async fn task_units(&self, id: &str) -> Result<Vec<TaskUnit>, BusError> {
        self.read_all(format!("task.{id}.>")).await.map(|mut units: Vec<TaskUnit>| {
            units.sort_by(|a, b| a.unit.cmp(&b.unit));
            units
        })
    }

    async fn read_all<T: for<'de> Deserialize<'de>>(&self, filter: String) -> Result<Vec<T>, BusError> {
        let mut all = Vec::new();
        self.last_per_subject(TASKS, vec![filter], |message| match serde_json::from_slice(&message.payload) {
            Ok(content) => all.push(content),
            Err(error) => tracing::warn!(subject = message.subject, %error, "not understood"),
        })
        .await?;
        Ok(all)
    }
}
