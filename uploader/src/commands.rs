//! A module for each command: its arguments, what it does, what it prints.

mod adopt;
mod doctor;
mod download;
mod mark;
mod reconcile;
mod upload;
mod watch;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};
use common::bwlimit::BwLimit;
use common::config::{Config, Need};
use common::output::{Failure, OutputArgs, Reply};
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

use crate::cli::context::data_dir;
use crate::site::context::{Site, blocking};
use crate::site::metrics::Metrics;
use crate::site::progress::Progress;

use adopt::{ADOPT_EXAMPLES, Adopt};
use doctor::DOCTOR_EXAMPLES;
use download::{DOWNLOAD_EXAMPLES, Download};
use mark::{MARK_EXAMPLES, Mark};
use reconcile::{RECONCILE_EXAMPLES, Reconcile};
use upload::{UPLOAD_EXAMPLES, Upload};
use watch::{WATCH_EXAMPLES, Watch};

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  some of the work failed; stderr says what
  2  wrong usage or configuration
  3  a server could not be reached
  4  a check found differences (doctor, reconcile), filters match nothing, or a stream is not there";

const HEALTHCHECK_EXAMPLES: &str = "\
Examples:
  uploader healthcheck
  HEALTHCHECK CMD [\"uploader\", \"healthcheck\"]       in a Dockerfile, with FERRY__HTTP__LISTEN set
  uploader healthcheck --live";

/// Ship complete units of archives to the bucket and announce them
///
/// A unit is complete when its mark, `_SUCCESS__<period>__<market>__<interval>[__<dataset>]`, lies in local.data_dir, or
/// when its archives are there: publish.when says which counts.
#[derive(Debug, Parser)]
#[command(name = "uploader", version, after_help = EXIT_CODES)]
pub struct Cli {
    /// Configuration file; else $FERRY_CONFIG, else ./config.yaml
    #[arg(long, global = true, value_name = "PATH")]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    pub output: OutputArgs,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Check, upload and announce what is complete, then exit
    ///
    /// What the bucket and the stream already have is not sent again. A unit with a damaged archive is held back, the
    /// others go on. A unit that waits for more archives is listed with its reason and the time when the wait ends. Does not
    /// wait for watch.min_age: an archive that is still being written fails the check, and its unit is held back.
    #[command(after_help = UPLOAD_EXAMPLES)]
    Upload(Upload),
    /// Fetch archives and their .CHECKSUMs from the exchange into local.data_dir, then exit
    ///
    /// What is here is asked for again only if its period ended lately (--recheck-days). What is not published yet is
    /// counted, and is no failure. An archive that does not match its .CHECKSUM is not taken; the next run asks again.
    /// A transfer that broke off goes on where it stopped. No _SUCCESS__ marks are written.
    #[command(after_help = DOWNLOAD_EXAMPLES)]
    Download(Download),
    /// Run as a service: publish archives as they appear, with /livez, /readyz and /metrics on http.listen
    ///
    /// The file system says what changes; every watch.rescan all of data_dir is looked at, where that does not help. With
    /// download.every the last days are fetched from the exchange, and once a day what never came (download.catch_up_days).
    #[command(after_help = WATCH_EXAMPLES)]
    Watch(Watch),
    /// Compare the bucket's manifests with the stream, both ways
    ///
    /// The bucket has a manifest of every revision announced, and is enough to make the stream again; a marker on the
    /// stream is enough to write a lost manifest back. Without --fix nothing is changed.
    #[command(after_help = RECONCILE_EXAMPLES)]
    Reconcile(Reconcile),
    /// Announce what the bucket holds already, put there by another program
    ///
    /// Needs no data_dir. Lists the bucket, puts archives together to units by their keys, fetches each archive that no
    /// manifest names once, checks it, gives it its sha256 where it lies, and writes manifests and markers. A unit with a
    /// damaged archive is held back. A second run changes nothing. Also makes the list of a unit again that was in the
    /// bucket only and is lost there.
    #[command(after_help = ADOPT_EXAMPLES)]
    Adopt(Adopt),
    /// Mark units as complete, by their names or by filters
    ///
    /// Writes `_SUCCESS__<period>__<market>__<interval>[__<dataset>]` into local.data_dir for each unit that has an archive there:
    /// for a downloader that makes no marks, or units that it left unmarked. This command cannot check that no archive is
    /// missing. A unit without an archive is refused (exit 1), the others are marked.
    #[command(after_help = MARK_EXAMPLES)]
    Mark(Mark),
    /// Check everything the uploader depends on, and say what is wrong
    #[command(after_help = DOCTOR_EXAMPLES)]
    Doctor {
        /// Only check the configuration, with all that the service needs; connect to nothing
        ///
        /// Exit 2, and every problem, when it is wrong.
        #[arg(long)]
        config_only: bool,
    },
    /// Ask the running service whether it is ready, on http.listen; for Docker's HEALTHCHECK
    ///
    /// Exit 0 when it is, 1 when not, with the reasons, and 2 when http.listen is not set. Of the configuration only http.listen
    /// counts, and nothing else is connected to.
    #[command(after_help = HEALTHCHECK_EXAMPLES)]
    Healthcheck {
        /// Ask only whether it runs
        #[arg(long)]
        live: bool,
    },
}

impl Cli {
    /// What the command cannot do without.
    pub fn needs(&self) -> &'static [Need] {
        match &self.command {
            Command::Upload(_) | Command::Watch(_) => &[Need::Storage, Need::DataDir],
            Command::Adopt(adopt) if adopt.marked => &[Need::Storage, Need::DataDir],
            Command::Download(_) | Command::Mark(_) => &[Need::DataDir],
            Command::Reconcile(_) | Command::Adopt(_) => &[Need::Storage],
            Command::Doctor { config_only: true, .. } => &[Need::Storage, Need::DataDir],
            // It says itself what is missing.
            Command::Doctor { .. } | Command::Healthcheck { .. } => &[],
        }
    }

    /// What stands in for `storage.bwlimit`.
    pub fn bwlimit(&self) -> Option<&BwLimit> {
        match &self.command {
            Command::Upload(Upload { bwlimit, .. })
            | Command::Watch(Watch { bwlimit })
            | Command::Download(Download { bwlimit, .. })
            | Command::Reconcile(Reconcile { bwlimit, .. })
            | Command::Adopt(Adopt { bwlimit, .. }) => bwlimit.as_ref(),
            Command::Mark(_) | Command::Doctor { .. } | Command::Healthcheck { .. } => None,
        }
    }

    /// Whether it runs until it is stopped, and tells by its log how it goes.
    pub fn is_service(&self) -> bool {
        matches!(self.command, Command::Watch(_))
    }

    /// Whether somebody may be watching: a service has its log.
    pub fn shows_progress(&self) -> bool {
        matches!(self.command, Command::Upload(_) | Command::Download(_) | Command::Reconcile(_) | Command::Adopt(_))
    }
}

/// What a pass takes to end by itself, and then the connection.
const STOP_SLACK: Duration = Duration::from_secs(8);

/// Runs a command to its end, or until `shutdown`.
///
/// # Errors
/// Why it could not begin.
pub async fn run(
    cli: &Cli,
    config: &Config,
    progress: Progress,
    shutdown: CancellationToken,
) -> Result<Reply, Failure> {
    // Whatever drains ends by itself; whatever waits for a server is left when the time to drain is over.
    let overdue = {
        let shutdown = shutdown.clone();
        async move {
            common::service::shutdown::overdue(shutdown).await;
            tokio::time::sleep(STOP_SLACK).await;
        }
    };
    tokio::select! {
        ended = carry_out(cli, config, progress, shutdown) => ended,
        () = overdue => Err(Failure::stopped("stopped by a signal before the end")),
    }
}

/// Waits until [`run`] is to have ended long ago. It reads and writes the state folder itself, and looks at the data folder
/// before it begins: a disk that hangs stops it.
pub async fn hangs(shutdown: CancellationToken) -> Failure {
    common::service::shutdown::overdue(shutdown).await;
    tokio::time::sleep(STOP_SLACK + 2 * common::service::shutdown::LEAVE).await;
    Failure::stopped("stopped by a signal; a disk (local.state_dir or local.data_dir) does not answer")
}

async fn carry_out(
    cli: &Cli,
    config: &Config,
    progress: Progress,
    shutdown: CancellationToken,
) -> Result<Reply, Failure> {
    match &cli.command {
        Command::Upload(args) => Box::pin(upload::run(config, args, progress, shutdown)).await,
        Command::Download(args) => {
            let report = download::run(config, args, progress, shutdown).await.map_err(Failure::usage)?;
            Ok(report.into_reply(args.list.all))
        }
        Command::Watch(_) => Box::pin(watch::serve(config, progress, shutdown)).await,
        Command::Reconcile(args) => {
            args.filter.check()?;
            let metrics = Metrics::new(&mut Registry::default());
            // Empty where there is none; only `--fix` looks there, and only if one is set.
            let data_dir = config.local.data_dir.clone().unwrap_or_default();
            let site = Site::new(config, data_dir, metrics, progress, shutdown);
            let report = reconcile::run(&site, config, args, cli.output.verbose).await;
            Ok(report.into_reply(args.list.all))
        }
        Command::Adopt(args) => {
            args.check()?;
            let metrics = Metrics::new(&mut Registry::default());
            // Only `--marked` looks there, and is refused without one.
            let data_dir = config.local.data_dir.clone().unwrap_or_default();
            let mut site = Site::new(config, data_dir, metrics, progress, shutdown);
            site.accepted = args.accepted();
            site.queue.read_only = args.dry_run;
            let report = adopt::run(&site, config, args).await;
            site.queue.close().await;
            Ok(report.into_reply(args.list.all))
        }
        Command::Mark(args) => {
            let data_dir = data_dir(config)?;
            let (args, when) = (args.clone(), config.publish.when);
            // Walks the tree.
            blocking(move || mark::run(&data_dir, &args, when, &shutdown)).await
        }
        Command::Doctor { config_only: true } => Ok(doctor::configuration(config).into_reply()),
        Command::Doctor { config_only: false } => Ok(doctor::examine(config, &shutdown).await.into_reply()),
        Command::Healthcheck { .. } => unreachable!("answered before a configuration is loaded"),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn reconcile_needs_the_bucket_only() {
        let cli = Cli::parse_from(["uploader", "reconcile", "--fix", "--quick", "--json"]);
        assert_eq!(cli.needs(), [Need::Storage]);
        assert!(cli.shows_progress());
    }

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
        let cli = Cli::parse_from(["uploader", "upload", "--market", "um", "--from", "2026-02", "--config", "c.yaml"]);
        let Command::Upload(upload) = &cli.command else { panic!("{cli:?}") };
        assert_eq!(upload.filter.market, ["um"]);
        assert_eq!(upload.filter.days().0.map(|date| date.to_string()).as_deref(), Some("2026-02-01"));
        assert!(Cli::try_parse_from(["uploader", "upload", "--from", "yesterday"]).is_err());
        assert!(Cli::try_parse_from(["uploader", "upload", "--interval", "1h/x"]).is_err());
        let rollback = ["uploader", "upload", "--accept-rollback", "binance/um/klines/1h/2026-02-14"];
        assert!(Cli::try_parse_from(rollback).is_ok());
        // They would be ignored without a word.
        for filter in [["--market", "um"], ["--from", "2026-02"], ["--unit", "binance/um"]] {
            assert!(Cli::try_parse_from(rollback.into_iter().chain(filter)).is_err(), "{filter:?}");
        }
    }
}
