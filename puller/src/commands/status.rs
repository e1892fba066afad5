//! `puller status`: how far each destination is.

use common::config::{ClickHouse, Config, Destination, DestinationKind};
use common::output::{Finding, Reply, ago, count, list, table, wrap};
use common::text::printable;
use jiff::Timestamp;
use nats::{Bus, BusError, ConsumerSettings, DestinationProgress, StreamUsage, WorkerState};
use serde::Serialize;

use crate::cli::context::{PRESENCE_WAIT, connect_to_stream, named_or_served};
use crate::clickhouse::client::Warehouse;
use crate::clickhouse::lost_stream;
use crate::clickhouse::lost_stream::LostUnits;
use crate::commands::gaps;
use crate::commands::gaps::Gaps;
use crate::error::clickhouse::WarehouseError;
use clap::Args;
use common::output::Failure;

#[derive(Debug, Args)]
pub struct Status {
    /// The same as `puller gaps`, with its filters
    #[arg(long)]
    pub missing: bool,

    #[command(flatten)]
    pub gaps: Gaps,
}

/// Lines about the units of one worker.
const UNIT_LINES_MAX: usize = 3;

#[derive(Debug, Serialize)]
struct DestinationStatus {
    destination: String,
    /// Markers not delivered yet. This and the next three: none where NATS cannot say.
    pending: Option<u64>,
    /// Units that live workers hold.
    in_flight: Option<u64>,
    /// Markers that were delivered and wait for another delivery: waiting for a retry, or held by a worker that died.
    retries_scheduled: Option<u64>,
    dead: Option<u64>,
    paused: bool,
    last_loaded: Option<Timestamp>,
    oldest_unfinished: Option<Timestamp>,
    oldest_unfinished_age_seconds: Option<i64>,
    workers: Vec<WorkerState>,
    /// Why the destination's own figures are not known.
    error: Option<Failure>,
    /// What is wrong with its tables, and units of a lost stream that cannot be announced again.
    warnings: Vec<String>,
    /// As in the answer of `puller pull`.
    lost: u64,
    lost_in_bucket: bool,
}

pub(crate) async fn run(args: &Status, config: &Config) -> Result<Reply, Failure> {
    if args.missing {
        return gaps::run(&args.gaps, config).await;
    }
    if args.gaps.has_filters() {
        let text = "filters of units go with --missing: `puller status` tells of whole destinations";
        return Err(Failure::usage(text));
    }
    let destinations = named_or_served(config, args.gaps.destination())?;
    let bus = connect_to_stream(config).await?;
    let mut all = Vec::new();
    let mut failures = Vec::new();
    for destination in &destinations {
        let (status, lost) = one(&bus, config, destination).await;
        failures.extend(status.error.clone().map(|failure| failure.of_destination(&status.destination)));
        failures.extend(lost.failure(&status.destination));
        all.push(status);
    }
    let usage = bus.stream_usage().await?;
    let warnings = warnings(&bus, config, &destinations, &usage).await?;
    bus.close().await;
    let mut lines = vec![destinations_table(&all)];
    for status in &all {
        lines.extend(status.warnings.iter().flat_map(|warning| wrap(&format!("{}: {warning}", status.destination), 2)));
        lines.extend(status.workers.iter().flat_map(|worker| worker_lines(&status.destination, worker)));
    }
    lines.extend(warnings.iter().map(|warning| printable(warning)));
    let (failure, others) = Failure::gravest(failures);
    lines.extend(others.iter().map(ToString::to_string));
    let reply = Reply::default().destinations(&all).field("streams", &usage).field("warnings", &warnings);
    Ok(reply.text(lines.join("\n")).failed(failure))
}

/// What will go wrong, or goes wrong unseen: streams that are nearly full, and settings by which markers are lost.
async fn warnings(
    bus: &Bus,
    config: &Config,
    destinations: &[Destination],
    usage: &[StreamUsage],
) -> Result<Vec<String>, Failure> {
    let ack_wait = config.puller.ack_wait;
    let settings: Vec<ConsumerSettings> = destinations
        .iter()
        .map(|destination| ConsumerSettings { destination: destination.name.clone(), ack_wait })
        .collect();
    let mut warnings: Vec<String> = usage.iter().filter_map(StreamUsage::warning).collect();
    let faults = bus.queue_faults(&settings).await?;
    warnings.extend(
        faults.into_iter().filter(|fault| fault.breaks).map(|fault| format!("{} ({})", fault.what, fault.advice)),
    );
    Ok(warnings)
}

async fn one(bus: &Bus, config: &Config, destination: &Destination) -> (DestinationStatus, LostUnits) {
    let Destination { name, kind, .. } = destination;
    let (queue, mut failures) = match of_queue(bus, name).await {
        Ok(queue) => (Some(queue), Vec::new()),
        Err(error) => (None, vec![Failure::from(error)]),
    };
    let mut lost = LostUnits::default();
    let (last_loaded, warnings) = match kind {
        DestinationKind::Directory { .. } => (None, Vec::new()),
        DestinationKind::ClickHouse(server) => match of_tables(server).await {
            (last_loaded, Ok(mut warnings)) => {
                lost = lost_stream::known(bus, config, destination).await.unwrap_or_default();
                if lost.units > 0 && !lost.in_bucket {
                    warnings.push(lost.text(name));
                }
                (last_loaded, warnings)
            }
            (last_loaded, Err(error)) => {
                failures.push(Failure::from(error));
                (last_loaded, Vec::new())
            }
        },
    };
    let (progress, workers, dead) =
        queue.map_or((None, Vec::new(), None), |(progress, workers, dead)| (Some(progress), workers, Some(dead)));
    let in_flight = workers.iter().map(|worker| worker.in_flight.len() as u64).sum::<u64>();
    let oldest_unfinished = progress.as_ref().and_then(|progress| progress.oldest_unfinished);
    let age = |since: Timestamp| common::clock::now().duration_since(since).as_secs();
    let status = DestinationStatus {
        destination: name.clone(),
        pending: progress.as_ref().map(|progress| progress.pending),
        in_flight: progress.as_ref().map(|_| in_flight),
        // A worker may acknowledge between the two questions.
        retries_scheduled: progress.as_ref().map(|progress| progress.unacknowledged.saturating_sub(in_flight)),
        dead,
        paused: progress.is_some_and(|progress| progress.paused),
        last_loaded,
        oldest_unfinished,
        oldest_unfinished_age_seconds: oldest_unfinished.map(age),
        workers,
        error: Failure::gravest(failures).0,
        warnings,
        lost: lost.units,
        lost_in_bucket: lost.in_bucket,
    };
    (status, lost)
}

/// What NATS knows: how far the destination's consumers are, its workers, and how many dead letters it has.
async fn of_queue(bus: &Bus, name: &str) -> Result<(DestinationProgress, Vec<WorkerState>, u64), BusError> {
    let progress = bus.destination_progress(name).await?;
    Ok((progress, bus.presence(name, PRESENCE_WAIT).await?.workers, bus.dead_letters(name).await?))
}

/// When something was last loaded, as far as that is known, and what is wrong. That a table is not there is an error, as to
/// every command that needs it.
async fn of_tables(server: &ClickHouse) -> (Option<Timestamp>, Result<Vec<String>, WarehouseError>) {
    let mut last_loaded = None;
    let outcome = async {
        let warehouse = Warehouse::read_only(server).await?;
        last_loaded = warehouse.last_loaded().await?;
        warehouse.warnings().await
    };
    let warnings = outcome.await;
    (last_loaded, warnings)
}

fn destinations_table(all: &[DestinationStatus]) -> String {
    const HEADER: [&str; 8] = ["DESTINATION", "BACKLOG", "IN FLIGHT", "RETRY", "DEAD", "WORKERS", "LOADED", "OLDEST"];
    let since = |at: Option<Timestamp>| at.map_or_else(|| "-".into(), |at| format!("{} ago", ago(at)));
    let number = |number: Option<u64>| number.map_or_else(|| "?".into(), |number| number.to_string());
    table(
        &HEADER,
        all.iter().map(|status| {
            vec![
                format!("{}{}", status.destination, if status.paused { " (paused)" } else { "" }),
                number(status.pending),
                number(status.in_flight),
                number(status.retries_scheduled),
                number(status.dead),
                status.workers.len().to_string(),
                since(status.last_loaded),
                since(status.oldest_unfinished),
            ]
        }),
    )
}

/// What a worker says of itself, with its units in ranges: any client in the account may have written it.
fn worker_lines(destination: &str, worker: &WorkerState) -> Vec<String> {
    let doing = match (worker.in_flight.len() as u64, &worker.waiting_for) {
        (units, Some(reason)) => format!("{}, waiting: {}", count(units, "unit"), printable(reason)),
        (0, None) => "idle".into(),
        (units, None) => count(units, "unit"),
    };
    let head = format!("{destination}  worker {}: {doing}", printable(&worker.worker));
    let mut lines: Vec<String> = wrap(&head, 2);
    lines.iter_mut().skip(1).for_each(|line| line.insert_str(0, "  "));
    let units: Vec<Finding> =
        worker.in_flight.iter().map(|unit| Finding::named(unit, "in_flight", "").sign(" ")).collect();
    let ranges = list(&units, true);
    let more = ranges.len().saturating_sub(UNIT_LINES_MAX);
    lines.extend(ranges.into_iter().take(UNIT_LINES_MAX));
    if more > 0 {
        lines.push(format!("  … and {more} more (--json lists them)"));
    }
    lines
}
