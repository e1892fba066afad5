//! How far a destination is, as the server sees it.

use async_nats::jetstream::consumer::Info;
use async_nats::jetstream::stream::DirectGetErrorKind;
use bytes::Bytes;
use jiff::Timestamp;

use crate::connection::{Bus, BusError, BusErrorKind};
use crate::topology::{MARKERS, backfill_consumer, ready_consumer};

/// Both consumers of a destination together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DestinationProgress {
    /// Markers not delivered yet.
    pub pending: u64,
    /// Markers delivered and not settled: in a worker's hands, parked for a retry, or with a worker that died.
    pub unsettled: u64,
    pub paused: bool,
    /// When the oldest marker that is not finished was stored.
    pub oldest_unfinished: Option<Timestamp>,
}

impl DestinationProgress {
    pub fn is_drained(&self) -> bool {
        self.pending == 0 && self.unsettled == 0
    }
}

/// What the stream of markers holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamState {
    pub messages: u64,
    pub bytes: u64,
}

impl Bus {
    pub async fn destination_progress(&self, destination: &str) -> Result<DestinationProgress, BusError> {
        let mut progress = DestinationProgress::default();
        for name in [ready_consumer(destination), backfill_consumer(destination)] {
            let consumer = self.durable(&name).await?;
            let info = consumer.cached_info();
            progress.pending += info.num_pending;
            progress.unsettled += info.num_ack_pending as u64;
            progress.paused |= info.paused;
            let oldest = self.oldest_unfinished(info).await?;
            progress.oldest_unfinished = [progress.oldest_unfinished, oldest].into_iter().flatten().min();
        }
        Ok(progress)
    }

    /// The first message after the ack floor is the oldest unfinished one: everything below it is settled.
    async fn oldest_unfinished(&self, info: &Info) -> Result<Option<Timestamp>, BusError> {
        if info.num_pending == 0 && info.num_ack_pending == 0 {
            return Ok(None);
        }
        let doing = || "the oldest unfinished marker".to_owned();
        let stream = self.context.get_stream_no_info(MARKERS).await;
        let stream = stream.map_err(|error| BusError::unavailable(doing(), &error))?;
        let mut oldest = None;
        for filter in &info.config.filter_subjects {
            let after = info.ack_floor.stream_sequence + 1;
            match stream.direct_get_next_for_subject(filter, Some(after)).await {
                Ok(message) => {
                    let at = Timestamp::from_nanosecond(message.time.unix_timestamp_nanos()).ok();
                    oldest = [oldest, at].into_iter().flatten().min();
                }
                Err(error) if error.kind() == DirectGetErrorKind::NotFound => {}
                Err(error) => return Err(BusError::unavailable(doing(), &error)),
            }
        }
        Ok(oldest)
    }

    /// The markers that were not delivered to a destination yet, oldest first, at most `count_max`.
    ///
    /// Reads the stream beside the consumers, so nothing is delivered by it.
    pub async fn pending_markers(&self, destination: &str, count_max: usize) -> Result<Vec<(String, Bytes)>, BusError> {
        let doing = || "listing pending markers".to_owned();
        let stream = self.context.get_stream_no_info(MARKERS).await;
        let stream = stream.map_err(|error| BusError::unavailable(doing(), &error))?;
        let mut pending = Vec::new();
        for name in [ready_consumer(destination), backfill_consumer(destination)] {
            let consumer = self.durable(&name).await?;
            let info = consumer.cached_info();
            for filter in &info.config.filter_subjects {
                let mut next = info.delivered.stream_sequence + 1;
                while pending.len() < count_max {
                    match stream.direct_get_next_for_subject(filter, Some(next)).await {
                        Ok(message) => {
                            next = message.sequence + 1;
                            pending.push((message.subject.to_string(), message.payload));
                        }
                        Err(error) if error.kind() == DirectGetErrorKind::NotFound => break,
                        Err(error) => return Err(BusError::unavailable(doing(), &error)),
                    }
                }
            }
        }
        Ok(pending)
    }

    pub async fn stream_state(&self) -> Result<StreamState, BusError> {
        let stream = self.context.get_stream(MARKERS).await.map_err(|error| {
            let missing = crate::topology::is_missing(&error.kind());
            let kind = if missing { BusErrorKind::Missing } else { BusErrorKind::Unavailable };
            BusError::new(kind, "stream MARKERS", &error)
        })?;
        let state = &stream.cached_info().state;
        Ok(StreamState { messages: state.messages, bytes: state.bytes })
    }
}
