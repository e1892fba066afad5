//! Whether anybody works on what a command waits for: no wait is without an end where nobody does.

use std::time::{Duration, Instant};

use common::output::{FailureClass, short_duration};
use nats::{Bus, BusErrorKind};

use crate::cli::context::PRESENCE_WAIT;
use common::output::Failure;

/// How long a command waits while no worker takes part, or NATS does not answer.
const UNATTENDED_MAX: Duration = Duration::from_secs(60);

pub(crate) struct Attendance<'a> {
    destination: &'a str,
    /// What is waited for: begins each text.
    of: &'a str,
    max_wait: Option<Duration>,
    started: Instant,
    worked_at: Instant,
    away_since: Option<Instant>,
}

impl<'a> Attendance<'a> {
    pub(crate) fn new(destination: &'a str, of: &'a str, max_wait: Option<Duration>) -> Self {
        let now = Instant::now();
        Self { destination, of, max_wait, started: now, worked_at: now, away_since: None }
    }

    /// Somebody is at work.
    pub(crate) fn worked(&mut self) {
        self.worked_at = Instant::now();
    }

    pub(crate) fn unattended(&self) -> Duration {
        self.worked_at.elapsed()
    }

    /// How long is too long.
    fn limit(&self) -> Duration {
        self.max_wait.unwrap_or(UNATTENDED_MAX).min(UNATTENDED_MAX)
    }

    /// What was asked was answered.
    pub(crate) fn answered(&mut self) {
        self.away_since = None;
    }

    /// # Errors
    /// The failure itself, where it is no interruption or lasts too long.
    pub(crate) fn bear(&mut self, failure: Failure) -> Result<(), Failure> {
        let since = *self.away_since.get_or_insert_with(Instant::now);
        if failure.class != FailureClass::Unreachable || since.elapsed() >= self.limit() {
            return Err(self.failure(failure));
        }
        tracing::warn!("{}; asking again", failure.text);
        // Nobody can be seen at work meanwhile.
        self.worked();
        Ok(())
    }

    /// `done` says how far it is.
    ///
    /// # Errors
    /// No worker has answered for too long, or the time is up.
    pub(crate) async fn check(&mut self, bus: &Bus, done: &str) -> Result<(), Failure> {
        if self.unattended() >= self.limit() {
            match bus.presence(self.destination, PRESENCE_WAIT).await {
                Ok(presence) if presence.workers.is_empty() => {
                    let time = short_duration(self.unattended().as_secs());
                    let why = format!("no worker of {} has answered for {time}", self.destination);
                    let failure = Failure::unreachable(why).advice("start `puller run`, or run `puller pull`");
                    return Err(self.failure(failure));
                }
                Ok(_) => self.worked(),
                Err(error) if error.kind == BusErrorKind::Unavailable => self.bear(error.into())?,
                Err(error) => return Err(error.into()),
            }
        }
        if self.max_wait.is_some_and(|max_wait| self.started.elapsed() >= max_wait) {
            return Err(self.failure(Failure::stopped(format!("not finished within --max-wait, {done}"))));
        }
        Ok(())
    }

    pub(crate) fn failure(&self, failure: Failure) -> Failure {
        Failure { text: format!("{}: {}; what was sent stays on the stream", self.of, failure.text), ..failure }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interruption_is_borne_and_no_other_failure() {
        let mut attendance = Attendance::new("primary", "task 1", None);
        assert_eq!(attendance.bear(Failure::unreachable("NATS: no answer")), Ok(()));
        let refused = attendance.bear(Failure::failed("NATS: no such stream")).expect_err("it does not pass");
        assert_eq!(refused.text, "task 1: NATS: no such stream; what was sent stays on the stream");
        // One that lasts too long ends the wait.
        let mut impatient = Attendance::new("primary", "task 1", Some(Duration::ZERO));
        assert!(impatient.bear(Failure::unreachable("NATS: no answer")).is_err());
    }
}
