//! `puller status`: how far each destination is.

use clickhouse::Row;
use comfy_table::{Table, presets};
use common::config::{Config, DestinationKind};
use common::exit;
use jiff::{Timestamp, Unit as TimeUnit};
use nats::{Bus, WorkerState};
use serde::{Deserialize, Serialize};

use crate::cli::Status;
use crate::service::{Failure, ROSTER_WAIT, served, worker_name};
use crate::warehouse::Warehouse;

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
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// A day without an archive.
#[derive(Debug, Row, Serialize, Deserialize)]
struct MissingDay {
    exchange: String,
    market: String,
    dataset: String,
    interval: String,
    symbol: String,
    period: String,
}

pub(crate) async fn run(args: &Status, config: &Config) -> Result<u8, Failure> {
    if args.missing {
        return missing(args, config).await;
    }
    let bus = Bus::connect(&config.nats, &worker_name()).await?;
    let mut all = Vec::new();
    for destination in served(config) {
        all.push(one(&bus, &destination.name, &destination.kind).await?);
    }
    if args.json {
        print(&serde_json::to_string_pretty(&all).expect("strings and numbers always serialise"));
    } else {
        print(&table(&all));
        for status in &all {
            status.error.iter().for_each(|error| print(&format!("{}: {error}", status.destination)));
            for worker in &status.workers {
                let waiting =
                    worker.waiting_for.as_ref().map(|reason| format!(", waiting: {reason}")).unwrap_or_default();
                let units = if worker.in_hand.is_empty() { "idle".into() } else { worker.in_hand.join(", ") };
                print(&format!("{}  worker {}: {units}{waiting}", status.destination, worker.worker));
            }
        }
    }
    bus.close().await;
    Ok(exit::DONE)
}

async fn one(bus: &Bus, name: &str, kind: &DestinationKind) -> Result<DestinationStatus, Failure> {
    let progress = bus.destination_progress(name).await?;
    let roster = bus.roster(name, ROSTER_WAIT).await?;
    let dead = bus.dead_letters(name).await?;
    let in_hand = roster.workers.iter().map(|worker| worker.in_hand.len() as u64).sum::<u64>();
    let (last_loaded, error) = match kind {
        DestinationKind::Directory { .. } => (None, None),
        DestinationKind::ClickHouse(server) => match Warehouse::new(server).last_loaded().await {
            Ok(at) => (at, None),
            Err(error) => (None, Some(format!("{error} ({})", error.advice()))),
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
    })
}

fn table(all: &[DestinationStatus]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        "DESTINATION",
        "PENDING",
        "IN HAND",
        "PARKED",
        "DEAD",
        "WORKERS",
        "LAST LOADED",
        "OLDEST UNFINISHED",
    ]);
    for status in all {
        let since = |at: Option<Timestamp>| {
            let now = common::clock::now().round(TimeUnit::Second).unwrap_or_default();
            at.and_then(|at| at.round(TimeUnit::Second).ok())
                .and_then(|at| now.since((TimeUnit::Hour, at)).ok())
                .map_or_else(|| "-".into(), |span| format!("{span:#} ago"))
        };
        table.add_row([
            format!("{}{}", status.destination, if status.paused { " (paused)" } else { "" }),
            status.pending.to_string(),
            status.in_hand.to_string(),
            status.parked.to_string(),
            status.dead.to_string(),
            status.workers.len().to_string(),
            since(status.last_loaded),
            since(status.oldest_unfinished),
        ]);
    }
    table.to_string()
}

async fn missing(args: &Status, config: &Config) -> Result<u8, Failure> {
    let mut days: Vec<(String, Vec<MissingDay>)> = Vec::new();
    for destination in served(config) {
        if let DestinationKind::ClickHouse(server) = &destination.kind {
            let found = Warehouse::new(server)
                .select(
                    "SELECT exchange::String AS exchange, market::String AS market, dataset::String AS dataset, \
                     interval::String AS interval, symbol::String AS symbol, period FROM {database}.coverage \
                     WHERE state = 'missing' ORDER BY exchange, market, dataset, interval, symbol, period",
                )
                .await?;
            days.push((destination.name, found));
        }
    }
    let any = days.iter().any(|(_, days)| !days.is_empty());
    if args.json {
        let by_name: std::collections::BTreeMap<_, _> = days.into_iter().collect();
        print(&serde_json::to_string_pretty(&by_name).expect("strings and numbers always serialise"));
    } else if any {
        for (name, days) in &days {
            for d in days {
                print(&format!(
                    "{name}  {}/{}/{}/{}/{}  {}",
                    d.exchange, d.market, d.dataset, d.interval, d.period, d.symbol
                ));
            }
        }
    } else {
        print("no day is missing between the first and the last of each symbol");
    }
    Ok(if any { exit::WANTING } else { exit::DONE })
}

/// Data for people or scripts: the only place that writes to stdout.
#[expect(clippy::print_stdout, reason = "stdout is where a command's data belongs")]
pub(crate) fn print(text: &str) {
    println!("{text}");
}
