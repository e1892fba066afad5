//! `puller verify`: ClickHouse read back against what is announced, and sent to the workers again where it is not right.

mod check;
mod report;

use std::collections::BTreeSet;
use std::time::Duration;

use common::checksum::Sha256Sum;
use common::config::{Config, Destination as DestinationConfig};
use common::output::{Finding, Reply, count, exit, list};
use common::service::http::Readiness;
use common::unit::Unit;
use common::unit_filter::UnitFilter;
use futures::{StreamExt, stream};
use nats::{Bus, BusErrorKind, Lane, MarkerSubject, ReplayOptions};
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

use crate::cli::attendance::Attendance;
use crate::cli::context::{Shared, clickhouse_destinations, connect_to_stream, worker_name};
use crate::cli::place;
use crate::cli::progress::progress_bar;
use crate::cli::standstill::Standstill;
use crate::cli::unit_error::unit_error;
use crate::clickhouse::lost_stream;
use crate::clickhouse::schema::MissingTables;
use crate::job::beginning::Beginning;
use crate::job::resolve::{Job, read};
use crate::load::loader::Loader;
use crate::worker::destination::Destination;
use crate::worker::metrics::Metrics;
use common::output::Failure;

use crate::cli::moment;
use check::Verdict;
use clap::Args;
use common::output::ListArgs;
use report::{Bad, DestinationReport};

pub(super) const VERIFY_EXAMPLES: &str = "\
Lines:
  = unit          verified (only with --verbose)
  = unit symbol   verified, and what is loaded is newer than what is announced: the announced bytes went back in time
  . unit          older than the destination wants (initial_days; only with --verbose)
  - unit symbol   an archive is not loaded
  * unit symbol   rows are missing, differ, or are of a former revision, and how many
  ! unit symbol   could not be checked, and why

Exit 0 when all is right, 4 when something is not; with --fix 0, or 1 if something could not be sent or checked; with
--wait 3 if no worker is there for 60 s, or for --max-wait.

Examples:
  puller verify
  puller verify --unit binance/um/klines/1h/2026-02-14
  puller verify --from 2026-02 --to 2026-03 --market um --json
  puller verify --fix && puller pull    load again what is not right
  puller verify --fix --wait            the same where workers are running";

#[derive(Debug, Args)]
pub struct Verify {
    /// Only this destination; else all ClickHouse destinations that this configuration serves
    #[arg(long, value_name = "NAME")]
    pub destination: Option<String>,

    #[command(flatten)]
    pub filter: UnitFilter,

    /// Send what is not right to the workers again
    #[arg(long)]
    pub fix: bool,

    /// With --fix, wait until the workers are done with it, and check again
    #[arg(long, requires = "fix")]
    pub wait: bool,

    /// With --wait: how long to wait while no worker is there [default: 60s], and at most altogether if given
    #[arg(long, value_name = "TIME", requires = "wait", value_parser = moment::duration)]
    pub max_wait: Option<Duration>,

    #[command(flatten)]
    pub list: ListArgs,
}

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
    let destinations = clickhouse_destinations(args.destination.as_deref(), &config)?;
    let bus = connect_to_stream(&config).await?;
    let metrics = Metrics::new(&mut Registry::default());
    let shared = Shared::new(config, worker_name(), bus, Readiness::default(), metrics);
    place::check(&shared).await?;
    let units = units(&shared.bus, &args.filter).await?;
    let (mut reports, mut failures) = (Vec::new(), Vec::new());
    for destination in &destinations {
        let mut report = DestinationReport::new(&destination.name);
        // One destination's failure hides nothing of the others, nor what was found before it.
        if let Err(failure) = verify(&shared, destination, &units, (args, verbose), &stop, &mut report).await {
            report.error = Some(failure.clone());
            failures.push(failure.of_destination(&destination.name));
        }
        reports.push(report);
        if stop.is_cancelled() {
            break;
        }
    }
    shared.bus.close().await;
    let findings: Vec<Finding> = reports.iter_mut().flat_map(DestinationReport::drain_findings).collect();
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
    let code = exit::worst(codes);
    let (gravest, others) = Failure::gravest(failures);
    lines.extend(others.iter().map(ToString::to_string));
    Ok(Reply::new(code).destinations(&reports).findings(findings).text(lines.join("\n")).failed(gravest))
}

/// The units that are announced and asked for: names only.
async fn units(bus: &Bus, filter: &UnitFilter) -> Result<Vec<Unit>, Failure> {
    let mut units = BTreeSet::new();
    bus.survey(|message| {
        units.insert(message.subject.unit);
    })
    .await?;
    let all = units.len() as u64;
    units.retain(|unit| filter.matches(unit));
    if units.is_empty() && !filter.is_empty() {
        return Err(filter.none_of(Some(all), "announced unit", &[]));
    }
    Ok(units.into_iter().collect())
}

async fn verify(
    shared: &Shared,
    destination: &DestinationConfig,
    units: &[Unit],
    (args, verbose): (&Verify, bool),
    stop: &CancellationToken,
    report: &mut DestinationReport,
) -> Result<(), Failure> {
    let missing = if args.fix { MissingTables::Make } else { MissingTables::Refuse };
    let runner = shared.open(destination, missing).await?;
    let Destination::ClickHouse(loader) = &runner.worker.destination else {
        unreachable!("only ClickHouse destinations are chosen");
    };
    let name = destination.name.as_str();
    if args.fix {
        shared.prepare_queue(name).await?;
    }
    let tables_since = loader.warehouse.served_since().await?;
    let beginning = Beginning::of(&shared.bus, destination, tables_since).await?;
    let verifier = Verifier { shared, name, loader, beginning, verbose };
    let mut sent = Vec::new();
    // What a lost stream no longer announces is not looked at.
    let lost = lost_stream::lost_units(&shared.bus, &shared.config, destination).await?;
    report.units_lost = if lost.in_bucket { lost.units } else { 0 };
    verifier.every(units, args.fix.then_some(&mut sent), stop, report).await?;
    if args.wait && !sent.is_empty() {
        verifier.wait(sent, args.max_wait, stop).await?;
        let mut after = DestinationReport::new(name);
        verifier.every(units, None, stop, &mut after).await?;
        after.units_lost = report.units_lost;
        *report = after;
    }
    report.unfinished =
        shared.bus.destination_progress(name).await.ok().map(|progress| progress.pending + progress.unacknowledged);
    Ok(())
}

struct Verifier<'s> {
    shared: &'s Shared,
    name: &'s str,
    loader: &'s Loader,
    beginning: Beginning,
    verbose: bool,
}

/// A unit that was looked at.
enum CheckOutcome {
    Checked(Box<Checked>),
    Unchecked(String),
}

struct Checked {
    payload: Vec<u8>,
    job: Job,
    verdicts: Vec<Verdict>,
}

impl Verifier<'_> {
    /// Checks units; where `sent` is given, sends those that are not right, and adds the sequences of what it sent.
    async fn every(
        &self,
        units: &[Unit],
        mut sent: Option<&mut Vec<u64>>,
        stop: &CancellationToken,
        report: &mut DestinationReport,
    ) -> Result<(), Failure> {
        let bar = progress_bar(self.name, units.len() as u64);
        let checks = stream::iter(units)
            .take_until(stop.cancelled())
            .map(async |unit| (unit, self.unit(unit).await))
            .buffered(UNITS_MAX);
        let mut checks = std::pin::pin!(checks);
        while let Some((unit, looked)) = checks.next().await {
            bar.inc(1);
            match looked? {
                CheckOutcome::Unchecked(why) => report.unchecked(unit, why),
                CheckOutcome::Checked(checked) => {
                    let Checked { payload, job, verdicts } = *checked;
                    let symbols = job.objects.iter().map(|object| object.symbol.clone());
                    let bad = report.add(unit, symbols.zip(verdicts).collect(), self.verbose);
                    if let Some(sent) = &mut sent {
                        self.send(&payload, &job, bad, report, sent).await?;
                    }
                }
            }
        }
        bar.finish_and_clear();
        if stop.is_cancelled() {
            return Err(Failure::stopped("stopped by a signal before all was checked"));
        }
        Ok(())
    }

    async fn unit(&self, unit: &Unit) -> Result<CheckOutcome, Failure> {
        let Some(message) = self.shared.bus.current_marker(unit).await? else {
            return Ok(CheckOutcome::Unchecked("its marker is no longer on the stream".into()));
        };
        let subject = MarkerSubject::announcement(unit, message.subject.lane == Lane::Backfill);
        let is_accepted = self.beginning.needs_delivery(&message);
        let (store, prefix) = (&self.loader.fetcher.store, &self.shared.config.storage.prefix);
        let checked = async {
            let job = read(store, prefix, &subject, &message.payload, ReplayOptions::default()).await?;
            let mut verdicts = check::check(self.loader, &job).await?;
            if !is_accepted {
                verdicts.iter_mut().filter(|v| **v == Verdict::NotLoaded).for_each(|v| *v = Verdict::TooOld);
            }
            Ok((job, verdicts))
        };
        match checked.await {
            Ok((job, verdicts)) => {
                Ok(CheckOutcome::Checked(Box::new(Checked { payload: message.payload.to_vec(), job, verdicts })))
            }
            Err(error) => unit_error(error).map(CheckOutcome::Unchecked),
        }
    }

    /// Sends the marker again, once for what is not loaded and once, by force, for what is wrong.
    async fn send(
        &self,
        payload: &[u8],
        job: &Job,
        bad: Bad,
        report: &mut DestinationReport,
        sent: &mut Vec<u64>,
    ) -> Result<(), Failure> {
        for (force, symbols) in [(false, bad.not_loaded), (true, bad.wrong)] {
            if symbols.is_empty() {
                continue;
            }
            // What waits already is not sent twice, so that asking twice loads once.
            let purpose = format!("{} {force} {}", job.revision, symbols.join(","));
            let purpose = format!("verify-{}", Sha256Sum::of(purpose.as_bytes()));
            let archives = symbols.len();
            // No list says all of them, which is shorter.
            let all = archives == job.objects.len();
            let symbols = if all { BTreeSet::new() } else { symbols.into_iter().collect() };
            let options = ReplayOptions { force, symbols, ..ReplayOptions::default() };
            sent.push(self.send_one(payload, &job.unit, &options, &purpose).await?);
            report.sent(archives);
        }
        Ok(())
    }

    /// Waits for room where the stream of replays is full.
    async fn send_one(
        &self,
        payload: &[u8],
        unit: &Unit,
        options: &ReplayOptions,
        purpose: &str,
    ) -> Result<u64, Failure> {
        let (bus, tokens) = (&self.shared.bus, unit.subject_tokens());
        let mut standstill = Standstill::default();
        loop {
            let error = match bus.publish_replay_once(self.name, &tokens, payload.to_vec(), options, purpose).await {
                Ok(sequence) => return Ok(sequence),
                Err(error) => error,
            };
            if error.kind != BusErrorKind::Full || standstill.is_over(bus).await? {
                return Err(error.into());
            }
        }
    }

    /// Waits until the workers have finished what was sent; not for ever where no worker takes part.
    async fn wait(
        &self,
        mut sent: Vec<u64>,
        max_wait: Option<Duration>,
        stop: &CancellationToken,
    ) -> Result<(), Failure> {
        let bus = &self.shared.bus;
        let (all, what) = (sent.len(), format!("{} sent again", count(sent.len() as u64, "marker")));
        tracing::info!(destination = self.name, markers = all, "waiting for running workers to load what was sent");
        let mut attendance = Attendance::new(self.name, &what, max_wait);
        sent.sort_unstable_by(|a, b| b.cmp(a));
        loop {
            // The first is finished first, as a rule.
            while let Some(sequence) = sent.last() {
                match bus.replay_is_done(self.name, *sequence).await {
                    Ok(true) => {
                        sent.pop();
                        attendance.worked();
                    }
                    Ok(false) => break,
                    Err(error) => {
                        attendance.bear(error.into())?;
                        break;
                    }
                }
                attendance.answered();
            }
            if sent.is_empty() {
                return Ok(());
            }
            attendance.check(bus, &format!("{} of {all} are done", all - sent.len())).await?;
            if stop.run_until_cancelled(tokio::time::sleep(POLL)).await.is_none() {
                return Err(attendance.failure(Failure::stopped("stopped by a signal")));
            }
        }
    }
}
