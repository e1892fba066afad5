//! The demo itself, phase by phase.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use tests::{
    Failure, Result,
    data::mark_all,
    project::{Project, Service},
    servers::{RunDir, Stack, ensure_installed},
    truth::Truth,
};

use crate::{input, progress::Phase, report};

const WORKERS: usize = 2;
/// A tree of one's own may be large.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(4 * 3600);
/// Loading has failed when no archive was finished for so long.
const STALL_TIMEOUT: Duration = Duration::from_secs(120);
const STOP_TIMEOUT: Duration = Duration::from_secs(60);
const POLL_EVERY: Duration = Duration::from_millis(200);

pub(crate) fn run(tree: Option<&Path>, days: u8) -> Result<()> {
    ensure_installed()?;
    let phase = Phase::begin("starting the servers");
    let dir = RunDir::new("demo")?;
    let stack = Stack::start(&dir.path().join("servers"))?;
    let version = stack.clickhouse.query("SELECT version()")?;
    phase.end(&format!(
        "nats-server on {}, ClickHouse {} on {}, S3 on {}",
        stack.nats.port(),
        version.trim(),
        stack.clickhouse.port(),
        stack.s3.address().port()
    ));

    let phase = Phase::begin("preparing a data_dir");
    let project = Project::in_dir(&stack, dir.path(), "demo")?;
    match tree {
        Some(tree) => input::mirror(tree, project.data_dir())?,
        None => input::generate(project.data_dir(), days)?,
    }
    let units = mark_all(project.data_dir())?.len();
    // Read now, so that the comparison at the end does not depend on what happened in between.
    let truth = Truth::of_tree(project.data_dir())?;
    let archives = truth.archives().len() as u64;
    phase.end(&format!("{units} units, {archives} archives, {} rows", report::grouped(truth.rows() as u64)));

    let phase = Phase::begin("uploader upload");
    project.start("uploader", &["upload"], &[])?.wait(UPLOAD_TIMEOUT)?.expect_code(0)?;
    let upload = phase.end("every archive is in the bucket, every unit announced");

    let phase = Phase::of_archives("puller run, twice", archives);
    let mut workers = Vec::new();
    for _ in 0..WORKERS {
        workers.push(project.spawn_puller(&["run"])?);
    }
    wait_until_loaded(&project, &mut workers, archives, &phase)?;
    let load = phase.end("every archive is in the ledger");

    let phase = Phase::begin("stopping the workers");
    for worker in &mut workers {
        worker.sigterm()?;
    }
    for worker in &mut workers {
        worker.wait(STOP_TIMEOUT)?.expect_code(0)?;
    }
    phase.end("both drained and ended well");

    let phase = Phase::begin("reading back");
    project.check_tables_against(&truth, 1)?;
    phase.end("klines_latest is what an independent reading of the archives says");
    report::print(&project, &report::Outcome { units, truth, upload, load })
}

fn wait_until_loaded(project: &Project, workers: &mut [Service], archives: u64, phase: &Phase) -> Result<()> {
    let (mut loaded, mut last_change) = (0, Instant::now());
    while loaded < archives {
        thread::sleep(POLL_EVERY);
        let now = project.archives_loaded()?;
        if now != loaded {
            (loaded, last_change) = (now, Instant::now());
            phase.set(loaded);
        }
        for worker in workers.iter_mut() {
            if !worker.is_running() {
                return Err(Failure::new(format!("a worker ended by itself\n{}", worker.stderr())));
            }
        }
        if last_change.elapsed() > STALL_TIMEOUT {
            return Err(stalled(project, workers, loaded, archives));
        }
    }
    Ok(())
}

fn stalled(project: &Project, workers: &[Service], loaded: u64, archives: u64) -> Failure {
    let mut text = format!("{loaded} of {archives} archives were loaded, then none for {STALL_TIMEOUT:?}\n");
    for (number, worker) in workers.iter().enumerate() {
        text.push_str(&format!("--- worker {number}\n{}", worker.stderr()));
    }
    match project.puller(&["status"]) {
        Ok(status) => text.push_str(&format!("--- puller status\n{}{}", status.stdout, status.stderr)),
        Err(failure) => text.push_str(&format!("--- puller status\n{failure}")),
    }
    Failure::new(text)
}
