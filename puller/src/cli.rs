//! The command line of `puller`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use common::unit::{Period, Token, Unit};

const VERIFY_EXAMPLES: &str = "\
Lines:
  = unit          verified (only with --verbose)
  - unit symbol   an archive is not loaded
  * unit symbol   rows are missing or differ, and how many
  ! unit symbol   could not be checked, and why

Exit 0 when all is right, 4 when something is not; with --fix 0, or 1 if something could not be sent or checked.

Examples:
  puller verify
  puller verify --unit binance/um/klines/1h/2026-02-14
  puller verify --from 2026-02 --to 2026-03 --market um --json
  puller verify --fix && puller pull    load again what is not right
  puller verify --fix --wait            the same where workers are running";

/// Takes announced archives from the bucket to ClickHouse, exactly once and verified
#[derive(Debug, Parser)]
#[command(
    name = "puller",
    version,
    after_help = "Exit codes: 0 done; 1 some of the work failed; 2 wrong usage or configuration; \
                  3 a server could not be reached; 4 checked and found wanting."
)]
pub struct Cli {
    /// Configuration file [default: $FERRY_CONFIG, else ./config.yaml if there is one]
    #[arg(long, global = true, value_name = "PATH")]
    pub config: Option<PathBuf>,

    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs the worker service until SIGTERM
    ///
    /// Start as many as you like, on as many machines as you like: they share the work. The first SIGTERM finishes what
    /// is in hand within puller.shutdown_grace, a second one stops at once.
    #[command(after_help = "Example:\n  puller run --config /etc/marketferry/config.yaml")]
    Run,

    /// Loads what is pending now, then exits
    ///
    /// For cron. Ends when nothing is pending and nothing is in any worker's hands; waits for retries and for the leases
    /// of workers that died, at most --max-wait.
    #[command(
        after_help = "Examples:\n  puller pull\n  puller pull --max-wait 10m\n  puller pull --dry-run --json\n  \
                            puller pull --no-ingest    keep the archives as files under local.data_dir instead"
    )]
    Pull(Pull),

    /// Shows per destination what is pending, in hand, parked, dead and last loaded
    #[command(after_help = "Examples:\n  puller status\n  puller status --json\n  puller status --missing")]
    Status(Status),

    /// Reads ClickHouse back against what is announced: every archive, by count and hash of its rows
    ///
    /// Where they differ, the archive is fetched and compared row by row; rows that another archive, generated later,
    /// replaced are right. Without --fix nothing is changed.
    #[command(after_help = VERIFY_EXAMPLES)]
    Verify(Verify),

    /// Creates or updates the streams, consumers, tables and views
    #[command(
        after_help = "Examples:\n  puller migrate\n  puller migrate --prune    also remove consumers of destinations \
                            that are no longer configured"
    )]
    Migrate {
        /// Remove durable consumers of destinations that are not configured
        #[arg(long)]
        prune: bool,
    },

    /// Checks every server, credential and setting, and says what to do about what is wrong
    #[command(after_help = "Examples:\n  puller doctor\n  puller doctor --json")]
    Doctor {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
pub struct Pull {
    /// Only list what is pending; change nothing
    #[arg(long)]
    pub dry_run: bool,

    /// Fill the directory destination `mirror` (local.data_dir) and leave the others' progress alone
    #[arg(long)]
    pub no_ingest: bool,

    /// Stop after this time even if something is left, e.g. 10m
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub max_wait: Option<Duration>,

    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct Verify {
    /// Only this destination; else all ClickHouse destinations that this configuration serves
    #[arg(long, value_name = "NAME")]
    pub destination: Option<String>,

    /// Only this unit, e.g. binance/um/klines/1h/2026-02-14
    #[arg(long, conflicts_with_all = ["from", "to", "market", "interval"])]
    pub unit: Option<Unit>,

    /// Only units whose period ends on this day or later, e.g. 2026-02-14 or 2026-02
    #[arg(long, value_name = "DATE")]
    pub from: Option<Period>,

    /// Only units whose period begins on this day or earlier
    #[arg(long, value_name = "DATE")]
    pub to: Option<Period>,

    /// Only units of this market, e.g. um
    #[arg(long)]
    pub market: Option<Token>,

    /// Only units of this interval, e.g. 1h
    #[arg(long)]
    pub interval: Option<Token>,

    /// Send what is not right to the workers again
    #[arg(long)]
    pub fix: bool,

    /// With --fix, wait until the workers are done with it, and check again
    #[arg(long, requires = "fix")]
    pub wait: bool,

    /// Also list units that are right
    #[arg(long)]
    pub verbose: bool,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct Status {
    /// Print JSON
    #[arg(long)]
    pub json: bool,

    /// List days that no archive covers between a symbol's first and last one; exit 4 if there are any
    #[arg(long)]
    pub missing: bool,
}
