//! `bench`: the whole pipeline against its peers and its limits, on this machine, as docs/PERFORMANCE.md describes.
//!
//! Every contender is a process of its own, measured from outside by `tests/bench/measure.py`; so is the S3 server. What
//! a contender has written is compared with what was generated, in every run: one with other rows ends the bench.

#![expect(clippy::print_stdout, reason = "the table is what a run is for")]

mod figures;
mod ground;
mod growth;
mod ingest;
mod latency;
mod limit;
mod machine;
mod measured;
mod peers;
mod plan;
mod readers;
mod report;
mod scaling;
mod shape;
mod stream;
mod targets;
mod upload;
mod world;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use tests::{Failure, Result};

use crate::{figures::Figures, machine::Machine, plan::Plan, world::World};

/// Measures the pipeline and its peers on generated archives and real servers; prints a table and writes JSON
#[derive(Parser)]
#[command(
    version,
    after_help = "Scenarios: ingest/NAME (day-1m, day-1h, units-365, units-2000, daily-5y, month-1m, memory-1s, \
                  memory-3000), upload, latency, scaling, growth, readers.\n\n\
                  Examples:\n  bench\n  bench --quick\n  bench --only ingest/day-1m --rounds 5\n  \
                  bench --only growth --rows 500000000"
)]
struct Cli {
    #[command(subcommand)]
    part: Option<Part>,
    /// Rounds; in each, every contender runs once
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: Option<u32>,
    /// Only scenarios whose name contains one of these
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Tiny sizes, one round: shows that everything works, measures nothing
    #[arg(long)]
    quick: bool,
    /// Rows that the table has before `growth` and `readers` [default: 50 million]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=2_000_000_000))]
    rows: Option<u64>,
    /// Where the figures go
    #[arg(long, default_value = "target/bench.json")]
    json: PathBuf,
}

/// What the bench starts itself as.
#[derive(Subcommand)]
enum Part {
    /// The S3 server, for ever
    #[command(hide = true)]
    ServeS3 { dir: PathBuf },
    /// The hand-built pipeline without queue, ledger and read-back
    #[command(hide = true)]
    Limit { job: PathBuf },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match &cli.part {
        Some(Part::ServeS3 { dir }) => world::serve_s3(dir),
        Some(Part::Limit { job }) => limit::run(job),
        None => run(&cli),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("bench: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    let plan = Plan::new(cli.quick, cli.rounds, cli.rows, &cli.only);
    if plan.is_empty() {
        return Err(Failure::new("--only leaves no scenario: see --help for their names"));
    }
    let mut figures = Figures::default();
    let world = World::start(plan.rows_filled())?;
    let mut machine = Machine::read(&world)?;
    for workload in plan.ingest() {
        ingest::run(&world, &plan, &workload, &mut figures)?;
    }
    if plan.includes("upload") {
        upload::run(&world, &plan, &mut figures)?;
    }
    if plan.includes("latency") {
        latency::run(&world, &plan, &mut figures)?;
    }
    if plan.includes("scaling") {
        scaling::run(&world, &plan, &mut figures)?;
    }
    if plan.includes("growth") {
        growth::run(&world, &plan, &mut figures)?;
    }
    if plan.includes("readers") {
        readers::run(&world, &plan, &mut figures)?;
    }
    machine.read_again();
    println!("{}", report::table(&machine, &plan, &figures));
    report::write_json(&cli.json, &machine, &plan, &figures)
}
