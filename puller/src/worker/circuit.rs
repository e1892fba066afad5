//! Whether a destination can be worked for at all: while a server it needs is away, pulling stops.

use std::time::Duration;

use common::backoff::{Backoff, Growth};
use common::output::Failure;
use common::service::http::Readiness;
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
    state: watch::Sender<CircuitState>,
    destination: String,
    readiness: Readiness,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
enum CircuitState {
    #[default]
    Closed,
    Open(Failure),
    /// Other units are pulled, to see whether they fare better. Not ready until one does.
    HalfOpen(Failure),
}

impl CircuitState {
    fn reason(&self) -> Option<&Failure> {
        match self {
            Self::Closed => None,
            Self::Open(reason) | Self::HalfOpen(reason) => Some(reason),
        }
    }
}

impl Circuit {
    pub(crate) fn new(destination: &str, readiness: Readiness) -> Self {
        Self { state: watch::Sender::default(), destination: destination.to_owned(), readiness }
    }

    pub(crate) fn open(&self, failure: Failure) {
        let reason = failure.to_string();
        self.readiness.not_ready(&self.part(), reason.as_str());
        let former = self.state.send_replace(CircuitState::Open(failure));
        if former == CircuitState::Closed {
            tracing::warn!(destination = self.destination, reason, "waiting, nothing is pulled meanwhile");
        }
    }

    /// Lets other units be pulled, where the one that failed is put off.
    pub(crate) fn try_others(&self) {
        self.state.send_modify(|state| {
            if let Some(reason) = state.reason() {
                *state = CircuitState::HalfOpen(reason.clone());
            }
        });
    }

    pub(crate) fn close(&self) {
        self.readiness.ready(&self.part());
        if self.state.send_replace(CircuitState::Closed) != CircuitState::Closed {
            tracing::info!(destination = self.destination, "works again");
        }
    }

    pub(crate) fn readiness(&self) -> &Readiness {
        &self.readiness
    }

    pub(crate) fn reason(&self) -> Option<String> {
        self.failure().map(|failure| failure.to_string())
    }

    /// The same, with its class.
    pub(crate) fn failure(&self) -> Option<Failure> {
        self.state.borrow().reason().cloned()
    }

    /// Returns once units may be pulled. Waits for as long as a server is away: the caller stops waiting when it is to end.
    pub(crate) async fn closed(&self) {
        let mut state = self.state.subscribe();
        // The sender lives in `self`, so this cannot fail.
        let _closed = state.wait_for(|state| !matches!(state, CircuitState::Open(_))).await;
    }

    /// The pause before the given try (from 1) at a server that is away.
    pub(crate) fn pause(attempt: u32) -> Duration {
        PROBE.delay(attempt)
    }

    fn part(&self) -> String {
        format!("destination {}", self.destination)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn others_are_pulled_while_the_reason_stands() {
        let readiness = Readiness::default();
        let circuit = Circuit::new("primary", readiness.clone());
        let may_pull = |circuit: &Circuit| circuit.closed().now_or_never().is_some();
        circuit.try_others();
        assert!(may_pull(&circuit) && circuit.reason().is_none(), "nothing was wrong");
        circuit.open(Failure::unreachable("away"));
        assert!(!may_pull(&circuit));
        circuit.try_others();
        assert!(may_pull(&circuit));
        assert_eq!(circuit.reason().as_deref(), Some("away"));
        circuit.open(Failure::unreachable("away still"));
        assert!(!may_pull(&circuit));
        circuit.close();
        assert!(may_pull(&circuit) && circuit.reason().is_none());
    }
}
