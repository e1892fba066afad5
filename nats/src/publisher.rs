//! Announcing a unit: stored on the stream exactly once, or known not to be.

use std::time::Duration;

use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::{DirectGetErrorKind, LastRawMessageErrorKind};
use async_nats::{StatusCode, header};
use common::checksum::Sha256Sum;
use common::marker::Marker;
use common::unit::Unit;
use jiff::Timestamp;

use crate::connection::{Bus, BusError, BusErrorKind};
use crate::reader::StoredMessage;
use crate::refusal::{is_overtaken, publish_error};
use crate::stream_names::MARKERS;
use crate::subject::MarkerSubject;
use crate::survey::Stamp;

/// How long an answer of a replica is waited for.
const DIRECT_GET_TIMEOUT: Duration = Duration::from_secs(5);
/// Most announcements of a unit that are looked through: the stream keeps ten on each of its two subjects.
const ANNOUNCEMENTS_MAX: usize = 40;

/// The newest marker of a unit on the stream.
#[derive(Debug, Clone, Default)]
pub struct Latest {
    /// `None` when the message there is not a marker this version reads.
    pub marker: Option<Marker>,
    /// The last marker on the other of its two subjects, as far as there is one. The newest names all that it names,
    /// unless two uploaders announced the unit at the same moment on one subject each.
    pub other_lane: Option<Marker>,
    /// Sequence of the last message on the ready subject; 0 when there is none.
    pub ready_sequence: u64,
    /// The same for the backfill subject.
    pub backfill_sequence: u64,
}

/// The announcement stored last on the stream.
#[derive(Debug, Clone)]
pub struct Newest {
    /// `None` when it is not a marker this version reads.
    pub marker: Option<Marker>,
    /// By the server's clock.
    pub stored_at: Timestamp,
}

impl Latest {
    /// `None` without a marker.
    pub fn stamp(&self) -> Option<Stamp> {
        let sequence = self.ready_sequence.max(self.backfill_sequence);
        self.marker.as_ref().map(|marker| Stamp { sequence, revision: marker.revision })
    }
}

/// The newest announcement of a unit, whatever its lane.
#[derive(Debug, Clone)]
pub struct Announcement {
    pub sequence: u64,
    /// `None` when the message is not a marker this version reads.
    pub marker: Option<Marker>,
}

/// How a publish ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Published {
    Stored {
        sequence: u64,
    },
    /// The subject's last message is this revision already: an earlier, ambiguous try arrived after all.
    AlreadyThere,
    /// Somebody else published another revision in the meantime: read the stream and decide again.
    Overtaken,
}

impl Bus {
    /// The newest marker of a unit, from whichever of its two subjects has it.
    ///
    /// Read from any replica, so it may be stale; the publish notices that by its expected sequence.
    pub async fn latest_marker(&self, unit: &Unit) -> Result<Latest, BusError> {
        let subjects = [false, true].map(|backfill| MarkerSubject::announcement(unit, backfill));
        let (ready, backfill) = futures::try_join!(self.last(MARKERS, &subjects[0]), self.last(MARKERS, &subjects[1]))?;
        let sequence = |message: &Option<StoredMessage>| message.as_ref().map_or(0, |message| message.sequence);
        let (ready_sequence, backfill_sequence) = (sequence(&ready), sequence(&backfill));
        let (newest, other) = if ready_sequence > backfill_sequence { (ready, backfill) } else { (backfill, ready) };
        let marker = |message: Option<StoredMessage>| Marker::parse(&message?.payload).ok();
        Ok(Latest { marker: marker(newest), other_lane: marker(other), ready_sequence, backfill_sequence })
    }

    /// Whether the subject that a unit is not announced on now has got a message since `latest` was read: publishing is
    /// guarded by the sequence of its own subject only.
    pub async fn other_lane_moved(&self, unit: &Unit, backfill: bool, latest: &Latest) -> Result<bool, BusError> {
        let known = if backfill { latest.ready_sequence } else { latest.backfill_sequence };
        Ok(self.last_sequence_of(&MarkerSubject::announcement(unit, !backfill)).await? != known)
    }

    /// The announcement stored last, of whatever unit; `None` on a stream without any.
    pub async fn newest_announcement(&self) -> Result<Option<Newest>, BusError> {
        let lanes = ["marker.ready.>", "marker.backfill.>"].map(|lane| self.last_message_on_leader(lane));
        let newest = futures::future::try_join_all(lanes).await?.into_iter().flatten().max_by_key(|last| last.sequence);
        Ok(newest.map(|last| Newest { marker: Marker::parse(&last.payload).ok(), stored_at: last.stored_at }))
    }

    /// The newest announcement of a unit; `None` when there is none.
    ///
    /// Read from any replica, so it may be stale. The request goes without a subject in its name, which is a right that
    /// workers have.
    pub async fn newest_announcement_of(&self, unit: &Unit) -> Result<Option<Announcement>, BusError> {
        let tokens = unit.subject_tokens();
        self.announcement(format!("{{\"last_by_subj\":\"marker.*.{tokens}\"}}")).await
    }

    /// Whether a revision of a unit is among its announcements that the stream has.
    pub async fn is_announced(&self, unit: &Unit, revision: &Sha256Sum) -> Result<bool, BusError> {
        let tokens = unit.subject_tokens();
        let mut from = 1;
        for _ in 0..ANNOUNCEMENTS_MAX {
            let next = format!("{{\"seq\":{from},\"next_by_subj\":\"marker.*.{tokens}\"}}");
            let Some(Announcement { sequence, marker }) = self.announcement(next).await? else { return Ok(false) };
            if marker.is_some_and(|marker| marker.revision == *revision) {
                return Ok(true);
            }
            from = sequence + 1;
        }
        Ok(false)
    }

    /// The marker that a direct get of the stream asks for.
    async fn announcement(&self, request: String) -> Result<Option<Announcement>, BusError> {
        let doing = || format!("reading {MARKERS} by {request}");
        let payload = request.clone();
        let asked = async_nats::Request::new().payload(payload.into()).timeout(Some(DIRECT_GET_TIMEOUT));
        let answer = self.client.send_request(format!("$JS.API.DIRECT.GET.{MARKERS}"), asked).await;
        let answer = answer.map_err(|error| BusError::unavailable(doing(), &error))?;
        match answer.status {
            Some(StatusCode::NOT_FOUND) => return Ok(None),
            Some(status) if status != StatusCode::OK => {
                return Err(BusError::plain(
                    BusErrorKind::Unavailable,
                    doing(),
                    format!("the server answered {status}"),
                ));
            }
            Some(_) | None => {}
        }
        let sequence = answer.headers.as_ref().and_then(|headers| headers.get(header::NATS_SEQUENCE));
        let sequence = sequence.and_then(|sequence| sequence.as_str().parse().ok());
        let Some(sequence) = sequence else {
            return Err(BusError::plain(BusErrorKind::Unavailable, doing(), "the answer has no sequence"));
        };
        Ok(Some(Announcement { sequence, marker: Marker::parse(&answer.payload).ok() }))
    }

    pub(crate) async fn last(&self, stream: &str, subject: &str) -> Result<Option<StoredMessage>, BusError> {
        let doing = || format!("last message of {subject}");
        let stream = self.context.get_stream_no_info(stream).await;
        let stream = stream.map_err(|error| BusError::unavailable(doing(), &error))?;
        match stream.direct_get_last_for_subject(subject).await {
            Ok(message) => Ok(Some(StoredMessage::from(message))),
            Err(error) if error.kind() == DirectGetErrorKind::NotFound => Ok(None),
            Err(error) => Err(BusError::unavailable(doing(), &error)),
        }
    }

    /// Publishes a marker once.
    ///
    /// `expected_last` is the sequence of the last message on the subject (0: none). With it and the message id the
    /// server refuses a second copy; an answer that leaves doubt is resolved by reading the subject back from
    /// the stream's leader.
    ///
    /// # Errors
    /// `Unavailable`: no answer, and the read back did not show the marker. It may still arrive; publishing the same
    /// again is safe.
    pub async fn publish_marker(
        &self,
        subject: &str,
        revision: &Sha256Sum,
        payload: Vec<u8>,
        expected_last: u64,
    ) -> Result<Published, BusError> {
        // The id is compared across the whole stream, so it must hold the subject too.
        let id = format!("{subject}@{revision}");
        let published = self.publish_as(subject, revision, payload.clone(), expected_last, &id).await?;
        if published != Published::Overtaken || self.last_sequence_of(subject).await? != expected_last {
            return Ok(published);
        }
        // Nobody overtook us: the server took this for the copy of an older message. That is a unit whose content went
        // back to an earlier revision within the duplicate window, and it must be announced again.
        let id = format!("{id}@{expected_last}");
        self.publish_as(subject, revision, payload, expected_last, &id).await
    }

    /// Publishes a marker that the stream has lost, or that must come after a later one: the server may remember its
    /// message id from the last two days, so the id also says at which end of the stream it was missing.
    ///
    /// # Errors
    /// As [`Bus::publish_marker`].
    pub async fn republish_marker(
        &self,
        subject: &str,
        revision: &Sha256Sum,
        payload: Vec<u8>,
        expected_last: u64,
        stream_end: u64,
    ) -> Result<Published, BusError> {
        let id = format!("{subject}@{revision}@{stream_end}");
        self.publish_as(subject, revision, payload, expected_last, &id).await
    }

    async fn publish_as(
        &self,
        subject: &str,
        revision: &Sha256Sum,
        payload: Vec<u8>,
        expected_last: u64,
        id: &str,
    ) -> Result<Published, BusError> {
        let doing = || format!("publishing {subject}");
        let message = PublishMessage::build()
            .payload(payload.into())
            .message_id(id)
            .expected_last_subject_sequence(expected_last)
            .expected_stream(MARKERS);
        let sent = async { self.context.send_publish(subject.to_owned(), message).await?.await };
        // The library's own timeout covers the ack only, not a full command queue.
        let answer = tokio::time::timeout(Duration::from_secs(10), sent).await;
        let error = match answer {
            Ok(Ok(ack)) if !ack.duplicate => return Ok(Published::Stored { sequence: ack.sequence }),
            Ok(Ok(_)) => None,
            Ok(Err(error)) if is_overtaken(&error) => None,
            Ok(Err(error)) => Some(publish_error(MARKERS, doing(), &error)),
            Err(elapsed) => Some(BusError::unavailable(doing(), &elapsed)),
        };
        match (self.last_on_leader(subject).await, error) {
            // One that was there before is not this publish: a unit may be announced twice in the same revision.
            (Ok(Some((sequence, Some(found)))), _) if found == *revision && sequence > expected_last => {
                Ok(Published::AlreadyThere)
            }
            (Ok(_), None) => Ok(Published::Overtaken),
            (_, Some(error)) | (Err(error), None) => Err(error),
        }
    }

    async fn last_sequence_of(&self, subject: &str) -> Result<u64, BusError> {
        Ok(self.last_on_leader(subject).await?.map_or(0, |(sequence, _)| sequence))
    }

    /// Sequence and revision of the subject's last message, asked of the leader.
    async fn last_on_leader(&self, subject: &str) -> Result<Option<(u64, Option<Sha256Sum>)>, BusError> {
        let last = self.last_message_on_leader(subject).await?;
        Ok(last.map(|last| (last.sequence, Marker::parse(&last.payload).ok().map(|marker| marker.revision))))
    }

    async fn last_message_on_leader(&self, subject: &str) -> Result<Option<StoredMessage>, BusError> {
        let doing = || format!("reading back {subject}");
        let stream = self.context.get_stream_no_info(MARKERS).await;
        let stream = stream.map_err(|error| BusError::unavailable(doing(), &error))?;
        match stream.get_last_raw_message_by_subject(subject).await {
            Ok(message) => Ok(Some(StoredMessage::from(message))),
            Err(error) if matches!(error.kind(), LastRawMessageErrorKind::NoMessageFound) => Ok(None),
            Err(error) => Err(BusError::unavailable(doing(), &error)),
        }
    }
}
