//! Dead letters: what a worker gave up on, kept for a person.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::message::PublishMessage;

use crate::connection::{Bus, BusError, BusErrorKind};
use crate::delivery::Delivery;
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

impl Bus {
    /// Stores a dead letter with the marker as its payload; returns when the stream has it.
    ///
    /// The message id is the same for every delivery of a marker to a destination, so a crash before the
    /// delivery is terminated does not make a second letter.
    pub async fn store_dead_letter(&self, delivery: &Delivery, letter: &DeadLetter<'_>) -> Result<(), BusError> {
        let subject = format!("dead.{}.{}", letter.destination, unit_tokens(&delivery.subject));
        let id = format!("{subject}:{MARKERS}:{}:{}", delivery.stored_at, delivery.stream_sequence);
        let doing = || format!("storing a dead letter on {subject}");
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("Ferry-Class", letter.class.to_owned()),
            ("Ferry-Error", one_line(letter.error)),
            ("Ferry-Destination", letter.destination.to_owned()),
            ("Ferry-Subject", delivery.subject.clone()),
            ("Ferry-Stream-Sequence", delivery.stream_sequence.to_string()),
            ("Ferry-Stored-At", delivery.stored_at.to_string()),
            ("Ferry-Attempt", delivery.attempt.to_string()),
            ("Ferry-Worker", self.worker.clone()),
        ] {
            headers.insert(name, one_line(&value).as_str());
        }
        let message = PublishMessage::build()
            .headers(headers)
            .payload(delivery.payload.clone())
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
