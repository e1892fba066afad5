//! The lease on a delivery, extended for as long as there is progress.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::delivery::{AckError, Delivery};

/// Signs of progress of one unit: bytes fetched, rows written. Cheap to bump from anywhere.
#[derive(Debug, Clone, Default)]
pub struct Activity(Arc<AtomicU64>);

impl Activity {
    pub fn bump(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits for what others hold, and will give back: that is no stall.
    pub async fn while_waiting<T>(&self, waiting: impl Future<Output = T>) -> T {
        const SIGN_EVERY: Duration = Duration::from_secs(1);
        let mut waiting = std::pin::pin!(waiting);
        loop {
            match tokio::time::timeout(SIGN_EVERY, &mut waiting).await {
                Ok(done) => return done,
                Err(_) => self.bump(),
            }
        }
    }

    /// Signs so far.
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Keeps a delivery from being handed to another worker, until dropped or lost.
pub struct Lease {
    pub activity: Activity,
    lost: CancellationToken,
    _stop: DropGuard,
}

impl Lease {
    /// Starts extending. A task of its own does it, so that neither a blocking step nor a drain holds it up.
    pub(crate) fn hold(delivery: Arc<Delivery>, ack_wait: Duration, stall_timeout: Duration) -> Self {
        let (activity, lost, stop) = (Activity::default(), CancellationToken::new(), CancellationToken::new());
        let extender =
            LeaseExtender { delivery, ack_wait, stall_timeout, activity: activity.clone(), lost: lost.clone() };
        tokio::spawn(stop.clone().run_until_cancelled_owned(extender.run()));
        Self { activity, lost, _stop: stop.drop_guard() }
    }

    /// Returns when the lease is lost; the work must stop, another worker may have the unit.
    pub async fn lost(&self) {
        self.lost.cancelled().await;
    }
}

struct LeaseExtender {
    delivery: Arc<Delivery>,
    ack_wait: Duration,
    stall_timeout: Duration,
    activity: Activity,
    lost: CancellationToken,
}

impl LeaseExtender {
    async fn run(self) {
        // Three chances within one lease.
        let interval = self.ack_wait / 3;
        let mut extended_at = Instant::now();
        let mut active_at = Instant::now();
        let mut seen = self.activity.count();
        let mut pause = interval;
        loop {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.delivery.replaced() => {
                    tracing::warn!(subject = self.delivery.subject, "the stream was made anew, letting its former delivery go");
                    break;
                }
            }
            let count = self.activity.count();
            if count != seen {
                (seen, active_at) = (count, Instant::now());
            } else if active_at.elapsed() > self.stall_timeout {
                tracing::warn!(subject = self.delivery.subject, "no progress, letting the lease go");
                break;
            }
            match self.delivery.extend().await {
                Ok(()) => (extended_at, pause) = (Instant::now(), interval),
                // Said above.
                Err(AckError::Replaced) => pause = Duration::ZERO,
                Err(error) => {
                    tracing::debug!(%error, subject = self.delivery.subject, "extending the lease");
                    if extended_at.elapsed() > self.ack_wait {
                        tracing::warn!(
                            subject = self.delivery.subject,
                            "lease lost: the server confirmed no extension"
                        );
                        break;
                    }
                    pause = interval.min(Duration::from_secs(1));
                }
            }
        }
        self.lost.cancel();
    }
}
