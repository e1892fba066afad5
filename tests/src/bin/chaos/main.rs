//! `chaos`: kills, stops and breaks everything at random for a while, then looks whether a row is missing or doubled.
//!
//! The seed is printed; the same seed makes the same choices, though not the same timing.

#![expect(clippy::print_stdout, reason = "the table is what a run is for")]

mod world;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use tests::Result;
use tests::dice::{Dice, any_seed};
use tests::proxy::Fault;

use world::World;

/// Breaks servers and processes at random for some minutes, then compares every row
#[derive(Parser)]
#[command(version, after_help = "Example:\n  chaos --minutes 10 --seed 42")]
struct Cli {
    /// How long
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=600))]
    minutes: u64,
    /// Which choices; random unless given
    #[arg(long)]
    seed: Option<u64>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let seed = cli.seed.unwrap_or_else(any_seed);
    println!("seed {seed}, {} minutes", cli.minutes);
    match run(Duration::from_secs(60 * cli.minutes), seed) {
        Ok(table) => {
            println!("{table}");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("chaos: seed {seed}: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(length: Duration, seed: u64) -> Result<String> {
    let mut dice = Dice::new(seed);
    let mut world = World::start()?;
    let started = Instant::now();
    let mut reported = Instant::now();
    while started.elapsed() < length {
        step(&mut world, &mut dice)?;
        world.ensure_workers()?;
        if reported.elapsed() > Duration::from_secs(15) {
            reported = Instant::now();
            println!("{:4} s  {}", started.elapsed().as_secs(), world.tally.line());
        }
        std::thread::sleep(Duration::from_millis(dice.below(400)));
    }
    println!("{:4} s  healing, and waiting until nothing is left to do", started.elapsed().as_secs());
    world.finish()
}

/// One thing that happens.
fn step(world: &mut World, dice: &mut Dice) -> Result<()> {
    match dice.below(100) {
        0..45 => world.kill_worker(dice),
        45..53 => world.upload_and_kill(dice),
        53..65 => world.publish_something(dice),
        65..71 => world.stop_and_continue(dice),
        71..79 => world.break_bucket(&fault(dice), dice),
        79..87 => world.break_clickhouse(&fault(dice), dice),
        87..91 => world.kill_nats(),
        91..94 => world.kill_clickhouse(),
        _ => world.replay(dice),
    }
}

fn fault(dice: &mut Dice) -> Fault {
    match dice.below(5) {
        0 => Fault::Away,
        1 => Fault::Hang,
        2 => Fault::Answer { status: "503 Service Unavailable", headers: "", body: "not now" },
        3 => Fault::CutReplyAfter(usize::try_from(dice.below(30_000)).unwrap_or_default()),
        _ => Fault::SwallowReply,
    }
}
