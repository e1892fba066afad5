//! Reading the last message of many subjects.

use std::collections::HashMap;
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use bytes::Bytes;
use common::unit::Unit;
use futures::StreamExt;
use jiff::Timestamp;

use crate::connection::{Bus, BusError, BusErrorKind};
use crate::subject::MarkerSubject;
use crate::topology::{MARKERS, is_missing};

/// Messages asked for at once.
const BATCH: usize = 500;
/// How long one batch may take. The consumer itself is forgotten by the server a minute after the last request.
const BATCH_TIMEOUT: Duration = Duration::from_secs(10);

/// The message that holds a unit's newest marker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CurrentMarker {
    pub unit: Unit,
    pub stream_sequence: u64,
    pub stored_at: Timestamp,
}

/// One message as it is stored.
pub(crate) struct StoredMessage {
    pub(crate) subject: String,
    pub(crate) sequence: u64,
    pub(crate) stored_at: Timestamp,
    pub(crate) payload: Bytes,
}

impl Bus {
    /// The newest marker of every unit, whichever lane it came on; `each` sees the payload, which is not kept.
    pub async fn current_markers(
        &self,
        mut each: impl FnMut(&CurrentMarker, &[u8]),
    ) -> Result<Vec<CurrentMarker>, BusError> {
        let mut newest: HashMap<Unit, CurrentMarker> = HashMap::new();
        let lanes = vec!["marker.ready.>".to_owned(), "marker.backfill.>".to_owned()];
        self.last_per_subject(MARKERS, lanes, |message| {
            let Ok(subject) = MarkerSubject::parse(&message.subject) else { return };
            let marker = CurrentMarker {
                unit: subject.unit.clone(),
                stream_sequence: message.sequence,
                stored_at: message.stored_at,
            };
            each(&marker, &message.payload);
            newest
                .entry(subject.unit)
                .and_modify(|known| {
                    if known.stream_sequence < marker.stream_sequence {
                        *known = marker.clone();
                    }
                })
                .or_insert(marker);
        })
        .await?;
        let mut markers: Vec<_> = newest.into_values().collect();
        markers.sort_by(|a, b| a.unit.cmp(&b.unit));
        Ok(markers)
    }

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
            ack_policy: AckPolicy::None,
            deliver_policy: DeliverPolicy::LastPerSubject,
            filter_subjects: filters,
            inactive_threshold: Duration::from_secs(60),
            ..pull::Config::default()
        };
        let consumer = found.create_consumer(reader).await.map_err(|error| unavailable(&error))?;
        // What is published from now on is not waited for.
        let mut left = consumer.cached_info().num_pending;
        while left > 0 {
            let batch = consumer.batch().max_messages(BATCH.min(usize::try_from(left).unwrap_or(BATCH)));
            let mut batch = batch.expires(BATCH_TIMEOUT).messages().await.map_err(|error| unavailable(&error))?;
            let before = left;
            while let Some(message) = batch.next().await {
                let message = message.map_err(|error| unavailable(error.as_ref()))?;
                let info = message.info().map_err(|error| unavailable(error.as_ref()))?;
                let stored_at = Timestamp::from_nanosecond(info.published.unix_timestamp_nanos()).unwrap_or_default();
                let sequence = info.stream_sequence;
                let (subject, payload) = (message.subject.to_string(), message.payload.clone());
                each(StoredMessage { subject, sequence, stored_at, payload });
                left = left.saturating_sub(1);
            }
            if left == before {
                return Err(BusError::plain(
                    BusErrorKind::Unavailable,
                    format!("reading stream {stream}"),
                    "it stopped in the middle",
                ));
            }
        }
        Ok(())
    }
}
