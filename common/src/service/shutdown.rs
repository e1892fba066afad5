//! SIGTERM and SIGINT: the first asks to drain, the second ends the process at once.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Exit status of a process that a second signal ended in mid-drain: 128 + SIGTERM, as a shell would report.
const FORCED: i32 = 143;

/// How long the uploader drains. What a slow link would take hours to finish the next run goes on with, as after a kill.
const DRAIN: Duration = Duration::from_secs(10);

/// How long the end of a process waits for threads that block.
pub const LEAVE: Duration = Duration::from_secs(1);

/// Ends when the token is cancelled and what was in flight then has had its time.
pub async fn overdue(token: CancellationToken) {
    token.cancelled().await;
    tokio::time::sleep(DRAIN).await;
}

/// Starts listening for signals; the token is cancelled at the first.
///
/// # Errors
/// The operating system refuses a signal handler.
pub fn on_signals() -> std::io::Result<CancellationToken> {
    let token = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let cancelled = token.clone();
    tokio::spawn(async move {
        // No time-out: there may be no signal at all.
        for forced in [false, true] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if forced {
                tracing::warn!("second signal, stopping at once; what is in flight will be delivered again");
                std::process::exit(FORCED);
            }
            // First: the line waits for whoever reads stderr.
            cancelled.cancel();
            tracing::info!("signal received, draining");
        }
    });
    Ok(token)
}
