//! Reading what is announced of all units, through consumers that are there already.
//!
//! The settings of a consumer may name any subject of the account for it to deliver to. So whoever may create one could
//! have stored messages sent where he may not publish himself, and the uploader has no such right. The readers are made
//! by whoever makes the streams; reading needs only to set one of them back to the start and to pull from it.

use std::collections::HashMap;
use std::time::Duration;

use async_nats::header;
use common::backoff::{Backoff, Growth};

use crate::connection::{Bus, BusError, BusErrorKind};
use crate::pull::{Ask, Pull};
use crate::stream_names::MARKERS;
use crate::topology::READERS;

/// How often reading begins anew because another process used the same reader meanwhile.
const ATTEMPTS: u32 = 10;
const BETWEEN_ATTEMPTS: Backoff = Backoff {
    initial: Duration::from_millis(200),
    growth: Growth::Exponential { factor: 2.0 },
    max: Duration::from_secs(5),
};
/// Messages asked for at once: some hundred bytes of headers each.
const BATCH: usize = 1000;

/// The newest message on a subject, without its payload.
#[derive(Debug, Clone)]
pub(crate) struct Announced {
    pub(crate) subject: String,
    pub(crate) sequence: u64,
    /// Its `Nats-Msg-Id`.
    pub(crate) message_id: Option<String>,
}

impl Bus {
    /// The newest message of every ready and backfill subject, in the order of the stream. `heard` is called at each answer
    /// and message of the server.
    ///
    /// # Errors
    /// `Missing`: there is no stream, or no reader.
    pub(crate) async fn announced(&self, heard: impl Fn()) -> Result<Vec<Announced>, BusError> {
        for attempt in 1..=ATTEMPTS {
            // At random, so that two that disturbed each other are likely to part.
            let number = rand::random_range(1..=READERS);
            if let Some(newest) = self.read(&format!("reader-{number}"), &heard).await? {
                let mut newest: Vec<Announced> = newest.into_values().collect();
                newest.sort_unstable_by_key(|message| message.sequence);
                return Ok(newest);
            }
            tracing::debug!(attempt, "reader-{number} is used by another process, too");
            tokio::time::sleep(BETWEEN_ATTEMPTS.delay(attempt)).await;
        }
        let why = format!("others read it at the same time, {ATTEMPTS} times");
        Err(BusError::plain(BusErrorKind::Unavailable, format!("reading stream {MARKERS}"), why))
    }

    /// Reads everything with one reader; `None` if another process used it meanwhile.
    async fn read(&self, reader: &str, heard: &impl Fn()) -> Result<Option<HashMap<String, Announced>>, BusError> {
        let unavailable = |error: &dyn std::error::Error| {
            BusError::unavailable(format!("reading stream {MARKERS} with {reader}"), error)
        };
        let mut consumer = self.consumer_on(MARKERS, reader).await?;
        heard();
        consumer.reset(Some(1)).await.map_err(|error| unavailable(&error))?;
        heard();
        let mut newest = HashMap::new();
        let mut left = consumer.cached_info().num_pending;
        let mut read = 0;
        while left > 0 {
            let before = read;
            let mut pull = Pull::open(self, &consumer, Ask::Unleased(BATCH)).await?;
            while let Some(message) = pull.next().await? {
                heard();
                let info = message.info().map_err(|error| unavailable(error.as_ref()))?;
                // The server counts from one since the reader was set back, whoever is sent the messages.
                if info.consumer_sequence != read + 1 {
                    return Ok(None);
                }
                (read, left) = (info.consumer_sequence, info.pending);
                let message_id = message.headers.as_ref().and_then(|headers| headers.get(header::NATS_MESSAGE_ID));
                let (subject, sequence) = (message.subject.to_string(), info.stream_sequence);
                let message_id = message_id.map(ToString::to_string);
                newest.insert(subject.clone(), Announced { subject, sequence, message_id });
            }
            if read == before {
                // The rest went to somebody else.
                return Ok(None);
            }
        }
        Ok(Some(newest))
    }
}
