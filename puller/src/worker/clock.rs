//! A worker whose clock is off: it leaves the units to others, and pulls none until the clock is right.

use std::sync::atomic::Ordering;
use std::time::Duration;

use common::unit::Unit;
use nats::within;
use store::StoreErrorKind;
use tokio_util::sync::CancellationToken;

use crate::job::resolve::is_behind;
use crate::worker::circuit::Circuit;
use crate::worker::context::{ClockFault, Worker};

/// How long the answer to what the time is may take.
const ASK_MAX: Duration = Duration::from_secs(5);

impl Worker {
    /// Waits until the clock is right, and then has units pulled again. Nothing is held meanwhile.
    pub(super) async fn wait_for_the_clock(&self, fault: ClockFault, unit: Option<&Unit>, stop: &CancellationToken) {
        if self.clock_watch.0.swap(true, Ordering::SeqCst) {
            return;
        }
        for tries in 1.. {
            if stop.run_until_cancelled(tokio::time::sleep(Circuit::pause(tries))).await.is_none() {
                break;
            }
            match stop.run_until_cancelled(self.is_clock_right(fault, unit)).await {
                Some(Some(false)) => {}
                Some(Some(true)) => {
                    self.circuit.close();
                    break;
                }
                // A delivery will tell.
                Some(None) => {
                    self.circuit.try_others();
                    break;
                }
                None => break,
            }
        }
        self.clock_watch.0.store(false, Ordering::SeqCst);
    }

    /// `None`: nobody says.
    async fn is_clock_right(&self, fault: ClockFault, unit: Option<&Unit>) -> Option<bool> {
        match (fault, unit) {
            (ClockFault::Refused, Some(unit)) => {
                let refusal = self.fetcher.refusal(unit).await;
                Some(!matches!(refusal, Some(StoreErrorKind::ClockSkew | StoreErrorKind::Unavailable)))
            }
            (ClockFault::Refused, None) => None,
            (ClockFault::Behind, _) => {
                // A request that cannot be handed over yet, for want of a connection, has no time-out of the client's.
                let asked = within(ASK_MAX, "asking for the time", self.bus.server_time()).await;
                let stored_at = asked.ok()??;
                Some(is_behind(stored_at).is_none())
            }
        }
    }
}
