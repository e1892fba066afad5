//! Makes dead letters of markers that the server gave up on: every `puller run` takes part.

use std::sync::Arc;
use std::time::Duration;

use common::backoff::{Backoff, Growth};
use nats::{BusError, BusErrorKind, MarkerSubject, Sweeper, Swept, within};
use tokio_util::sync::CancellationToken;

use crate::cli::context::Shared;
use crate::clickhouse::audit_log::{AuditEntry, AuditLog};
use crate::error::work::{ErrorClass, WorkError};
use crate::worker::runner::OPEN_MAX;

/// Nothing that anybody waits for.
const RETRY: Backoff = Backoff {
    initial: Duration::from_secs(1),
    growth: Growth::Exponential { factor: 2.0 },
    max: Duration::from_secs(60),
};

/// How long one advisory may take: the pull, some reads, the letter, and the ack, which is tried for a minute.
const SWEEP_MAX: Duration = Duration::from_secs(180);

/// Sweeps until `stop`.
pub(crate) async fn run(shared: Arc<Shared>, stop: CancellationToken) {
    stop.run_until_cancelled(sweep(&shared)).await;
}

async fn sweep(shared: &Shared) {
    let mut failures: u32 = 0;
    loop {
        let error = match within(OPEN_MAX, "opening the consumer of advisories", open(shared)).await {
            Ok(sweeper) => serve(shared, &sweeper, &mut failures).await,
            Err(error) => error,
        };
        failures = failures.saturating_add(1);
        // One that passes is not worth a line at this level.
        if failures > 3 {
            tracing::warn!(%error, "deliveries that run out at the server are not looked after");
        } else {
            tracing::debug!(%error, "sweeping");
        }
        tokio::time::sleep(RETRY.delay(failures)).await;
    }
}

async fn open(shared: &Shared) -> Result<Sweeper, BusError> {
    match shared.bus.sweeper().await {
        Err(error) if error.kind == BusErrorKind::Missing && shared.config.nats.manage => {
            shared.bus.create_sweeper().await?;
            shared.bus.sweeper().await
        }
        found => found,
    }
}

/// Until the queue fails.
async fn serve(shared: &Shared, sweeper: &Sweeper, failures: &mut u32) -> BusError {
    let class = ErrorClass::Exhausted.as_str();
    let explain = |deliveries| WorkError::Exhausted { deliveries, lost: deliveries }.to_string();
    loop {
        match within(SWEEP_MAX, "sweeping", sweeper.next(class, explain)).await {
            Ok(None) => {}
            Ok(Some(Swept::Stored { destination, subject, stream_sequence, deliveries })) => {
                tracing::error!(destination, subject, stream_sequence, deliveries, class, "dead letter");
                let text = explain(deliveries);
                let entry = AuditEntry {
                    destination: &destination,
                    unit: MarkerSubject::parse(&subject).map(|subject| subject.unit).ok(),
                    payload: &[],
                    stream_sequence,
                    attempt: deliveries,
                    outcome: "dead_letter",
                    class,
                    text: &text,
                };
                record(shared, &entry).await;
            }
            Ok(Some(Swept::Gone { destination, stream_sequence })) => {
                tracing::warn!(
                    destination,
                    stream_sequence,
                    "the deliveries of a marker ran out, and newer revisions have pushed it out of the stream"
                );
            }
            Ok(Some(Swept::Ignored { why })) => tracing::warn!(why, "an advisory is left alone"),
            Err(error) => return error,
        }
        *failures = 0;
    }
}

/// Not being able to write it down loses nothing: the letter says the same.
async fn record(shared: &Shared, entry: &AuditEntry<'_>) {
    let mut audit_log = AuditLog::new(&shared.config, &shared.worker_name);
    let recorded = match audit_log.open(entry.destination).await {
        Ok(()) => audit_log.record(entry).await,
        Err(failure) => Err(failure),
    };
    if let Err(failure) = recorded {
        tracing::warn!("the dead letter is not in ingest_log: {}", failure.text);
    }
}
