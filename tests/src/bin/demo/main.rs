//! `demo`: the whole way of an archive, on this machine, in a minute. `demo stack`: the servers alone, to play with.
//!
//! Nothing is left behind: servers and binaries die with this process, files go at the end or, when it was killed, at
//! the next start. The tree given with `--data` is only read.

#![expect(clippy::print_stdout, reason = "the table and the exports are what the demo is for")]

mod input;
mod progress;
mod report;
mod run;
mod stack;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

/// Ships archives from a data_dir through S3 and NATS into ClickHouse, with real servers on this machine
#[derive(Parser)]
#[command(version, after_help = "Examples:\n  demo\n  demo --data /srv/binance\n  demo stack")]
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
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Some(Command::Stack { dir }) => stack::run(dir.as_deref()),
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
