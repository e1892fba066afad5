//! How the earlier deliveries of a marker ended, as workers note it: see [`DeliveryRecord`].

use std::time::Duration;

use nats::{Delivery, DeliveryRecord};

use crate::worker::context::{InFlight, Worker};

/// How long reading or writing the record of a delivery may take: a worker that ends has 5 s for it and the nak.
const RECORD_TIMEOUT: Duration = Duration::from_secs(2);
const READS_MAX: u32 = 3;
/// Between them: a stream without a leader is answered for at once, and has one soon.
const READ_PAUSE: Duration = Duration::from_secs(1);

impl Worker {
    /// How the earlier deliveries ended. `None`: it cannot be read now, so nothing may be concluded from it.
    pub(super) async fn read_record(&self, delivery: &Delivery) -> Option<DeliveryRecord> {
        for read in 1..=READS_MAX {
            if let Some(record) = self.read_record_once(delivery).await {
                return Some(record);
            }
            if read < READS_MAX {
                tokio::time::sleep(READ_PAUSE).await;
            }
        }
        tracing::warn!("how earlier deliveries ended is not known; this one is not taken for one of a crash loop");
        None
    }

    async fn read_record_once(&self, delivery: &Delivery) -> Option<DeliveryRecord> {
        match tokio::time::timeout(RECORD_TIMEOUT, self.bus.delivery_record(delivery)).await {
            Ok(Ok(record)) => return Some(record),
            Ok(Err(error)) => tracing::debug!(%error, "how earlier deliveries ended"),
            Err(_) => tracing::debug!("how earlier deliveries ended: no answer"),
        }
        None
    }

    /// Notes how this delivery ends, before it does: the worker that has the next one must find it. Where the earlier ends
    /// are not known, they are read again, and nothing is written in their place.
    pub(super) async fn record_end(
        &self,
        in_flight: &InFlight<'_>,
        add: impl FnOnce(DeliveryRecord) -> DeliveryRecord,
    ) {
        let delivery = &in_flight.leased.delivery;
        let known = match in_flight.record {
            Some(record) => Some(record),
            None => self.read_record_once(delivery).await,
        };
        let Some(record) = known else {
            tracing::warn!("the end of this delivery is not noted: how earlier ones ended is not known");
            return;
        };
        match tokio::time::timeout(RECORD_TIMEOUT, self.bus.put_delivery_record(delivery, add(record))).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the end of this delivery is not noted"),
            Err(_) => tracing::warn!("the end of this delivery is not noted: no answer"),
        }
    }
}
