//! One delivery of a marker, and its acknowledgement.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{Client, Request, RequestErrorKind, Subject};
use bytes::Bytes;
use common::backoff::Backoff;
use jiff::Timestamp;

use crate::connection::{Bus, BusError, BusErrorKind};
use crate::incarnation::OpenConsumer;
use crate::replay::ReplayOptions;

/// How long one confirmation is waited for.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(2);
/// How long an acknowledgement is tried: longer than a cluster takes to elect a leader.
const ACK_TIMEOUT: Duration = Duration::from_secs(60);

/// A marker handed to this worker, until it is acknowledged.
pub struct Delivery {
    pub subject: String,
    pub payload: Bytes,
    pub options: ReplayOptions,
    /// When the consumer was made that this was delivered by.
    pub(crate) consumer_created_at: Timestamp,
    /// Since when the destination is served; its consumers may have been made anew since.
    pub served_since: Timestamp,
    /// Deliveries of this message so far, this one included.
    pub attempt: u32,
    /// Sequence in the stream MARKERS.
    pub stream_sequence: u64,
    pub consumer: String,
    /// When the stream stored the message.
    pub stored_at: Timestamp,
    reply: Subject,
    client: Client,
    opened: Arc<OpenConsumer>,
}

impl Delivery {
    pub(crate) fn new(
        message: async_nats::jetstream::Message,
        opened: &Arc<OpenConsumer>,
        bus: &Bus,
    ) -> Result<Self, BusError> {
        let refused = |why: &str| BusError::plain(BusErrorKind::Refused, "reading a delivery", why);
        let info = message.info().map_err(|error| refused(&error.to_string()))?;
        let timestamp = |at: &async_nats::datetime::DateTime| {
            let at = Timestamp::from_nanosecond(at.unix_timestamp_nanos());
            at.map_err(|error| refused(&error.to_string()))
        };
        let stored_at = timestamp(&info.published)?;
        Ok(Self {
            attempt: u32::try_from(info.delivered).unwrap_or(1).max(1),
            stream_sequence: info.stream_sequence,
            consumer: info.consumer.to_owned(),
            stored_at,
            subject: message.subject.to_string(),
            payload: message.payload.clone(),
            consumer_created_at: opened.created_at,
            served_since: opened.served_since,
            options: ReplayOptions::from_headers(message.headers.as_ref()),
            reply: message.reply.clone().ok_or_else(|| refused("it has no reply subject"))?,
            client: bus.client.clone(),
            opened: Arc::clone(opened),
        })
    }

    /// Done. Returns when the server has confirmed it.
    pub async fn ack(&self) -> Result<(), AckError> {
        self.acknowledge(Bytes::from_static(b"+ACK")).await
    }

    /// To be delivered again after the delay. Always explicit: a plain nak comes back at once.
    pub async fn nak(&self, delay: Duration) -> Result<(), AckError> {
        self.acknowledge(format!("-NAK {{\"delay\":{}}}", delay.as_nanos()).into()).await
    }

    /// Never to be delivered again. Only after its dead letter is stored.
    pub async fn term(&self, reason: &str) -> Result<(), AckError> {
        let reason: String = reason.chars().filter(|c| !c.is_control()).take(200).collect();
        self.acknowledge(format!("+TERM {reason}").into()).await
    }

    /// Extends the lease by one ack_wait from now.
    pub(crate) async fn extend(&self) -> Result<(), AckError> {
        self.confirmed(Bytes::from_static(b"+WPI")).await
    }

    async fn acknowledge(&self, verb: Bytes) -> Result<(), AckError> {
        let tried = Backoff::RECONNECT.retry(
            || self.confirmed(verb.clone()),
            |error, attempt| {
                let passes = !matches!(error, AckError::Replaced);
                if passes {
                    tracing::debug!(%error, attempt, subject = self.subject, "acknowledging, trying again");
                }
                passes
            },
        );
        let given_up = |_| {
            let why = format!("the server did not confirm within {} s", ACK_TIMEOUT.as_secs());
            Err(AckError::Unconfirmed(why))
        };
        tokio::time::timeout(ACK_TIMEOUT, tried).await.unwrap_or_else(given_up)
    }

    /// Sends an acknowledgement and waits for the server's.
    ///
    /// async-nats' own `double_ack` takes any reply for a success, also "no responders" while a consumer has no leader;
    /// a confirmation is an empty reply, and `send_request` turns "no responders" into an error.
    async fn confirmed(&self, verb: Bytes) -> Result<(), AckError> {
        self.opened.is_same().await.map_err(|error| match error.kind {
            BusErrorKind::Refused => AckError::Replaced,
            BusErrorKind::Unavailable | BusErrorKind::Denied | BusErrorKind::Missing | BusErrorKind::Full => {
                AckError::Unconfirmed(error.to_string())
            }
        })?;
        let request = Request::new().payload(verb).timeout(Some(CONFIRM_TIMEOUT));
        let sent = self.client.send_request(self.reply.clone(), request);
        // The library's timeout does not cover the handing over of the request, which waits where its queue is full.
        let unconfirmed = |why: String| Err(AckError::Unconfirmed(why));
        match tokio::time::timeout(2 * CONFIRM_TIMEOUT, sent).await {
            Ok(Ok(reply)) if reply.payload.is_empty() => Ok(()),
            Ok(Ok(reply)) => unconfirmed(format!("unexpected reply of {} bytes", reply.payload.len())),
            Ok(Err(error)) => unconfirmed(match error.kind() {
                RequestErrorKind::NoResponders => "the consumer has no leader or is gone".into(),
                _ => error.to_string(),
            }),
            Err(_) => {
                unconfirmed("the request could not be handed to the connection, which is lost or congested".into())
            }
        }
    }

    /// Whether the message is still one of the consumer that has its name now; where that cannot be asked, yes.
    pub async fn is_current(&self) -> bool {
        !matches!(self.opened.is_same().await, Err(error) if error.kind == BusErrorKind::Refused)
    }

    /// Returns when the message is known to be of a stream that is gone, while another one has its name.
    pub(crate) async fn replaced(&self) {
        self.opened.replaced().await;
    }
}

/// Why a delivery was not acknowledged.
#[derive(Debug, thiserror::Error)]
pub enum AckError {
    /// It will be delivered again when its lease ends.
    #[error("acknowledgement not confirmed: {0}")]
    Unconfirmed(String),
    /// Nothing was sent: it would have acknowledged another message.
    #[error("not acknowledged: the stream was made anew since this was delivered, and it is for the new one to say")]
    Replaced,
}
