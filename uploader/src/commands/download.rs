//! `uploader download`: archives and their `.CHECKSUM`s from the exchange into `data_dir`, as it has them.
//!
//! What is to be fetched (`plan`, and `list` for all symbols), one archive after the other (`exchange`, `fetch`, `place`)
//! and what came of it (`report`). Whether a unit is complete is not decided here: no mark is written.

mod exchange;
mod fault;
mod fetch;
mod list;
mod memory;
mod metrics;
mod outcome;
mod place;
mod plan;
mod report;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::config::{self, Config, Symbols};
use common::service::http::Readiness;
use common::service::{doctor, shutdown};
use common::text::shorten;
use common::unit::Unit;
use futures::{StreamExt, stream};
use jiff::ToSpan;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use prometheus_client::registry::Registry;
use store::bandwidth::Bandwidth;
use tokio_util::sync::CancellationToken;

use crate::local::layout;
use crate::site::context::blocking;
use crate::site::progress::Progress;
use clap::Args;
use clap::builder::PossibleValuesParser;
use common::bwlimit::BwLimit;
use common::catalogue::{DATASETS, INTERVALS, MARKETS};
use common::output::ListArgs;
use common::unit::Period;
use exchange::Exchange;
use fault::{DownloadFault, RunFault};
use fetch::{Absent, Fetcher};
use memory::VersionMemory;
use metrics::DownloadMetrics;
use outcome::DownloadOutcome;
use plan::{DayRange, Span};
use report::{DownloadReport, UnitReport};

pub(super) const DOWNLOAD_EXAMPLES: &str = "\
Examples:
  uploader download                                   yesterday, of what the section download names
  uploader download --symbols BTCUSDT,ETHUSDT --market um --interval 1h --interval 1m
  uploader download --symbols all --market spot --interval 1d --from 2026-02-01 --to 2026-02-14
  uploader download --monthly --from 2025-01 --to 2025-12
  uploader download --from 2026-01 --recheck-days 60   ask again for what is here: was it published anew?";

#[derive(Debug, Args)]
pub struct Download {
    /// These symbols, or all, instead of download.symbols
    #[arg(long, value_delimiter = ',', value_name = "A,B")]
    symbols: Vec<String>,
    /// These markets instead of download.market
    #[arg(long, value_delimiter = ',', value_parser = PossibleValuesParser::new(MARKETS))]
    market: Vec<String>,
    /// These intervals instead of download.intervals
    #[arg(long, value_delimiter = ',', value_parser = PossibleValuesParser::new(INTERVALS))]
    interval: Vec<String>,
    /// These datasets instead of download.datasets
    #[arg(long, value_delimiter = ',', value_parser = PossibleValuesParser::new(DATASETS))]
    dataset: Vec<String>,
    /// The first day, e.g. 2026-02-14 or 2026-02; without dates yesterday, with --monthly the last whole month (UTC)
    #[arg(long, value_name = "DATE")]
    pub(crate) from: Option<Period>,
    /// The last day; without it yesterday
    #[arg(long, value_name = "DATE")]
    pub(crate) to: Option<Period>,
    /// The archives of whole months that overlap these days and have ended, instead of those of days
    #[arg(long)]
    pub(crate) monthly: bool,
    /// Ask again for archives of periods that ended no longer ago, instead of download.recheck_days; 0: never
    #[arg(long, value_name = "N")]
    recheck_days: Option<u32>,
    /// Print what the exchange would be asked for, and fetch nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) list: ListArgs,
    /// Instead of download.base_url
    #[arg(long, value_name = "URL")]
    base_url: Option<String>,
    /// How fast bytes may come, instead of storage.bwlimit: 10M, 512K, off, or a timetable '08:00,512K 19:00,off'
    #[arg(long, value_name = "LIMIT")]
    pub(super) bwlimit: Option<BwLimit>,
}

impl Download {
    /// Puts what was said here in the place of what is configured.
    ///
    /// # Errors
    /// The dates are the wrong way round, or the address is none.
    pub(crate) fn apply(&self, download: &mut config::Download) -> Result<(), String> {
        if let (Some(from), Some(to)) = (self.from, self.to)
            && from.first_day() > to.last_day()
        {
            return Err(format!("--from {from} lies after --to {to}"));
        }
        if !self.symbols.is_empty() {
            download.symbols = Symbols::parse(&self.symbols);
        }
        for (given, configured) in [
            (&self.market, &mut download.markets),
            (&self.interval, &mut download.intervals),
            (&self.dataset, &mut download.datasets),
        ] {
            if !given.is_empty() {
                configured.clone_from(given);
            }
        }
        download.recheck_days = self.recheck_days.unwrap_or(download.recheck_days);
        match &self.base_url {
            Some(url) => download.set_base_url(url).map_err(|problem| format!("--base-url {problem}")),
            None => Ok(()),
        }
    }
}

/// Archives on their way at once: most are small, and each waits for two answers.
const TRANSFERS_MAX: usize = 8;
/// After so many archives in a row that the server failed to give, it is taken to be away.
const FAILED_IN_A_ROW_MAX: usize = 20;
/// A long run keeps what it knows now and then, so that being killed costs little.
const SAVE_EVERY: Duration = Duration::from_secs(30);
/// The part of `/readyz` that gives reasons for the download.
const PART: &str = "download";

/// Runs the command. The report has its exit code.
///
/// # Errors
/// What is wrong with the arguments or the configuration, a line each.
pub(crate) async fn run(
    config: &Config,
    args: &Download,
    progress: Progress,
    shutdown: CancellationToken,
) -> Result<DownloadReport, String> {
    let mut download = config.download.clone();
    args.apply(&mut download)?;
    let missing: Vec<String> = download.missing().iter().map(ToString::to_string).collect();
    if !missing.is_empty() {
        return Err(missing.join("\n"));
    }
    let span = if args.monthly { Span::Months } else { Span::Days };
    let range = DayRange::new(args.from, args.to, span, today());
    let units = plan::units(&download, span, range, today());
    if units.is_empty() {
        return Err(nothing(span, range));
    }
    let metrics = DownloadMetrics::new(&mut Registry::default());
    let bandwidth = Bandwidth::new(config.storage.bwlimit.clone());
    let run = DownloadRun::new(config, download, metrics, progress, bandwidth, shutdown, Absent::Fetch)?;
    Ok(run.fetch_all(units, args.dry_run).await)
}

fn nothing(span: Span, DayRange { from, to }: DayRange) -> String {
    match span {
        Span::Days => format!(
            "there is nothing to fetch from {from} to {to}: no day of it has ended, or what is asked for exists only by \
             month (3d, 1w, 1mo: --monthly) or not in this market (spot has klines only, and only spot has 1s)"
        ),
        Span::Months => format!("there is nothing to fetch from {from} to {to}: no month of it has ended"),
    }
}

/// The service's part: fetches the last days every `download.every`.
///
/// What did not come then, because the machine was off or the exchange had nothing sound, is looked for once a day, as
/// far back as `download.catch_up_days`: what never existed costs one request a day each.
pub(crate) struct Schedule {
    every: Duration,
    run: DownloadRun,
    /// The day on which it was last looked that far back, to the end.
    caught_up: Option<Date>,
}

/// What `uploader watch` is to run beside its passes; `None` without `download.every`. It takes its bytes from the limit
/// that these share.
///
/// # Errors
/// The configuration cannot be used.
pub(crate) fn schedule(
    config: &Config,
    registry: &mut Registry,
    bandwidth: Bandwidth,
    shutdown: CancellationToken,
) -> Result<Option<Schedule>, String> {
    let Some(every) = config.download.every else { return Ok(None) };
    let metrics = DownloadMetrics::new(registry);
    let (download, progress) = (config.download.clone(), Progress::hidden());
    let run = DownloadRun::new(config, download, metrics, progress, bandwidth, shutdown, Absent::StaysAway)?;
    Ok(Some(Schedule { every, run, caught_up: None }))
}

impl Schedule {
    /// Runs until shutdown. What fails is logged, and asked for again by the next run.
    pub(crate) async fn follow(mut self, readiness: &Readiness) {
        while !self.run.fetcher.shutdown.is_cancelled() {
            // The day has changed meanwhile.
            self.run.fetcher.recheck_since = recheck_since(&self.run.download);
            let today = today();
            let catching_up = self.caught_up != Some(today) && !self.run.fetcher.memory.is_full();
            let report = self.run.fetch_all(plan::recent(&self.run.download, catching_up, today), false).await;
            if report.error.is_none() {
                self.caught_up = Some(today);
            }
            match &report.error {
                Some(error) if !self.run.fetcher.shutdown.is_cancelled() => {
                    readiness.not_ready(PART, error.to_string());
                }
                _ => readiness.ready(PART),
            }
            let report::Archives { downloaded, failed, left, .. } = report.archives;
            if downloaded + failed + left > 0 {
                tracing::info!(downloaded, failed, left, "download ended");
            }
            tokio::select! {
                () = self.run.fetcher.shutdown.cancelled() => return,
                () = tokio::time::sleep(self.every) => {}
            }
        }
    }
}

/// Part of `uploader doctor`: whether the exchange answers, where something is to be fetched from it.
pub(crate) async fn check_exchange(report: &mut doctor::DoctorReport, config: &Config) {
    const NAME: &str = "exchange";
    if !config.download.symbols.is_set() {
        return;
    }
    let bandwidth = Bandwidth::new(config.storage.bwlimit.clone());
    let exchange = match Exchange::new(&config.download, bandwidth, CancellationToken::new()) {
        Ok(exchange) => exchange,
        Err(error) => return report.bad(NAME, error, "correct the address"),
    };
    let base = exchange.base();
    match exchange.probe().await {
        Ok(()) => report.good(NAME, format!("{base} answers")),
        Err(fault) => {
            return report.bad(NAME, format!("{base}: {fault}"), "check download.base_url, the network and its proxy");
        }
    }
    if config.download.symbols == Symbols::All
        && let Some(unit) = plan::recent(&config.download, false, today()).first()
    {
        let folder = layout::symbols_folder(unit);
        match list::symbols(&exchange, &folder).await {
            Ok(symbols) => report.good(NAME, format!("it lists {} symbols below {folder}", symbols.len())),
            Err(fault) => {
                let advice = "check download.list_url, or name the symbols in download.symbols";
                report.bad(NAME, format!("its symbols cannot be listed: {fault}"), advice);
            }
        }
    }
}

fn today() -> Date {
    common::clock::now().to_zoned(TimeZone::UTC).date()
}

fn recheck_since(download: &config::Download) -> Date {
    today().saturating_sub(i64::from(download.recheck_days).days())
}

/// What runs have in common.
struct DownloadRun {
    download: config::Download,
    fetcher: Fetcher,
}

impl DownloadRun {
    fn new(
        config: &Config,
        download: config::Download,
        metrics: DownloadMetrics,
        progress: Progress,
        bandwidth: Bandwidth,
        shutdown: CancellationToken,
        absent: Absent,
    ) -> Result<Self, String> {
        if let Symbols::Listed(names) = &download.symbols
            && let Some(name) = names.iter().find(|name| !layout::is_symbol(name))
        {
            // It becomes a folder below data_dir.
            return Err(format!("download.symbols: '{}' cannot be a symbol", shorten(name)));
        }
        let data_dir =
            config.local.data_dir.clone().ok_or("local.data_dir is not set (the folder with the archives)")?;
        let fetcher = Fetcher {
            exchange: Exchange::new(&download, bandwidth, shutdown.clone())?,
            memory: Arc::new(VersionMemory::open(config.local.state_dir.as_deref(), &data_dir)),
            data_dir,
            metrics,
            progress,
            shutdown,
            recheck_since: recheck_since(&download),
            absent,
        };
        Ok(Self { download, fetcher })
    }

    /// Does all there is to do now.
    async fn fetch_all(&self, units: Vec<Unit>, dry_run: bool) -> DownloadReport {
        let started = Instant::now();
        let mut report = DownloadReport::new(dry_run);
        let outcome = self.every_unit(&units, dry_run, &mut report).await;
        self.fetcher.progress.end();
        if let Err(error) = &outcome {
            tracing::error!(%error, "the download ended early");
        } else if !dry_run {
            self.fetcher.metrics.run();
        }
        if !dry_run {
            self.save().await;
        }
        report.end(outcome, started.elapsed());
        report
    }

    async fn every_unit(&self, units: &[Unit], dry_run: bool, report: &mut DownloadReport) -> Result<(), RunFault> {
        let fetcher = &self.fetcher;
        if !dry_run {
            let data_dir = fetcher.data_dir.clone();
            let cannot = |why| RunFault::DataDir { dir: fetcher.data_dir.clone(), why };
            blocking(move || place::check_writable(&data_dir)).await.map_err(cannot)?;
        }
        let symbols = self.symbols(units).await?;
        let symbols_of = |unit: &Unit| Arc::clone(&symbols[&layout::symbols_folder(unit)]);
        report.units = units.iter().map(|unit| UnitReport::new(unit, symbols_of(unit).len())).collect();
        fetcher.progress.begin_download(units.iter().map(|unit| symbols_of(unit).len()).sum());

        // Made as they are needed: a few years of every symbol are millions.
        let archives = units.iter().enumerate().flat_map(|(index, unit)| {
            let symbols = symbols_of(unit);
            (0..symbols.len()).map(move |at| (index, unit, layout::archive_path(unit, &symbols[at])))
        });
        let results = stream::iter(archives)
            .take_until(fetcher.shutdown.cancelled())
            .map(async |(index, unit, path)| {
                if dry_run {
                    let would_ask = fetcher.would_ask(unit, &path).await;
                    return (index, path, would_ask.map(ExchangeCheck::WouldAsk));
                }
                fetcher.progress.doing(unit.to_string());
                let outcome = fetcher.archive(unit, &path).await;
                fetcher.metrics.archive(&outcome);
                (index, path, outcome.map(ExchangeCheck::Done))
            })
            .buffer_unordered(TRANSFERS_MAX)
            .take_until(shutdown::overdue(fetcher.shutdown.clone()));
        let mut results = std::pin::pin!(results);
        let (mut failed_in_a_row, mut saved) = (0, Instant::now());
        while let Some((index, path, looked)) = results.next().await {
            let outcome = match looked {
                Ok(ExchangeCheck::WouldAsk(would_ask)) => {
                    report.units[index].add_planned(would_ask);
                    continue;
                }
                Ok(ExchangeCheck::Done(outcome)) => Ok(outcome),
                Err(DownloadFault::Stopped) => continue,
                Err(fault) => Err(fault),
            };
            report.units[index].add(&path, &outcome);
            fetcher.progress.unit_done();
            failed_in_a_row = match &outcome {
                Err(fault) if fault.is_of_all() => FAILED_IN_A_ROW_MAX,
                Err(fault) if fault.is_the_servers() => failed_in_a_row + 1,
                _ => 0,
            };
            if let Err(fault) = outcome
                && failed_in_a_row >= FAILED_IN_A_ROW_MAX
            {
                return Err(RunFault::Exchange { base: fetcher.exchange.base().to_owned(), fault });
            }
            if saved.elapsed() > SAVE_EVERY {
                self.save().await;
                saved = Instant::now();
            }
        }
        if fetcher.shutdown.is_cancelled() { Err(RunFault::Stopped) } else { Ok(()) }
    }

    /// The symbols of each folder of units.
    async fn symbols(&self, units: &[Unit]) -> Result<BTreeMap<String, Arc<[String]>>, RunFault> {
        let mut symbols: BTreeMap<String, Arc<[String]>> = BTreeMap::new();
        for unit in units {
            let folder = layout::symbols_folder(unit);
            if symbols.contains_key(&folder) {
                continue;
            }
            let found = match &self.download.symbols {
                Symbols::Listed(names) => names.clone(),
                Symbols::All => match list::symbols(&self.fetcher.exchange, &folder).await {
                    Ok(names) if names.is_empty() => {
                        tracing::warn!(folder, "the exchange lists no symbols there");
                        names
                    }
                    Ok(names) => names,
                    Err(DownloadFault::Stopped) => return Err(RunFault::Stopped),
                    Err(fault) => return Err(RunFault::List { folder, fault }),
                },
            };
            symbols.insert(folder, found.into());
        }
        Ok(symbols)
    }

    async fn save(&self) {
        let first = plan::first_day(&self.download, true, today());
        let memory = Arc::clone(&self.fetcher.memory);
        blocking(move || memory.save(first)).await;
    }
}

/// What was found out about an archive.
enum ExchangeCheck {
    WouldAsk(bool),
    Done(DownloadOutcome),
}
