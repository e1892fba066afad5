//! How far a destination is, as the server sees it.

use async_nats::jetstream::consumer::Info;
use async_nats::jetstream::stream::DirectGetErrorKind;
use bytes::Bytes;
use jiff::Timestamp;

use crate::connection::{Bus, BusError, BusErrorKind};
use crate::stream_names::{MARKERS, REPLAYS};
use crate::topology::{LaneConsumer, lanes};

/// All consumers of a destination together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DestinationProgress {
    /// Markers not delivered yet.
    pub pending: u64,
    /// Markers delivered and not acknowledged: with a worker, waiting for a retry, or with a worker that died.
    pub unacknowledged: u64,
    pub paused: bool,
    /// When the oldest marker that is not finished was stored.
    pub oldest_unfinished: Option<Timestamp>,
}

impl DestinationProgress {
    pub fn is_drained(&self) -> bool {
        self.pending == 0 && self.unacknowledged == 0
    }
}

/// The stream of markers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamState {
    pub created_at: Timestamp,
    /// Subjects that have messages: at least as many as the units it announces.
    pub subjects: u64,
}

/// A message that waits for a destination.
#[derive(Debug, Clone)]
pub struct PendingMarker {
    pub subject: String,
    pub stored_at: Timestamp,
    pub payload: Bytes,
}

/// Which messages the stream of replays holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplaysState {
    pub first_sequence: u64,
    pub last_sequence: u64,
    /// When the oldest that waits was sent; `None` when none waits.
    pub oldest: Option<Timestamp>,
}

impl Bus {
    pub async fn destination_progress(&self, destination: &str) -> Result<DestinationProgress, BusError> {
        let mut progress = DestinationProgress::default();
        for lane in lanes(destination) {
            let consumer = self.durable(&lane).await?;
            let info = consumer.cached_info();
            progress.pending += info.num_pending;
            progress.unacknowledged += info.num_ack_pending as u64;
            progress.paused |= info.paused;
            let oldest = self.oldest_unfinished(&lane, info).await?;
            progress.oldest_unfinished = [progress.oldest_unfinished, oldest].into_iter().flatten().min();
        }
        Ok(progress)
    }

    /// The first message after the ack floor is the oldest unfinished one: everything below it is acknowledged.
    async fn oldest_unfinished(&self, lane: &LaneConsumer, info: &Info) -> Result<Option<Timestamp>, BusError> {
        if info.num_pending == 0 && info.num_ack_pending == 0 {
            return Ok(None);
        }
        let doing = || "the oldest unfinished marker".to_owned();
        let stream = self.context.get_stream_no_info(lane.stream).await;
        let stream = stream.map_err(|error| BusError::unavailable(doing(), &error))?;
        let after = info.ack_floor.stream_sequence + 1;
        match stream.direct_get_next_for_subject(&lane.filter, Some(after)).await {
            Ok(message) => Ok(Timestamp::from_nanosecond(message.time.unix_timestamp_nanos()).ok()),
            Err(error) if error.kind() == DirectGetErrorKind::NotFound => Ok(None),
            Err(error) => Err(BusError::unavailable(doing(), &error)),
        }
    }

    /// The markers that were not delivered to a destination yet, oldest first, at most `count_max`: all that the streams have
    /// where its consumers are not there yet.
    ///
    /// Reads the stream beside the consumers, so nothing is delivered by it.
    pub async fn pending_markers(&self, destination: &str, count_max: usize) -> Result<Vec<PendingMarker>, BusError> {
        let doing = || "listing pending markers".to_owned();
        let mut pending = Vec::new();
        for lane in lanes(destination) {
            let Some(stream) = self.stream(lane.stream).await? else { continue };
            let mut next = match self.durable(&lane).await {
                Ok(consumer) => consumer.cached_info().delivered.stream_sequence + 1,
                Err(error) if error.kind == BusErrorKind::Missing => 1,
                Err(error) => return Err(error),
            };
            while pending.len() < count_max {
                match stream.direct_get_next_for_subject(&lane.filter, Some(next)).await {
                    Ok(message) => {
                        next = message.sequence + 1;
                        let stored_at = Timestamp::from_nanosecond(message.time.unix_timestamp_nanos());
                        pending.push(PendingMarker {
                            subject: message.subject.to_string(),
                            stored_at: stored_at.unwrap_or_default(),
                            payload: message.payload,
                        });
                    }
                    Err(error) if error.kind() == DirectGetErrorKind::NotFound => break,
                    Err(error) => return Err(BusError::unavailable(doing(), &error)),
                }
            }
        }
        Ok(pending)
    }

    /// # Errors
    /// `Missing`: there is no stream of markers.
    pub async fn stream_state(&self) -> Result<StreamState, BusError> {
        let missing = || BusError::plain(BusErrorKind::Missing, "stream MARKERS", "it is not there");
        let stream = self.stream(MARKERS).await?.ok_or_else(missing)?;
        let info = stream.cached_info();
        let created_at = Timestamp::from_nanosecond(info.created.unix_timestamp_nanos()).unwrap_or_default();
        Ok(StreamState { created_at, subjects: info.state.subjects_count })
    }

    /// `None` without a stream of replays.
    pub async fn replays_state(&self) -> Result<Option<ReplaysState>, BusError> {
        Ok(self.stream(REPLAYS).await?.map(|stream| {
            let state = &stream.cached_info().state;
            let oldest = Timestamp::from_nanosecond(state.first_timestamp.unix_timestamp_nanos()).ok();
            ReplaysState {
                first_sequence: state.first_sequence,
                last_sequence: state.last_sequence,
                oldest: oldest.filter(|_| state.messages > 0),
            }
        }))
    }
}
