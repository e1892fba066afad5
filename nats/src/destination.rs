//! A destination's consumers as one thing: pausing, resuming, and where they are with a unit.

use async_nats::jetstream::response::Response;
use common::unit::Unit;
use jiff::{Timestamp, ToSpan};
use serde::{Deserialize, Serialize};

use crate::connection::{Bus, BusError, BusErrorKind};
use crate::subject::MarkerSubject;
use crate::topology::{is_gone, lanes};

/// How far a consumer is with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// Not delivered yet.
    Pending,
    /// Delivered, and not known to be acknowledged: the server tells no more of a single message.
    Delivered,
    Acknowledged,
}

/// The newest message on one of a unit's subjects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Sent {
    pub subject: String,
    pub sequence: u64,
    pub standing: Standing,
}

impl Bus {
    /// The newest messages of a unit for a destination, and how far it is with them.
    pub async fn sent(&self, destination: &str, unit: &Unit) -> Result<Vec<Sent>, BusError> {
        let replay = format!("marker.replay.{destination}.{}", unit.subject_tokens());
        let subjects = [MarkerSubject::announcement(unit, false), MarkerSubject::announcement(unit, true), replay];
        let mut found = Vec::new();
        for (lane, subject) in lanes(destination).into_iter().zip(subjects) {
            let Some(message) = self.last(lane.stream, &subject).await? else { continue };
            let sequence = message.sequence;
            let consumer = self.durable(&lane).await?;
            let info = consumer.cached_info();
            let standing = if sequence > info.delivered.stream_sequence {
                Standing::Pending
            } else if sequence <= info.ack_floor.stream_sequence || info.num_ack_pending == 0 {
                Standing::Acknowledged
            } else {
                Standing::Delivered
            };
            found.push(Sent { subject, sequence, standing });
        }
        Ok(found)
    }

    /// Stops deliveries of a destination, until a time or until resumed. What is in flight is finished.
    pub async fn pause(&self, destination: &str, until: Option<Timestamp>) -> Result<(), BusError> {
        // The server knows no pause without an end.
        let endless = || common::clock::now().checked_add((100 * 365 * 24).hours()).unwrap_or(Timestamp::MAX);
        self.set_pause(destination, Some(until.unwrap_or_else(endless))).await
    }

    /// Takes a pause back; no error when there is none.
    pub async fn resume(&self, destination: &str) -> Result<(), BusError> {
        self.set_pause(destination, None).await
    }

    async fn set_pause(&self, destination: &str, until: Option<Timestamp>) -> Result<(), BusError> {
        #[derive(Deserialize)]
        struct Answer {
            paused: bool,
        }
        for lane in lanes(destination) {
            let doing = || format!("{} {}", if until.is_some() { "pausing" } else { "resuming" }, lane.name);
            let request = match until {
                Some(until) => serde_json::json!({ "pause_until": until }),
                None => serde_json::json!({}),
            };
            let answer = self.context.request(format!("CONSUMER.PAUSE.{}.{}", lane.stream, lane.name), &request).await;
            match answer.map_err(|error| BusError::unavailable(doing(), &error))? {
                Response::Ok(Answer { paused }) if paused == until.is_some() => {}
                Response::Ok(_) => {
                    let why = "the server did not take it over: is the time in the past?";
                    return Err(BusError::plain(BusErrorKind::Refused, doing(), why));
                }
                Response::Err { error } => {
                    let kind = if is_gone(&error) { BusErrorKind::Missing } else { BusErrorKind::Refused };
                    return Err(BusError::new(kind, doing(), &error));
                }
            }
        }
        Ok(())
    }

    /// Whether anything published for the destination will be delivered to it: its consumers are there.
    pub async fn is_served(&self, destination: &str) -> Result<bool, BusError> {
        for lane in lanes(destination) {
            match self.durable(&lane).await {
                Ok(_) => {}
                Err(error) if error.kind == BusErrorKind::Missing => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}
