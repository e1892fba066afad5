//! `puller gaps`, the same as `puller status --missing`: what is expected and not there, in ranges.
//!
//! What is expected follows from what is loaded: the view `coverage` tells of days between a symbol's first and last
//! archive that none covers. A month's archive may be there and have some days only: `klines` tells which, between the
//! symbol's first and last row.

use clap::Args;
use common::config::{ClickHouse, Config, DestinationKind};
use common::output::{Finding, ListArgs, Reply, count, exit, list};
use common::unit_filter::{SymbolFilter, UnitFilter};
use serde::Serialize;

use crate::cli::context::named_or_served;
use crate::clickhouse::client::Warehouse;
use crate::clickhouse::gaps::DayRange;
use crate::clickhouse::sql::{filter_condition, symbols_condition};
use common::output::Failure;

#[derive(Debug, Args)]
pub struct Gaps {
    /// Only this destination; else all ClickHouse destinations that this configuration serves
    #[arg(long, value_name = "NAME")]
    destination: Option<String>,

    #[command(flatten)]
    filter: UnitFilter,

    #[command(flatten)]
    symbols: SymbolFilter,

    #[command(flatten)]
    list: ListArgs,
}

impl Gaps {
    pub(crate) fn destination(&self) -> Option<&str> {
        self.destination.as_deref()
    }

    /// Whether it is about some of the archives only.
    pub(crate) fn has_filters(&self) -> bool {
        !self.filter.is_empty() || !self.symbols.symbol.is_empty()
    }
}

#[derive(Debug, Serialize)]
struct DestinationGaps {
    destination: String,
    /// Archives in the ledger that the filters leave: without any, nothing says what could be missing.
    archives: u64,
    days: u64,
    symbols: u64,
    /// Why it is not known.
    error: Option<Failure>,
}

pub(crate) async fn run(args: &Gaps, config: &Config) -> Result<Reply, Failure> {
    args.filter.check()?;
    let mut findings = Vec::new();
    let mut destinations = Vec::new();
    let filters = format!("{} AND {}", filter_condition(&args.filter), symbols_condition(&args.symbols.symbol));
    let mut failures = Vec::new();
    for destination in named_or_served(config, args.destination.as_deref())? {
        let DestinationKind::ClickHouse(server) = &destination.kind else { continue };
        let name = destination.name.clone();
        // What cannot be asked at one destination hides nothing of the others.
        let (ranges, archives, error) = match of_destination(args, server, &filters).await {
            Ok((ranges, archives)) => (ranges, archives, None),
            Err(failure) => {
                failures.push(failure.clone().of_destination(&name));
                (Vec::new(), 0, Some(failure))
            }
        };
        let symbols: std::collections::BTreeSet<&str> = ranges.iter().map(|range| range.symbol.as_str()).collect();
        destinations.push(DestinationGaps {
            destination: name.clone(),
            archives,
            days: ranges.iter().map(|range| range.days).sum(),
            symbols: symbols.len() as u64,
            error,
        });
        findings.extend(ranges.into_iter().map(|range| range.finding(&name)));
    }
    if destinations.is_empty() {
        return Err(Failure::usage("only ClickHouse destinations know what is missing, and none was asked for"));
    }
    let mut lines = list(&findings, args.list.all);
    lines.extend(destinations.iter().filter(|gaps| gaps.error.is_none()).map(DestinationGaps::to_line));
    let (failure, others) = Failure::gravest(failures);
    lines.extend(others.iter().map(ToString::to_string));
    let code = if findings.is_empty() { exit::DONE } else { exit::DIFFERENCES };
    let reply = Reply::new(code).destinations(&destinations).findings(findings);
    Ok(reply.text(lines.join("\n")).failed(failure))
}

/// The ranges, and how many archives they were found among.
async fn of_destination(args: &Gaps, server: &ClickHouse, filters: &str) -> Result<(Vec<DayRange>, u64), Failure> {
    let warehouse = Warehouse::read_only(server).await?;
    let archives = warehouse.loaded_archives(Some(filters)).await?;
    if archives == 0 && args.has_filters() {
        let all = warehouse.loaded_archives(None).await?;
        let symbols: Vec<String> = args.symbols.describe().into_iter().collect();
        return Err(args.filter.none_of(Some(all), "loaded archive", &symbols));
    }
    Ok((warehouse.missing_days(filters).await?, archives))
}

impl DayRange {
    fn finding(self, destination: &str) -> Finding {
        let text = if self.state == "missing" { "no archive" } else { "the month's archive has no row of these days" };
        Finding {
            unit: Some(self.series),
            from: Some(self.first),
            to: Some(self.last),
            ..Finding::new(&self.state, text)
                .sign("-")
                .symbol(self.symbol)
                .destination(destination)
                .field("days", &self.days)
        }
    }
}

impl DestinationGaps {
    fn to_line(&self) -> String {
        let name = &self.destination;
        match self.days {
            0 if self.archives == 0 => {
                format!("{name}: nothing is loaded yet, so there is nothing to compare with")
            }
            0 => format!("{name}: no day is missing between the first and the last of each symbol"),
            days => format!("{name}: {} of {} missing", count(days, "day"), count(self.symbols, "symbol")),
        }
    }
}
