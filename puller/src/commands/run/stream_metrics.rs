//! How full the streams are, and what one that was lost announces no more, for `/metrics`.

use std::sync::Arc;
use std::time::Duration;

use common::config::Destination;
use nats::within;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::cli::context::Shared;
use crate::clickhouse::lost_stream;

const EVERY: Duration = Duration::from_secs(30);
/// How often the ledger is compared with the stream while units are lost.
const WHILE_LOST: Duration = Duration::from_secs(60);
/// The same after a comparison that failed.
const WHILE_UNKNOWN: Duration = Duration::from_secs(10);
/// The same while none are lost: it is a question about the whole ledger.
const WHILE_WHOLE: Duration = Duration::from_secs(3600);

/// Asks until `stop`.
pub(crate) async fn run(shared: Arc<Shared>, stop: CancellationToken) {
    let asking = async {
        loop {
            match within(EVERY, "asking how full the streams are", shared.bus.stream_usage()).await {
                Ok(usage) => usage.iter().for_each(|stream| shared.metrics.stream(stream)),
                // Whoever needs the server notices by itself.
                Err(error) => tracing::debug!(%error, "asking how full the streams are"),
            }
            tokio::time::sleep(EVERY).await;
        }
    };
    stop.run_until_cancelled(asking).await;
}

/// Compares a destination's ledger with the stream, for as long as it is polled: each time its consumers were opened, which
/// is when a stream may have been made anew, and until all that was lost is announced again.
pub(crate) async fn watch_for_lost_units(shared: &Shared, destination: &Destination, opened: &Notify) {
    // They may not be there, and the stream yet.
    drop(tokio::time::timeout(WHILE_UNKNOWN, opened.notified()).await);
    loop {
        let lost = lost_stream::say(&shared.bus, &shared.config, destination).await;
        if let Some(lost) = lost {
            shared.metrics.lost_units(&destination.name, lost.units);
        }
        let pause = match lost {
            None => WHILE_UNKNOWN,
            Some(lost) if lost.units > 0 && lost.in_bucket => WHILE_LOST,
            Some(_) => WHILE_WHOLE,
        };
        // Nobody need have opened them in this time.
        drop(tokio::time::timeout(pause, opened.notified()).await);
    }
}
