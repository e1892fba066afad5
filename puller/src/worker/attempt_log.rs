//! Attempts as `ingest_log` has them.

use std::time::Duration;

use super::ending::Finished;
use crate::clickhouse::ledger::{Attempt, json_lines};
use crate::error::work::WorkError;
use crate::job::work::Work;
use crate::worker::context::{InFlight, Worker};
use crate::worker::destination::Destination;

impl Worker {
    /// Writes the attempt to `ingest_log`, where the destination has one.
    pub(super) async fn record(&self, in_flight: &InFlight<'_>, finished: &Finished<'_>) -> Result<(), WorkError> {
        let leased = in_flight.leased;
        let (Destination::ClickHouse(loader), Some(unit)) = (&self.destination, finished.unit) else { return Ok(()) };
        let (delivery, nothing) = (&leased.delivery, Work::default());
        let work = finished.result.as_ref().unwrap_or(&nothing);
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let error = finished.error();
        let attempt = Attempt {
            finished_at: common::clock::now(),
            started_at: finished.started_at,
            destination: &self.destination_name,
            unit,
            revision: finished.job.map(|job| job.revision.to_string()).unwrap_or_default(),
            marker_id: finished.job.map(|job| job.marker_id.as_str()).unwrap_or_default(),
            stream_sequence: delivery.stream_sequence,
            // Of a crash loop the deliveries are what counts.
            attempt: match finished.result {
                Err(WorkError::Exhausted { deliveries, .. }) => *deliveries,
                _ => in_flight.attempt(),
            },
            worker: &self.name,
            outcome: finished.ending().as_str(),
            error_class: finished.class(),
            error: &error,
            archives: finished.job.map_or(0, |job| job.objects.len() as u64),
            archives_loaded: work.loaded,
            archives_skipped: work.skipped,
            archives_failed: work.faults.len() as u64,
            rows: work.rows,
            bytes: work.bytes,
            fetch_ms: ms(work.times.fetch),
            decode_ms: ms(work.times.decode),
            insert_ms: ms(work.times.insert),
            read_back_ms: ms(work.times.read_back),
            trace_id: "",
        };
        Ok(loader.statements.record_attempts(json_lines(&[attempt]), &leased.lease.activity).await?)
    }
}
