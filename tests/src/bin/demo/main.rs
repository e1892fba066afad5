//! `demo`: the whole way of an archive, on this machine, in a minute. `demo stack`: the servers alone, to play with.
//! The other commands are the parts of it that a demo in containers needs.
//!
//! Nothing is left behind: servers and binaries die with this process, files go at the end or, when it was killed, at
//! the next start. The tree given with `--data` is only read.

#![expect(clippy::print_stdout, reason = "the table and the exports are what the demo is for")]

mod input;
mod progress;
mod report;
mod run;
mod s3;
mod stack;
mod warehouse;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

/// Ships archives from a data_dir through S3 and NATS into ClickHouse, with real servers on this machine
#[derive(Parser)]
#[command(
    version,
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  demo\n  demo --data /srv/binance\n  demo stack"
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    /// A tree of your own (the folder that has `data/`) instead of generated archives; it is only read
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// How many days of archives to generate
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=60), conflicts_with = "data")]
    days: u8,
}

#[derive(Subcommand)]
enum Command {
    /// Starts the servers, prints what to export to use them, and keeps them up until Ctrl-C
    Stack {
        /// Where they keep their data; without it, in a folder that goes with them
        #[arg(long)]
        dir: Option<PathBuf>,
    },
    /// Serves a bucket from a folder until SIGTERM
    #[command(
        name = "s3",
        after_help = "Example:\n  demo s3 --listen 0.0.0.0:9000 --dir /data --access-key-id-file /run/secrets/id \\\n      \
                      --secret-access-key-file /run/secrets/key"
    )]
    S3(s3::Args),
    /// Writes archives, each landing by a rename, and then their marks into a data_dir
    ///
    /// The same arguments write the same bytes again; what is there already is left as it is. Without --from the days
    /// are the last ones that the exchange has published for certain.
    #[command(
        after_help = "Example:\n  demo generate --data-dir /data --days 2 --symbols 3 --interval 1h --interval 1d"
    )]
    Generate(input::Args),
    /// Compares klines_latest and archives with the archives of a data_dir, value for value; exit 1 if they differ
    #[command(
        after_help = "Example:\n  demo compare --data-dir /data --clickhouse http://clickhouse:8123 --user reader \\\n      \
                      --password-file /run/secrets/reader --wait 60s"
    )]
    Compare(warehouse::Compare),
    /// Waits until there are rows, then prints how many of which unit, and the last days of one series
    #[command(
        after_help = "Example:\n  demo show --clickhouse http://clickhouse:8123 --user reader --password-file /run/secrets/reader"
    )]
    Show(warehouse::Show),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Some(Command::Stack { dir }) => stack::run(dir.as_deref()),
        Some(Command::S3(args)) => s3::run(&args),
        Some(Command::Generate(args)) => input::run(&args),
        Some(Command::Compare(args)) => warehouse::compare(&args),
        Some(Command::Show(args)) => warehouse::show(&args),
        None => run::run(cli.data.as_deref(), cli.days),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("demo: {failure}");
            ExitCode::FAILURE
        }
    }
}
