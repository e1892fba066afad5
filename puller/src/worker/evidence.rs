//! Whose fault it is: what speaks for a failure being the unit's own.

use store::StoreErrorKind;

use crate::error::clickhouse::WarehouseErrorKind;
use crate::error::work::WorkError;
use crate::job::work::Work;
use crate::worker::context::{InFlight, Worker};
use crate::worker::destination::Destination;
use crate::worker::outcome::{Evidence, is_doubtful};

impl Worker {
    pub(super) async fn evidence(&self, in_flight: &InFlight<'_>, result: &Result<Work, WorkError>) -> Evidence {
        let Err(error) = result else { return Evidence::None };
        if !is_doubtful(error) {
            return Evidence::None;
        }
        let delivery = &in_flight.leased.delivery;
        let alone = self.suspects.fails_alone(&delivery.consumer, delivery.stream_sequence);
        // For most of these a small question of the same kind tells.
        let asking = match error {
            WorkError::Warehouse(error) => error.kind == WarehouseErrorKind::TooHeavy,
            // Bucket and prefix are right for the others.
            WorkError::Elsewhere(_) => self.suspects.any_loaded(),
            WorkError::Store(error) => {
                matches!(error.kind, StoreErrorKind::Denied | StoreErrorKind::Other)
            }
            _ => false,
        };
        if (alone || asking) && self.is_answered(in_flight, error).await {
            Evidence::OthersWork
        } else {
            Evidence::None
        }
    }

    /// Whether the server that an error is of answers a small question now.
    pub(super) async fn is_answered(&self, in_flight: &InFlight<'_>, error: &WorkError) -> bool {
        let activity = &in_flight.leased.lease.activity;
        match (error, &self.destination, in_flight.unit) {
            (WorkError::Warehouse(_), Destination::ClickHouse(loader), _) => {
                activity.while_waiting(loader.warehouse.answers()).await
            }
            (WorkError::Store(_), _, Some(unit)) => activity.while_waiting(self.fetcher.answers(unit)).await,
            // No server is asked.
            (WorkError::Elsewhere(_), _, _) => true,
            _ => false,
        }
    }
}
