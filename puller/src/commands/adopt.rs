//! `puller adopt`: what a folder of `_ingested/` files claims, checked against ClickHouse and believed only then.

mod compare;
mod hints;
mod report;

use std::collections::HashSet;

use common::config::{Config, Destination as DestinationConfig};
use common::output::{Finding, Reply, exit, list};
use common::service::http::Readiness;
use common::unit::Unit;
use futures::{StreamExt, stream};
use nats::{Lane, MarkerSubject, ReplayOptions};
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

use crate::cli::context::{Shared, clickhouse_destinations, connect_to_stream, worker_name};
use crate::cli::place;
use crate::cli::progress::progress_bar;
use crate::cli::unit_error::unit_error;
use crate::clickhouse::schema::MissingTables;
use crate::error::work::WorkError;
use crate::job::resolve::{Job, read};
use crate::load::loader::Loader;
use crate::worker::destination::Destination;
use crate::worker::metrics::Metrics;
use common::output::Failure;
use std::path::PathBuf;
use store::ManifestFile;

use clap::Args;
use common::output::ListArgs;
use compare::Verdict;
use hints::{HintedUnits, Hints};
use report::AdoptReport;

pub(super) const ADOPT_EXAMPLES: &str = "\
Lines:
  = unit          its rows are there; workers will skip it (only with --verbose)
  * unit symbol   rows are missing or differ: left to the workers, who load it
  - unit          not announced: run `uploader adopt` or `uploader upload` first
  ! unit symbol   could not be checked, and why
  ? name          not understood

Exit 0 when every hint was right, 4 when one was not, 1 when something could not be checked.

Examples:
  puller adopt --ingested /srv/binance/_ingested --dry-run
  puller adopt --ingested /srv/binance/_ingested --json
  puller adopt --ingested /srv/binance/_ingested && puller pull";

#[derive(Debug, Args)]
pub struct Adopt {
    /// Folder with marks (_SUCCESS__2026-02-14__um__1h) or with files named like archives, in Binance's tree or flat
    #[arg(long, value_name = "DIR")]
    pub ingested: PathBuf,

    /// Only this destination; else all ClickHouse destinations that this configuration serves
    #[arg(long, value_name = "NAME")]
    pub destination: Option<String>,

    /// Compare and record nothing
    #[arg(long)]
    pub dry_run: bool,

    #[command(flatten)]
    pub list: ListArgs,
}

/// Units looked at side by side.
const UNITS_MAX: usize = 4;

pub(crate) async fn run(
    args: &Adopt,
    config: Config,
    verbose: bool,
    stop: CancellationToken,
) -> Result<Reply, Failure> {
    let destinations = clickhouse_destinations(args.destination.as_deref(), &config)?;
    let hints = hints::read(&args.ingested)
        .map_err(|error| Failure::usage(format!("--ingested: {} cannot be read: {error}", args.ingested.display())))?;
    let bus = connect_to_stream(&config).await?;
    let mut announced = HashSet::new();
    bus.survey(|message| {
        announced.insert(message.subject.unit);
    })
    .await?;
    let metrics = Metrics::new(&mut Registry::default());
    let shared = Shared::new(config, worker_name(), bus, Readiness::default(), metrics);
    place::check(&shared).await?;
    let (mut reports, mut failures) = (Vec::new(), Vec::new());
    for destination in &destinations {
        let mut report = AdoptReport::new(&destination.name, args.dry_run, &hints);
        let adopted = adopt(&shared, destination, &hints, &announced, (args.dry_run, verbose), &stop, &mut report);
        if let Err(failure) = adopted.await {
            report.error = Some(failure.clone());
            failures.push(failure.of_destination(&destination.name));
        }
        reports.push(report);
        if stop.is_cancelled() {
            break;
        }
    }
    shared.bus.close().await;
    let findings: Vec<Finding> = reports.iter_mut().flat_map(AdoptReport::drain_findings).collect();
    let mut lines = list(&findings, args.list.all);
    reports.iter().for_each(|report| report.lines(args.list.all, &mut lines));
    let code = exit::worst(reports.iter().map(AdoptReport::exit_code));
    let (gravest, others) = Failure::gravest(failures);
    lines.extend(others.iter().map(ToString::to_string));
    Ok(Reply::new(code).destinations(&reports).findings(findings).text(lines.join("\n")).failed(gravest))
}

async fn adopt(
    shared: &Shared,
    destination: &DestinationConfig,
    hints: &Hints,
    announced: &HashSet<Unit>,
    (dry_run, verbose): (bool, bool),
    stop: &CancellationToken,
    report: &mut AdoptReport,
) -> Result<(), Failure> {
    let missing = if dry_run { MissingTables::Refuse } else { MissingTables::Make };
    let runner = shared.open(destination, missing).await?;
    let Destination::ClickHouse(loader) = &runner.worker.destination else {
        unreachable!("only ClickHouse destinations are chosen");
    };
    let mut hinted = Hints { units: hints.units.clone(), ..Hints::default() };
    for flat in &hints.flat {
        let candidates: Vec<&Unit> = flat.units.iter().filter(|unit| announced.contains(unit)).collect();
        if candidates.is_empty() {
            report.not_announced(&flat.name);
        }
        candidates.into_iter().for_each(|unit| hinted.add(unit.clone(), &flat.symbol));
    }
    let adopter = Adopter { shared, loader, announced, dry_run };
    let bar = progress_bar(&destination.name, hinted.units.len() as u64);
    let checks = stream::iter(&hinted.units)
        .take_until(stop.cancelled())
        .map(async |(unit, hinted)| (unit, hinted, adopter.unit(unit, hinted).await))
        .buffered(UNITS_MAX);
    let mut checks = std::pin::pin!(checks);
    while let Some((unit, hinted, looked)) = checks.next().await {
        bar.inc(1);
        match looked? {
            Comparison::NotAnnounced => report.not_announced(&unit.to_string()),
            Comparison::Unchecked(why) => report.unchecked(unit, why),
            Comparison::Done(job, verdicts) => {
                let symbols: Vec<String> = job.objects.iter().map(|object| object.symbol.clone()).collect();
                let lacking = match hinted {
                    HintedUnits::Whole => Vec::new(),
                    HintedUnits::Symbols(hinted) => {
                        hinted.iter().filter(|symbol| !symbols.contains(symbol)).cloned().collect()
                    }
                };
                report.add(unit, symbols.into_iter().zip(verdicts).collect(), lacking, verbose);
            }
        }
    }
    bar.finish_and_clear();
    if stop.is_cancelled() {
        return Err(Failure::stopped(
            "stopped by a signal; what was verified is recorded, run this again for the rest",
        ));
    }
    Ok(())
}

struct Adopter<'s> {
    shared: &'s Shared,
    loader: &'s Loader,
    /// Units the stream has markers of.
    announced: &'s HashSet<Unit>,
    dry_run: bool,
}

enum Comparison {
    NotAnnounced,
    Unchecked(String),
    Done(Box<Job>, Vec<Verdict>),
}

impl Adopter<'_> {
    async fn unit(&self, unit: &Unit, hinted: &HintedUnits) -> Result<Comparison, Failure> {
        let marker = if self.announced.contains(unit) { self.shared.bus.current_marker(unit).await? } else { None };
        let from_stream = marker.map(|message| (message.subject.lane == Lane::Backfill, message.payload));
        let compared = async {
            let Some((backfill, payload)) = (match from_stream {
                Some(found) => Some(found),
                None => self.manifest(unit).await?.map(|payload| (true, payload)),
            }) else {
                return Ok(Comparison::NotAnnounced);
            };
            let subject = MarkerSubject::announcement(unit, backfill);
            let symbols = match hinted {
                HintedUnits::Whole => Default::default(),
                HintedUnits::Symbols(symbols) => symbols.clone(),
            };
            let options = ReplayOptions { symbols, ..ReplayOptions::default() };
            let prefix = &self.shared.config.storage.prefix;
            let job = read(&self.loader.fetcher.store, prefix, &subject, &payload, options).await?;
            let verdicts = compare::compare(self.loader, &job, self.dry_run).await?;
            Ok(Comparison::Done(Box::new(job), verdicts))
        };
        match compared.await {
            Ok(looked) => Ok(looked),
            Err(error) => unit_error(error).map(Comparison::Unchecked),
        }
    }

    /// What the bucket says of a unit that the stream has no marker of; `uploader reconcile --fix` would announce it.
    async fn manifest(&self, unit: &Unit) -> Result<Option<bytes::Bytes>, WorkError> {
        let (store, prefix) = (&self.loader.fetcher.store, &self.shared.config.storage.prefix);
        let Some(current) = store.current(prefix, unit).await?.readable() else { return Ok(None) };
        Ok(match store.manifest(prefix, unit, &current.revision).await? {
            ManifestFile::Absent => None,
            // What is no manifest is the caller's to tell.
            ManifestFile::Faulty { json, .. } => Some(json),
            ManifestFile::Read { marker, .. } => Some(current.applied_to(*marker).to_json().into()),
        })
    }
}
