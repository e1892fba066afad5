//! The command line.

use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::{Args, Parser, Subcommand};
use common::bwlimit::BwLimit;
use common::catalogue::{DATASETS, INTERVALS, MARKETS};
use common::config::{self, Need, Publish, Symbols};
use common::output::{Failure, ListArgs, OutputArgs};
use common::unit::{Period, Unit};
use common::unit_filter::{UnitFilter, UnitPrefix};

use crate::cleanup::Policy;
use crate::mark::Mark;
use crate::pass::Scope;
use crate::settle::Mode;
use crate::site::Accepted;

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  some of the work failed; stderr says what
  2  wrong usage or configuration
  3  a server could not be reached
  4  a check found differences (doctor, reconcile), filters match nothing, or a stream is not there";

const UPLOAD_EXAMPLES: &str = "\
Examples:
  uploader upload
  uploader upload --dry-run --market um --interval 1h
  uploader upload --from 2026-02-01 --to 2026-02-14
  uploader upload --cleanup --keep-days 7 --json
  uploader upload --accept-rollback binance/um/klines/1h/2026-02-14
  uploader upload --bwlimit 2M";

const WATCH_EXAMPLES: &str = "\
Examples:
  uploader watch --config /etc/marketferry/config.yaml
  uploader watch --bwlimit '08:00,512K 19:00,off'
  FERRY__WATCH__RESCAN=5m FERRY__HTTP__LISTEN=0.0.0.0:9100 uploader watch";

const DOWNLOAD_EXAMPLES: &str = "\
Examples:
  uploader download                                   yesterday, of what the section download names
  uploader download --symbols BTCUSDT,ETHUSDT --market um --interval 1h --interval 1m
  uploader download --symbols all --market spot --interval 1d --from 2026-02-01 --to 2026-02-14
  uploader download --monthly --from 2025-01 --to 2025-12
  uploader download --from 2026-01 --recheck-days 60   ask again for what is here: was it published anew?";

const RECONCILE_EXAMPLES: &str = "\
Lines:
  = unit   the same on both sides (only with --verbose)
  + unit   in the bucket, not on the stream
  - unit   on the stream, not in the bucket
  * unit   revisions differ
  ! unit   a manifest or an object is lost or damaged; it is named

Exit 0 without differences, 4 with some; with --fix 0, or 1 if something could not be fixed.

Examples:
  uploader reconcile
  uploader reconcile --quick --json
  uploader reconcile --content --market um --from 2026-02 --bwlimit 2M
  uploader reconcile --fix           after the stream was deleted or NATS lost its store";

const MARK_EXAMPLES: &str = "\
Examples:
  uploader mark binance/um/klines/1h/2026-02-14
  uploader mark --market um --interval 1h --from 2026-02-01 --dry-run
  uploader mark --unit binance/spot/klines/1d --json";

const ADOPT_EXAMPLES: &str = "\
Examples:
  uploader adopt --dry-run
  uploader adopt --market um --interval 1h --from 2026-01
  uploader adopt --marked --json";

const DOCTOR_EXAMPLES: &str = "\
Examples:
  uploader doctor
  uploader doctor --json
  uploader doctor --config-only      before the service is started: is every setting there?";

const HEALTHCHECK_EXAMPLES: &str = "\
Examples:
  uploader healthcheck
  HEALTHCHECK CMD [\"uploader\", \"healthcheck\"]       in a Dockerfile, with FERRY__HTTP__LISTEN set
  uploader healthcheck --live";

/// Ship complete units of archives to the bucket and announce them
///
/// A unit is complete when its mark, _SUCCESS__<period>__<market>__<interval>[__<dataset>], lies in local.data_dir, or
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
    /// Writes _SUCCESS__<period>__<market>__<interval>[__<dataset>] into local.data_dir for each unit that has an archive there:
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

#[derive(Debug, Args)]
pub struct Upload {
    /// Print what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Remove archives from disk once a marker that names them is acknowledged and the bucket has them
    ///
    /// Their .CHECKSUM files go with them, marks and folders stay. Without it, publish.cleanup_after counts. Not with
    /// storage.type rsync, where the archives are the stored objects themselves.
    #[arg(long)]
    cleanup: bool,
    /// Keep archives whose period ended less than N days ago [default: publish.keep_days]
    #[arg(long, value_name = "N")]
    keep_days: Option<u32>,
    /// Publish the archives of this unit that are older than the announced ones, dated as published now; only this unit
    ///
    /// The archive that the exchange generated last keeps winning: one that comes back as it was before is named and not
    /// taken, until somebody says here that it is right. May be given several times, and not with filters.
    #[arg(long, value_name = "UNIT", conflicts_with = "UnitFilter")]
    accept_rollback: Vec<Unit>,
    /// Announce units from this bucket and prefix that are announced from another one
    ///
    /// Without it nothing is uploaded while the stream's units are announced from elsewhere: a wrong storage.r2.prefix
    /// looks like an empty bucket.
    #[arg(long)]
    accept_move: bool,
    #[command(flatten)]
    pub(crate) filter: UnitFilter,
    #[command(flatten)]
    pub(crate) list: ListArgs,
    /// How fast bytes may go, instead of storage.bwlimit: 10M, 512K, off, or a timetable '08:00,512K 19:00,off'
    #[arg(long, value_name = "LIMIT")]
    bwlimit: Option<BwLimit>,
}

#[derive(Debug, Args)]
pub struct Adopt {
    /// Only list the bucket and say what would be fetched and announced
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Only units whose mark lies in local.data_dir; else every unit the bucket has an archive of
    #[arg(long)]
    pub(crate) marked: bool,
    /// Announce the objects of this unit that are older than the announced ones, dated as published now
    ///
    /// May be given several times.
    #[arg(long, value_name = "UNIT")]
    accept_rollback: Vec<Unit>,
    #[command(flatten)]
    pub(crate) filter: UnitFilter,
    #[command(flatten)]
    pub(crate) list: ListArgs,
    /// How fast bytes may come and go, instead of storage.bwlimit: 10M, 512K, off, or a timetable '08:00,512K 19:00,off'
    #[arg(long, value_name = "LIMIT")]
    bwlimit: Option<BwLimit>,
}

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
    bwlimit: Option<BwLimit>,
}

#[derive(Debug, Args)]
pub struct Watch {
    /// How fast bytes may go, instead of storage.bwlimit: 10M, 512K, off, or a timetable '08:00,512K 19:00,off'
    #[arg(long, value_name = "LIMIT")]
    bwlimit: Option<BwLimit>,
}

#[derive(Debug, Args)]
pub struct Reconcile {
    /// Publish what the stream lacks, write back what the bucket lacks; makes the stream if it is gone
    #[arg(long)]
    pub(crate) fix: bool,
    /// Do not look at the objects of units whose marker stands; what --fix publishes is looked at all the same
    #[arg(long)]
    pub(crate) quick: bool,
    /// Also read every announced object from the bucket, and compare its bytes with the marker
    ///
    /// A byte that changed in the bucket is found by nothing else at this site: its metadata stay as they were. With --fix
    /// such an object is uploaded again where local.data_dir has it.
    #[arg(long, conflicts_with = "quick")]
    pub(crate) content: bool,
    #[command(flatten)]
    pub(crate) filter: UnitFilter,
    #[command(flatten)]
    pub(crate) list: ListArgs,
    /// How fast bytes may come and go, instead of storage.bwlimit: 10M, 512K, off, or a timetable '08:00,512K 19:00,off'
    #[arg(long, value_name = "LIMIT")]
    bwlimit: Option<BwLimit>,
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

/// Whether units named on the command line can exist.
fn check_words(units: &[Unit]) -> Result<(), Failure> {
    units.iter().try_for_each(|unit| UnitPrefix::from(unit).check_words().map_err(Failure::usage))
}

impl Upload {
    /// # Errors
    /// Arguments that are wrong in themselves.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        self.filter.check()?;
        check_words(&self.accept_rollback)
    }

    pub(crate) fn scope(&self) -> Scope {
        if self.accept_rollback.is_empty() {
            Scope::Everything(self.filter.clone())
        } else {
            Scope::Units(self.accept_rollback.clone())
        }
    }

    pub(crate) fn accepted(&self) -> Accepted {
        let rollbacks = self.accept_rollback.iter().cloned().collect();
        Accepted { move_here: self.accept_move, bucket_is_whole: false, rollbacks }
    }

    pub(crate) fn mode(&self, publish: &Publish) -> Mode {
        Mode { dry_run: self.dry_run, cleanup: Policy::of(publish, self.cleanup, self.keep_days), service: false }
    }
}

impl Adopt {
    /// # Errors
    /// Arguments that are wrong in themselves.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        self.filter.check()?;
        check_words(&self.accept_rollback)
    }

    /// To announce what lies in this bucket is what it is run for.
    pub(crate) fn accepted(&self) -> Accepted {
        let rollbacks = self.accept_rollback.iter().cloned().collect();
        Accepted { move_here: true, bucket_is_whole: true, rollbacks }
    }
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
