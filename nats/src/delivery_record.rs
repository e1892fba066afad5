//! How the earlier deliveries of a marker ended.
//!
//! The server counts deliveries, not failures: a delivery that a worker hands back at its orderly end counts as much as
//! one that failed. So a worker that hands one back, or lets it be retried, notes it in the stream `TASKS`, one small
//! message a delivered marker, the newest only. A marker that is loaded at its first delivery costs nothing.

use async_nats::jetstream::stream::{InfoError, LastRawMessageErrorKind, Stream};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::connection::{Bus, BusError, BusErrorKind};
use crate::delivery::Delivery;
use crate::stream_names::TASKS;
use crate::subject::unit_tokens;

/// How the deliveries of a marker to one destination ended, as far as a worker lived to note it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeliveryRecord {
    /// Attempts that failed.
    pub failed: u32,
    /// Deliveries that ended without an attempt of theirs having failed: at the worker's orderly end, or because a server
    /// was away.
    pub handed_back: u32,
}

impl DeliveryRecord {
    /// The record with one more attempt that failed.
    #[must_use]
    pub fn with_failure(self) -> Self {
        Self { failed: self.failed.saturating_add(1), ..self }
    }

    /// The record with one more delivery that was handed back.
    #[must_use]
    pub fn with_hand_back(self) -> Self {
        Self { handed_back: self.handed_back.saturating_add(1), ..self }
    }

    /// Of the deliveries before the one with this number (from 1), those whose end nobody noted: the worker crashed, or
    /// lost its lease.
    pub fn lost(self, delivery: u32) -> u32 {
        delivery.saturating_sub(1).saturating_sub(self.failed).saturating_sub(self.handed_back)
    }
}

/// The record as it is stored.
#[derive(Serialize, Deserialize)]
struct Stored {
    /// Of the marker: a stream that was made anew gives the same sequence to another one.
    stored_at: Timestamp,
    #[serde(flatten)]
    record: DeliveryRecord,
}

fn subject(delivery: &Delivery) -> String {
    let Delivery { consumer, stream_sequence, .. } = delivery;
    format!("task.deliveries-{consumer}-{stream_sequence}.{}", unit_tokens(&delivery.subject))
}

impl Bus {
    /// What is noted of the earlier deliveries; nothing of a marker that is delivered for the first time.
    ///
    /// # Errors
    /// It cannot be told. That is not the same as nothing noted, which is what a crash loop leaves.
    pub async fn delivery_record(&self, delivery: &Delivery) -> Result<DeliveryRecord, BusError> {
        if delivery.attempt <= 1 {
            return Ok(DeliveryRecord::default());
        }
        let subject = subject(delivery);
        let doing = || format!("reading {subject}");
        let stream = self.context.get_stream_no_info(TASKS).await;
        let stream = stream.map_err(|error| BusError::unavailable(doing(), &error))?;
        // From the leader: what the former worker noted a moment ago may not have reached the server that would answer a
        // direct get. The client's own time-out bounds it.
        match stream.get_last_raw_message_by_subject(subject.as_str()).await {
            Ok(message) => {
                let stored = serde_json::from_slice::<Stored>(&message.payload);
                let stored = stored.map_err(|error| BusError::new(BusErrorKind::Refused, doing(), &error))?;
                Ok(if stored.stored_at == delivery.stored_at { stored.record } else { DeliveryRecord::default() })
            }
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => {
                if drops_messages(&stream).await.map_err(|error| BusError::unavailable(doing(), &error))? {
                    let full = Dropped(TASKS);
                    return Err(BusError::new(BusErrorKind::Missing, doing(), &full));
                }
                Ok(DeliveryRecord::default())
            }
            Err(error) => Err(BusError::unavailable(doing(), &error)),
        }
    }

    pub async fn put_delivery_record(&self, delivery: &Delivery, record: DeliveryRecord) -> Result<(), BusError> {
        self.put(subject(delivery), &Stored { stored_at: delivery.stored_at, record }).await
    }
}

/// Whether the stream is so full that older messages make room for newer ones, as during a large replay.
async fn drops_messages(stream: &Stream<()>) -> Result<bool, InfoError> {
    let info = stream.get_info().await?;
    let bytes_max = u64::try_from(info.config.max_bytes).unwrap_or(u64::MAX);
    Ok(info.state.bytes >= bytes_max - bytes_max / 10)
}

#[derive(Debug, thiserror::Error)]
#[error("nothing is noted, and stream {0} is full and drops its oldest messages: the note may have been one of them")]
struct Dropped(&'static str);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deliveries_whose_end_was_noted_are_not_lost() {
        let record = DeliveryRecord { failed: 2, handed_back: 20 };
        assert_eq!(record.lost(23), 0);
        assert_eq!(record.lost(30), 7);
        assert_eq!(DeliveryRecord::default().lost(1), 0);
        // Two workers may have noted the end of the same delivery.
        assert_eq!(record.lost(10), 0);
    }
}
