//! `puller gaps`, the same as `puller status --missing`: what is expected and not there, in ranges.
//!
//! What is expected follows from what is loaded: the view `coverage` tells of days between a symbol's first and last
//! archive that none covers. A month's archive may be there and have some days only: `klines` tells which, between the
//! symbol's first and last row.

use clap::Args;
use clickhouse::Row;
use common::config::{ClickHouse, Config, DestinationKind};
use common::output::{Finding, ListArgs, Reply, count, exit, list};
use common::unit_filter::{SymbolFilter, UnitFilter};
use serde::{Deserialize, Serialize};

use crate::service::{Failure, named_or_served};
use crate::sql::{filter_condition, symbols_condition};
use crate::warehouse::Warehouse;

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

/// Days of a symbol that lie side by side, or would if a candle opened on each.
#[derive(Debug, Row, Serialize, Deserialize)]
struct Range {
    series: String,
    symbol: String,
    state: String,
    first: String,
    last: String,
    days: u64,
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

/// Two kinds of days: those that no archive covers, and those of which the archive of their month, which is short of so
/// many rows, has none, and no archive of a day either. Days before the symbol's first row and after its last are not
/// among the latter: it was listed later, or delisted. Days side by side are one range: each is ahead of its place among
/// the symbol's days by the same number. An archive may stand in the ledger under several keys.
const RANGES: &str = "\
    WITH partial AS ( \
        SELECT DISTINCT exchange, market, dataset, interval, symbol, toDate(concat(period, '-01')) AS month \
        FROM {database}.coverage \
        WHERE state = 'partial' AND length(period) = 7 AND interval NOT IN ('3d', '1w', '1mo') \
            AND missing_rows * 32 > expected_rows AND {conditions} \
    ), traded AS ( \
        SELECT exchange, market, dataset, interval, symbol, \
            toDate(min(first_open_time)) AS first_day, toDate(max(last_open_time)) AS last_day \
        FROM {database}.archives FINAL \
        WHERE rows > 0 AND (exchange, market, dataset, interval, symbol) IN ( \
                SELECT exchange, market, dataset, interval, symbol FROM partial) \
        GROUP BY exchange, market, dataset, interval, symbol \
    ), present AS ( \
        SELECT exchange, market, dataset, interval, symbol, groupUniqArray(toDate(open_time)) AS days \
        FROM {database}.klines_latest \
        WHERE (exchange, market, dataset, interval, symbol) IN ( \
                SELECT exchange, market, dataset, interval, symbol FROM partial) \
            AND toStartOfMonth(open_time) IN (SELECT month FROM partial) \
        GROUP BY exchange, market, dataset, interval, symbol \
    ), days AS ( \
        SELECT DISTINCT exchange, market, dataset, interval, symbol, 'missing' AS kind, toDate(period) AS day \
        FROM {database}.coverage WHERE state = 'missing' AND {conditions} \
        UNION ALL \
        SELECT exchange, market, dataset, interval, symbol, 'empty' AS kind, day \
        FROM partial INNER JOIN traded USING (exchange, market, dataset, interval, symbol) \
            LEFT JOIN present USING (exchange, market, dataset, interval, symbol) \
        ARRAY JOIN arrayFilter(day -> day > first_day AND day < last_day AND NOT has(days, day), \
            arrayMap(n -> addDays(month, n), range(toUInt32(toDayOfMonth(toLastDayOfMonth(month)))))) AS day \
    ) \
    SELECT series, symbol, kind AS state, toString(min(day)) AS first, toString(max(day)) AS last, count() AS days \
    FROM ( \
        SELECT concat(exchange, '/', market, '/', dataset, '/', interval)::String AS series, symbol::String AS symbol, \
            kind, day, \
            multiIf(interval = '3d', intDiv(toRelativeDayNum(day), 3), interval = '1w', toRelativeWeekNum(day), \
                interval = '1mo', toRelativeMonthNum(day), toRelativeDayNum(day)) \
                - row_number() OVER (PARTITION BY exchange, market, dataset, interval, symbol, kind ORDER BY day) AS island \
        FROM days \
    ) GROUP BY series, symbol, kind, island ORDER BY series, symbol, first";

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
async fn of_destination(args: &Gaps, server: &ClickHouse, filters: &str) -> Result<(Vec<Range>, u64), Failure> {
    const LOADED: &str = "SELECT count() FROM {database}.archives FINAL";
    let warehouse = Warehouse::to_look(server).await?;
    let archives = warehouse.select_one::<u64>(&format!("{LOADED} WHERE {filters}")).await?;
    if archives == 0 && args.has_filters() {
        let all = warehouse.select_one::<u64>(LOADED).await?;
        let symbols: Vec<String> = args.symbols.describe().into_iter().collect();
        return Err(args.filter.none_of(Some(all), "loaded archive", &symbols));
    }
    Ok((warehouse.select(&RANGES.replace("{conditions}", filters)).await?, archives))
}

impl Range {
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
