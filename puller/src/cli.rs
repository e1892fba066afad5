//! The command line of `puller`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use common::bwlimit::BwLimit;
use common::output::{ListArgs, OutputArgs};
use common::unit_filter::{SymbolFilter, UnitFilter};
use jiff::Timestamp;

use crate::dead::Dead;
use crate::explain::Explain;
use crate::gaps::Gaps;
use crate::history::History;
use crate::moment;
use crate::pause::{Pause, Resume};

const VERIFY_EXAMPLES: &str = "\
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

const ADOPT_EXAMPLES: &str = "\
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

const HEALTHCHECK_EXAMPLES: &str = "\
Examples:
  puller healthcheck
  HEALTHCHECK CMD [\"puller\", \"healthcheck\"]         in a Dockerfile, with FERRY__HTTP__LISTEN set
  puller healthcheck --live";

/// Load announced archives from the bucket into ClickHouse, exactly once and verified
#[derive(Debug, Parser)]
#[command(
    name = "puller",
    version,
    after_help = "Exit codes: 0 done; 1 some of the work failed; 2 wrong usage or configuration; \
                  3 a server could not be reached; 4 a check found differences, filters match nothing, or a stream or \
                  table is not there."
)]
pub struct Cli {
    /// Configuration file [default: $FERRY_CONFIG, else ./config.yaml if there is one]
    #[arg(long, global = true, value_name = "PATH")]
    pub config: Option<PathBuf>,

    #[command(flatten)]
    pub output: OutputArgs,

    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the worker service until SIGTERM
    ///
    /// Start as many as you like, on as many machines as you like: they share the work. The first SIGTERM finishes what
    /// is in hand within puller.shutdown_grace, a second one stops at once.
    #[command(after_help = "Examples:\n  puller run --config /etc/marketferry/config.yaml\n  \
                            puller run --bwlimit '08:00,512K 19:00,off'")]
    Run(Run),

    /// Load what is pending now, then exit
    ///
    /// For cron. Ends when nothing is pending and nothing is in any worker's hands; waits for retries and for the leases
    /// of workers that died, at most --max-wait.
    #[command(
        after_help = "Examples:\n  puller pull\n  puller pull --max-wait 10m\n  puller pull --dry-run --json\n  \
                            puller pull --no-ingest    keep the archives as files under local.data_dir instead"
    )]
    Pull(Pull),

    /// Show per destination the backlog, what is in flight, waits for a retry or is dead, and its workers
    #[command(after_help = "Examples:\n  puller status\n  puller status --json\n  puller status --missing")]
    Status(Status),

    /// List what is expected and not loaded, in ranges of days; exit 4 if there is anything
    ///
    /// Days between a symbol's first and last archive that no archive covers; and days between its first and last row that
    /// a month's archive does not have, nor an archive of a day. `puller status --missing` is the same.
    #[command(
        after_help = "Examples:\n  puller gaps\n  puller gaps --market um --interval 1h --from 2026-01 --all\n  \
                            puller gaps --symbol BTCUSDT --json"
    )]
    Gaps(Gaps),

    /// Send units to a destination again, as a task that all its workers share
    ///
    /// What is loaded and verified is skipped, unless --force writes it again; the end state is the same. Live units go
    /// first. Workers need no restart, and a replay survives the restart of everything.
    #[command(
        after_help = "Examples:\n  puller replay --dry-run\n  puller replay --market um --interval 1h --from 2026-01 --to 2026-02 --wait\n  \
                            puller replay --symbol BTCUSDT --force --reason \"rows were deleted by mistake\"\n  \
                            puller replay --since 2026-02-14"
    )]
    Replay(Box<Replay>),

    /// Show and cancel replays
    #[command(subcommand)]
    Tasks(Tasks),

    /// List dead letters, show them, send them again or discard them
    ///
    /// A dead letter is a marker that a person must look at: every attempt failed, or no attempt can help.
    #[command(subcommand)]
    Dead(Dead),

    /// Stop a destination for all workers; they finish what they have and wait
    #[command(after_help = "Examples:\n  puller pause\n  puller pause --destination primary --until 2h\n  \
                            puller pause --until 2026-02-14T08:00:00Z")]
    Pause(Pause),

    /// Let a paused destination go on
    #[command(after_help = "Examples:\n  puller resume\n  puller resume --destination primary")]
    Resume(Resume),

    /// List what was tried and how it ended, newest first, from ingest_log
    #[command(after_help = "Examples:\n  puller history\n  puller history binance/um/klines/1h/2026-02-14\n  \
                            puller history binance/um --failed --limit 20 --json")]
    History(History),

    /// Tell everything that is known of one unit; exit 4 if something of it is not loaded that a destination wants
    #[command(after_help = "Examples:\n  puller explain binance/um/klines/1h/2026-02-14\n  \
                            puller explain binance/um/klines/1h/2026-02-14 --json")]
    Explain(Explain),

    /// Read ClickHouse back against what is announced: every archive, by count and hash of its rows
    ///
    /// Where they differ, the archive is fetched and compared row by row; rows that another archive, generated later,
    /// replaced are right. Without --fix nothing is changed.
    #[command(after_help = VERIFY_EXAMPLES)]
    Verify(Verify),

    /// Record as loaded the rows that another program put into our tables, where they are exactly the archives'
    ///
    /// The names in the folder are hints which units to look at, nothing more: each archive is fetched, verified, decoded
    /// and compared with `klines`. Only one whose every row is shown with its values and its version is recorded, so that
    /// workers skip it; all others are left to them.
    #[command(after_help = ADOPT_EXAMPLES)]
    Adopt(Adopt),

    /// Create or update the streams, consumers, tables and views
    #[command(
        after_help = "Examples:\n  puller migrate\n  puller migrate --prune    also remove consumers of destinations \
                            that are no longer configured"
    )]
    Migrate {
        /// Remove durable consumers of destinations that are not configured
        #[arg(long)]
        prune: bool,
    },

    /// Check every server, credential and setting, and say what to do about what is wrong
    #[command(
        after_help = "Examples:\n  puller doctor\n  puller doctor --json\n  puller doctor --config-only    before the \
                            service is started: is every setting there?"
    )]
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
pub struct Run {
    /// How fast bytes may come, instead of storage.bwlimit: 10M, 512K, off, or a timetable '08:00,512K 19:00,off'
    #[arg(long, value_name = "LIMIT")]
    pub bwlimit: Option<BwLimit>,
}

#[derive(Debug, Args)]
pub struct Pull {
    /// Only list what is pending: nothing is loaded, and no stream or consumer is made
    #[arg(long)]
    pub dry_run: bool,

    /// Fill the directory destination `mirror` (local.data_dir) and leave the others' progress alone
    #[arg(long)]
    pub no_ingest: bool,

    /// Stop after this time even if something is left, e.g. 10m
    #[arg(long, value_name = "TIME", value_parser = moment::duration)]
    pub max_wait: Option<Duration>,

    /// How fast bytes may come, instead of storage.bwlimit: 10M, 512K, off, or a timetable '08:00,512K 19:00,off'
    #[arg(long, value_name = "LIMIT")]
    pub bwlimit: Option<BwLimit>,

    #[command(flatten)]
    pub list: ListArgs,
}

#[derive(Debug, Args)]
pub struct Replay {
    /// Only this destination [default: all that are served here]
    #[arg(long, value_name = "NAME")]
    pub destination: Option<String>,

    #[command(flatten)]
    pub filter: UnitFilter,

    #[command(flatten)]
    pub symbols: SymbolFilter,

    /// Which markers: full (0), every current one; since (1), those announced at --since or later; continuous (2), as full
    ///
    /// Each is sent once. What is announced later is delivered anyway, whatever the mode; with since and continuous the task
    /// stays FOLLOWING until it is cancelled, and full ends with its last unit.
    #[arg(long, value_enum, default_value_t = ReplayMode::Full)]
    pub mode: ReplayMode,

    /// Only markers announced since a time (2026-02-14T08:00:00Z), a day (2026-02-14, from 00:00 UTC) or this long ago (3d);
    /// implies --mode since
    #[arg(long, value_name = "TIME", required_if_eq("mode", "since"), value_parser = moment::past)]
    pub since: Option<Timestamp>,

    /// Write also what is loaded and verified
    #[arg(long)]
    pub force: bool,

    /// Why; kept with the task
    #[arg(long)]
    pub reason: Option<String>,

    /// Wait until every unit is finished; exit 1 if one failed or was cancelled, 3 if no worker is there for 60 s, or for
    /// --max-wait where that is less
    #[arg(long)]
    pub wait: bool,

    /// With --wait: how long to wait while no worker takes part [default: 60s], and at most altogether if given
    #[arg(long, value_name = "TIME", requires = "wait", value_parser = moment::duration)]
    pub max_wait: Option<Duration>,

    /// Only say what would be sent: units, archives, bytes, and an estimate
    #[arg(long)]
    pub dry_run: bool,

    #[command(flatten)]
    pub list: ListArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ReplayMode {
    #[value(alias = "0")]
    Full,
    #[value(alias = "1")]
    Since,
    #[value(alias = "2")]
    Continuous,
}

impl ReplayMode {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Since => "since",
            Self::Continuous => "continuous",
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum Tasks {
    /// List all replays, the newest last
    #[command(after_help = "Examples:\n  puller tasks ls\n  puller tasks ls --all --json")]
    Ls {
        #[command(flatten)]
        list: ListArgs,
    },
    /// Show one replay and each of its units
    #[command(after_help = "Example:\n  puller tasks show primary-20260214-101500-123")]
    Show {
        id: String,
        #[command(flatten)]
        list: ListArgs,
    },
    /// Pass over the units of a replay that no worker has begun
    ///
    /// A replay that is finished stays as it is.
    #[command(after_help = "Example:\n  puller tasks cancel primary-20260214-101500-123")]
    Cancel { id: String },
}

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

#[derive(Debug, Args)]
pub struct Status {
    /// The same as `puller gaps`, with its filters
    #[arg(long)]
    pub missing: bool,

    #[command(flatten)]
    pub gaps: Gaps,
}

impl Command {
    /// Whether somebody may be watching: a service has its log.
    pub fn is_watched(&self) -> bool {
        !matches!(self, Self::Run(_))
    }
}
