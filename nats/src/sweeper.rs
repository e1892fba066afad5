//! Deliveries that ran out at the server: what no worker lived to acknowledge.
//!
//! The server gives a message up after its last delivery and says so once, in an advisory that does not hold the
//! message. The stream ADVISORIES keeps those; every worker process takes part in making dead letters of them.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::stream::RawMessageErrorKind;
use jiff::Timestamp;
use serde::Deserialize;

use crate::connection::{Bus, BusError, BusErrorKind};
use crate::dead_letter::{DeadLetter, Original};
use crate::delivery::Delivery;
use crate::incarnation::OpenConsumer;
use crate::pull::{Ask, Pull};
use crate::replay::ReplayOptions;
use crate::stream_names::{ADVISORIES, SWEEPER};
use crate::topology::destination_of;

/// How long an idle pull stays open at the server.
const IDLE_PULL: Duration = Duration::from_secs(10);
/// How long an advisory is put off whose letter could not be stored.
const RETRY: Duration = Duration::from_secs(30);

/// The durable consumer of the advisories.
pub struct Sweeper {
    bus: Bus,
    consumer: Arc<OpenConsumer>,
}

/// What became of an advisory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Swept {
    /// The dead letter is stored; it may have been there already.
    Stored { destination: String, subject: String, stream_sequence: u64, deliveries: u32 },
    /// The marker is no longer on its stream: newer ones of its unit have pushed it out, or the stream is another one.
    Gone { destination: String, stream_sequence: u64 },
    /// Not about a marker of a destination.
    Ignored { why: String },
}

/// What is used of the server's advisory.
#[derive(Debug, Deserialize)]
struct Advisory {
    stream: String,
    consumer: String,
    stream_seq: u64,
    #[serde(default)]
    deliveries: u32,
    /// When the server gave the message up.
    timestamp: Option<Timestamp>,
}

impl Advisory {
    /// Whether it is about a message that was stored at this time. A stream that is made anew counts from the same
    /// sequence, and the advisories of the former one stay where they are.
    fn is_of(&self, stored_at: Timestamp) -> bool {
        self.timestamp.is_none_or(|given_up_at| stored_at <= given_up_at)
    }
}

impl Bus {
    /// Looks the consumer of the advisories up; needs no right to create it.
    pub async fn sweeper(&self) -> Result<Sweeper, BusError> {
        let consumer = Arc::new(OpenConsumer::open(self, ADVISORIES, SWEEPER).await?);
        Ok(Sweeper { bus: self.clone(), consumer })
    }
}

impl Sweeper {
    /// Waits for one advisory, stores the dead letter and acks; `None` when none came for a while.
    ///
    /// Safe to drop at any await: the advisory is delivered again, and the letter's id is the same.
    pub async fn next(&self, class: &str, explain: impl Fn(u32) -> String) -> Result<Option<Swept>, BusError> {
        let mut pull = Pull::open(&self.bus, &self.consumer.consumer, Ask::Next(IDLE_PULL)).await?;
        let Some(message) = pull.next().await? else { return Ok(None) };
        let delivery = Delivery::new(message, &self.consumer, &self.bus)?;
        let swept = self.sweep(&delivery, class, explain).await;
        let ended = if swept.is_ok() { delivery.ack().await } else { delivery.nak(RETRY).await };
        if let Err(error) = ended {
            tracing::debug!(%error, "the advisory will come again, and its letter is there already");
        }
        swept.map(Some)
    }

    async fn sweep(
        &self,
        delivery: &Delivery,
        class: &str,
        explain: impl Fn(u32) -> String,
    ) -> Result<Swept, BusError> {
        let advisory: Advisory = match serde_json::from_slice(&delivery.payload) {
            Ok(advisory) => advisory,
            Err(error) => return Ok(Swept::Ignored { why: format!("the advisory is not understood: {error}") }),
        };
        let Some(destination) = destination_of(&advisory.stream, &advisory.consumer) else {
            let why = format!("consumer {} of {} is no destination's", advisory.consumer, advisory.stream);
            return Ok(Swept::Ignored { why });
        };
        let gone = || Swept::Gone { destination: destination.to_owned(), stream_sequence: advisory.stream_seq };
        let doing = || format!("reading marker {} of {}", advisory.stream_seq, advisory.stream);
        let stream = self.bus.context.get_stream_no_info(&advisory.stream).await;
        let stream = stream.map_err(|error| BusError::unavailable(doing(), &error))?;
        let message = match stream.get_raw_message(advisory.stream_seq).await {
            Ok(message) => message,
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => return Ok(gone()),
            Err(error) => return Err(BusError::unavailable(doing(), &error)),
        };
        let stored_at = Timestamp::from_nanosecond(message.time.unix_timestamp_nanos());
        let stored_at = stored_at.map_err(|error| BusError::new(BusErrorKind::Refused, doing(), &error))?;
        if !advisory.is_of(stored_at) {
            return Ok(gone());
        }
        let original = Original {
            subject: &message.subject,
            payload: message.payload.clone(),
            options: &ReplayOptions::from_headers(Some(&message.headers)),
            stream_sequence: advisory.stream_seq,
            stored_at,
            attempt: advisory.deliveries,
            consumer_created_at: None,
        };
        let letter = DeadLetter { destination, class, error: &explain(advisory.deliveries) };
        self.bus.store_letter(&original, &letter).await?;
        Ok(Swept::Stored {
            destination: destination.to_owned(),
            subject: message.subject.to_string(),
            stream_sequence: advisory.stream_seq,
            deliveries: advisory.deliveries,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As nats-server 2.15 writes it.
    const ADVISORY: &str = r#"{"type": "io.nats.jetstream.advisory.v1.max_deliver", "id": "x",
        "timestamp": "2026-11-30T12:00:00.123456789Z", "stream": "MARKERS", "consumer": "ingest-primary",
        "stream_seq": 7, "deliveries": 25}"#;

    #[test]
    fn an_advisory_of_a_former_stream_is_about_no_message_of_the_new_one() {
        let advisory: Advisory = serde_json::from_str(ADVISORY).expect("an advisory");
        let is_of = |at: &str| advisory.is_of(at.parse().expect("a time"));
        assert!(is_of("2026-11-01T00:00:00Z") && is_of("2026-11-30T12:00:00Z"));
        assert!(!is_of("2026-11-30T12:00:01Z"));
        let undated = ADVISORY.replace("timestamp", "at");
        let undated: Advisory = serde_json::from_str(&undated).expect("an advisory");
        assert!(undated.is_of("2026-12-01T00:00:00Z".parse().expect("a time")));
    }
}
