//! `puller verify`: ClickHouse read back against what is announced, and sent to the workers again where it is not right.

mod check;
mod report;

use std::collections::BTreeSet;
use std::time::Duration;

use common::checksum::Sha256Sum;
use common::config::{Config, Destination as DestinationConfig, DestinationKind};
use common::exit;
use common::http::Readiness;
use common::object_store::StoreErrorKind;
use common::output::{Finding, Reply, list};
use common::unit::Unit;
use common::unit_filter::UnitFilter;
use futures::{StreamExt, stream};
use nats::{Bus, BusErrorKind, Lane, MarkerSubject, ReplayOptions};
use prometheus_client::registry::Registry;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::cli::Verify;
use crate::destination::Destination;
use crate::error::WorkError;
use crate::job::{self, Job};
use crate::load::Loader;
use crate::metrics::Metrics;
use crate::pull::{GIVE_UP, progress_bar};
use crate::service::{Failure, Shared, connect_to_stream, named_or_served, worker_name};

use check::Verdict;
use report::{Bad, DestinationReport};

/// Units looked at side by side.
const UNITS_MAX: usize = 4;
/// How often `--wait` asks.
const POLL: Duration = Duration::from_millis(500);

pub(crate) async fn run(
    args: &Verify,
    config: Config,
    verbose: bool,
    stop: CancellationToken,
) -> Result<Reply, Failure> {
    args.filter.check()?;
    let destinations = chosen(args.destination.as_deref(), &config)?;
    let bus = connect_to_stream(&config).await?;
    let metrics = Metrics::new(&mut Registry::default());
    let shared = Shared::new(config, worker_name(), bus, Readiness::default(), metrics);
    let units = units(&shared.bus, &args.filter).await?;
    let mut reports = Vec::new();
    for destination in &destinations {
        let verified = verify(&shared, destination, &units, args, verbose, &stop).await;
        reports.push(verified?);
    }
    shared.bus.close().await;
    let findings: Vec<Finding> = reports.iter_mut().flat_map(DestinationReport::take_findings).collect();
    let mut lines = list(&findings, args.list.all);
    reports.iter().for_each(|report| report.lines(&mut lines));
    if !args.fix && reports.iter().any(|report| report.to_repair() > 0) {
        lines.push("`puller verify --fix` sends what is not right to the workers again".into());
    }
    // With --wait what was sent is checked again, and must be right by now.
    let fix = args.fix && !args.wait;
    let codes = reports.iter().map(|report| match report.exit_code(fix) {
        exit::DIFFERENCES if args.wait => exit::SOME_FAILED,
        code => code,
    });
    Ok(Reply::new(exit::worst(codes)).destinations(&reports).findings(findings).text(lines.join("\n")))
}

/// The ClickHouse destination of that name, or all that are served here.
pub(crate) fn chosen(name: Option<&str>, config: &Config) -> Result<Vec<DestinationConfig>, Failure> {
    let is_database = |destination: &DestinationConfig| matches!(destination.kind, DestinationKind::ClickHouse(_));
    let databases: Vec<_> = named_or_served(config, name)?.into_iter().filter(is_database).collect();
    match (name, databases.is_empty()) {
        (_, false) => Ok(databases),
        (Some(name), true) => {
            Err(Failure::usage(format!("'{name}' is a directory; this reads ClickHouse destinations")))
        }
        (None, true) => Err(Failure::config("no ClickHouse destination is configured: there is nothing to look at")),
    }
}

/// The units that are announced and asked for: names only.
async fn units(bus: &Bus, filter: &UnitFilter) -> Result<Vec<Unit>, Failure> {
    let mut units = BTreeSet::new();
    bus.survey(|message| {
        if filter.matches(&message.subject.unit) {
            units.insert(message.subject.unit);
        }
    })
    .await?;
    if units.is_empty() && !filter.is_empty() {
        return Err(filter.no_match("unit that is announced"));
    }
    Ok(units.into_iter().collect())
}

async fn verify(
    shared: &Shared,
    destination: &DestinationConfig,
    units: &[Unit],
    args: &Verify,
    verbose: bool,
    stop: &CancellationToken,
) -> Result<DestinationReport, Failure> {
    let runner = shared.open(destination).await?;
    let Destination::ClickHouse(loader) = &runner.worker.destination else {
        unreachable!("only ClickHouse destinations are chosen");
    };
    let name = destination.name.as_str();
    if args.fix {
        shared.prepare_queue(name).await?;
    }
    let verifier = Verifier { shared, name, loader, verbose };
    let (mut report, last_sent, sent) = verifier.every(units, args.fix, stop).await?;
    if args.wait && !sent.is_empty() {
        verifier.wait(last_sent, stop).await?;
        (report, _, _) = verifier.every(units, false, stop).await?;
    }
    report.unsettled =
        shared.bus.destination_progress(name).await.ok().map(|progress| progress.pending + progress.unsettled);
    Ok(report)
}

struct Verifier<'s> {
    shared: &'s Shared,
    name: &'s str,
    loader: &'s Loader,
    verbose: bool,
}

/// A unit that was looked at.
enum Looked {
    Checked(Box<Checked>),
    Unchecked(String),
}

struct Checked {
    payload: Vec<u8>,
    job: Job,
    verdicts: Vec<Verdict>,
}

impl Verifier<'_> {
    /// Checks units and sends those that are not right; returns the highest sequence sent, and which units.
    async fn every(
        &self,
        units: &[Unit],
        fix: bool,
        stop: &CancellationToken,
    ) -> Result<(DestinationReport, u64, Vec<Unit>), Failure> {
        let mut report = DestinationReport::new(self.name);
        let (mut last_sent, mut sent) = (0, Vec::new());
        let bar = progress_bar(self.name, units.len() as u64);
        let looks = stream::iter(units)
            .take_until(stop.cancelled())
            .map(async |unit| (unit, self.unit(unit).await))
            .buffered(UNITS_MAX);
        let mut looks = std::pin::pin!(looks);
        while let Some((unit, looked)) = looks.next().await {
            bar.inc(1);
            match looked? {
                Looked::Unchecked(why) => report.unchecked(unit, why),
                Looked::Checked(checked) => {
                    let Checked { payload, job, verdicts } = *checked;
                    let symbols = job.objects.iter().map(|object| object.symbol.clone());
                    let bad = report.add(unit, symbols.zip(verdicts).collect(), self.verbose);
                    if fix && !bad.is_empty() {
                        last_sent = last_sent.max(self.send(&payload, &job, bad, &mut report).await?);
                        sent.push(unit.clone());
                    }
                }
            }
        }
        bar.finish_and_clear();
        if stop.is_cancelled() {
            return Err(Failure::stopped("stopped by a signal before all was checked"));
        }
        Ok((report, last_sent, sent))
    }

    async fn unit(&self, unit: &Unit) -> Result<Looked, Failure> {
        let Some(message) = self.shared.bus.current_marker(unit).await? else {
            return Ok(Looked::Unchecked("its marker is no longer on the stream".into()));
        };
        let subject = MarkerSubject::announcement(unit, message.subject.lane == Lane::Backfill);
        let (store, prefix) = (&self.loader.fetcher.store, &self.shared.config.storage.prefix);
        let checked = async {
            let job = job::read(store, prefix, &subject, &message.payload, ReplayOptions::default()).await?;
            let verdicts = check::check(self.loader, &job).await?;
            Ok((job, verdicts))
        };
        match checked.await {
            Ok((job, verdicts)) => {
                Ok(Looked::Checked(Box::new(Checked { payload: message.payload.to_vec(), job, verdicts })))
            }
            Err(error) => unit_error(error).map(Looked::Unchecked),
        }
    }

    /// Sends the marker again, once for what is not loaded and once, by force, for what is wrong.
    async fn send(&self, payload: &[u8], job: &Job, bad: Bad, report: &mut DestinationReport) -> Result<u64, Failure> {
        let (bus, unit) = (&self.shared.bus, &job.unit);
        let mut last = 0;
        for (force, symbols) in [(false, bad.not_loaded), (true, bad.wrong)] {
            if symbols.is_empty() {
                continue;
            }
            // What waits already is not sent twice, so that asking twice loads once.
            let purpose = format!("{} {force} {}", job.revision, symbols.join(","));
            let purpose = format!("verify-{}", Sha256Sum::of(purpose.as_bytes()));
            report.sent(symbols.len());
            // No list says all of them, which is shorter.
            let all = symbols.len() == job.objects.len();
            let symbols = if all { BTreeSet::new() } else { symbols.into_iter().collect() };
            let options = ReplayOptions { force, symbols, ..ReplayOptions::default() };
            let tokens = unit.subject_tokens();
            let sent = bus.publish_replay_once(self.name, &tokens, payload.to_vec(), &options, &purpose).await;
            last = sent?.max(last);
        }
        Ok(last)
    }

    /// Waits until the workers have settled what was sent.
    async fn wait(&self, last_sent: u64, stop: &CancellationToken) -> Result<(), Failure> {
        tracing::info!(destination = self.name, "waiting for running workers to load what was sent");
        let mut answered_at = Instant::now();
        // No time-out for the workers, which somebody asked to wait for; but one for the queue that tells of them.
        loop {
            match self.shared.bus.replays_settled(self.name, last_sent).await {
                Ok(true) => return Ok(()),
                Ok(false) => answered_at = Instant::now(),
                Err(error) if error.kind == BusErrorKind::Unavailable && answered_at.elapsed() < GIVE_UP => {
                    tracing::warn!(%error, "asking again");
                }
                Err(error) => return Err(error.into()),
            }
            if stop.run_until_cancelled(tokio::time::sleep(POLL)).await.is_none() {
                return Err(Failure::stopped(
                    "stopped by a signal; what was sent stays on the stream, workers load it",
                ));
            }
        }
    }
}

/// Whether an error is about one unit, and then what to say, or ends the run.
pub(crate) fn unit_error(error: WorkError) -> Result<String, Failure> {
    match error {
        WorkError::Warehouse(error) => Err(error.into()),
        WorkError::Store(error) => match error.kind {
            StoreErrorKind::Unavailable
            | StoreErrorKind::NoSuchBucket
            | StoreErrorKind::Denied
            | StoreErrorKind::ClockSkew => Err(error.into()),
            StoreErrorKind::NotFound | StoreErrorKind::TooLarge | StoreErrorKind::BadKey | StoreErrorKind::Other => {
                Ok(error.to_string())
            }
        },
        error @ (WorkError::Marker(_)
        | WorkError::NoDecoder(_)
        | WorkError::Manifest(_)
        | WorkError::Disk { .. }
        | WorkError::Queue(_)
        | WorkError::Elsewhere(_)
        | WorkError::ClockBehind(_)
        | WorkError::Exhausted { .. }
        | WorkError::Panicked(_)) => Ok(error.to_string()),
    }
}
