//! `puller history`: what was tried, newest first.

use clap::Args;
use clickhouse::Row;
use comfy_table::{Table, presets};
use common::config::{Config, Destination, DestinationKind};
use common::exit;
use common::unit::Token;
use indicatif::HumanCount;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::pause::chosen;
use crate::service::Failure;
use crate::status::print;
use crate::unit_filter::UnitFilter;
use crate::warehouse::{Warehouse, WarehouseError, quoted};

/// Longest error in a table, in characters; `--json` has all of it.
const ERROR_CHARS_MAX: usize = 120;

#[derive(Debug, Args)]
pub struct History {
    /// Only this unit, or all units below a prefix such as binance/um/klines/1h
    #[arg(value_name = "UNIT")]
    unit: Option<UnitFilter>,

    /// Only this destination [default: all that are configured]
    #[arg(long, value_name = "NAME")]
    destination: Option<Token>,

    /// Most attempts to show
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,

    /// Only attempts that failed: those to be repeated and those given up
    #[arg(long)]
    failed: bool,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A row of `ingest_log`.
#[derive(Debug, Row, Serialize, Deserialize)]
pub(crate) struct Tried {
    #[serde(serialize_with = "as_time")]
    pub finished_at: i64,
    pub destination: String,
    pub unit: String,
    pub outcome: String,
    pub error_class: String,
    pub error: String,
    pub attempt: u32,
    pub revision: String,
    pub stream_sequence: u64,
    pub worker: String,
    pub archives: u64,
    pub archives_loaded: u64,
    pub archives_skipped: u64,
    pub archives_failed: u64,
    pub rows: u64,
    pub bytes: u64,
    pub duration_ms: i64,
}

fn as_time<S: serde::Serializer>(ms: &i64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&time(*ms))
}

fn time(ms: i64) -> String {
    Timestamp::from_millisecond(ms).map(|at| format!("{at:.0}")).unwrap_or_default()
}

impl Tried {
    pub(crate) fn at(&self) -> String {
        time(self.finished_at)
    }

    /// The first line of the error, or of a person's reason, with its class.
    pub(crate) fn why(&self) -> String {
        let line = self.error.lines().next().unwrap_or_default();
        let mut short: String = line.chars().take(ERROR_CHARS_MAX).collect();
        if short.len() < line.len() {
            short.push('…');
        }
        [self.error_class.as_str(), short.as_str()].into_iter().filter(|s| !s.is_empty()).collect::<Vec<_>>().join(": ")
    }
}

pub(crate) async fn run(args: &History, config: &Config) -> Result<u8, Failure> {
    let names = chosen(config, args.destination.as_ref())?;
    let asked: Vec<&Destination> = config.destinations.iter().filter(|found| names.contains(&found.name)).collect();
    let mut all = Vec::new();
    let mut logs = 0;
    for destination in asked {
        if let DestinationKind::ClickHouse(server) = &destination.kind {
            logs += 1;
            let mut condition = args.unit.as_ref().map_or_else(|| "1".to_owned(), UnitFilter::condition);
            if args.failed {
                condition.push_str(" AND outcome IN ('retry', 'dead_letter')");
            }
            all.extend(tried(&Warehouse::new(server), &destination.name, &condition, args.limit).await?);
        }
    }
    if logs == 0 {
        let message = "only ClickHouse destinations keep a history, and none was asked for".to_owned();
        return Err(Failure { message, code: exit::USAGE });
    }
    all.sort_by_key(|tried| std::cmp::Reverse(tried.finished_at));
    all.truncate(args.limit as usize);
    if args.json {
        print(&serde_json::to_string_pretty(&all).expect("strings and numbers always serialise"));
    } else if all.is_empty() {
        print("nothing was tried yet that is like that");
    } else {
        print(&table(&all));
    }
    Ok(exit::DONE)
}

/// The newest attempts of a destination for which a condition holds.
pub(crate) async fn tried(
    warehouse: &Warehouse,
    destination: &str,
    condition: &str,
    limit: u32,
) -> Result<Vec<Tried>, WarehouseError> {
    let sql = format!(
        "SELECT toUnixTimestamp64Milli(finished_at) AS finished_at, destination::String AS destination, \
         concat(exchange, '/', market, '/', dataset, '/', interval, '/', period)::String AS unit, \
         outcome::String AS outcome, error_class::String AS error_class, error, attempt, revision, stream_sequence, \
         worker, archives, archives_loaded, archives_skipped, archives_failed, rows, bytes, \
         finished_at - toUnixTimestamp64Milli(started_at) AS duration_ms \
         FROM {{database}}.ingest_log WHERE destination = {} AND {condition} ORDER BY finished_at DESC LIMIT {limit}",
        quoted(destination)
    );
    warehouse.select(&sql).await
}

fn table(all: &[Tried]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["FINISHED", "DESTINATION", "UNIT", "OUTCOME", "ATTEMPT", "ARCHIVES", "ROWS", "TOOK", "WHY"]);
    for tried in all {
        table.add_row([
            tried.at(),
            tried.destination.clone(),
            tried.unit.clone(),
            tried.outcome.clone(),
            tried.attempt.to_string(),
            format!("{}/{}", tried.archives_loaded, tried.archives),
            HumanCount(tried.rows).to_string(),
            format!("{:.1} s", tried.duration_ms as f64 / 1000.0),
            tried.why(),
        ]);
    }
    table.to_string()
}
