//! Whether a destination can be worked for at all: while a server it needs is away, pulling stops.

use std::time::Duration;

use common::backoff::{Backoff, Growth};
use common::http::Readiness;
use tokio::sync::watch;

/// How soon a server that is away is tried again.
const PROBE: Backoff = Backoff {
    initial: Duration::from_millis(500),
    growth: Growth::Exponential { factor: 2.0 },
    max: Duration::from_secs(10),
};

/// Open while something the destination depends on is away; says what.
#[derive(Clone)]
pub(crate) struct Circuit {
    reason: watch::Sender<Option<String>>,
    destination: String,
    readiness: Readiness,
}

impl Circuit {
    pub(crate) fn new(destination: &str, readiness: Readiness) -> Self {
        Self { reason: watch::Sender::new(None), destination: destination.to_owned(), readiness }
    }

    pub(crate) fn open(&self, reason: &str) {
        self.readiness.not_ready(&self.part(), reason);
        let opened = self.reason.send_replace(Some(reason.to_owned())).is_none();
        if opened {
            tracing::warn!(destination = self.destination, reason, "waiting, nothing is pulled meanwhile");
        }
    }

    pub(crate) fn close(&self) {
        self.readiness.ready(&self.part());
        if self.reason.send_replace(None).is_some() {
            tracing::info!(destination = self.destination, "works again");
        }
    }

    pub(crate) fn readiness(&self) -> &Readiness {
        &self.readiness
    }

    pub(crate) fn reason(&self) -> Option<String> {
        self.reason.borrow().clone()
    }

    /// Returns once the circuit is closed.
    pub(crate) async fn closed(&self) {
        let mut reason = self.reason.subscribe();
        // The sender lives in `self`, so this cannot fail.
        let _closed = reason.wait_for(Option::is_none).await;
    }

    /// The pause before the given try (from 1) at a server that is away.
    pub(crate) fn pause(attempt: u32) -> Duration {
        PROBE.delay(attempt)
    }

    fn part(&self) -> String {
        format!("destination {}", self.destination)
    }
}
