//! Dead letters: what a worker gave up on, kept for a person.

use std::time::Duration;

use async_nats::jetstream::message::PublishMessage;
use bytes::Bytes;
use jiff::Timestamp;

use crate::connection::{Bus, BusError, BusErrorKind};
use crate::delivery::Delivery;
use crate::replay::ReplayOptions;
use crate::subject::unit_tokens;
use crate::topology::{DEAD, MARKERS};

/// Longest explanation stored, in bytes.
const ERROR_BYTES_MAX: usize = 16 * 1024;

/// Why a delivery is given up.
#[derive(Debug, Clone)]
pub struct DeadLetter<'a> {
    pub destination: &'a str,
    /// From the closed set of error classes.
    pub class: &'a str,
    /// For a person: what happened, to which archive, what to do. May have several lines.
    pub error: &'a str,
}

/// The message of MARKERS that a letter is about.
pub(crate) struct Original<'a> {
    pub subject: &'a str,
    pub payload: Bytes,
    pub options: &'a ReplayOptions,
    pub stream_sequence: u64,
    pub stored_at: Timestamp,
    /// Deliveries so far.
    pub attempt: u32,
}

impl Bus {
    /// Stores a dead letter with the marker as its payload; returns when the stream has it.
    ///
    /// The message id is the same for every delivery of a marker to a destination, so a crash before the
    /// delivery is terminated does not make a second letter.
    pub async fn store_dead_letter(&self, delivery: &Delivery, letter: &DeadLetter<'_>) -> Result<(), BusError> {
        let original = Original {
            subject: &delivery.subject,
            payload: delivery.payload.clone(),
            options: &delivery.options,
            stream_sequence: delivery.stream_sequence,
            stored_at: delivery.stored_at,
            attempt: delivery.attempt,
        };
        self.store_letter(&original, letter).await
    }

    pub(crate) async fn store_letter(&self, original: &Original<'_>, letter: &DeadLetter<'_>) -> Result<(), BusError> {
        let subject = format!("dead.{}.{}", letter.destination, unit_tokens(original.subject));
        let id = format!("{subject}:{MARKERS}:{}:{}", original.stored_at, original.stream_sequence);
        let doing = || format!("storing a dead letter on {subject}");
        // What the marker was sent with, so that a retry can ask for the same.
        let mut headers = original.options.to_headers();
        for (name, value) in [
            ("Ferry-Class", letter.class.to_owned()),
            ("Ferry-Error", one_line(letter.error)),
            ("Ferry-Destination", letter.destination.to_owned()),
            ("Ferry-Subject", original.subject.to_owned()),
            ("Ferry-Stream-Sequence", original.stream_sequence.to_string()),
            ("Ferry-Stored-At", original.stored_at.to_string()),
            ("Ferry-Attempt", original.attempt.to_string()),
            ("Ferry-Worker", self.worker.clone()),
        ] {
            headers.insert(name, one_line(&value).as_str());
        }
        let message = PublishMessage::build()
            .headers(headers)
            .payload(original.payload.clone())
            .message_id(id)
            .expected_stream(DEAD);
        let stored = async { self.context.send_publish(subject.clone(), message).await?.await };
        match tokio::time::timeout(Duration::from_secs(10), stored).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(BusError::new(BusErrorKind::Unavailable, doing(), &error)),
            Err(elapsed) => Err(BusError::unavailable(doing(), &elapsed)),
        }
    }

    /// How many dead letters a destination has.
    pub async fn dead_letters(&self, destination: &str) -> Result<u64, BusError> {
        use futures::TryStreamExt;
        let doing = || "counting dead letters".to_owned();
        let stream = self.context.get_stream_no_info(DEAD).await;
        let stream = stream.map_err(|error| BusError::unavailable(doing(), &error))?;
        let subjects = stream.info_with_subjects(format!("dead.{destination}.>")).await;
        let subjects = subjects.map_err(|error| BusError::unavailable(doing(), &error))?;
        let counts = subjects.try_fold(0, async |sum, (_, count)| Ok(sum + count as u64)).await;
        counts.map_err(|error| BusError::unavailable(doing(), &error))
    }
}

/// Headers hold one line; line breaks become " | ".
fn one_line(text: &str) -> String {
    let mut line = text.trim().replace("\r\n", "\n").replace('\n', " | ");
    line.retain(|c| !c.is_control());
    let cut = line.floor_char_boundary(ERROR_BYTES_MAX);
    line.truncate(cut);
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_values_are_one_short_line() {
        assert_eq!(one_line("a\nb\r\n\u{0}c\n"), "a | b | c");
        assert!(one_line(&"é".repeat(ERROR_BYTES_MAX)).len() <= ERROR_BYTES_MAX);
    }
}
