//! Looking at what the stream announces, beside the durable consumers: nothing is delivered by it.

use std::collections::HashMap;

use async_nats::jetstream::stream::DirectGetErrorKind;
use bytes::Bytes;
use common::checksum::Sha256Sum;
use common::unit::Unit;
use futures::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::announced::Announced;
use crate::connection::{Bus, BusError, BusErrorKind};
use crate::reader::StoredMessage;
use crate::stream_names::{MARKERS, REPLAYS, TASKS};
use crate::subject::{Lane, MarkerSubject};
use crate::topology::{is_missing, replay_lane};

/// A survey that lost messages on the way begins anew this often.
const ATTEMPTS: u32 = 3;
/// Messages a survey asks for at the same time; each has at most 512 KiB.
const SURVEYED_AT_ONCE: usize = 32;

/// The newest message of a unit on one of its subjects.
#[derive(Debug, Clone)]
pub struct StreamMarker {
    pub subject: MarkerSubject,
    pub sequence: u64,
    pub stored_at: Timestamp,
    pub payload: Bytes,
}

/// Which message of the stream is the newest of a unit, known without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    pub sequence: u64,
    pub revision: Sha256Sum,
}

/// The revision in a message id, `<subject>@<revision>[@<sequence>]`.
fn revision_of(message_id: &str) -> Option<Sha256Sum> {
    message_id.split('@').nth(1)?.parse().ok()
}

impl Bus {
    /// The newest message of every unit, for the size of its headers: a unit of thousands of archives costs no more
    /// than one of a single archive. Units whose message does not say its revision are left out. Calls `heard` at each
    /// answer and message of the server: a large stream over a slow link takes minutes.
    ///
    /// # Errors
    /// `Missing`: there is no stream, or nobody made the consumers that read it.
    pub async fn stamps(&self, heard: impl Fn()) -> Result<HashMap<Unit, Stamp>, BusError> {
        let mut newest: HashMap<Unit, (u64, Option<Sha256Sum>)> = HashMap::new();
        // In the order of the stream, so the later of a unit's two subjects is what stays.
        for message in self.announced(heard).await? {
            let Ok(subject) = MarkerSubject::parse(&message.subject) else { continue };
            newest.insert(subject.unit, (message.sequence, message.message_id.as_deref().and_then(revision_of)));
        }
        let stamp = |(unit, (sequence, revision))| Some((unit, Stamp { sequence, revision: revision? }));
        Ok(newest.into_iter().filter_map(stamp).collect())
    }

    /// Calls `visit` with the last message of every ready and backfill subject; a unit may have one of each, and the
    /// higher sequence is the newer. After an interruption all are visited again.
    ///
    /// # Errors
    /// `Missing`: there is no stream.
    pub async fn survey(&self, mut visit: impl FnMut(StreamMarker)) -> Result<(), BusError> {
        for attempt in 1.. {
            match self.survey_once(&mut visit).await {
                Err(error) if error.kind == BusErrorKind::Unavailable && attempt < ATTEMPTS => {
                    tracing::warn!(%error, "reading the stream again from the start");
                }
                ended => return ended,
            }
        }
        unreachable!("the loop returns at the last attempt")
    }

    async fn survey_once(&self, visit: &mut impl FnMut(StreamMarker)) -> Result<(), BusError> {
        let announced = self.announced(|| {}).await?;
        let mut messages = stream::iter(announced).map(|newest| self.whole(newest)).buffered(SURVEYED_AT_ONCE);
        while let Some(message) = messages.try_next().await? {
            // It was there a moment ago, and somebody removed it.
            let Some(message) = message else { continue };
            match MarkerSubject::parse(&message.subject) {
                Ok(subject) => visit(StreamMarker {
                    subject,
                    sequence: message.sequence,
                    stored_at: message.stored_at,
                    payload: message.payload,
                }),
                Err(error) => tracing::warn!(%error, subject = message.subject, "not a marker's subject"),
            }
        }
        Ok(())
    }

    /// The last message of a subject whose headers are known.
    async fn whole(&self, newest: Announced) -> Result<Option<StoredMessage>, BusError> {
        match self.last(MARKERS, &newest.subject).await? {
            Some(message) if message.sequence < newest.sequence => {
                let why = "the server that answered does not have the newest message yet";
                Err(BusError::plain(BusErrorKind::Unavailable, format!("last message of {}", newest.subject), why))
            }
            found => Ok(found),
        }
    }

    /// The newest message of one unit, from whichever of its two subjects has it.
    pub async fn current_marker(&self, unit: &Unit) -> Result<Option<StreamMarker>, BusError> {
        let subjects = [false, true].map(|backfill| MarkerSubject::announcement(unit, backfill));
        let (ready, backfill) = futures::try_join!(self.last(MARKERS, &subjects[0]), self.last(MARKERS, &subjects[1]))?;
        let marker = |last: StoredMessage, lane| StreamMarker {
            subject: MarkerSubject { lane, unit: unit.clone() },
            sequence: last.sequence,
            stored_at: last.stored_at,
            payload: last.payload,
        };
        let both = [ready.map(|last| marker(last, Lane::Ready)), backfill.map(|last| marker(last, Lane::Backfill))];
        Ok(both.into_iter().flatten().max_by_key(|marker| marker.sequence))
    }

    /// The sequence of the stream's last message, 0 for none; it outlives a purge.
    pub async fn last_sequence(&self) -> Result<u64, BusError> {
        let stream = self.context.get_stream(MARKERS).await;
        let stream = stream.map_err(|error| BusError::unavailable("stream MARKERS", &error))?;
        Ok(stream.cached_info().state.last_sequence)
    }

    /// Whether a replay is done at the destination, whatever else waits there.
    pub async fn replay_is_done(&self, destination: &str, sequence: u64) -> Result<bool, BusError> {
        let consumer = self.durable(&replay_lane(destination)).await?;
        let info = consumer.cached_info();
        if info.ack_floor.stream_sequence >= sequence {
            return Ok(true);
        }
        // A consumer counts a message a moment after the stream has stored it, so its counts alone prove nothing. The stream
        // deletes what is acknowledged. What was not delivered yet may be missing from a replica that is behind.
        let is_counted_done = info.num_pending == 0 && info.num_ack_pending == 0;
        let may_be_done = is_counted_done || info.delivered.stream_sequence >= sequence;
        Ok(may_be_done && !self.has_replay(sequence).await?)
    }

    async fn has_replay(&self, sequence: u64) -> Result<bool, BusError> {
        let doing = || format!("looking for replay {sequence}");
        let stream = self.context.get_stream_no_info(REPLAYS).await;
        let stream = stream.map_err(|error| BusError::unavailable(doing(), &error))?;
        match stream.direct_get(sequence).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == DirectGetErrorKind::NotFound => Ok(false),
            Err(error) => Err(BusError::unavailable(doing(), &error)),
        }
    }

    /// Whether the stream of markers is there.
    pub async fn has_stream(&self) -> Result<bool, BusError> {
        match self.stream_state().await {
            Ok(_) => Ok(true),
            Err(error) if error.kind == BusErrorKind::Missing => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// # Errors
    /// `Missing`: the stream of tasks is not there. Reading a message of it could not tell that from a server that is
    /// away.
    pub async fn expect_tasks(&self) -> Result<(), BusError> {
        match self.context.get_stream(TASKS).await {
            Ok(_) => Ok(()),
            Err(error) if is_missing(&error.kind()) => {
                Err(BusError::new(BusErrorKind::Missing, "stream TASKS", &error))
            }
            Err(error) => Err(BusError::unavailable("stream TASKS", &error)),
        }
    }
}
