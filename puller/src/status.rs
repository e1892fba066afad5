//! `puller status`: how far each destination is.

use common::config::{ClickHouse, Config, DestinationKind};
use common::output::{Finding, Reply, ago, count, list, printable, table, wrap};
use jiff::Timestamp;
use nats::{Bus, ConsumerSettings, StreamUsage, WorkerState};
use serde::Serialize;

use crate::cli::Status;
use crate::gaps;
use crate::service::{Failure, ROSTER_WAIT, connect_to_stream, served};
use crate::warehouse::{Warehouse, WarehouseError};

/// Lines about the units of one worker.
const UNIT_LINES_MAX: usize = 3;

#[derive(Debug, Serialize)]
struct DestinationStatus {
    destination: String,
    /// Markers not delivered yet.
    pending: u64,
    /// Units that live workers hold.
    in_hand: u64,
    /// Markers that were delivered and wait for another delivery: parked for a retry, or held by a worker that died.
    parked: u64,
    dead: u64,
    paused: bool,
    last_loaded: Option<Timestamp>,
    oldest_unfinished: Option<Timestamp>,
    oldest_unfinished_age_seconds: Option<i64>,
    workers: Vec<WorkerState>,
    /// Why the destination's own figures are not known.
    error: Option<Failure>,
    /// What is wrong with its tables.
    warnings: Vec<String>,
}

pub(crate) async fn run(args: &Status, config: &Config) -> Result<Reply, Failure> {
    if args.missing {
        return gaps::run(&args.gaps, config).await;
    }
    if args.gaps.has_filters() {
        return Err(Failure::usage("filters go with --missing; `puller status` tells of whole destinations"));
    }
    let bus = connect_to_stream(config).await?;
    let mut all = Vec::new();
    for destination in served(config) {
        all.push(one(&bus, &destination.name, &destination.kind).await?);
    }
    let usage = bus.stream_usage().await?;
    let warnings = warnings(&bus, config, &usage).await?;
    bus.close().await;
    let mut lines = vec![destinations_table(&all)];
    for status in &all {
        lines.extend(status.warnings.iter().flat_map(|warning| wrap(&format!("{}: {warning}", status.destination), 2)));
        lines.extend(status.workers.iter().flat_map(|worker| worker_lines(&status.destination, worker)));
    }
    lines.extend(warnings.iter().map(|warning| printable(warning)));
    let failure = all.iter().find_map(|status| status.error.clone());
    let reply = Reply::default().destinations(&all).field("streams", &usage).field("warnings", &warnings);
    Ok(reply.text(lines.join("\n")).failed(failure))
}

/// What will go wrong, or goes wrong unseen: streams that are nearly full, and settings by which markers are lost.
async fn warnings(bus: &Bus, config: &Config, usage: &[StreamUsage]) -> Result<Vec<String>, Failure> {
    let settings: Vec<ConsumerSettings> = served(config)
        .into_iter()
        .map(|destination| ConsumerSettings { destination: destination.name, ack_wait: config.puller.ack_wait })
        .collect();
    let mut warnings: Vec<String> = usage.iter().filter_map(StreamUsage::warning).collect();
    let faults = bus.queue_faults(&settings).await?;
    warnings.extend(
        faults.into_iter().filter(|fault| fault.breaks).map(|fault| format!("{} ({})", fault.what, fault.advice)),
    );
    Ok(warnings)
}

async fn one(bus: &Bus, name: &str, kind: &DestinationKind) -> Result<DestinationStatus, Failure> {
    let progress = bus.destination_progress(name).await?;
    let roster = bus.roster(name, ROSTER_WAIT).await?;
    let dead = bus.dead_letters(name).await?;
    let in_hand = roster.workers.iter().map(|worker| worker.in_hand.len() as u64).sum::<u64>();
    let (last_loaded, error, warnings) = match kind {
        DestinationKind::Directory { .. } => (None, None, Vec::new()),
        DestinationKind::ClickHouse(server) => match of_tables(server).await {
            Ok((at, warnings)) => (at, None, warnings),
            Err(error) => (None, Some(Failure::from(error)), Vec::new()),
        },
    };
    let age = |since: Timestamp| common::clock::now().duration_since(since).as_secs();
    Ok(DestinationStatus {
        destination: name.to_owned(),
        pending: progress.pending,
        in_hand,
        // A worker may settle between the two questions.
        parked: progress.unsettled.saturating_sub(in_hand),
        dead,
        paused: progress.paused,
        last_loaded,
        oldest_unfinished: progress.oldest_unfinished,
        oldest_unfinished_age_seconds: progress.oldest_unfinished.map(age),
        workers: roster.workers,
        error,
        warnings,
    })
}

/// When something was last loaded, and what is wrong.
async fn of_tables(server: &ClickHouse) -> Result<(Option<Timestamp>, Vec<String>), WarehouseError> {
    let warehouse = Warehouse::to_look(server).await?;
    Ok((warehouse.last_loaded().await?, warehouse.warnings().await?))
}

fn destinations_table(all: &[DestinationStatus]) -> String {
    const HEADER: [&str; 8] = ["DESTINATION", "BACKLOG", "IN FLIGHT", "RETRY", "DEAD", "WORKERS", "LOADED", "OLDEST"];
    let since = |at: Option<Timestamp>| at.map_or_else(|| "-".into(), |at| format!("{} ago", ago(at)));
    table(
        &HEADER,
        all.iter().map(|status| {
            vec![
                format!("{}{}", status.destination, if status.paused { " (paused)" } else { "" }),
                status.pending.to_string(),
                status.in_hand.to_string(),
                status.parked.to_string(),
                status.dead.to_string(),
                status.workers.len().to_string(),
                since(status.last_loaded),
                since(status.oldest_unfinished),
            ]
        }),
    )
}

/// What a worker says of itself, with its units in ranges: any client in the account may have written it.
fn worker_lines(destination: &str, worker: &WorkerState) -> Vec<String> {
    let doing = match (worker.in_hand.len() as u64, &worker.waiting_for) {
        (units, Some(reason)) => format!("{}, waiting: {}", count(units, "unit"), printable(reason)),
        (0, None) => "idle".into(),
        (units, None) => count(units, "unit"),
    };
    let head = format!("{destination}  worker {}: {doing}", printable(&worker.worker));
    let mut lines: Vec<String> = wrap(&head, 2);
    lines.iter_mut().skip(1).for_each(|line| line.insert_str(0, "  "));
    let units: Vec<Finding> = worker.in_hand.iter().map(|unit| Finding::named(unit, "in_hand", "").sign(" ")).collect();
    let ranges = list(&units, true);
    let more = ranges.len().saturating_sub(UNIT_LINES_MAX);
    lines.extend(ranges.into_iter().take(UNIT_LINES_MAX));
    if more > 0 {
        lines.push(format!("  … and {more} more (--json lists them)"));
    }
    lines
}
