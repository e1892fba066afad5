//! Whatever breaks and wherever it breaks: nothing lost, nothing doubled.

use std::time::Duration;

use tests::data::{ArchiveSpec, Market, mark_all};
use tests::project::Project;
use tests::proxy::{Fault, Proxy};
use tests::servers::Stack;
use tests::{Context, Failure, Result};

use crate::handmade::Handmade;
use crate::scenario::{
    SLOW_DOWN, SOON, assert_nothing_uploaded, btc, loopback, proxy_of_bucket, proxy_of_clickhouse, upload,
};

/// Some units of a few archives each.
fn write_units(project: &Project, units: usize) -> Result<u64> {
    for day in 1..=units {
        for symbol in ["AAAUSDT", "BBBUSDT", "CCCUSDT"] {
            ArchiveSpec::new(Market::Spot, symbol, "1m", &format!("2025-03-{day:02}")).write(project.data_dir())?;
        }
    }
    mark_all(project.data_dir())?;
    Ok(3 * units as u64)
}

/// Every unit has one marker, everything is loaded once, and nobody died for it.
fn check(project: &Project, hand: &Handmade<'_>, units: usize) -> Result<()> {
    project.check_tables(4320)?;
    let letters = hand.dead_letters()?;
    assert!(letters.is_empty(), "{letters:#?}");
    assert_eq!(hand.markers()?.len(), units);
    let status = project.puller(&["status", "--json"])?.expect_code(0)?.json()?;
    assert!(["pending", "in_hand", "parked"].iter().all(|key| status["destinations"][0][key] == 0), "{status}");
    Ok(())
}

/// A project whose worker sees the bucket through one proxy and ClickHouse through another.
fn behind_proxies(stack: &Stack, label: &str) -> Result<(Project, Proxy, Proxy)> {
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

#[test]
fn an_uploader_dying_between_any_two_steps_publishes_every_unit_once() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "uploader-dies")?;
    let hand = Handmade::new(stack, &project)?;
    let points = [
        "uploader.object_put",
        "uploader.objects_stored",
        "uploader.manifest_stored",
        "uploader.current_stored",
        "uploader.published",
    ];
    let mut units = 0;
    for point in points {
        units += 2;
        write_units(&project, units)?;
        let mut dying = project.start("uploader", &["upload"], &[("FERRY_FAILPOINT", point)])?;
        let died = dying.wait(SOON)?;
        assert_eq!(died.code, None, "{point} was not reached: {}", died.stderr);
        project.uploader(&["upload"])?.expect_code(0)?;
        assert_eq!(hand.markers()?.len(), units, "after {point}");
    }
    assert_nothing_uploaded(&project.uploader(&["upload", "--json"])?.expect_code(0)?.json()?);
    project.puller(&["pull"])?.expect_code(0)?;
    check(&project, &hand, units)
}

#[test]
fn a_worker_dying_between_any_two_steps_loads_every_row_once() -> Result<()> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, "worker-dies")?;
    project.set("puller.ack_wait", "1s")?;
    let hand = Handmade::new(stack, &project)?;
    let points = [
        "puller.decoded",
        "puller.inserted",
        "puller.read_back",
        "puller.archives_recorded",
        "puller.attempt_recorded",
        "puller.settled",
    ];
    let mut units = 0;
    for point in points {
        units += 2;
        write_units(&project, units)?;
        project.uploader(&["upload"])?.expect_code(0)?;
        let mut dying = project.start("puller", &["pull"], &[("FERRY_FAILPOINT", point)])?;
        let died = dying.wait(SOON)?;
        assert_eq!(died.code, None, "{point} was not reached: {}", died.stderr);
        project.puller(&["pull"])?.expect_code(0)?;
        project.check_tables(8640).map_err(|failure| Failure::new(format!("after {point}: {failure}")))?;
    }
    check(&project, &hand, units)
}

#[test]
fn a_worker_that_dies_after_storing_a_dead_letter_stores_it_once() -> Result<()> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, "dead-letter-once")?;
    project.set("puller.ack_wait", "1s")?;
    let hand = Handmade::new(stack, &project)?;
    hand.publish("binance/spot/klines/1h/2025-03-01", b"no marker")?;
    let mut dying = project.start("puller", &["pull"], &[("FERRY_FAILPOINT", "puller.dead_letter_stored")])?;
    assert_eq!(dying.wait(SOON)?.code, None);
    project.puller(&["pull"])?.expect_code(1)?;
    assert_eq!(hand.dead_letters()?.len(), 1);
    Ok(())
}

/// Killed at random moments, again and again, while others work.
#[test]
fn workers_killed_at_random_load_every_row_once() -> Result<()> {
    const KILLS: u64 = 20;
    let stack = Stack::shared();
    let mut project = Project::new(stack, "killed")?;
    project.set("puller.ack_wait", "2s")?;
    // A kill costs the delivery an attempt, and this test does nothing but kill.
    project.set("retry.attempts", 24)?;
    let hand = Handmade::new(stack, &project)?;
    let units = 12;
    let archives = write_units(&project, units)?;
    project.uploader(&["upload"])?.expect_code(0)?;
    let seed = u64::from(std::process::id());
    eprintln!("seed {seed}");
    let mut state = seed;
    for _ in 0..KILLS {
        let mut worker = project.spawn_puller(&["run"])?;
        // xorshift: what matters is that it differs from run to run and can be repeated.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        std::thread::sleep(Duration::from_millis(300 + state % 700));
        worker.kill9()?;
    }
    let _worker = project.spawn_puller(&["run"])?;
    project.wait_for_archives(archives, SOON)?;
    project.wait_until("an empty queue", SOON, || is_drained(&project))?;
    check(&project, &hand, units)
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
    check(&project, &hand, units)
}

/// A unit that makes no progress loses its lease, so that another worker may try.
#[test]
fn a_stalled_unit_loses_its_lease() -> Result<()> {
    let stack = Stack::shared();
    let (mut project, bucket, _clickhouse) = behind_proxies(stack, "stalled")?;
    project.set("puller.ack_wait", "1s")?;
    project.set("puller.stall_timeout", "2s")?;
    project.set("retry.attempts", 24)?;
    let hand = Handmade::new(stack, &project)?;
    let archives = write_units(&project, 1)?;
    project.uploader(&["upload"])?.expect_code(0)?;
    bucket.set(Fault::Hang);
    let worker = project.spawn_puller(&["run"])?;
    let lost = r#"puller_leases_lost_total{destination="primary"}"#;
    worker.wait_for_metric(lost, SOON, |count| count >= 1.0)?;
    bucket.set(Fault::None);
    project.wait_for_archives(archives, SOON)?;
    project.wait_until("an empty queue", SOON, || is_drained(&project))?;
    check(&project, &hand, 1)
}

/// The first SIGTERM finishes or hands back within the grace, the second stops at once.
#[test]
fn a_worker_drains_at_the_first_sigterm_and_stops_at_the_second() -> Result<()> {
    let stack = Stack::shared();
    let (mut project, bucket, _clickhouse) = behind_proxies(stack, "told-to-stop")?;
    project.set("puller.shutdown_grace", "1s")?;
    let hand = Handmade::new(stack, &project)?;
    let archives = write_units(&project, 1)?;
    project.uploader(&["upload"])?.expect_code(0)?;
    bucket.set(Fault::Hang);
    let in_hand = || -> Result<bool> {
        let status = project.puller(&["status", "--json"])?.expect_code(0)?.json()?;
        Ok(status["destinations"][0]["in_hand"] == 1)
    };

    // It cannot finish, so it hands the unit back: the next worker has it long before a lease would have ended.
    let mut worker = project.spawn_puller(&["run"])?;
    project.wait_until("a unit in hand", SOON, in_hand)?;
    worker.drain(SOON)?;
    let status = project.puller(&["status", "--json"])?.expect_code(0)?.json()?;
    assert!(status["destinations"][0]["pending"] == 1 || status["destinations"][0]["parked"] == 1, "{status}");

    let mut worker = project.spawn_puller(&["run"])?;
    project.wait_until("a unit in hand", SOON, in_hand)?;
    worker.sigterm()?;
    worker.wait_for_line("draining", SOON)?;
    worker.sigterm()?;
    let stopped = worker.wait(SOON)?;
    // 143 as a shell would say; 0 where the grace was over first.
    assert!(matches!(stopped.code, Some(143 | 0)), "{:?}", stopped.code);

    bucket.set(Fault::None);
    project.puller(&["pull"])?.expect_code(0)?;
    assert_eq!(project.archives_loaded()?, archives);
    check(&project, &hand, 1)
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
    check(&project, &hand, units)
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

fn is_drained(project: &Project) -> Result<bool> {
    let status = project.puller(&["status", "--json"])?.expect_code(0)?.json()?;
    Ok(["pending", "in_hand", "parked"].iter().all(|key| status["destinations"][0][key] == 0))
}

/// Two workers whose clocks are two hours apart, and a correction that either may load.
#[test]
fn workers_with_wrong_clocks_load_the_same_rows() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "clocks")?;
    let hand = Handmade::new(stack, &project)?;
    let archives = write_units(&project, 4)?;
    project.uploader(&["upload"])?.expect_code(0)?;
    let clock = |seconds| project.spawn("puller", &["run"], &[("FERRY_CLOCK_OFFSET_S", seconds)]);
    let _workers = [clock("3600")?, clock("-3600")?];
    project.wait_for_archives(archives, SOON)?;
    for day in ["2025-03-01", "2025-03-02"] {
        let corrected = ArchiveSpec::new(Market::Spot, "AAAUSDT", "1m", day).seed(1).missing([7]);
        corrected.generated_at("2025-06-01T00:00:00Z").write(project.data_dir())?;
    }
    mark_all(project.data_dir())?;
    project.uploader(&["upload"])?.expect_code(0)?;
    project.wait_until("the corrections", SOON, || Ok(project.check_tables(17_278).is_ok()))?;
    project.wait_until("an empty queue", SOON, || is_drained(&project))?;
    check(&project, &hand, 6)
}

/// A stopped process loses its leases; when it goes on, its late inserts and acks change nothing.
#[test]
fn a_worker_suspended_past_its_leases_changes_nothing() -> Result<()> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, "asleep")?;
    project.set("puller.ack_wait", "2s")?;
    project.set("retry.attempts", 24)?;
    let hand = Handmade::new(stack, &project)?;
    let units = 8;
    let archives = write_units(&project, units)?;
    project.uploader(&["upload"])?.expect_code(0)?;
    let mut sleeper = project.spawn_puller(&["run"])?;
    project.wait_until("the sleeper's first archive", SOON, || Ok(project.archives_loaded()? > 0))?;
    sleeper.signal("STOP")?;
    let mut other = project.spawn_puller(&["run"])?;
    project.wait_for_archives(archives, SOON)?;
    sleeper.signal("CONT")?;
    project.wait_until("an empty queue", SOON, || is_drained(&project))?;
    for worker in [&mut sleeper, &mut other] {
        worker.drain(SOON)?;
    }
    check(&project, &hand, units)
}

/// Markers twice, and revisions in the wrong order.
#[test]
fn repeated_and_unordered_markers_load_the_newest_revision() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "disorder")?;
    let hand = Handmade::new(stack, &project)?;
    let spec = |seed: u64| {
        let at = format!("2025-03-{:02}T00:00:00Z", 5 + seed);
        btc("2025-03-01").seed(seed).generated_at(&at)
    };
    let mut markers = Vec::new();
    for seed in [0, 1] {
        upload(&project, [spec(seed)])?;
        markers.push(hand.markers()?.pop().ok_or_else(|| Failure::new("no marker"))?.1.to_string());
    }
    for payload in [&markers[1], &markers[0], &markers[1], &markers[0]] {
        hand.publish(&spec(0).unit(), payload.as_bytes())?;
    }
    project.puller(&["pull"])?.expect_code(0)?;
    project.check_tables(24)?;
    assert!(hand.dead_letters()?.is_empty());
    Ok(())
}
