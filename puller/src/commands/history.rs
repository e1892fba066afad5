//! `puller history`: what was tried, newest first.

use clap::Args;
use common::catalogue::one_of;
use common::config::{Config, Destination, DestinationKind};
use common::output::{Finding, Reply, count, grouped, table};
use common::text::printable;
use common::unit_filter::{UnitFilter, UnitPrefix};

use crate::cli::context::named_or_configured;
use crate::clickhouse::attempts::PastAttempt;
use crate::clickhouse::client::{Warehouse, quoted};
use crate::clickhouse::sql::{filter_condition, prefix_condition};
use crate::error::work::ErrorClass;
use common::output::Failure;

/// How an attempt, or a decision about a marker that no attempt made, is called in `ingest_log`.
pub(crate) const OUTCOMES: [&str; 9] = [
    "loaded",
    "skipped",
    "superseded",
    "too_old",
    "cancelled",
    "retry",
    "dead_letter",
    "dead_retried",
    "dead_discarded",
];

#[derive(Debug, Args)]
pub struct History {
    /// Only this unit, or all units below a prefix such as binance/um/klines/1h
    #[arg(value_name = "UNIT", conflicts_with = "unit")]
    prefix: Option<UnitPrefix>,

    #[command(flatten)]
    filter: UnitFilter,

    /// Only this destination [default: all that are configured]
    #[arg(long, value_name = "NAME")]
    destination: Option<String>,

    /// Only attempts that ended so: loaded, skipped, superseded, too_old, cancelled, retry, dead_letter, dead_retried or
    /// dead_discarded
    #[arg(long, value_name = "OUTCOME", value_delimiter = ',', value_parser = outcome)]
    outcome: Vec<String>,

    /// Only attempts with an error of this class, e.g. missing, damaged, shrunk
    #[arg(long, value_name = "CLASS", value_parser = ErrorClass::parse)]
    class: Option<ErrorClass>,

    /// Most attempts to show
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,

    /// Only attempts that failed: those to be repeated and those given up
    #[arg(long)]
    failed: bool,
}

fn outcome(text: &str) -> Result<String, String> {
    one_of(text, &OUTCOMES)
}

impl PastAttempt {
    /// The first line of the error, or of a person's reason, with its class.
    pub(crate) fn why(&self) -> String {
        let line = self.error.lines().next().unwrap_or_default();
        let parts = [self.error_class.as_str(), line].into_iter().filter(|part| !part.is_empty());
        printable(&parts.collect::<Vec<_>>().join(": "))
    }

    pub(crate) fn finding(&self) -> Finding {
        Finding::named(&self.unit, &self.outcome, &self.error)
            .class(&self.error_class)
            .in_state_since(self.at())
            .destination(&self.destination)
            .field("attempt", &self.attempt)
            .field("revision", &self.revision)
            .field("stream_sequence", &self.stream_sequence)
            .field("worker", &self.worker)
            .field("archives", &self.archives)
            .field("archives_loaded", &self.archives_loaded)
            .field("archives_skipped", &self.archives_skipped)
            .field("archives_failed", &self.archives_failed)
            .field("rows", &self.rows)
            .field("bytes", &self.bytes)
            .field("duration_ms", &self.duration_ms)
    }
}

impl History {
    fn condition(&self) -> String {
        let mut condition = filter_condition(&self.filter);
        let mut and = |more: String| condition.push_str(&format!(" AND {more}"));
        if let Some(prefix) = &self.prefix {
            and(prefix_condition(prefix));
        }
        if self.failed {
            and("outcome IN ('retry', 'dead_letter')".into());
        }
        if !self.outcome.is_empty() {
            let outcomes: Vec<String> = self.outcome.iter().map(|outcome| quoted(outcome)).collect();
            and(format!("outcome IN ({})", outcomes.join(", ")));
        }
        if let Some(class) = self.class {
            and(format!("error_class = {}", quoted(class.as_str())));
        }
        condition
    }

    fn has_filters(&self) -> bool {
        self.prefix.is_some()
            || !self.filter.is_empty()
            || self.failed
            || !self.outcome.is_empty()
            || self.class.is_some()
    }
}

pub(crate) async fn run(args: &History, config: &Config) -> Result<Reply, Failure> {
    args.filter.check()?;
    let names = named_or_configured(config, args.destination.as_deref())?;
    let asked: Vec<&Destination> = config.destinations.iter().filter(|found| names.contains(&found.name)).collect();
    let (mut all, mut failures) = (Vec::new(), Vec::new());
    let mut logs = 0;
    for destination in asked {
        if let DestinationKind::ClickHouse(server) = &destination.kind {
            logs += 1;
            let asked = async {
                Warehouse::read_only(server).await?.attempts(&destination.name, &args.condition(), args.limit).await
            };
            // What cannot be asked at one destination hides nothing of the others.
            match asked.await {
                Ok(attempts) => all.extend(attempts),
                Err(error) => failures.push(Failure::from(error).of_destination(&destination.name)),
            }
        }
    }
    if logs == 0 {
        return Err(Failure::usage("only ClickHouse destinations keep a history, and none was asked for"));
    }
    let (failure, others) = Failure::gravest(failures);
    if all.is_empty() && failure.is_none() && args.has_filters() {
        return Err(none_of(args, config, &names).await?);
    }
    all.sort_by_key(|tried| std::cmp::Reverse(tried.finished_at));
    let is_cut = all.len() >= args.limit as usize;
    all.truncate(args.limit as usize);
    let mut text = if all.is_empty() {
        if failure.is_none() { "nothing was tried yet".to_owned() } else { String::new() }
    } else {
        let several = all.iter().any(|tried| tried.destination != all[0].destination);
        let more = if is_cut {
            format!("\nthe newest {}; --limit N shows more", count(all.len() as u64, "attempt"))
        } else {
            String::new()
        };
        attempts_table(&all, several) + &more
    };
    others.iter().for_each(|other| text.push_str(&format!("\n{other}")));
    Ok(Reply::default().findings(all.iter().map(PastAttempt::finding).collect()).text(text).failed(failure))
}

/// That there are attempts, and the filters leave none.
async fn none_of(args: &History, config: &Config, names: &[String]) -> Result<Failure, Failure> {
    let mut all = 0;
    for destination in config.destinations.iter().filter(|found| names.contains(&found.name)) {
        if let DestinationKind::ClickHouse(server) = &destination.kind {
            let warehouse = Warehouse::read_only(server).await?;
            all += warehouse.select_one::<u64>("SELECT count() FROM {database}.ingest_log").await?;
        }
    }
    let mut others = Vec::new();
    if args.failed {
        others.push("failed".to_owned());
    }
    if !args.outcome.is_empty() {
        others.push(format!("outcome {}", args.outcome.join(",")));
    }
    others.extend(args.class.map(|class| format!("class {}", class.as_str())));
    let unit = args.prefix.clone().or_else(|| args.filter.unit.clone());
    Ok(UnitFilter { unit, ..args.filter.clone() }.none_of(Some(all), "attempt", &others))
}

/// Unit, outcome and why first: the figures of a unit are in `--json` and in `explain`.
fn attempts_table(all: &[PastAttempt], several: bool) -> String {
    const HEADER: [&str; 5] = ["FINISHED", "UNIT", "OUTCOME", "#", "ROWS OR ERROR"];
    table(
        &HEADER,
        all.iter().map(|tried| {
            let why = tried.why();
            let rows = format!("{}, {:.1} s", grouped(tried.rows, "row"), tried.duration_ms as f64 / 1000.0);
            let outcome =
                if several { format!("{} ({})", tried.outcome, tried.destination) } else { tried.outcome.clone() };
            vec![
                tried.at().strftime("%m-%d %H:%M:%S").to_string(),
                tried.unit.clone(),
                outcome,
                tried.attempt.to_string(),
                if why.is_empty() { rows } else { why },
            ]
        }),
    )
}
