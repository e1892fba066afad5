//! Servers that refuse, hang, cut their answers or die: every row is loaded once, and no unit is blamed.

use std::time::Duration;

use tests::data::{ArchiveSpec, Market, mark_all};
use tests::project::Project;
use tests::proxy::{Fault, Proxy};
use tests::servers::Stack;
use tests::{Context, Result};

use crate::handmade::Handmade;
use crate::scenario::{SLOW_DOWN, SOON, is_drained, loopback, proxy_of_bucket, proxy_of_clickhouse};

/// Some units of a few archives each.
pub(crate) fn write_units(project: &Project, units: usize) -> Result<u64> {
    for day in 1..=units {
        for symbol in ["AAAUSDT", "BBBUSDT", "CCCUSDT"] {
            ArchiveSpec::new(Market::Spot, symbol, "1m", &format!("2025-03-{day:02}")).write(project.data_dir())?;
        }
    }
    mark_all(project.data_dir())?;
    Ok(3 * units as u64)
}

/// Every unit has one marker, everything is loaded once, and nobody died for it.
pub(crate) fn check_units(project: &Project, hand: &Handmade<'_>, units: usize) -> Result<()> {
    project.check_tables(4320)?;
    let letters = hand.dead_letters()?;
    assert!(letters.is_empty(), "{letters:#?}");
    assert_eq!(hand.markers()?.len(), units);
    assert!(is_drained(project)?, "something is left to be loaded");
    Ok(())
}

/// A project whose worker sees the bucket through one proxy and ClickHouse through another.
pub(crate) fn behind_proxies(stack: &Stack, label: &str) -> Result<(Project, Proxy, Proxy)> {
    let mut project = Project::new(stack, label)?;
    let bucket = proxy_of_bucket(&mut project, stack)?;
    let clickhouse = proxy_of_clickhouse(&mut project, stack)?;
    // A fault that spends attempts must not use them up before it is taken away.
    project.set("retry.attempts", 24)?;
    Ok((project, bucket, clickhouse))
}

/// Puts a fault before a server while work arrives, removes it, and checks the tables, attempts and dead letters.
fn through(
    label: &str,
    fault: &Fault,
    pick: fn(&(Project, Proxy, Proxy)) -> &Proxy,
    burns_attempts: bool,
) -> Result<()> {
    let stack = Stack::shared();
    let parts = behind_proxies(stack, label)?;
    let (project, proxy) = (&parts.0, pick(&parts));
    let hand = Handmade::new(stack, project)?;
    let archives = write_units(project, 3)?;
    project.uploader(&["upload"])?.expect_code(0)?;
    let mut worker = project.spawn_puller(&["run"])?;
    project.wait_for_archives(archives, SOON)?;

    proxy.set(fault.clone());
    let before = proxy.met();
    // A replay is work that needs both servers again.
    project.puller(&["replay", "--force"])?.expect_code(0)?;
    // The command's own estimate may be one of the two.
    project.wait_until("the fault to be met", SOON, || Ok(proxy.met() > before + 1))?;
    if burns_attempts {
        let failed = format!("SELECT count() FROM {}.ingest_log WHERE outcome = 'retry'", project.database());
        project.wait_until("an attempt that failed", SOON, || Ok(project.query(&failed)?.trim() != "0"))?;
    }
    proxy.set(Fault::None);
    project.wait_until("the replay's end", SOON, || {
        let tasks = project.puller(&["tasks", "ls", "--json"])?.expect_code(0)?.json()?;
        Ok(tasks["tasks"][0]["state"] == "SUCCESS")
    })?;
    worker.drain(SOON)?;
    let attempts = format!("SELECT max(attempt) FROM {}.ingest_log", project.database());
    let attempts: u32 = project.query(&attempts)?.trim().parse().context("a count")?;
    assert_eq!(attempts > 1, burns_attempts, "{attempts} attempts under {fault:?}");
    project.check_tables(12_960)?;
    let letters = hand.dead_letters()?;
    assert!(letters.is_empty(), "{letters:#?}");
    Ok(())
}

fn bucket(parts: &(Project, Proxy, Proxy)) -> &Proxy {
    &parts.1
}

fn clickhouse(parts: &(Project, Proxy, Proxy)) -> &Proxy {
    &parts.2
}

#[test]
fn a_bucket_answering_503_or_429_spends_no_attempt() -> Result<()> {
    through("s3-503", &Fault::Answer { status: "503 Slow Down", headers: "", body: SLOW_DOWN }, bucket, false)?;
    through("s3-429", &Fault::Answer { status: "429 Too Many Requests", headers: "", body: SLOW_DOWN }, bucket, false)
}

/// What a worker whose clock is an hour off gets to hear, and one whose keys were taken away: nothing is wrong with the
/// units, so they wait.
#[test]
fn a_bucket_refusing_the_worker_spends_no_attempt() -> Result<()> {
    let skewed = "<Error><Code>RequestTimeTooSkewed</Code><Message>The difference is too large.</Message></Error>";
    through("s3-skew", &Fault::Answer { status: "403 Forbidden", headers: "", body: skewed }, bucket, false)?;
    let denied = "<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>";
    through("s3-denied", &Fault::Answer { status: "403 Forbidden", headers: "", body: denied }, bucket, false)
}

#[test]
fn a_bucket_that_is_away_or_hangs_spends_no_attempt() -> Result<()> {
    through("s3-away", &Fault::Away, bucket, false)?;
    through("s3-hangs", &Fault::Hang, bucket, false)
}

#[test]
fn a_bucket_cutting_its_answers_spends_no_attempt() -> Result<()> {
    // In the head, and in the middle of a body.
    through("s3-cut-head", &Fault::CutReplyAfter(30), bucket, false)?;
    through("s3-cut-body", &Fault::CutReplyAfter(20_000), bucket, false)
}

/// A wrong body is found by its hash, never ingested, and fetched again: that spends an attempt.
#[test]
fn a_bucket_sending_a_wrong_byte_spends_an_attempt_and_loads_no_wrong_row() -> Result<()> {
    through("s3-wrong", &Fault::FlipReplyByteAt(5_000), bucket, true)
}

#[test]
fn a_clickhouse_that_is_away_or_hangs_spends_no_attempt() -> Result<()> {
    through("ch-away", &Fault::Away, clickhouse, false)?;
    through("ch-hangs", &Fault::Hang, clickhouse, false)
}

#[test]
fn a_clickhouse_refusing_for_now_spends_no_attempt() -> Result<()> {
    let unavailable = Fault::Answer { status: "503 Service Unavailable", headers: "", body: "upstream is down" };
    through("ch-503", &unavailable, clickhouse, false)?;
    let too_many_parts = Fault::Answer {
        status: "500 Internal Server Error",
        headers: "X-ClickHouse-Exception-Code: 252\r\n",
        body: "Code: 252. DB::Exception: Too many parts (3001). Merges are processing significantly slower than inserts. (TOO_MANY_PARTS)",
    };
    through("ch-parts", &too_many_parts, clickhouse, false)
}

/// The insert is done, and nobody is told.
#[test]
fn a_clickhouse_whose_answers_are_lost_gets_every_row_once() -> Result<()> {
    through("ch-silent", &Fault::SwallowReply, clickhouse, false)
}

/// Servers killed with -9 while workers are busy, several times.
#[test]
fn servers_killed_under_load_lose_nothing() -> Result<()> {
    let mut stack = Stack::own()?;
    let mut project = Project::new(&stack, "servers-killed")?;
    project.set("puller.ack_wait", "2s")?;
    project.set("retry.attempts", 24)?;
    let units = 16;
    let archives = write_units(&project, units)?;
    project.uploader(&["upload"])?.expect_code(0)?;
    let mut workers = [project.spawn_puller(&["run"])?, project.spawn_puller(&["run"])?];
    for round in 1..=3 {
        project.wait_until("some progress", SOON, || Ok(project.archives_loaded()? >= round * 6))?;
        stack.nats.kill()?;
        stack.nats.restart()?;
        stack.clickhouse.kill()?;
        stack.clickhouse.restart()?;
        stack.s3.stop()?;
        stack.s3.restart()?;
    }
    project.wait_for_archives(archives, SOON)?;
    project.wait_until("an empty queue", SOON, || is_drained(&project))?;
    for worker in &mut workers {
        worker.drain(SOON)?;
    }
    let hand = Handmade::new(&stack, &project)?;
    check_units(&project, &hand, units)
}

/// Connections to NATS cut again and again: acks, extensions and publishes are lost on the way.
#[test]
fn a_queue_whose_connections_are_cut_loses_no_marker() -> Result<()> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, "cut-queue")?;
    let queue = Proxy::start(loopback(stack.nats.port()))?;
    let direct = project.config()["nats"]["url"].clone();
    project.set("nats.url", format!("nats://{}", queue.address()))?;
    project.set("puller.ack_wait", "2s")?;
    project.set("retry.attempts", 24)?;
    project.puller(&["migrate"])?.expect_code(0)?;
    let units = 10;
    let archives = write_units(&project, units)?;
    let mut uploader = project.start("uploader", &["upload"], &[])?;
    let _workers = [project.spawn_puller(&["run"])?, project.spawn_puller(&["run"])?];
    for _ in 0..15 {
        std::thread::sleep(Duration::from_millis(200));
        // Cuts what is open; new connections pass.
        queue.set(Fault::None);
    }
    // It may have given up; the next run goes on.
    uploader.wait(SOON)?;
    project.set("nats.url", direct)?;
    project.uploader(&["upload"])?.expect_code(0)?;
    project.wait_for_archives(archives, SOON)?;
    project.wait_until("an empty queue", SOON, || is_drained(&project))?;
    let hand = Handmade::new(stack, &project)?;
    check_units(&project, &hand, units)
}

/// A disk that takes no more, by a limit on the size of files: what is written in part goes, the rest waits.
#[test]
fn a_full_directory_holds_no_partial_file_and_is_waited_for() -> Result<()> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, "disk-full")?;
    let copy = project.dir().join("copy");
    std::fs::create_dir_all(&copy).context("a folder")?;
    project.set("destinations", serde_json::json!([{ "name": "files", "type": "directory", "path": copy }]))?;
    project.puller(&["migrate"])?.expect_code(0)?;
    let mut worker = project.spawn_puller(&["run"])?;
    let limit = |soft: &str| -> Result<()> {
        let pid = worker.pid().to_string();
        let status = std::process::Command::new("prlimit").args(["--pid", &pid, &format!("--fsize={soft}:")]).status();
        assert!(status.context("prlimit, of util-linux")?.success());
        Ok(())
    };
    limit("8192")?;
    write_units(&project, 1)?;
    project.uploader(&["upload"])?.expect_code(0)?;
    project.wait_until("the reason", SOON, || Ok(worker.is_not_ready_for(&["too large"])))?;
    assert_eq!(tests::data::archives(&copy)?.len(), 0);
    limit("unlimited")?;
    project.wait_until("the files", SOON, || Ok(tests::data::archives(&copy)?.len() == 3))?;
    worker.drain(SOON)?;
    for archive in tests::data::archives(project.data_dir())? {
        let read = |root: &std::path::Path| std::fs::read(root.join(&archive.key)).context(&archive.key);
        assert_eq!(read(project.data_dir())?, read(&copy)?);
    }
    let left = std::process::Command::new("find").arg(&copy).args(["-name", ".ferry-*"]).output().context("find")?;
    assert!(left.stdout.is_empty(), "{}", String::from_utf8_lossy(&left.stdout));
    Ok(())
}
