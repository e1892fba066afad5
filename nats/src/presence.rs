//! Which workers are alive and what they hold: asked of all of them at once, stored nowhere.

use std::time::Duration;

use futures::StreamExt;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::connection::{Bus, BusError, BusErrorKind, within};

/// How long the connection may take to accept a question or a subscription.
const HAND_OVER_MAX: Duration = Duration::from_secs(5);

/// What one worker says of itself for one destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerState {
    pub worker: String,
    pub started_at: Timestamp,
    /// Units this worker holds under a lease.
    pub in_flight: Vec<String>,
    /// Units this worker handed back, to be delivered again later.
    pub retries_scheduled: u64,
    /// Why it is not pulling, if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_for: Option<String>,
}

/// The workers that answered.
#[derive(Debug, Clone, Default)]
pub struct Presence {
    pub workers: Vec<WorkerState>,
}

impl Bus {
    /// Answers for this worker until `stop`.
    pub async fn answer_presence(
        &self,
        destination: &str,
        state: impl Fn() -> WorkerState + Send + 'static,
        stop: CancellationToken,
    ) -> Result<(), BusError> {
        const DOING: &str = "subscribing to questions";
        let subscribing = async {
            let subscribed = self.client.subscribe(subject(destination)).await;
            subscribed.map_err(|error| BusError::new(BusErrorKind::Refused, DOING, &error))
        };
        let mut asked = within(HAND_OVER_MAX, DOING, subscribing).await?;
        let client = self.client.clone();
        tokio::spawn(stop.run_until_cancelled_owned(async move {
            // No time-out: questions may come at any time, and nobody waits for this task. It ends with `stop`.
            while let Some(question) = asked.next().await {
                let Some(reply) = question.reply else { continue };
                let answer = serde_json::to_vec(&state()).expect("strings and numbers always serialise");
                if let Err(error) = client.publish(reply, answer.into()).await {
                    tracing::debug!(%error, "answering a question for presence");
                }
            }
        }));
        Ok(())
    }

    /// Asks every worker of a destination and waits this long for answers.
    pub async fn presence(&self, destination: &str, wait: Duration) -> Result<Presence, BusError> {
        const DOING: &str = "asking the workers";
        let unavailable = |error: &dyn std::error::Error| BusError::unavailable(DOING, error);
        let asking = async {
            let inbox = self.client.new_inbox();
            let answers = self.client.subscribe(inbox.clone()).await.map_err(|error| unavailable(&error))?;
            let asked = self.client.publish_with_reply(subject(destination), inbox, "".into()).await;
            asked.map(|()| answers).map_err(|error| unavailable(&error))
        };
        let mut answers = within(HAND_OVER_MAX, DOING, asking).await?;
        let mut presence = Presence::default();
        let collecting = async {
            while let Some(answer) = answers.next().await {
                // No worker at all: the server says so at once.
                if answer.status == Some(async_nats::StatusCode::NO_RESPONDERS) {
                    break;
                }
                match serde_json::from_slice(&answer.payload) {
                    Ok(state) => presence.workers.push(state),
                    Err(error) => tracing::debug!(%error, "an answer to a question for presence is not understood"),
                }
            }
        };
        // Running into the time limit is the normal end: nobody knows how many workers there are.
        if tokio::time::timeout(wait, collecting).await.is_err() {
            tracing::trace!(destination, "no more answers");
        }
        presence.workers.sort_by(|a, b| a.worker.cmp(&b.worker));
        Ok(presence)
    }
}

fn subject(destination: &str) -> String {
    format!("ferry.workers.{destination}")
}
