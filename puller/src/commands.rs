//! A module for each command: its arguments, what it does, what it prints.

mod adopt;
mod dead;
mod doctor;
mod explain;
mod gaps;
mod history;
mod migrate;
mod pause;
mod pull;
mod replay;
mod run;
mod status;
mod tasks;
mod verify;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};
use common::config::{Config, Need};
use common::output::{Failure, OutputArgs, Reply};
use tokio_util::sync::CancellationToken;

use adopt::{ADOPT_EXAMPLES, Adopt};
use dead::Dead;
use explain::Explain;
use gaps::Gaps;
use history::History;
use pause::{Pause, Resume};
use pull::Pull;
use replay::Replay;
use run::Run;
use status::Status;
use tasks::Tasks;
use verify::{VERIFY_EXAMPLES, Verify};

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
    /// is in flight within puller.shutdown_grace, a second one stops at once.
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

impl Command {
    /// Whether somebody may be watching: a service has its log.
    pub fn is_watched(&self) -> bool {
        !matches!(self, Self::Run(_))
    }

    /// The settings the command cannot do without.
    pub fn needs(&self) -> &'static [Need] {
        match self {
            Self::Run(_) => &[Need::Storage, Need::Destination],
            Self::Pull(pull) if pull.no_ingest => &[Need::Storage, Need::DataDir],
            Self::Pull(_) | Self::Explain(_) | Self::Verify(_) | Self::Adopt(_) => &[Need::Storage, Need::Destination],
            Self::Replay(_)
            | Self::Status(_)
            | Self::Gaps(_)
            | Self::Migrate { .. }
            | Self::Pause(_)
            | Self::Resume(_)
            | Self::History(_) => &[Need::Destination],
            Self::Doctor { config_only: true, .. } => &[Need::Storage, Need::Destination],
            Self::Tasks(_) | Self::Doctor { .. } | Self::Dead(_) | Self::Healthcheck { .. } => &[],
        }
    }
}

/// What a command that was told to stop may still take, beside the grace of those that drain.
const STOP_SLACK: Duration = Duration::from_secs(15);

/// Runs a command to its end. `verbose`: lists have also what is right.
///
/// # Errors
/// Why it ended early.
pub async fn run(
    command: Command,
    mut config: Config,
    verbose: bool,
    stop: CancellationToken,
) -> Result<Reply, Failure> {
    if let Command::Run(Run { bwlimit: Some(limit) }) | Command::Pull(Pull { bwlimit: Some(limit), .. }) = &command {
        config.storage.bwlimit = limit.clone();
    }
    tracing::debug!(?config, "effective configuration");
    // Whoever drains ends by itself within this time after a signal; a command that waits for a server is left then.
    let drain = match command {
        Command::Run(_) | Command::Pull(_) => config.puller.shutdown_grace + STOP_SLACK,
        _ => STOP_SLACK,
    };
    let overdue = {
        let stop = stop.clone();
        async move {
            stop.cancelled().await;
            tokio::time::sleep(drain).await;
        }
    };
    tokio::select! {
        ended = carry_out(command, config, verbose, stop) => ended,
        () = overdue => Err(Failure::stopped("stopped by a signal before the end")),
    }
}

async fn carry_out(command: Command, config: Config, verbose: bool, stop: CancellationToken) -> Result<Reply, Failure> {
    match command {
        Command::Run(_) => run::run(config, stop).await,
        Command::Pull(args) => pull::run(&args, config, stop).await,
        Command::Replay(args) => replay::run(&args, &config, stop).await,
        Command::Tasks(args) => tasks::run(&args, &config).await,
        Command::Status(args) => status::run(&args, &config).await,
        Command::Gaps(args) => gaps::run(&args, &config).await,
        Command::Dead(command) => dead::run(&command, &config).await,
        Command::Pause(args) => pause::pause(&args, &config).await,
        Command::Resume(args) => pause::resume(&args, &config).await,
        Command::Explain(args) => explain::run(&args, &config).await,
        Command::History(args) => history::run(&args, &config).await,
        Command::Verify(args) => verify::run(&args, config, verbose, stop).await,
        Command::Adopt(args) => adopt::run(&args, config, verbose, stop).await,
        Command::Migrate { prune } => migrate::run(&config, prune).await,
        Command::Doctor { config_only } => Ok(doctor::run(&config, config_only).await),
        Command::Healthcheck { .. } => unreachable!("answered before a configuration is loaded"),
    }
}
