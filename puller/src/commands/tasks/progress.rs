//! How far a replay is, from what workers said of its units.

use std::collections::BTreeSet;

use common::output::Failure;
use jiff::{SignedDuration, Timestamp};
use nats::{Bus, ReplaysState, Task, TaskState, TaskUnit};
use serde::Serialize;

use crate::cli::context::PRESENCE_WAIT;
use common::output::{count, short_duration};
use indicatif::HumanCount;
use std::time::Duration;

/// A command that sends a replay writes something at least this often.
const SENDING_SILENCE: SignedDuration = SignedDuration::from_secs(60);

/// A task's units by state.
#[derive(Debug, Default, Serialize)]
pub(crate) struct TaskProgress {
    pub(crate) init: u64,
    pub(crate) running: u64,
    pub(crate) reassigning: u64,
    pub(crate) success: u64,
    pub(crate) failed: u64,
    pub(crate) cancelled: u64,
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
    /// Finished units a second, over the time in which workers were at work on any.
    pub(super) units_per_second: Option<f64>,
    pub(super) eta_seconds: Option<u64>,
    /// Whether the command that sent it ended before all was sent. What was not counts as failed, or as cancelled.
    pub(super) cut_short: bool,
}

impl TaskProgress {
    pub(crate) async fn of(bus: &Bus, task: &Task) -> Result<Self, Failure> {
        Ok(Self::count(task, &units(bus, task).await?))
    }

    pub(super) fn count(task: &Task, units: &[TaskUnit]) -> Self {
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
        progress.cut_short = is_cut_short(task, units, common::clock::now());
        if progress.cut_short {
            let unsent = if task.cancelled_at.is_some() { &mut progress.cancelled } else { &mut progress.failed };
            *unsent += task.units.saturating_sub(units.len() as u64);
        }
        let worked =
            units.iter().filter(|unit| is_final(unit.state)).filter_map(|unit| Some((unit.started_at?, unit.at)));
        let (finished, seconds) = (worked.clone().count(), busy_seconds(worked.collect()));
        if finished > 0 && seconds > 0.0 {
            let rate = finished as f64 / seconds;
            progress.units_per_second = Some(rate);
            let left = task.units.saturating_sub(progress.finished());
            // Where nobody works nothing says when it will be done.
            if progress.running > 0 || left == 0 {
                progress.eta_seconds = Some((left as f64 / rate).ceil() as u64);
            }
        }
        progress
    }

    pub(crate) fn finished(&self) -> u64 {
        self.success + self.failed + self.cancelled
    }

    pub(crate) fn is_finished(&self, task: &Task) -> bool {
        (task.published || self.cut_short) && self.init + self.running + self.reassigning == 0
    }

    /// How it ended.
    pub(crate) fn ending(&self) -> String {
        let cancelled = if self.cancelled > 0 { format!(", {} cancelled", self.cancelled) } else { String::new() };
        format!("{} succeeded, {} failed{cancelled}", self.success, self.failed)
    }

    /// Why it is not what was asked for.
    pub(crate) fn failure(&self, task: &Task) -> Option<Failure> {
        let advice = format!("`puller tasks show {}` tells of each", task.id);
        let ended = match (self.failed, self.cancelled) {
            (0, 0) => return None,
            (0, cancelled) => format!("{} cancelled", count(cancelled, "unit")),
            (failed, 0) => format!("{} failed", count(failed, "unit")),
            (failed, cancelled) => format!("{} failed, {cancelled} cancelled", count(failed, "unit")),
        };
        Some(Failure::failed(format!("{}: {ended}", task.id)).advice(advice))
    }

    /// What stands beside a progress bar.
    pub(crate) fn to_message(&self, unattended: Duration) -> String {
        const NOTICEABLE: Duration = Duration::from_secs(5);
        if self.running == 0 && unattended >= NOTICEABLE {
            return format!("no worker is at it for {}", short_duration(unattended.as_secs()));
        }
        let left = self.eta_seconds.map(|seconds| format!(", {} left", short_duration(seconds))).unwrap_or_default();
        format!("{} rows{left}", HumanCount(self.rows))
    }

    /// The state of the whole task.
    pub(super) fn state(&self, task: &Task) -> &'static str {
        // Cancelling passes over what is left: where nothing was, the task had ended before.
        if task.cancelled_at.is_some() && (self.cancelled > 0 || !self.is_finished(task) || task.follows) {
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

pub(super) fn is_final(state: TaskState) -> bool {
    matches!(state, TaskState::Success | TaskState::Failed | TaskState::Cancelled)
}

/// How long any of these spans lasted: what lies between them counts for nothing.
fn busy_seconds(mut spans: Vec<(Timestamp, Timestamp)>) -> f64 {
    spans.sort_unstable();
    let (mut seconds, mut until) = (0.0, Timestamp::MIN);
    for (from, to) in spans {
        if to > until {
            seconds += to.duration_since(from.max(until)).as_secs_f64();
            until = to;
        }
    }
    seconds
}

/// Whether a replay was not sent in full, and nobody is sending it any more.
fn is_cut_short(task: &Task, units: &[TaskUnit], now: Timestamp) -> bool {
    !task.published && (!task.cut_short.is_empty() || now.duration_since(last_sign(task, units)) > SENDING_SILENCE)
}

fn last_sign(task: &Task, units: &[TaskUnit]) -> Timestamp {
    units.iter().map(|unit| unit.at).max().map_or(task.created_at, |at| at.max(task.created_at))
}

/// Whether no message of the task is on the stream of replays any more: acknowledged, too old, replaced by newer replays of the
/// same units, or gone with the stream.
fn has_left_the_stream(task: &Task, units: &[TaskUnit], stream: Option<ReplaysState>, now: Timestamp) -> bool {
    let Some(stream) = stream else { return true };
    if task.published {
        return stream.first_sequence > task.last_sequence || stream.last_sequence < task.last_sequence;
    }
    is_cut_short(task, units, now)
        && stream.oldest.is_none_or(|oldest| oldest.duration_since(last_sign(task, units)) > SENDING_SILENCE)
}

/// The units of a task. One whose worker no longer answers is between two workers; one whose replay has left the stream
/// without an end being reported comes to none.
pub(super) async fn units(bus: &Bus, task: &Task) -> Result<Vec<TaskUnit>, Failure> {
    let mut units = bus.task_units(&task.id).await?;
    if units.iter().any(|unit| !is_final(unit.state)) {
        let stream = bus.replays_state().await?;
        if has_left_the_stream(task, &units, stream, common::clock::now()) {
            // What a worker reported in between is not overwritten.
            units = bus.task_units(&task.id).await?;
            for unit in units.iter_mut().filter(|unit| !is_final(unit.state)) {
                if task.cancelled_at.is_some() {
                    unit.state = TaskState::Cancelled;
                    continue;
                }
                unit.state = TaskState::Failed;
                unit.error = "its replay left the stream REPLAYS and no worker reported an end; send it again".into();
            }
        }
    }
    if units.iter().any(|unit| unit.state == TaskState::Running) {
        let presence = bus.presence(&task.destination, PRESENCE_WAIT).await?;
        let alive: BTreeSet<String> = presence.workers.into_iter().map(|worker| worker.worker).collect();
        for unit in units.iter_mut().filter(|unit| unit.state == TaskState::Running) {
            if !alive.contains(&unit.worker) {
                unit.state = TaskState::Reassigning;
            }
        }
    }
    Ok(units)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_in_which_nobody_worked_counts_for_nothing() {
        let span = |from: i64, to: i64| {
            let at = |second| Timestamp::from_second(second).expect("a time");
            (at(from), at(to))
        };
        assert_eq!(busy_seconds(vec![]), 0.0);
        assert_eq!(busy_seconds(vec![span(100, 110), span(0, 10), span(5, 12), span(6, 7)]), 22.0);
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn task() -> Task {
        Task {
            id: "t".into(),
            destination: "primary".into(),
            mode: "full".into(),
            selection: "everything".into(),
            force: false,
            reason: String::new(),
            created_at: at(1000),
            created_by: String::new(),
            units: 3,
            archives: 3,
            bytes: 3,
            published: false,
            last_sequence: 0,
            cut_short: String::new(),
            follows: false,
            cancelled_at: None,
        }
    }

    fn unit(state: TaskState, second: i64) -> TaskUnit {
        TaskUnit {
            unit: "u".into(),
            state,
            worker: String::new(),
            attempt: 0,
            archives: 0,
            rows: 0,
            bytes: 0,
            error: String::new(),
            started_at: None,
            at: at(second),
        }
    }

    #[test]
    fn a_replay_that_nobody_sends_any_more_comes_to_an_end() {
        let sent = [unit(TaskState::Success, 1010), unit(TaskState::Init, 1020)];
        assert!(!is_cut_short(&task(), &sent, at(1070)));
        assert!(is_cut_short(&task(), &sent, at(1090)));
        assert!(is_cut_short(&Task { cut_short: "REPLAYS is full".into(), ..task() }, &sent, at(1021)));
        assert!(!is_cut_short(&Task { published: true, ..task() }, &sent, at(9999)));
    }

    #[test]
    fn a_replay_is_gone_when_the_stream_has_nothing_of_it() {
        let stream = |first_sequence, last_sequence, oldest: Option<i64>| {
            Some(ReplaysState { first_sequence, last_sequence, oldest: oldest.map(at) })
        };
        let published = Task { published: true, last_sequence: 30, ..task() };
        let gone = |task: &Task, stream| has_left_the_stream(task, &[], stream, at(2000));
        assert!(!gone(&published, stream(30, 30, Some(1001))));
        assert!(gone(&published, stream(31, 30, None)));
        assert!(gone(&published, stream(31, 40, Some(1500))));
        // Another stream of the name.
        assert!(gone(&published, stream(1, 5, Some(1500))));
        assert!(gone(&published, None));
        // Not all of it was sent, and which messages were is not known.
        assert!(!gone(&task(), stream(20, 30, Some(1001))));
        assert!(gone(&task(), stream(31, 40, Some(1500))));
        assert!(gone(&task(), stream(31, 30, None)));
    }
}
