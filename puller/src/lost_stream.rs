//! Whether the stream of markers was lost and made anew without what it had announced.
//!
//! The ledger remembers what was loaded from a former stream. Where it has more units from before the stream was made than
//! the stream has subjects, some of them are announced no more: corrections of theirs, and what they still lacked, would
//! never come.

use common::config::{Destination, DestinationKind};
use nats::Bus;

use crate::service::Failure;
use crate::warehouse::{Warehouse, WarehouseErrorKind};

pub(crate) const ADVICE: &str = "run `uploader reconcile --fix`, which announces again what is in the bucket";

/// How many units a destination has from a former stream beyond what the present one announces; at least.
///
/// A directory keeps no ledger, and says nothing of it.
pub(crate) async fn lost_units(bus: &Bus, destination: &Destination) -> Result<u64, Failure> {
    let DestinationKind::ClickHouse(server) = &destination.kind else { return Ok(0) };
    let stream = bus.stream_state().await?;
    let sql = format!(
        "SELECT count() FROM (SELECT DISTINCT exchange, market, dataset, interval, period FROM {{database}}.archives \
         WHERE loaded_at < fromUnixTimestamp64Milli({}, 'UTC'))",
        stream.created_at.as_millisecond()
    );
    match Warehouse::new(server).select_one::<u64>(&sql).await {
        Ok(loaded) => Ok(loaded.saturating_sub(stream.subjects)),
        // Nothing was ever loaded.
        Err(error) if error.kind == WarehouseErrorKind::MissingSchema => Ok(0),
        Err(error) => Err(error.into()),
    }
}

/// The same, said in the log; 0 also where it cannot be known.
pub(crate) async fn say(bus: &Bus, destination: &Destination) -> u64 {
    match lost_units(bus, destination).await {
        Ok(0) => 0,
        Ok(lost) => {
            tracing::error!("{} ({ADVICE})", text(&destination.name, lost));
            lost
        }
        Err(failure) => {
            tracing::debug!("comparing the ledger with the stream: {}", failure.text);
            0
        }
    }
}

pub(crate) fn text(destination: &str, lost: u64) -> String {
    format!(
        "the stream MARKERS was lost and made anew: {destination} has loaded at least {lost} units that it does not announce"
    )
}
