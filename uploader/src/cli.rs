//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use common::config::Need;
use common::unit::{Period, Token};

use crate::scan::Filter;
use crate::settle::Mode;

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  some of the work failed; stderr says what
  2  wrong usage or configuration
  3  a server could not be reached
  4  checked and found wanting (doctor, reconcile)";

const UPLOAD_EXAMPLES: &str = "\
Examples:
  uploader upload
  uploader upload --dry-run --market um --interval 1h
  uploader upload --from 2026-02-01 --to 2026-02-14
  uploader upload --cleanup --json";

const WATCH_EXAMPLES: &str = "\
Examples:
  uploader watch --config /etc/marketferry/config.yaml
  FERRY__WATCH__RESCAN=5m FERRY__HTTP__LISTEN=0.0.0.0:9100 uploader watch";

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
  uploader reconcile --fix           after the stream was deleted or NATS lost its store";

const DOCTOR_EXAMPLES: &str = "\
Examples:
  uploader doctor
  uploader doctor --json";

/// Ships complete units of archives to the bucket and announces them
///
/// A unit is complete when its mark, _SUCCESS__<period>__<market>__<interval>[__<dataset>], lies in local.data_dir.
#[derive(Debug, Parser)]
#[command(name = "uploader", version, after_help = EXIT_CODES)]
pub struct Cli {
    /// Configuration file; else $FERRY_CONFIG, else ./config.yaml
    #[arg(long, global = true, value_name = "PATH")]
    pub config: Option<PathBuf>,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// One pass: check, upload and announce what is complete, then exit
    ///
    /// What the bucket and the stream already have is not sent again. A unit with a damaged archive is held back, the
    /// others go on.
    #[command(after_help = UPLOAD_EXAMPLES)]
    Upload(Upload),
    /// The service: a pass every watch.rescan, with /livez, /readyz and /metrics on http.listen
    #[command(after_help = WATCH_EXAMPLES)]
    Watch,
    /// Compares the bucket's manifests with the stream, both ways
    ///
    /// The bucket has a manifest of every revision announced, and is enough to make the stream again; a marker on the
    /// stream is enough to write a lost manifest back. Without --fix nothing is changed.
    #[command(after_help = RECONCILE_EXAMPLES)]
    Reconcile(Reconcile),
    /// Looks at everything the uploader depends on, and says what is wrong
    #[command(after_help = DOCTOR_EXAMPLES)]
    Doctor {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
pub struct Upload {
    /// Print what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Remove archives from disk once a marker that names them is acknowledged
    #[arg(long)]
    cleanup: bool,
    /// Only units of this market
    #[arg(long)]
    market: Option<Market>,
    /// Only units of this interval, e.g. 1h
    #[arg(long)]
    interval: Option<Token>,
    /// Only units whose period ends on this day or later, e.g. 2026-02-14 or 2026-02
    #[arg(long, value_name = "DATE")]
    from: Option<Period>,
    /// Only units whose period begins on this day or earlier
    #[arg(long, value_name = "DATE")]
    to: Option<Period>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub struct Reconcile {
    /// Publish what the stream lacks, write back what the bucket lacks; makes the stream if it is gone
    #[arg(long)]
    pub(crate) fix: bool,
    /// Do not look at the objects of units whose marker stands; what --fix publishes is looked at all the same
    #[arg(long)]
    pub(crate) quick: bool,
    /// Also list units that are the same
    #[arg(long)]
    pub(crate) verbose: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Market {
    Spot,
    Um,
    Cm,
}

impl Cli {
    /// What the command cannot do without.
    pub fn needs(&self) -> &'static [Need] {
        match self.command {
            Command::Upload(_) | Command::Watch => &[Need::Storage, Need::DataDir],
            Command::Reconcile(_) => &[Need::Storage],
            // It says itself what is missing.
            Command::Doctor { .. } => &[],
        }
    }

    /// Whether somebody may be watching: a service has its log.
    pub fn shows_progress(&self) -> bool {
        matches!(self.command, Command::Upload(_) | Command::Reconcile(_))
    }
}

impl Upload {
    pub(crate) fn filter(&self) -> Filter {
        let market = self.market.map(|market| match market {
            Market::Spot => "spot",
            Market::Um => "um",
            Market::Cm => "cm",
        });
        Filter {
            market: market.map(str::to_owned),
            interval: self.interval.as_ref().map(Token::to_string),
            from: self.from.map(Period::first_day),
            to: self.to.map(Period::last_day),
        }
    }

    pub(crate) fn mode(&self) -> Mode {
        Mode { dry_run: self.dry_run, cleanup: self.cleanup }
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
        let filter = upload.filter();
        assert_eq!(filter.market.as_deref(), Some("um"));
        assert_eq!(filter.from.map(|date| date.to_string()).as_deref(), Some("2026-02-01"));
        assert!(Cli::try_parse_from(["uploader", "upload", "--from", "yesterday"]).is_err());
        assert!(Cli::try_parse_from(["uploader", "upload", "--interval", "1h/x"]).is_err());
    }
}
