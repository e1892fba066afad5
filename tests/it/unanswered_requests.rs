//! Requests that are never answered: every process goes on, or says that it is not ready.

use std::thread;
use std::time::{Duration, Instant};

use tests::data::mark_all;
use tests::project::Project;
use tests::proxy::{Fault, LostAnswer, Proxy};
use tests::servers::Stack;
use tests::{Context, Failure, Result};

use crate::handmade::Handmade;
use crate::scenario::{SOON, hours, loopback};

/// How long anybody may take to go on once the network is as it should be.
const GOES_ON: Duration = Duration::from_secs(15);
/// A consumer for units of years ago, and one for those of today.
const BACKFILL: &str = "backfill-primary";

/// Writes so many units of one archive each, from this day of March 2025 on, and announces them past any proxy.
fn announce(project: &Project, direct: &str, days: std::ops::RangeInclusive<u32>) -> Result<()> {
    for day in days {
        hours("AAAUSDT", &format!("2025-03-{day:02}")).write(project.data_dir())?;
    }
    mark_all(project.data_dir())?;
    let mut uploader = project.start("uploader", &["upload"], &[("FERRY__NATS__URL", direct)])?;
    uploader.wait(SOON)?.expect_code(0).map(drop)
}

/// A project whose processes see NATS through a proxy, and the server's own address.
fn behind_a_proxy(stack: &Stack, label: &str) -> Result<(Project, Proxy, String)> {
    let mut project = Project::new(stack, label)?;
    let queue = Proxy::start(loopback(stack.nats.port()))?;
    let direct = project.config()["nats"]["url"].as_str().unwrap_or_default().to_owned();
    project.set("nats.url", format!("nats://{}", queue.address()))?;
    // Whatever was lost on its way comes again after a lease, and the tests break nothing but that.
    project.set("retry.attempts", 24)?;
    project.puller(&["migrate"])?.expect_code(0)?;
    Ok((project, queue, direct))
}

/// Runs scenarios side by side, for most of them only wait.
fn side_by_side(scenarios: &[fn() -> Result<()>]) -> Result<()> {
    // Their threads have no names.
    tests::times::begin();
    let ended: Vec<_> = thread::scope(|scope| {
        let running: Vec<_> = scenarios.iter().map(|scenario| scope.spawn(scenario)).collect();
        running.into_iter().map(thread::ScopedJoinHandle::join).collect()
    });
    for end in ended {
        end.map_err(|_| Failure::new("a scenario panicked, see above"))??;
    }
    Ok(())
}

/// One cut of the only connection, between a question and its answer.
#[test]
fn a_lost_answer_stops_no_process() -> Result<()> {
    side_by_side(&[a_worker_loses_the_answer_to_a_pull, an_uploader_loses_what_it_reads, commands_are_not_answered])
}

fn a_worker_loses_the_answer_to_a_pull() -> Result<()> {
    let (project, queue, direct) = behind_a_proxy(Stack::shared(), "lost-pull")?;
    let mut worker = project.spawn_puller(&["run"])?;
    project.wait_until("a worker", SOON, || Ok(worker.is_ready()))?;
    // Any pull that does not wait, and a pull of the lane that is asked last.
    for (unit, text) in (1..).zip(["no_wait\":true", "MSG.NEXT.MARKERS.backfill-primary"]) {
        let lost = LostAnswer::to(text);
        queue.set(Fault::LoseAnswer(lost.clone()));
        project.wait_until("the lost answer", SOON, || Ok(lost.is_done()))?;
        thread::sleep(Duration::from_secs(1));
        announce(&project, &direct, unit..=unit)?;
        project.wait_for_archives(u64::from(unit), GOES_ON)?;
        assert!(worker.is_ready());
    }
    worker.drain(SOON)?;
    project.check_tables(48)
}

fn an_uploader_loses_what_it_reads() -> Result<()> {
    let stack = Stack::shared();
    let (mut project, queue, _) = behind_a_proxy(stack, "lost-reading")?;
    project.set("watch.rescan", "1d")?;
    let write = |days: std::ops::RangeInclusive<u32>| -> Result<()> {
        for day in days {
            hours("AAAUSDT", &format!("2025-03-{day:02}")).write(project.data_dir())?;
        }
        mark_all(project.data_dir()).map(drop)
    };
    // So many that the stream is read as a whole.
    write(1..=20)?;
    project.uploader(&["upload"])?.expect_code(0)?;
    let lost = LostAnswer::to("no_wait\":true");
    queue.set(Fault::LoseAnswer(lost.clone()));
    let mut service = project.spawn_uploader(&["watch"])?;
    project.wait_until("the lost answer", SOON, || Ok(lost.is_done()))?;
    project.wait_until("the end of the first pass", GOES_ON, || Ok(service.is_ready()))?;
    let hand = Handmade::new(stack, &project)?;
    write(21..=21)?;
    project.wait_until("a new unit on the stream", GOES_ON, || Ok(hand.markers()?.len() == 21))?;
    service.drain(GOES_ON)?;

    // Told to stop while it waits.
    queue.set(Fault::Unanswered("CONSUMER.MSG.NEXT.MARKERS."));
    let mut service = project.spawn_uploader(&["watch"])?;
    thread::sleep(Duration::from_secs(3));
    let stopped = Instant::now();
    service.drain(GOES_ON)?;
    assert!(stopped.elapsed() < GOES_ON);
    Ok(())
}

/// Commands end as they do where a server is away.
fn commands_are_not_answered() -> Result<()> {
    let (project, queue, direct) = behind_a_proxy(Stack::shared(), "lost-commands")?;
    announce(&project, &direct, 1..=3)?;
    project.puller(&["replay", "--force"])?.expect_code(0)?;
    project.puller(&["pull"])?.expect_code(0)?;
    queue.set(Fault::Unanswered("CONSUMER.MSG.NEXT."));
    let commands: [(&str, &[&str]); 4] = [
        ("puller", &["verify"]),
        ("puller", &["replay", "--dry-run"]),
        ("puller", &["tasks", "ls"]),
        ("uploader", &["reconcile"]),
    ];
    let mut running = Vec::new();
    for (binary, args) in commands {
        running.push((args, project.start(binary, args, &[])?));
    }
    for (args, mut command) in running {
        let ended = command.wait(SOON)?;
        assert_eq!(ended.code, Some(3), "{args:?}: {}{}", ended.stdout, ended.stderr);
    }
    Ok(())
}

/// What looks healthy and does nothing is not ready, says why, and tries anew.
#[test]
fn a_worker_whose_pulls_are_not_answered_is_not_ready() -> Result<()> {
    side_by_side(&[pulls_are_not_answered, idle_workers_behind_a_bad_line, a_queue_that_goes_away_ends_verify])
}

fn pulls_are_not_answered() -> Result<()> {
    let restarts = "marketferry_puller_pull_restarts_total{destination=\"primary\"}";
    let (project, queue, direct) = behind_a_proxy(Stack::shared(), "unanswered")?;
    let mut worker = project.spawn_puller(&["run"])?;
    project.wait_until("a worker", SOON, || Ok(worker.is_ready()))?;
    assert_eq!(worker.metric(restarts)?, 0.0);
    queue.set(Fault::Unanswered("CONSUMER.MSG.NEXT.MARKERS."));
    let since = Instant::now();
    project
        .wait_until("the reason", Duration::from_secs(90), || Ok(worker.reasons().contains("no pull was answered")))?;
    assert!(since.elapsed() > Duration::from_secs(50), "a minute, not {:?}", since.elapsed());
    assert_eq!(worker.metric(restarts)?, 1.0);
    queue.set(Fault::None);
    announce(&project, &direct, 1..=1)?;
    project.wait_for_archives(1, GOES_ON)?;
    project.wait_until("a worker that is ready again", GOES_ON, || Ok(worker.is_ready()))?;
    worker.drain(SOON).map(drop)
}

/// It waits for workers as long as they take, and not for a queue that cannot tell of them.
fn a_queue_that_goes_away_ends_verify() -> Result<()> {
    let (project, queue, direct) = behind_a_proxy(Stack::shared(), "verify-waits")?;
    announce(&project, &direct, 1..=1)?;
    let mut verify = project.start("puller", &["verify", "--fix", "--wait", "--verbose"], &[])?;
    verify.wait_for_line("waiting for running workers", SOON)?;
    queue.set(Fault::Away);
    let ended = verify.wait(Duration::from_secs(90))?.expect_code(3)?;
    assert!(ended.stderr.contains("asking again"), "{}", ended.stderr);
    Ok(())
}

/// Six idle workers behind 80 ms, their connections cut every few seconds: for `FERRY_TEST_BAD_LINE_S` seconds, 300 by hand.
fn idle_workers_behind_a_bad_line() -> Result<()> {
    const WORKERS: usize = 6;
    let seconds = std::env::var("FERRY_TEST_BAD_LINE_S").ok().and_then(|seconds| seconds.parse().ok()).unwrap_or(50);
    let (mut project, queue, direct) = behind_a_proxy(Stack::shared(), "bad-line")?;
    project.set("puller.slots", 1)?;
    let line = Fault::Delay(Duration::from_millis(40));
    queue.set(line.clone());
    let mut workers = Vec::new();
    for _ in 0..WORKERS {
        workers.push(project.spawn_puller(&["run"])?);
    }
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut cuts: u64 = 0;
    while Instant::now() < end {
        // 3 to 6 s, never the same: the cut must meet every moment of a pull.
        thread::sleep(Duration::from_millis(3000 + cuts * 1237 % 3000));
        queue.set(line.clone());
        cuts += 1;
    }
    announce(&project, &direct, 1..=24)?;
    let loaded = "marketferry_puller_deliveries_total{destination=\"primary\",outcome=\"loaded\"}";
    eprintln!("{cuts} cuts");
    workers.iter().try_for_each(|worker| worker.wait_for_metric(loaded, GOES_ON, |units| units > 0.0))?;
    project.wait_for_archives(24, SOON)?;
    for worker in &mut workers {
        worker.drain(SOON)?;
    }
    project.check_tables(576)
}

/// A pass that waits for what never comes is not ready, says why, and is begun anew; and SIGTERM ends it.
#[test]
fn a_hanging_pass_is_restarted() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "hanging-pass")?;
    hours("AAAUSDT", "2025-03-01").write(project.data_dir())?;
    mark_all(project.data_dir())?;
    let env = [("FERRY_HANG", "uploader.pass"), ("FERRY_SILENCE_SHOWN_S", "2")];
    let restarts = "marketferry_uploader_pass_restarts_total";

    let mut service = project.spawn("uploader", &["watch"], &[env[0], env[1], ("FERRY_SILENCE_MAX_S", "8")])?;
    service.wait_for_metric(restarts, GOES_ON, |count| count == 0.0)?;
    project.wait_until("the reason", GOES_ON, || Ok(service.reasons().contains("has heard nothing")))?;
    let published = "marketferry_uploader_units_total{outcome=\"published\"}";
    service.wait_for_metric(published, SOON, |count| count > 0.0)?;
    project.wait_until("a service that is ready", GOES_ON, || Ok(service.is_ready()))?;
    assert_eq!(service.metric(restarts)?, 1.0);
    service.drain(GOES_ON)?;

    let mut service = project.spawn("uploader", &["watch"], &env)?;
    project.wait_until("the reason", GOES_ON, || Ok(service.reasons().contains("has heard nothing")))?;
    service.drain(GOES_ON).map(drop)
}

/// A disk that hangs stops the thread that asks it, and not the end of the process.
#[test]
fn an_uploader_whose_disk_hangs_ends_on_sigterm() -> Result<()> {
    let project = Project::new(Stack::shared(), "hanging-disk")?;
    let mut service = project.spawn("uploader", &["watch"], &[("FERRY_HANG", "uploader.disk")])?;
    project.wait_until("the disk to hang", GOES_ON, || Ok(service.stderr().contains("hanging at a fail point")))?;
    service.sigterm()?;
    let ended = service.wait(SOON)?;
    assert!(ended.stderr.contains("a disk (local.state_dir or local.data_dir) does not answer"), "{}", ended.stderr);
    Ok(())
}

/// Acks hold names and numbers; those of a stream that was deleted and made again are another unit's.
#[test]
fn an_ack_of_a_deleted_stream_acks_nothing_of_the_new_one() -> Result<()> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, "former-stream")?;
    let bucket = Proxy::start(Stack::shared().s3.address())?;
    let direct = project.config()["nats"]["url"].as_str().unwrap_or_default().to_owned();
    // So long that no extension of the lease tells it before.
    project.set("puller.ack_wait", "5m")?;
    // Busy with one, it asks for no other.
    project.set("puller.slots", 1)?;
    let hand = Handmade::new(stack, &project)?;
    announce(&project, &direct, 1..=2)?;
    let markers = hand.markers()?;
    hand.delete_stream("MARKERS")?;
    project.puller(&["migrate"])?.expect_code(0)?;
    hand.publish_on(&markers[0].0, markers[0].1.to_string().as_bytes())?;

    let through = format!("http://{}", bucket.address());
    bucket.set(Fault::Hang);
    let mut worker = project.spawn("puller", &["run"], &[("FERRY__STORAGE__R2__ENDPOINT", &through)])?;
    let pending = || -> Result<usize> { Ok(hand.consumer(BACKFILL)?.num_ack_pending) };
    project.wait_until("the first unit in flight", SOON, || Ok(pending()? == 1))?;
    hand.delete_stream("MARKERS")?;
    project.puller(&["migrate"])?.expect_code(0)?;
    hand.publish_on(&markers[1].0, markers[1].1.to_string().as_bytes())?;
    // Somebody else has the second unit, under the number that the first one had.
    let leased = hand.hold(BACKFILL, 1)?;
    // A worker asks once a second whether its consumer is still the same.
    thread::sleep(Duration::from_millis(1500));
    bucket.set(Fault::None);
    let recorded = |(_, marker): &(String, serde_json::Value)| {
        let day = marker["period"].as_str().unwrap_or_default();
        let sql = format!("SELECT count() FROM {}.archives WHERE period = '{day}'", project.database());
        Ok(project.query(&sql)?.trim() == "1")
    };
    project.wait_until("the first unit's rows", SOON, || recorded(&markers[0]))?;
    thread::sleep(Duration::from_secs(4));
    assert_eq!(pending()?, 1, "the ack of the first unit was taken for one of the second\n{}", worker.stderr());
    hand.nak(&leased, Duration::ZERO)?;
    project.wait_until("the second unit", GOES_ON, || recorded(&markers[1]))?;
    worker.drain(SOON).map(drop)
}

/// One answer, or its absence, is for all deliveries of a consumer: if each asked for itself, the last of them would learn of
/// its lost lease when another worker has long had its unit.
#[test]
fn lost_leases_of_many_units_are_given_up_in_time() -> Result<()> {
    const UNITS: u32 = 20;
    let (mut project, queue, direct) = behind_a_proxy(Stack::shared(), "many-leases")?;
    let bucket = Proxy::start(Stack::shared().s3.address())?;
    project.set("puller.ack_wait", "6s")?;
    project.set("puller.slots", UNITS)?;
    project.puller(&["migrate"])?.expect_code(0)?;
    announce(&project, &direct, 1..=UNITS)?;
    bucket.set(Fault::Hang);
    let through = format!("http://{}", bucket.address());
    let worker = project.spawn("puller", &["run"], &[("FERRY__STORAGE__R2__ENDPOINT", &through)])?;
    let in_flight = "marketferry_puller_in_flight_jobs{destination=\"primary\"}";
    worker.wait_for_metric(in_flight, SOON, |units| units == f64::from(UNITS))?;
    queue.set(Fault::Unanswered("CONSUMER.INFO.MARKERS."));
    let lost = "marketferry_puller_leases_lost_total{destination=\"primary\"}";
    // Six seconds, a question of two, and a pause.
    worker.wait_for_metric(lost, GOES_ON, |leases| leases == f64::from(UNITS))
}

/// What is on its way to a worker when it is told to stop comes back at once, not when its lease ends.
#[test]
fn deliveries_arriving_at_a_stopping_worker_are_handed_back() -> Result<()> {
    let stack = Stack::shared();
    let (mut project, queue, direct) = behind_a_proxy(stack, "stopping")?;
    project.set("puller.ack_wait", "5m")?;
    project.set("puller.shutdown_grace", "1s")?;
    project.puller(&["migrate"])?.expect_code(0)?;
    let hand = Handmade::new(stack, &project)?;
    announce(&project, &direct, 1..=1)?;
    let markers = hand.markers()?;
    hand.purge_stream("MARKERS")?;
    queue.set(Fault::Delay(Duration::from_millis(400)));
    // What arrives before the worker is told cannot be done, and is handed back too.
    let bucket = Proxy::start(Stack::shared().s3.address())?;
    bucket.set(Fault::Hang);
    let through = format!("http://{}", bucket.address());
    let env = [("FERRY__STORAGE__R2__ENDPOINT", through.as_str()), ("FERRY__LOG__LEVEL", "debug")];
    let mut worker = project.spawn("puller", &["run"], &env)?;
    project.wait_until("a worker", SOON, || Ok(worker.is_ready()))?;
    // An idle pull is open some round trips later.
    thread::sleep(Duration::from_secs(5));
    hand.publish_on(&markers[0].0, markers[0].1.to_string().as_bytes())?;
    project.wait_until("a delivery on its way", SOON, || Ok(hand.consumer(BACKFILL)?.num_ack_pending == 1))?;
    worker.drain(SOON)?;
    // Nobody waits for a lease here.
    let again = hand.hold(BACKFILL, 1).map_err(|failure| Failure::new(format!("{failure}\n{}", worker.stderr())))?;
    assert_eq!(again[0].info().context("its info")?.delivered, 2);
    Ok(())
}

/// Where somebody limits what may be under way, a fetch is answered in part, and then by nothing.
#[test]
fn a_fetch_answered_in_part_is_worked_on() -> Result<()> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, "in-part")?;
    let direct = project.config()["nats"]["url"].as_str().unwrap_or_default().to_owned();
    // What somebody holds comes back after the test.
    project.set("puller.ack_wait", "5m")?;
    let hand = Handmade::new(stack, &project)?;
    hand.limit_pending(BACKFILL, 1)?;
    announce(&project, &direct, 1..=4)?;
    let mut worker = project.spawn_puller(&["run"])?;
    project.wait_for_archives(4, GOES_ON)?;
    // A retry that nobody acks fills the limit of its lane, and not that of the live lane.
    worker.drain(SOON)?;
    announce(&project, &direct, 5..=7)?;
    hand.hold(BACKFILL, 1)?;
    let mut worker = project.spawn_puller(&["run"])?;
    project.wait_until("a worker", SOON, || Ok(worker.is_ready()))?;
    project.set("publish.live_days", 36_000)?;
    announce(&project, &direct, 8..=8)?;
    project.wait_for_archives(5, GOES_ON)?;
    worker.drain(SOON).map(drop)
}

/// Markers of a thousand archives each, on a line that brings one in six seconds.
#[test]
fn large_markers_arrive_over_a_narrow_line() -> Result<()> {
    let stack = Stack::shared();
    let (mut project, line, direct) = behind_a_proxy(stack, "narrow-line")?;
    project.set("puller.ack_wait", "60s")?;
    let hand = Handmade::new(stack, &project)?;
    announce(&project, &direct, 1..=3)?;
    let markers = hand.markers()?;
    hand.purge_stream("MARKERS")?;
    for (subject, mut marker) in markers {
        marker["note"] = "x".repeat(250_000).into();
        hand.publish_on(&subject, marker.to_string().as_bytes())?;
    }
    line.set(Fault::Narrow(42_000));
    let mut worker = project.spawn_puller(&["run"])?;
    project.wait_for_archives(3, SOON)?;
    assert_eq!(hand.consumer(BACKFILL)?.delivered.consumer_sequence, 3, "{}", worker.stderr());
    worker.drain(SOON).map(drop)
}

/// Thousands of units that wait for their next attempt leave room for those that can be done.
#[test]
fn scheduled_retries_leave_slots_to_live_units() -> Result<()> {
    const RETRIES: usize = 5_000;
    let stack = Stack::shared();
    let project = Project::new(stack, "scheduled")?;
    let hand = Handmade::new(stack, &project)?;
    let subjects: Vec<String> = (0..RETRIES).map(|n| format!("marker.backfill.binance.spot.klines.1h.x{n}")).collect();
    hand.publish_all(&subjects, b"not a marker")?;
    let begun = Instant::now();
    let leased = hand.hold(BACKFILL, RETRIES)?;
    hand.nak(&leased, Duration::from_secs(3600))?;
    let put_off = begun.elapsed();
    let direct = project.config()["nats"]["url"].as_str().unwrap_or_default().to_owned();
    announce(&project, &direct, 1..=3)?;
    let begun = Instant::now();
    let mut worker = project.spawn_puller(&["run"])?;
    project.wait_for_archives(3, GOES_ON)?;
    eprintln!("{RETRIES} put off in {put_off:?}; a worker started and loaded three more in {:?}", begun.elapsed());
    let scheduled = || Ok(hand.consumer(BACKFILL)?.num_ack_pending == RETRIES);
    project.wait_until("nothing but retries", GOES_ON, scheduled)?;
    worker.drain(SOON).map(drop)
}

/// The headers of the stream take longer to read than a pass may be silent.
#[test]
fn a_long_stream_over_a_slow_line_is_read_to_its_end() -> Result<()> {
    let stack = Stack::shared();
    let (mut project, queue, _) = behind_a_proxy(stack, "slow-stream")?;
    project.set("nats.manage", false)?;
    // So many that the stream is read as a whole.
    for day in 1..=17 {
        hours("AAAUSDT", &format!("2025-03-{day:02}")).write(project.data_dir())?;
    }
    mark_all(project.data_dir())?;
    let hand = Handmade::new(stack, &project)?;
    hand.act(async |jetstream| {
        for number in 0..250 {
            let mut headers = async_nats::HeaderMap::new();
            headers.insert("Padding", "x".repeat(4096));
            let subject = format!("marker.backfill.other.spot.klines.1h.{number}");
            let ack = jetstream.publish_with_headers(subject, headers, "{}".into()).await.context("published")?;
            ack.await.context("stored")?;
        }
        Ok(())
    })?;

    // A megabyte of headers, 16 KiB at a time.
    queue.set(Fault::Slow(Duration::from_millis(200)));
    let env = [("FERRY_SILENCE_SHOWN_S", "3"), ("FERRY_SILENCE_MAX_S", "6")];
    let mut service = project.spawn("uploader", &["watch"], &env)?;
    let published = "marketferry_uploader_units_total{outcome=\"published\"}";
    service.wait_for_metric(published, SOON, |count| count > 0.0)?;
    assert_eq!(service.metric("marketferry_uploader_pass_restarts_total")?, 0.0);
    service.drain(SOON).map(drop)
}

/// A pass is given up while it looks for files that are not taken: the next one names them.
#[test]
fn skipped_files_are_named_after_an_abandoned_pass() -> Result<()> {
    let project = Project::new(Stack::shared(), "hanging-strays")?;
    let archive = hours("AAAUSDT", "2025-03-01").zip();
    let folder = project.data_dir().join("data/spot/klines");
    std::fs::create_dir_all(&folder).context("a folder")?;
    std::fs::write(folder.join("AAAUSDT-1h-2025-03-01.zip"), archive).context("an archive")?;
    let env = [("FERRY_HANG", "uploader.strays"), ("FERRY_SILENCE_SHOWN_S", "2"), ("FERRY_SILENCE_MAX_S", "4")];
    let mut service = project.spawn("uploader", &["watch"], &env)?;
    service.wait_for_line("beginning it anew", SOON)?;
    service.wait_for_line("looks like an archive and is not taken", SOON)?;
    service.drain(GOES_ON).map(drop)
}
