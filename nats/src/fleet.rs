//! Pausing and resuming a destination for every worker at once.

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::response::Response;
use jiff::{Timestamp, ToSpan};
use serde::Deserialize;

use crate::connection::{Bus, BusError, BusErrorKind};
use crate::topology::{MARKERS, backfill_consumer, ready_consumer};

impl Bus {
    /// Stops deliveries of a destination, until a time or until resumed. What is in hand is finished.
    pub async fn pause(&self, destination: &str, until: Option<Timestamp>) -> Result<(), BusError> {
        // The server knows no pause without an end.
        let endless = || Timestamp::now().checked_add((100 * 365 * 24).hours()).unwrap_or(Timestamp::MAX);
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
        for consumer in [ready_consumer(destination), backfill_consumer(destination)] {
            let doing = || format!("{} {consumer}", if until.is_some() { "pausing" } else { "resuming" });
            let request = match until {
                Some(until) => serde_json::json!({ "pause_until": until }),
                None => serde_json::json!({}),
            };
            let answer = self.context.request(format!("CONSUMER.PAUSE.{MARKERS}.{consumer}"), &request).await;
            match answer.map_err(|error| BusError::unavailable(doing(), &error))? {
                Response::Ok(Answer { paused }) if paused == until.is_some() => {}
                Response::Ok(_) => {
                    let why = "the server did not take it over: is the time in the past?";
                    return Err(BusError::plain(BusErrorKind::Refused, doing(), why));
                }
                Response::Err { error } => {
                    let gone = [ErrorCode::CONSUMER_NOT_FOUND, ErrorCode::STREAM_NOT_FOUND];
                    let missing = gone.contains(&error.error_code());
                    let kind = if missing { BusErrorKind::Missing } else { BusErrorKind::Refused };
                    return Err(BusError::new(kind, doing(), &error));
                }
            }
        }
        Ok(())
    }

    /// Whether anything published for the destination will be delivered to it: its consumers are there.
    pub async fn is_served(&self, destination: &str) -> Result<bool, BusError> {
        for consumer in [ready_consumer(destination), backfill_consumer(destination)] {
            match self.durable(&consumer).await {
                Ok(_) => {}
                Err(error) if error.kind == BusErrorKind::Missing => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}
