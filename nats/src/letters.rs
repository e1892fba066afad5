//! Dead letters as a person works on them: read by sequence, and removed by sequence.

use std::collections::BTreeMap;

use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{self, DeleteMessageErrorKind, DirectGetErrorKind, RawMessageErrorKind};
use bytes::Bytes;
use jiff::Timestamp;

use crate::connection::{Bus, BusError, BusErrorKind};
use crate::replay::ReplayOptions;
use crate::stream_names::DEAD;
use crate::subject::unit_tokens;
use crate::topology::is_missing;

/// A dead letter as it is stored.
#[derive(Debug, Clone)]
pub struct Letter {
    /// Its sequence in the stream DEAD: how it is addressed.
    pub sequence: u64,
    /// When it was stored.
    pub at: Timestamp,
    pub destination: String,
    /// The five tokens it is filed under. Not always a unit: the message may have been no marker.
    pub unit_tokens: String,
    pub class: String,
    /// What went wrong the last time, one line a fault.
    pub error: String,
    /// Of the marker.
    pub revision: String,
    /// How often this revision was given up.
    pub count: u32,
    /// Where the marker was, on MARKERS or on REPLAYS.
    pub marker_subject: String,
    pub marker_sequence: u64,
    /// When it was stored there.
    pub(crate) stored_at: Option<Timestamp>,
    pub(crate) consumer_created_at: Option<Timestamp>,
    /// Deliveries when it was given up.
    pub attempt: u32,
    pub worker: String,
    /// What the marker was sent with.
    pub options: ReplayOptions,
    pub headers: BTreeMap<String, String>,
    /// The marker.
    pub payload: Bytes,
}

impl Letter {
    fn read(message: StreamMessage) -> Result<Self, BusError> {
        let subject = message.subject.as_str();
        let header = |name: &str| message.headers.get(name).map(ToString::to_string).unwrap_or_default();
        let at = Timestamp::from_nanosecond(message.time.unix_timestamp_nanos());
        let destination = subject.split('.').nth(1).unwrap_or_default().to_owned();
        let values = |values: &[async_nats::HeaderValue]| values.iter().map(ToString::to_string).collect::<Vec<_>>();
        Ok(Self {
            sequence: message.sequence,
            at: at.map_err(|error| BusError::new(BusErrorKind::Refused, "reading a dead letter", &error))?,
            unit_tokens: unit_tokens(subject).to_owned(),
            class: header("Ferry-Class"),
            error: header("Ferry-Error").replace(" | ", "\n"),
            marker_subject: header("Ferry-Subject"),
            // Only shown; a letter without them can be worked on all the same.
            marker_sequence: header("Ferry-Stream-Sequence").parse().unwrap_or_default(),
            revision: header("Ferry-Revision"),
            count: header("Ferry-Count").parse().unwrap_or(1),
            stored_at: header("Ferry-Stored-At").parse().ok(),
            consumer_created_at: header("Ferry-Consumer-Created-At").parse().ok(),
            attempt: header("Ferry-Attempt").parse().unwrap_or_default(),
            worker: header("Ferry-Worker"),
            options: ReplayOptions::from_headers(Some(&message.headers)),
            headers: message.headers.iter().map(|(name, all)| (name.to_string(), values(all).join(", "))).collect(),
            destination,
            payload: message.payload,
        })
    }
}

impl Bus {
    /// Calls `each` with every dead letter of a destination (or of all), oldest first.
    ///
    /// `unit_prefix` are leading tokens of the unit; what they leave open is not looked at here.
    pub async fn each_letter(
        &self,
        destination: Option<&str>,
        unit_prefix: &[&str],
        mut each: impl FnMut(Letter),
    ) -> Result<(), BusError> {
        let mut filter = vec!["dead", destination.unwrap_or("*")];
        filter.extend(unit_prefix.iter().take(5));
        filter.resize(7, "*");
        let stream = self.dead_stream().await?;
        self.each_on(&stream, &filter.join("."), &mut each).await
    }

    /// The letters of one unit at one destination, oldest first: one of each revision.
    pub(crate) async fn letters_on(&self, subject: &str) -> Result<Vec<Letter>, BusError> {
        let stream = self.context.get_stream_no_info(DEAD).await;
        let stream = stream.map_err(|error| BusError::unavailable("listing dead letters", &error))?;
        let mut letters = Vec::new();
        self.each_on(&stream, subject, &mut |letter| letters.push(letter)).await?;
        Ok(letters)
    }

    async fn each_on<I>(
        &self,
        stream: &stream::Stream<I>,
        filter: &str,
        each: &mut impl FnMut(Letter),
    ) -> Result<(), BusError> {
        let mut next = 1;
        loop {
            match stream.direct_get_next_for_subject(filter, Some(next)).await {
                Ok(message) => {
                    next = message.sequence + 1;
                    each(Letter::read(message)?);
                }
                Err(error) if error.kind() == DirectGetErrorKind::NotFound => return Ok(()),
                Err(error) => return Err(BusError::unavailable("listing dead letters", &error)),
            }
        }
    }

    /// The dead letter of this sequence, asked of the stream's leader; `None` when it is not there (any more).
    pub async fn letter(&self, sequence: u64) -> Result<Option<Letter>, BusError> {
        let doing = || format!("reading dead letter {sequence}");
        let stream = self.dead_stream().await?;
        // Sequences begin with 1, and the server calls this one a bad request.
        if sequence == 0 {
            return Ok(None);
        }
        match stream.get_raw_message(sequence).await {
            Ok(message) => Letter::read(message).map(Some),
            Err(error) => match error.kind() {
                RawMessageErrorKind::NoMessageFound => Ok(None),
                RawMessageErrorKind::InvalidSubject
                | RawMessageErrorKind::JetStream(_)
                | RawMessageErrorKind::Other => Err(BusError::unavailable(doing(), &error)),
            },
        }
    }

    /// Removes a dead letter; false when it was not there.
    pub async fn delete_letter(&self, sequence: u64) -> Result<bool, BusError> {
        let doing = || format!("deleting dead letter {sequence}");
        let stream = self.context.get_stream_no_info(DEAD).await;
        let stream = stream.map_err(|error| BusError::unavailable(doing(), &error))?;
        match stream.delete_message(sequence).await {
            Ok(deleted) => Ok(deleted),
            Err(error) => match error.kind() {
                // Its text says when it is not there, its code does not; looking does, with a request that workers may
                // make too.
                DeleteMessageErrorKind::JetStream(_) => match stream.direct_get(sequence).await {
                    Ok(_) => Err(BusError::new(BusErrorKind::Refused, doing(), &error)),
                    Err(absent) if absent.kind() == DirectGetErrorKind::NotFound => Ok(false),
                    Err(unread) => Err(BusError::unavailable(doing(), &unread)),
                },
                DeleteMessageErrorKind::Request | DeleteMessageErrorKind::TimedOut => {
                    Err(BusError::unavailable(doing(), &error))
                }
            },
        }
    }

    /// # Errors
    /// `Missing`: there is no stream of dead letters.
    pub async fn expect_letters(&self) -> Result<(), BusError> {
        self.dead_stream().await.map(drop)
    }

    async fn dead_stream(&self) -> Result<stream::Stream, BusError> {
        self.context.get_stream(DEAD).await.map_err(|error| {
            let kind = if is_missing(&error.kind()) { BusErrorKind::Missing } else { BusErrorKind::Unavailable };
            BusError::new(kind, "stream DEAD", &error)
        })
    }
}
