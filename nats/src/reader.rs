//! Reading streams beside the durable consumers: nothing is delivered by it.

use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::message::StreamMessage;
use bytes::Bytes;
use jiff::Timestamp;

use crate::connection::{Bus, BusError, BusErrorKind};
use crate::pull::{Ask, Pull};
use crate::stream_names::MARKERS;
use crate::topology::is_missing;

/// Messages asked for at once; each has at most 512 KiB.
const BATCH: usize = 64;
/// How long the server keeps the consumer of a reader that ended without a word.
const INACTIVE: Duration = Duration::from_secs(60);

/// One message as it is stored.
pub(crate) struct StoredMessage {
    pub(crate) subject: String,
    pub(crate) sequence: u64,
    pub(crate) stored_at: Timestamp,
    pub(crate) payload: Bytes,
}

impl From<StreamMessage> for StoredMessage {
    fn from(message: StreamMessage) -> Self {
        Self {
            subject: message.subject.to_string(),
            sequence: message.sequence,
            stored_at: Timestamp::from_nanosecond(message.time.unix_timestamp_nanos()).unwrap_or_default(),
            payload: message.payload,
        }
    }
}

impl Bus {
    /// The payload of a message of MARKERS; `None` when it is no longer there.
    pub async fn marker_payload(&self, sequence: u64) -> Result<Option<Bytes>, BusError> {
        use async_nats::jetstream::stream::DirectGetErrorKind;
        let doing = || format!("message {sequence} of {MARKERS}");
        let stream = self.context.get_stream_no_info(MARKERS).await;
        let stream = stream.map_err(|error| BusError::unavailable(doing(), &error))?;
        match stream.direct_get(sequence).await {
            Ok(message) => Ok(Some(message.payload)),
            Err(error) if error.kind() == DirectGetErrorKind::NotFound => Ok(None),
            Err(error) => Err(BusError::unavailable(doing(), &error)),
        }
    }

    /// Calls `each` with the last message of every subject that matches, in the order of the stream.
    ///
    /// # Errors
    /// `Unavailable` also where the server says nothing for some seconds, or the connection was made anew meanwhile:
    /// what it sent to the former one will not come.
    pub(crate) async fn last_per_subject(
        &self,
        stream: &str,
        filters: Vec<String>,
        mut each: impl FnMut(StoredMessage),
    ) -> Result<(), BusError> {
        let unavailable =
            |error: &dyn std::error::Error| BusError::unavailable(format!("reading stream {stream}"), error);
        let found = self.context.get_stream(stream).await.map_err(|error| {
            let kind = if is_missing(&error.kind()) { BusErrorKind::Missing } else { BusErrorKind::Unavailable };
            BusError::new(kind, format!("stream {stream}"), &error)
        })?;
        let reader = pull::Config {
            description: Some("reads the stream, for a moment".into()),
            ack_policy: AckPolicy::None,
            deliver_policy: DeliverPolicy::LastPerSubject,
            filter_subjects: filters,
            inactive_threshold: INACTIVE,
            memory_storage: true,
            num_replicas: 1,
            ..pull::Config::default()
        };
        let consumer = found.create_consumer(reader).await.map_err(|error| unavailable(&error))?;
        // What is published from now on is not waited for.
        let expected = consumer.cached_info().num_pending;
        let mut seen = 0;
        while seen < expected {
            let mut pull = Pull::open(self, &consumer, Ask::Unleased(BATCH)).await?;
            let before = seen;
            while let Some(message) = pull.next().await? {
                let info = message.info().map_err(|error| unavailable(error.as_ref()))?;
                let stored_at = Timestamp::from_nanosecond(info.published.unix_timestamp_nanos()).unwrap_or_default();
                let sequence = info.stream_sequence;
                let (subject, payload) = (message.subject.to_string(), message.payload.clone());
                each(StoredMessage { subject, sequence, stored_at, payload });
                seen += 1;
            }
            if seen == before {
                let why = format!("{seen} of {expected} messages came");
                return Err(BusError::plain(BusErrorKind::Unavailable, format!("reading stream {stream}"), why));
            }
        }
        if let Err(error) = found.delete_consumer(&consumer.cached_info().name).await {
            tracing::debug!(%error, "the server removes it by itself");
        }
        Ok(())
    }
}
