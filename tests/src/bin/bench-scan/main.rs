//! `bench-scan`: what it costs the uploader that a data_dir is large, measured on real servers.
//!
//! Archives of one row, so that nothing is measured but their number.

#![expect(clippy::print_stdout, reason = "the table is what a run is for")]

use std::fs;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use comfy_table::Table;
use tests::data::{ArchiveSpec, Market, mark};
use tests::project::Project;
use tests::servers::{RunDir, Stack};
use tests::{Context, Failure, Result};

/// About as many symbols as one market lists.
const SYMBOLS: usize = 400;
const DEADLINE: Duration = Duration::from_secs(4 * 3600);
const RESCANS: f64 = 3.0;

/// Makes a data_dir of many small archives, uploads it, and measures what a run that finds nothing new costs
#[derive(Parser)]
#[command(version, after_help = "Example:\n  bench-scan --archives 1000000")]
struct Cli {
    /// How many archives; 400 symbols, as many days as it takes
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(400..=2_000_000))]
    archives: u64,
}

fn main() -> ExitCode {
    match run(Cli::parse().archives) {
        Ok(table) => {
            println!("{table}");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("bench-scan: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(archives: u64) -> Result<Table> {
    let days = usize::try_from(archives).context("a number")? / SYMBOLS;
    let dir = RunDir::new("bench-scan")?;
    let stack = Stack::start(&dir.path().join("servers"))?;
    let mut project = Project::in_dir(&stack, dir.path(), "bench")?;
    project.set("watch.rescan", "1s")?;
    project.set("watch.min_age", "1s")?;
    println!("making {} archives, {days} units of {SYMBOLS}", days * SYMBOLS);
    for day in 0..days {
        for symbol in 0..SYMBOLS {
            spec(symbol, day)?.write_unchecked(project.data_dir(), &spec(symbol, day)?.zip())?;
        }
        mark(project.data_dir(), &spec(0, day)?.unit())?;
    }
    let mut table = Table::new();
    table.set_header(["run", "time", "peak memory", "archives read"]);
    for (what, forget) in [
        ("first `upload`", false),
        ("second `upload`, nothing new", false),
        ("`upload` without its cache", true),
        ("`upload` after that", false),
    ] {
        if forget {
            fs::remove_dir_all(dir.path().join("state")).context("the cache")?;
        }
        let (duration, memory, read) = upload(&project)?;
        table.add_row([what.to_owned(), seconds(duration), memory, read]);
    }
    watch(&project, days, &mut table)?;
    Ok(table)
}

fn spec(symbol: usize, day: usize) -> Result<ArchiveSpec> {
    let first: jiff::civil::Date = "2018-01-01".parse().context("a day")?;
    let day = first + jiff::Span::new().days(i64::try_from(day).context("a number")?);
    Ok(ArchiveSpec::new(Market::Um, &format!("S{symbol:03}USDT"), "1d", &day.to_string()))
}

/// One pass, to its end: how long it took, its peak memory, and how many archives it read.
fn upload(project: &Project) -> Result<(Duration, String, String)> {
    let started = Instant::now();
    let mut process = project.start("uploader", &["upload", "--json"], &[])?;
    let mut memory = String::new();
    while process.is_running() {
        memory = peak(process.pid()).unwrap_or(memory);
        thread::sleep(Duration::from_millis(5));
    }
    let duration = started.elapsed();
    let report = process.wait(DEADLINE)?.expect_code(0)?.json()?;
    Ok((duration, memory, report["archives"]["read"].to_string()))
}

/// The service: its first pass, passes that find nothing new, and how soon something new is announced.
fn watch(project: &Project, days: usize, table: &mut Table) -> Result<()> {
    let service = project.spawn_uploader(&["watch"])?;
    let passes = || service.metric("marketferry_uploader_pass_duration_seconds_count");
    let spent = || service.metric("marketferry_uploader_pass_duration_seconds_sum");
    let read = || Ok::<_, Failure>(service.metric("marketferry_uploader_archives_read_total")?.to_string());
    service.wait_for_metric("marketferry_uploader_pass_duration_seconds_count", DEADLINE, |passes| passes >= 1.0)?;
    let first = spent()?;
    table.add_row(["first pass of `watch`".into(), format!("{first:.2} s"), peak(service.pid())?, read()?]);
    let before = (passes()?, spent()?);
    project.wait_until("rescans", DEADLINE, || Ok(passes()? >= before.0 + RESCANS))?;
    let each = (spent()? - before.1) / (passes()? - before.0);
    table.add_row(["a rescan of `watch`".into(), format!("{each:.2} s"), peak(service.pid())?, read()?]);
    let publish = |day: usize, nth: f64| -> Result<Duration> {
        let new = spec(0, day)?;
        new.write_unchecked(project.data_dir(), &new.zip())?;
        let written = Instant::now();
        mark(project.data_dir(), &new.unit())?;
        service.wait_for_metric("marketferry_uploader_units_total{outcome=\"published\"}", DEADLINE, |units| {
            units >= nth
        })?;
        Ok(written.elapsed())
    };
    // A process that publishes for the first time makes sure that the bucket is there, by a list of one key. This server
    // reads all its objects for that.
    publish(days, 1.0)?;
    let duration = publish(days + 1, 2.0)?;
    let what = "a new unit, from its mark to its marker (watch.min_age: 1s)";
    table.add_row([what.into(), seconds(duration), peak(service.pid())?, read()?]);
    Ok(())
}

/// The most memory a process has had, as the kernel counts it.
fn peak(pid: u32) -> Result<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("its status")?;
    let kib =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.trim().parse().ok());
    let kib: u64 = kib.ok_or_else(|| Failure::new("the kernel does not say how much memory it had"))?;
    Ok(format!("{} MiB", kib / 1024))
}

fn seconds(duration: Duration) -> String {
    format!("{:.2} s", duration.as_secs_f64())
}
