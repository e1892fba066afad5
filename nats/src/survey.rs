//! Looking at what the stream announces, beside the durable consumers: nothing is delivered by it.

use async_nats::jetstream::stream::DirectGetErrorKind;
use bytes::Bytes;
use common::unit::Unit;
use jiff::Timestamp;

use crate::connection::{Bus, BusError, BusErrorKind};
use crate::reader::StoredMessage;
use crate::subject::{Lane, MarkerSubject};
use crate::topology::{MARKERS, backfill_consumer};

/// A survey that lost messages on the way begins anew this often.
const ATTEMPTS: u32 = 3;

/// The newest message of a unit on one of its subjects.
#[derive(Debug, Clone)]
pub struct StreamMarker {
    pub subject: MarkerSubject,
    pub sequence: u64,
    pub stored_at: Timestamp,
    pub payload: Bytes,
}

impl Bus {
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
        let lanes = vec!["marker.ready.>".to_owned(), "marker.backfill.>".to_owned()];
        self.last_per_subject(MARKERS, lanes, |message| match MarkerSubject::parse(&message.subject) {
            Ok(subject) => visit(StreamMarker {
                subject,
                sequence: message.sequence,
                stored_at: message.stored_at,
                payload: message.payload,
            }),
            Err(error) => tracing::warn!(%error, subject = message.subject, "not a marker's subject"),
        })
        .await
    }

    /// The newest message of one unit, from whichever of its two subjects has it.
    pub async fn current_marker(&self, unit: &Unit) -> Result<Option<StreamMarker>, BusError> {
        let subjects = [false, true].map(|backfill| MarkerSubject::announcement(unit, backfill));
        let (ready, backfill) = futures::try_join!(self.last(&subjects[0]), self.last(&subjects[1]))?;
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

    /// The sequence of the last replay of a unit to a destination of which it is known that it is settled; 0 for none.
    ///
    /// Part of the id of the next one: what still waits is not sent twice, what is done may be sent again.
    pub async fn settled_replay(&self, destination: &str, unit: &Unit) -> Result<u64, BusError> {
        let doing = || format!("replays of {unit} to {destination}");
        let subject = format!("marker.replay.{destination}.{}", unit.subject_tokens());
        let settled_up_to = self.settled_up_to(destination).await?;
        let stream = self.context.get_stream_no_info(MARKERS).await;
        let stream = stream.map_err(|error| BusError::unavailable(doing(), &error))?;
        let mut last = 0;
        // The stream keeps ten messages a subject.
        loop {
            match stream.direct_get_next_for_subject(&subject, Some(last + 1)).await {
                Ok(message) if message.sequence <= settled_up_to => last = message.sequence,
                Ok(_) => return Ok(last),
                Err(error) if error.kind() == DirectGetErrorKind::NotFound => return Ok(last),
                Err(error) => return Err(BusError::unavailable(doing(), &error)),
            }
        }
    }

    /// Whether every replay and backfill marker up to this sequence is settled at the destination.
    pub async fn replays_settled(&self, destination: &str, sequence: u64) -> Result<bool, BusError> {
        Ok(self.settled_up_to(destination).await? >= sequence)
    }

    /// Up to which sequence the destination's replays and backfill markers are settled; all, when nothing is open.
    async fn settled_up_to(&self, destination: &str) -> Result<u64, BusError> {
        let consumer = self.durable(&backfill_consumer(destination)).await?;
        let info = consumer.cached_info();
        let idle = info.num_pending == 0 && info.num_ack_pending == 0;
        Ok(if idle { u64::MAX } else { info.ack_floor.stream_sequence })
    }

    /// Whether the stream of markers is there.
    pub async fn has_stream(&self) -> Result<bool, BusError> {
        match self.stream_state().await {
            Ok(_) => Ok(true),
            Err(error) if error.kind == BusErrorKind::Missing => Ok(false),
            Err(error) => Err(error),
        }
    }
}
