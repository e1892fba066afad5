//! Decisions about markers that no attempt made: a person's, or the sweeper's.

use std::collections::HashMap;

use common::config::{Config, DestinationKind};
use common::marker::Marker;
use common::unit::Unit;

use crate::clickhouse::client::Warehouse;
use crate::clickhouse::ledger::Attempt;
use common::output::Failure;

/// What was decided about a marker outside of a worker's attempt.
pub(crate) struct AuditEntry<'a> {
    pub destination: &'a str,
    pub unit: Option<Unit>,
    /// The marker, or nothing.
    pub payload: &'a [u8],
    pub stream_sequence: u64,
    pub attempt: u32,
    pub outcome: &'a str,
    pub class: &'a str,
    pub text: &'a str,
}

/// Writes such decisions to the `ingest_log` of the destination, where it has one.
pub(crate) struct AuditLog<'a> {
    config: &'a Config,
    name: &'a str,
    warehouses: HashMap<String, Warehouse>,
}

impl<'a> AuditLog<'a> {
    pub(crate) fn new(config: &'a Config, name: &'a str) -> Self {
        Self { config, name, warehouses: HashMap::new() }
    }

    /// Connects to the destination's server, if it has one.
    pub(crate) async fn open(&mut self, destination: &str) -> Result<(), Failure> {
        let Some(DestinationKind::ClickHouse(server)) = self.config.destination(destination).map(|found| &found.kind)
        else {
            return Ok(());
        };
        if !self.warehouses.contains_key(destination) {
            let mut warehouse = Warehouse::new(server);
            warehouse.connect().await?;
            self.warehouses.insert(destination.to_owned(), warehouse);
        }
        Ok(())
    }

    /// A message that is no unit's is in the log only: the table's rows are of units.
    pub(crate) async fn record(&self, entry: &AuditEntry<'_>) -> Result<(), Failure> {
        let (Some(warehouse), Some(unit)) = (self.warehouses.get(entry.destination), &entry.unit) else {
            return Ok(());
        };
        let marker = Marker::parse(entry.payload).ok();
        let now = common::clock::now();
        let attempt = Attempt {
            finished_at: now,
            started_at: now,
            destination: entry.destination,
            unit,
            revision: marker.as_ref().map(|marker| marker.revision.to_string()).unwrap_or_default(),
            marker_id: marker.as_ref().map(|marker| marker.id.as_str()).unwrap_or_default(),
            stream_sequence: entry.stream_sequence,
            attempt: entry.attempt,
            worker: self.name,
            outcome: entry.outcome,
            error_class: entry.class,
            error: entry.text,
            archives: 0,
            archives_loaded: 0,
            archives_skipped: 0,
            archives_failed: 0,
            rows: 0,
            bytes: 0,
            fetch_ms: 0,
            decode_ms: 0,
            insert_ms: 0,
            read_back_ms: 0,
            trace_id: "",
        };
        Ok(warehouse.record_attempts(&[attempt]).await?)
    }
}
