//! Which units a destination wants: a new one starts with `initial_days` of history, and has all that is announced later.

use common::config::Destination;
use common::unit::Unit;
use jiff::{SignedDuration, Timestamp};
use nats::{Bus, BusError, Lane, StreamMarker};

/// Whether a marker was there before the destination, and its period lies further back than the destination wants.
pub(crate) fn is_too_old(
    initial_days: Option<u32>,
    unit: &Unit,
    lane: Lane,
    stored_at: Timestamp,
    consumer_created_at: Timestamp,
) -> bool {
    let Some(days) = initial_days else { return false };
    let oldest = consumer_created_at - SignedDuration::from_hours(24 * i64::from(days));
    // Whoever asks for a replay wants what he asks for.
    lane != Lane::Replay && stored_at < consumer_created_at && unit.period.end() <= oldest
}

/// When a destination began, and how much history it wanted then.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Beginning {
    initial_days: Option<u32>,
    ready: Timestamp,
    backfill: Timestamp,
}

impl Beginning {
    pub(crate) async fn of(bus: &Bus, destination: &Destination) -> Result<Self, BusError> {
        let now = common::clock::now();
        let Some(days) = destination.initial_days else {
            return Ok(Self { initial_days: None, ready: now, backfill: now });
        };
        // A consumer that is not there is still to be made.
        let ready = bus.consumer_created_at(&destination.name, Lane::Ready).await?.unwrap_or(now);
        let backfill = bus.consumer_created_at(&destination.name, Lane::Backfill).await?.unwrap_or(now);
        Ok(Self { initial_days: Some(days), ready, backfill })
    }

    /// Whether workers load the unit whose newest marker this is.
    pub(crate) fn wants(&self, marker: &StreamMarker) -> bool {
        let Self { initial_days, ready, backfill } = *self;
        let created_at = if marker.subject.lane == Lane::Backfill { backfill } else { ready };
        !is_too_old(initial_days, &marker.subject.unit, marker.subject.lane, marker.stored_at, created_at)
    }
}
