//! How full the streams are, for `/metrics`.

use std::sync::Arc;
use std::time::Duration;

use nats::within;
use tokio_util::sync::CancellationToken;

use crate::service::Shared;

const EVERY: Duration = Duration::from_secs(30);

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
