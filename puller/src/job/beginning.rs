//! Which units a destination wants: a new one starts with `initial_days` of history, and has all that is announced later.

use common::config::Destination;
use common::marker::Marker;
use common::unit::Unit;
use jiff::{SignedDuration, Timestamp};
use nats::{Bus, BusError, Lane, MarkerSubject, StreamMarker};

/// Whether a marker was announced before the destination was served, and its period lies further back than the destination
/// wants.
pub(crate) fn is_too_old(
    initial_days: Option<u32>,
    unit: &Unit,
    lane: Lane,
    announced_at: impl FnOnce() -> Timestamp,
    since: Timestamp,
) -> bool {
    let Some(days) = initial_days else { return false };
    let oldest = since - SignedDuration::from_hours(24 * i64::from(days));
    // Whoever asks for a replay wants what he asks for.
    lane != Lane::Replay && unit.period.end() <= oldest && announced_at() < since
}

/// When a marker was announced first: what `reconcile --fix` announces again on a stream that was lost was published when it
/// says.
pub(crate) fn announced_at(payload: &[u8], stored_at: Timestamp) -> Timestamp {
    Marker::parse(payload).map_or(stored_at, |marker| marker.published_at.min(stored_at))
}

/// Since when a destination is served, and how much history it wanted then.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Beginning {
    initial_days: Option<u32>,
    since: Timestamp,
}

impl Beginning {
    /// `tables_since`: since when its database is a destination ([`crate::clickhouse::client::Warehouse::served_since`]).
    pub(crate) async fn of(
        bus: &Bus,
        destination: &Destination,
        tables_since: Option<Timestamp>,
    ) -> Result<Self, BusError> {
        let now = common::clock::now();
        let Some(days) = destination.initial_days else { return Ok(Self { initial_days: None, since: now }) };
        let durables_since = bus.served_since(&destination.name).await?;
        // One that has neither is still to be made.
        let since = durables_since.into_iter().chain(tables_since).min().unwrap_or(now);
        Ok(Self { initial_days: Some(days), since })
    }

    /// Whether workers load the unit whose newest marker this is.
    pub(crate) fn needs_delivery(&self, StreamMarker { subject, stored_at, payload, .. }: &StreamMarker) -> bool {
        self.accepts_delivery(subject, *stored_at, payload)
    }

    /// Whether workers load what this message announces, when it is delivered.
    pub(crate) fn accepts_delivery(&self, subject: &MarkerSubject, stored_at: Timestamp, payload: &[u8]) -> bool {
        let announced_at = || announced_at(payload, stored_at);
        !is_too_old(self.initial_days, &subject.unit, subject.lane, announced_at, self.since)
    }
}
