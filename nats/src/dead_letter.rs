//! Dead letters: what a worker gave up on, kept for a person.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::message::PublishMessage;
use bytes::Bytes;
use common::checksum::Sha256Sum;
use common::marker::Marker;
use jiff::Timestamp;

use crate::connection::{Bus, BusError, BusErrorKind};
use crate::delivery::Delivery;
use crate::letters::Letter;
use crate::refusal::{is_overtaken, publish_error};
use crate::replay::ReplayOptions;
use crate::stream_names::DEAD;
use crate::subject::unit_tokens;

/// Longest explanation stored, in bytes.
const ERROR_BYTES_MAX: usize = 16 * 1024;
/// How often a letter is filed anew because another one of the unit came in between.
const ATTEMPTS: u32 = 5;
const ATTEMPT_PAUSE: Duration = Duration::from_millis(200);

/// Why a delivery is given up.
#[derive(Debug, Clone)]
pub struct DeadLetter<'a> {
    pub destination: &'a str,
    /// From the closed set of error classes.
    pub class: &'a str,
    /// For a person: what happened, to which archive, what to do. May have several lines.
    pub error: &'a str,
}

/// The message that a letter is about.
pub(crate) struct Original<'a> {
    pub subject: &'a str,
    pub payload: Bytes,
    pub options: &'a ReplayOptions,
    pub stream_sequence: u64,
    pub stored_at: Timestamp,
    /// Deliveries so far.
    pub attempt: u32,
    /// When the consumer was made that gave it up; `None` where only the server noticed.
    pub consumer_created_at: Option<Timestamp>,
}

/// What is to become of a letter beside the one that is there.
#[derive(Debug, PartialEq, Eq)]
enum Filing {
    /// The one that is there says the same.
    Retain,
    /// It is the unit's newest, given up so many times.
    Store { count: u32 },
}

impl Original<'_> {
    /// Whether a letter is about this very message.
    fn is_of(&self, letter: &Letter) -> bool {
        letter.marker_sequence == self.stream_sequence && letter.stored_at == Some(self.stored_at)
    }

    fn filing(&self, found: Option<&Letter>) -> Filing {
        let Some(found) = found else { return Filing::Store { count: self.options.failures.saturating_add(1) } };
        match self.consumer_created_at {
            // A worker knew more of it than the server does.
            None if self.is_of(found) => Filing::Retain,
            // Stored before a crash, or by a publish that was not answered.
            Some(created) if self.is_of(found) && found.consumer_created_at == Some(created) => {
                if found.attempt >= self.attempt { Filing::Retain } else { Filing::Store { count: found.count } }
            }
            None | Some(_) => Filing::Store { count: found.count.max(self.options.failures).saturating_add(1) },
        }
    }
}

impl Bus {
    /// Stores a dead letter with the marker as its payload; returns when the stream has it.
    ///
    /// A unit's revision has one letter at a destination: it takes the place of the one that is there, with the latest
    /// error and a count. A crash in between leaves two, and the redelivery makes one of them.
    ///
    /// # Errors
    /// `Full`: the stream DEAD has no room.
    pub async fn store_dead_letter(&self, delivery: &Delivery, letter: &DeadLetter<'_>) -> Result<(), BusError> {
        let original = Original {
            subject: &delivery.subject,
            payload: delivery.payload.clone(),
            options: &delivery.options,
            stream_sequence: delivery.stream_sequence,
            stored_at: delivery.stored_at,
            attempt: delivery.attempt,
            consumer_created_at: Some(delivery.consumer_created_at),
        };
        self.store_letter(&original, letter).await
    }

    pub(crate) async fn store_letter(&self, original: &Original<'_>, letter: &DeadLetter<'_>) -> Result<(), BusError> {
        let tokens = unit_tokens(original.subject);
        let subject = format!("dead.{}.{tokens}", letter.destination);
        let revision = revision_of(&original.payload);
        for _ in 0..ATTEMPTS {
            let filed = self.letters_on(&subject).await?;
            let last = filed.iter().map(|letter| letter.sequence).max().unwrap_or_default();
            let same: Vec<&Letter> = filed.iter().filter(|letter| letter.revision == revision).collect();
            let newest = same.last().copied();
            let stored = match original.filing(newest) {
                Filing::Retain => newest.map(|letter| letter.sequence),
                Filing::Store { count } => {
                    if !self.publish_letter(&subject, &revision, original, letter, count, last).await? {
                        tokio::time::sleep(ATTEMPT_PAUSE).await;
                        continue;
                    }
                    None
                }
            };
            for old in same.iter().filter(|letter| Some(letter.sequence) != stored) {
                // Then there are two of them until the unit's next letter.
                if let Err(error) = self.delete_letter(old.sequence).await {
                    tracing::warn!(%error, "a dead letter that a newer one replaces stays");
                }
            }
            return Ok(());
        }
        let why = "others store letters of the unit at the same time";
        Err(BusError::plain(BusErrorKind::Unavailable, format!("storing a dead letter on {subject}"), why))
    }

    /// False when another letter of the unit was stored since `last`.
    async fn publish_letter(
        &self,
        subject: &str,
        revision: &str,
        original: &Original<'_>,
        letter: &DeadLetter<'_>,
        count: u32,
        last: u64,
    ) -> Result<bool, BusError> {
        let doing = || format!("storing a dead letter on {subject}");
        let message = PublishMessage::build()
            .headers(self.headers(revision, original, letter, count))
            .payload(original.payload.clone())
            .expected_last_subject_sequence(last)
            .expected_stream(DEAD);
        let stored = async { self.context.send_publish(subject.to_owned(), message).await?.await };
        match tokio::time::timeout(Duration::from_secs(10), stored).await {
            Ok(Ok(_)) => Ok(true),
            Ok(Err(error)) if is_overtaken(&error) => Ok(false),
            Ok(Err(error)) => Err(publish_error(DEAD, doing(), &error)),
            Err(elapsed) => Err(BusError::unavailable(doing(), &elapsed)),
        }
    }

    fn headers(&self, revision: &str, original: &Original<'_>, letter: &DeadLetter<'_>, count: u32) -> HeaderMap {
        // What the marker was sent with, so that a retry can ask for the same.
        let mut headers = original.options.to_headers();
        let created = original.consumer_created_at.map(|created| created.to_string()).unwrap_or_default();
        for (name, value) in [
            ("Ferry-Class", letter.class.to_owned()),
            ("Ferry-Error", one_line(letter.error)),
            ("Ferry-Destination", letter.destination.to_owned()),
            ("Ferry-Revision", revision.to_owned()),
            ("Ferry-Count", count.to_string()),
            ("Ferry-Subject", original.subject.to_owned()),
            ("Ferry-Stream-Sequence", original.stream_sequence.to_string()),
            ("Ferry-Stored-At", original.stored_at.to_string()),
            ("Ferry-Consumer-Created-At", created),
            ("Ferry-Attempt", original.attempt.to_string()),
            ("Ferry-Worker", self.worker.clone()),
        ] {
            headers.insert(name, one_line(&value).as_str());
        }
        headers
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

/// The revision of a marker; of what is none, the hash of all of it.
fn revision_of(payload: &[u8]) -> String {
    Marker::parse(payload).map_or_else(|_| Sha256Sum::of(payload), |marker| marker.revision).to_string()
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
    use std::collections::BTreeMap;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    #[test]
    fn a_letter_counts_how_often_a_unit_was_given_up() {
        let options = ReplayOptions { failures: 2, ..ReplayOptions::default() };
        let original = |sequence, created: Option<i64>, attempt| Original {
            subject: "marker.ready.a.b.c.d.e",
            payload: Bytes::new(),
            options: &options,
            stream_sequence: sequence,
            stored_at: at(100),
            attempt,
            consumer_created_at: created.map(at),
        };
        let found = Letter {
            sequence: 9,
            at: at(200),
            destination: "primary".into(),
            unit_tokens: "a.b.c.d.e".into(),
            class: "missing".into(),
            error: String::new(),
            revision: String::new(),
            count: 4,
            marker_subject: String::new(),
            marker_sequence: 7,
            stored_at: Some(at(100)),
            consumer_created_at: Some(at(50)),
            attempt: 3,
            worker: String::new(),
            options: ReplayOptions::default(),
            headers: BTreeMap::new(),
            payload: Bytes::new(),
        };
        let check = |original: Original<'_>, filing| assert_eq!(original.filing(Some(&found)), filing);
        assert_eq!(original(7, Some(50), 3).filing(None), Filing::Store { count: 3 });
        // Delivered again after a crash, and an answer that did not come.
        check(original(7, Some(50), 4), Filing::Store { count: 4 });
        check(original(7, Some(50), 3), Filing::Retain);
        // The sweeper finds what a worker wrote.
        check(original(7, None, 25), Filing::Retain);
        check(original(8, None, 25), Filing::Store { count: 5 });
        // The consumer, or the stream, was made anew; a replay.
        check(original(7, Some(60), 3), Filing::Store { count: 5 });
        check(original(1, Some(60), 3), Filing::Store { count: 5 });
        check(original(1_000_000_000_001, Some(50), 1), Filing::Store { count: 5 });
    }

    #[test]
    fn header_values_are_one_short_line() {
        assert_eq!(one_line("a\nb\r\n\u{0}c\n"), "a | b | c");
        assert!(one_line(&"é".repeat(ERROR_BYTES_MAX)).len() <= ERROR_BYTES_MAX);
    }
}
