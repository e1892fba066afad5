//! `puller migrate`: makes streams, consumers and tables, or brings them up to date.

use std::time::{Duration, Instant};

use common::config::{Config, Destination as DestinationConfig, DestinationKind};
use common::output::{Reply, count};
use nats::{Bus, BusError, BusErrorKind, ConsumerSettings};
use serde::Serialize;

use crate::cli::context::worker_name;
use crate::clickhouse::client::Warehouse;
use crate::clickhouse::schema::{Defect, describe};
use common::output::Failure;

/// How long is waited for a cluster's leader.
const LEADER_WAIT: Duration = Duration::from_secs(30);
const LEADER_PAUSE: Duration = Duration::from_secs(1);

/// What `migrate` found and did at a destination.
#[derive(Debug, Serialize)]
struct Migrated {
    destination: String,
    /// Steps of the schema; none for what is no database.
    migrations_applied: Option<usize>,
}

pub(crate) async fn run(config: &Config, prune: bool) -> Result<Reply, Failure> {
    let bus = Bus::connect(&config.nats, &worker_name()).await?;
    let faults = once_answered(async || bus.migrate_streams().await).await?;
    let mut left: Vec<Failure> =
        faults.iter().map(|fault| Failure::failed(fault.what.clone()).advice(fault.advice.clone())).collect();
    bus.migrate_sweeper().await?;
    let mut names: Vec<String> = Vec::new();
    let mut migrated = Vec::new();
    for destination in &config.destinations {
        names.push(destination.name.clone());
        // A server that is away keeps no other destination from being made.
        match migrate_destination(&bus, config, destination).await {
            Ok((done, defects)) => {
                migrated.push(done);
                if !defects.is_empty() {
                    left.push(Failure::failed(describe(&defects)).of_destination(&destination.name));
                }
            }
            Err(failure) => left.push(failure.of_destination(&destination.name)),
        }
    }
    // `pull --no-ingest` makes this one by itself.
    names.push(common::config::MIRROR.into());
    let stale = bus.stale_consumers(&names).await?;
    let mut lines: Vec<String> = migrated.iter().map(Migrated::to_line).collect();
    for consumer in &stale {
        if prune {
            bus.delete_consumer(consumer).await?;
            tracing::info!(consumer = consumer.name, "removed");
            lines.push(format!("consumer {} removed", consumer.name));
        } else {
            lines.push(format!(
                "consumer {} belongs to no configured destination; `puller migrate --prune` removes it",
                consumer.name
            ));
        }
    }
    bus.close().await;
    let stale: Vec<&str> = if prune { Vec::new() } else { stale.iter().map(|stale| stale.name.as_str()).collect() };
    let (failure, others) = Failure::gravest(left);
    lines.extend(others.iter().map(ToString::to_string));
    let reply = Reply::default().destinations(&migrated).field("stale_consumers", &stale);
    Ok(reply.text(lines.join("\n")).failed(failure))
}

/// Asks again while there is no answer: a cluster that was just started has no leader for some seconds, and loses what it is
/// asked meanwhile. `migrate` is what starts first beside it.
async fn once_answered<T>(ask: impl AsyncFn() -> Result<T, BusError>) -> Result<T, BusError> {
    let begun = Instant::now();
    loop {
        match ask().await {
            Err(error) if error.kind == BusErrorKind::Unavailable && begun.elapsed() < LEADER_WAIT => {
                tracing::warn!(%error, "asking again");
                tokio::time::sleep(LEADER_PAUSE).await;
            }
            ended => return ended,
        }
    }
}

/// Returns also what a person must look at.
async fn migrate_destination(
    bus: &Bus,
    config: &Config,
    destination: &DestinationConfig,
) -> Result<(Migrated, Vec<Defect>), Failure> {
    let name = destination.name.clone();
    bus.migrate_consumers(&ConsumerSettings { destination: name.clone(), ack_wait: config.puller.ack_wait }).await?;
    let DestinationKind::ClickHouse(server) = &destination.kind else {
        return Ok((Migrated { destination: name, migrations_applied: None }, Vec::new()));
    };
    let mut warehouse = Warehouse::new(server);
    warehouse.connect().await?;
    let done = warehouse.migrate().await?;
    done.log(warehouse.database());
    if done.left.is_empty() {
        let (database, applied) = (warehouse.database(), done.applied);
        tracing::info!(destination = name, database, applied, "tables and views are there");
    }
    Ok((Migrated { destination: name, migrations_applied: Some(done.applied) }, done.left))
}

impl Migrated {
    fn to_line(&self) -> String {
        let tables = match self.migrations_applied {
            None => String::new(),
            Some(0) => ", tables and views are up to date".into(),
            Some(applied) => format!(", tables and views: {} applied", count(applied as u64, "migration")),
        };
        format!("{}: streams and consumers are there{tables}", self.destination)
    }
}
