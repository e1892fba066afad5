//! Who is to blame: a faulty unit becomes a dead letter and stops no other; a server's fault spends no attempt.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::json;
use tests::data::{ArchiveSpec, mark_all};
use tests::project::Project;
use tests::proxy::{Act, Fault, Proxy};
use tests::servers::Stack;
use tests::{Context, Failure, Result};

use crate::handmade::{Handmade, Placed};
use crate::scenario::{
    DENIED, SOON, TOO_MUCH_MEMORY, classes, has_pulled, hours, loopback, march, proxy_of_bucket, proxy_of_clickhouse,
    ship, upload,
};

const BROKEN: Act = Act::Answer {
    status: "500 Internal Server Error",
    headers: "",
    body: "<Error><Code>InternalError</Code><Message>We encountered an internal error.</Message></Error>",
};
const TOO_SLOW: Act = Act::Answer {
    status: "408 Request Timeout",
    headers: "X-ClickHouse-Exception-Code: 159\r\n",
    body: "Code: 159. DB::Exception: Timeout exceeded: elapsed 600001 ms, maximum: 600000 ms. (TIMEOUT_EXCEEDED)",
};
const NO_SPACE: Act = Act::Answer {
    status: "500 Internal Server Error",
    headers: "X-ClickHouse-Exception-Code: 243\r\n",
    body: "Code: 243. DB::Exception: Cannot reserve 1.00 MiB, not enough space. (NOT_ENOUGH_SPACE)",
};

const STORAGE_AWAY: Act = Act::Answer {
    status: "500 Internal Server Error",
    headers: "X-ClickHouse-Exception-Code: 499\r\n",
    body: "Code: 499. DB::Exception: Service Unavailable: while writing to S3. (S3_ERROR)",
};

fn spec(symbol: &str, day: usize) -> ArchiveSpec {
    hours(symbol, &format!("2025-03-{day:02}"))
}

fn place(hand: &Handmade<'_>, symbol: &str, day: usize) -> Result<Placed> {
    let spec = spec(symbol, day);
    hand.place(&spec, &spec.zip())
}

/// Announces days 1 to `days`, each with an archive of GOODUSDT, and those in `poor` with one of POORUSDT beside it.
fn announce(hand: &Handmade<'_>, days: usize, poor: &[usize]) -> Result<()> {
    for day in 1..=days {
        let mut objects = vec![place(hand, "GOODUSDT", day)?];
        if poor.contains(&day) {
            objects.push(place(hand, "POORUSDT", day)?);
        }
        hand.publish_marker(&spec("GOODUSDT", day).unit(), &objects)?;
    }
    Ok(())
}

fn proxy_of(project: &mut Project, stack: &Stack, server: Server) -> Result<Proxy> {
    match server {
        Server::Bucket => proxy_of_bucket(project, stack),
        Server::ClickHouse => proxy_of_clickhouse(project, stack),
    }
}

#[derive(Clone, Copy)]
enum Server {
    Bucket,
    ClickHouse,
}

fn ask(project: &Project, sql: &str) -> Result<String> {
    Ok(project.query(sql)?.trim().to_owned())
}

/// All good archives are loaded, also that beside the poor one.
fn good_ones_are_loaded(project: &Project, days: usize) -> Result<()> {
    let good = "SELECT count() FROM {db}.archives FINAL WHERE symbol = 'GOODUSDT'";
    assert_eq!(ask(project, good)?, days.to_string());
    let rows = "SELECT count() FROM {db}.klines_latest WHERE symbol = 'GOODUSDT'";
    assert_eq!(ask(project, rows)?, (24 * days).to_string());
    Ok(())
}

/// A bucket that refuses one object, as AWS does one that is not there to who may not list, and answers 500 to another.
#[test]
fn an_unreadable_object_becomes_a_dead_letter_and_stops_no_other() -> Result<()> {
    let stack = Stack::shared();
    for (label, refusal) in [("object-403", DENIED), ("object-500", BROKEN)] {
        let mut project = Project::new(stack, label)?;
        let bucket = proxy_of(&mut project, stack, Server::Bucket)?;
        let hand = Handmade::new(stack, &project)?;
        announce(&hand, 4, &[1])?;
        bucket.set(Fault::with_words(&["GET ", "POORUSDT"], u64::MAX, refusal));
        let pull = project.puller(&["pull", "--json"])?.expect_code(1)?.json()?;
        assert!(has_pulled(&pull, 4, 1), "{pull:#}");
        good_ones_are_loaded(&project, 4)?;
        let letters = hand.dead_letters()?;
        assert_eq!(classes(&hand)?, ["unreadable"], "{letters:#?}");
        assert!(
            letters[0].error.contains("POORUSDT") && !letters[0].error.contains("GOODUSDT"),
            "{}",
            letters[0].error
        );
        assert_eq!(ask(&project, "SELECT max(attempt) FROM {db}.ingest_log")?, "3");
        // Once it can be read, the letter is all it takes.
        bucket.set(Fault::None);
        project.puller(&["dead", "retry", "--all"])?.expect_code(0)?;
        project.puller(&["pull"])?.expect_code(0)?;
        assert_eq!(project.archives_loaded()?, 5);
    }
    Ok(())
}

/// A server that gives up what is asked for one unit. Its rows are inserted once, however often that is asked again.
#[test]
fn a_unit_that_clickhouse_rejects_stops_no_other() -> Result<()> {
    let stack = Stack::shared();
    for (label, refusal) in [("unit-241", TOO_MUCH_MEMORY), ("unit-159", TOO_SLOW)] {
        let mut project = Project::new(stack, label)?;
        let clickhouse = proxy_of(&mut project, stack, Server::ClickHouse)?;
        let hand = Handmade::new(stack, &project)?;
        announce(&hand, 4, &[])?;
        let poor = spec("POORUSDT", 9);
        hand.publish_marker(&poor.unit(), &[place(&hand, "POORUSDT", 9)?])?;
        // The read-back names the symbol; the insert is compressed.
        clickhouse.set(Fault::with_words(&["cityHash64", "POORUSDT"], u64::MAX, refusal));
        let pull = project.puller(&["pull", "--json"])?.expect_code(1)?.json()?;
        assert_eq!(pull["destinations"][0]["dead_letters"], 1, "{pull:#}");
        good_ones_are_loaded(&project, 4)?;
        assert_eq!(classes(&hand)?, ["too_heavy"], "{:#?}", hand.dead_letters()?);
        assert_eq!(ask(&project, "SELECT max(attempt) FROM {db}.ingest_log WHERE error_class = 'too_heavy'")?, "3");
        assert_eq!(ask(&project, "SELECT count() FROM {db}.klines WHERE symbol = 'POORUSDT'")?, "24");
        clickhouse.set(Fault::None);
        project.puller(&["dead", "retry", "--all"])?.expect_code(0)?;
        project.puller(&["pull"])?.expect_code(0)?;
        assert_eq!(project.archives_loaded()?, 5);
    }
    Ok(())
}

/// A ClickHouse whose storage is away answers small questions, and refuses every insert with a code of its own.
#[test]
fn a_clickhouse_without_storage_causes_no_dead_letter() -> Result<()> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, "trouble")?;
    let clickhouse = proxy_of(&mut project, stack, Server::ClickHouse)?;
    let hand = Handmade::new(stack, &project)?;
    announce(&hand, 6, &[])?;
    clickhouse.set(Fault::with_words(&["INSERT", ".klines"], u64::MAX, STORAGE_AWAY));
    let mut worker = project.spawn_puller(&["run"])?;
    project.wait_until("the reason", SOON, || Ok(worker.is_not_ready_for(&["S3_ERROR"])))?;
    // In this time three attempts would have been spent.
    std::thread::sleep(Duration::from_secs(15));
    assert_eq!(hand.dead_letters()?.len(), 0, "{:#?}", hand.dead_letters()?);
    clickhouse.set(Fault::None);
    project.wait_until("the rest", SOON, || Ok(project.archives_loaded()? == 6))?;
    good_ones_are_loaded(&project, 6)?;
    assert_eq!(ask(&project, "SELECT max(attempt), countIf(outcome != 'loaded') FROM {db}.ingest_log")?, "1\t0");
    worker.drain(SOON).map(drop)
}

/// What cannot be a file below this folder, each beside good units.
#[test]
fn an_impossible_file_name_stops_no_other_unit() -> Result<()> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, "files")?;
    let copy = project.dir().join("copy");
    let symbols = copy.join("data/spot/daily/klines");
    std::fs::create_dir_all(&symbols).context("a folder")?;
    std::fs::write(symbols.join("BLOCKEDUSDT"), "a file where a folder belongs").context("a file")?;
    project.set("clickhouse", json!({}))?;
    project.set("destinations", json!([{ "name": "files", "type": "directory", "path": copy }]))?;
    let hand = Handmade::new(stack, &project)?;
    announce(&hand, 3, &[])?;
    let moved = |day: usize, folder: &str| -> Result<()> {
        let good = place(&hand, "GOODUSDT", day)?;
        let name = good.key.rsplit('/').next().unwrap_or_default();
        let key = format!("{}/data/{folder}/{name}", project.prefix());
        hand.publish_marker(&spec("GOODUSDT", day).unit(), &[Placed { key, ..good.clone() }])
    };
    moved(11, &"a".repeat(300))?;
    hand.publish_marker(&spec("BLOCKEDUSDT", 12).unit(), &[place(&hand, "BLOCKEDUSDT", 12)?])?;
    // Nothing has such a size, and nobody makes room for it.
    let large = place(&hand, "GOODUSDT", 13)?;
    hand.publish_marker(&spec("GOODUSDT", 13).unit(), &[Placed { size: 1 << 45, ..large }])?;
    let large = place(&hand, "GOODUSDT", 14)?;
    hand.publish_marker(&spec("GOODUSDT", 14).unit(), &[Placed { size: 32 << 30, ..large }])?;
    // A name that is another unit's, or nobody's.
    let mark = place(&hand, "GOODUSDT", 15)?;
    hand.publish_marker(&spec("GOODUSDT", 16).unit(), &[mark])?;

    let pull = project.puller(&["pull", "--json"])?.expect_code(1)?.json()?;
    assert!(has_pulled(&pull, 3, 5), "{pull:#}");
    assert_eq!(classes(&hand)?, ["refused"; 5], "{:#?}", hand.dead_letters()?);
    assert_eq!(tests::data::archives(&copy)?.len(), 3);
    Ok(())
}

/// Nothing is wrong with the markers, and all of them would be buried.
#[test]
fn a_worker_set_up_for_another_prefix_or_bucket_waits() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "elsewhere")?;
    let hand = Handmade::new(stack, &project)?;
    for day in 1..=12 {
        spec("GOODUSDT", day).write(project.data_dir())?;
    }
    mark_all(project.data_dir())?;
    project.uploader(&["upload"])?.expect_code(0)?;
    let prefix = project.prefix().to_owned();
    let bucket = stack.s3.bucket();
    for (key, wrong, right) in [("storage.r2.prefix", "other", prefix.as_str()), ("storage.r2.bucket", "other", bucket)]
    {
        let variable = format!("FERRY__{}", key.to_uppercase().replace('.', "__"));
        let env = [(variable.as_str(), wrong)];
        let doctor = project.start("puller", &["doctor"], &env)?.wait(SOON)?.expect_code(4)?;
        assert!(doctor.stdout.contains("'other'") && doctor.stdout.contains(key), "{}", doctor.stdout);
        // For a command it is a wrong configuration, as for the uploader.
        let pull = project.start("puller", &["pull"], &env)?.wait(SOON)?.expect_code(2)?;
        assert!(pull.stderr.contains("'other'") && pull.stderr.contains(key), "{}", pull.stderr);
        let mut worker = project.spawn("puller", &["run"], &env)?;
        project.wait_until("the reason", SOON, || Ok(worker.is_not_ready_for(&["'other'", right, key])))?;
        // Longer than a unit is tried before it is put off.
        std::thread::sleep(Duration::from_secs(35));
        assert!(worker.is_not_ready_for(&["'other'", right, key]));
        assert_eq!(hand.dead_letters()?.len(), 0);
        worker.drain(Duration::from_secs(10))?;
    }
    project.puller(&["pull"])?.expect_code(0)?;
    project.check_tables(288)?;
    assert_eq!(ask(&project, "SELECT max(attempt), countIf(outcome != 'loaded') FROM {db}.ingest_log")?, "1\t0");
    project.puller(&["doctor"])?.expect_code(0).map(drop)
}

/// A worker whose clock is days behind judges nothing by it.
#[test]
fn a_worker_whose_clock_is_far_behind_waits() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "clock-behind")?;
    let hand = Handmade::new(stack, &project)?;
    let now = Timestamp::now().to_string();
    for day in 1..=6 {
        spec("GOODUSDT", day).generated_at(&now).write(project.data_dir())?;
    }
    mark_all(project.data_dir())?;
    project.uploader(&["upload"])?.expect_code(0)?;
    let behind = (3 * 86_400).to_string();
    let mut worker = project.spawn("puller", &["run"], &[("FERRY_CLOCK_OFFSET_S", &format!("-{behind}"))])?;
    project.wait_until("the reason", SOON, || Ok(worker.is_not_ready_for(&["clock", "behind"])))?;
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(hand.dead_letters()?.len(), 0);
    worker.drain(Duration::from_secs(10))?;
    // Some minutes are nobody's concern, and what the server stored is not from the future.
    let mut pull = project.start("puller", &["pull"], &[("FERRY_CLOCK_OFFSET_S", "-200")])?;
    pull.wait(SOON)?.expect_code(0)?;
    project.check_tables(144)?;
    assert_eq!(ask(&project, "SELECT max(attempt) FROM {db}.ingest_log")?, "1");
    Ok(())
}

/// A supervisor that restarts what is not ready, while a server takes nothing.
#[test]
fn orderly_restarts_cost_no_attempt() -> Result<()> {
    const RESTARTS: usize = 20;
    let stack = Stack::shared();
    let mut project = Project::new(stack, "restarts")?;
    let clickhouse = proxy_of(&mut project, stack, Server::ClickHouse)?;
    let hand = Handmade::new(stack, &project)?;
    // One unit: whatever a restart does not note is counted against it.
    announce(&hand, 1, &[])?;
    clickhouse.set(Fault::with_words(&["INSERT", ".klines"], u64::MAX, NO_SPACE));
    for _ in 0..RESTARTS {
        let mut worker = project.spawn_puller(&["run"])?;
        project.wait_until("the reason", SOON, || Ok(worker.is_not_ready_for(&["not enough space"])))?;
        worker.sigterm()?;
        // What only waits does not use up the grace, which is 15 s.
        let ended = worker.wait(SOON)?.expect_code(0)?;
        assert!(ended.elapsed < Duration::from_secs(8), "{:?}", ended.elapsed);
        let letters = hand.dead_letters()?;
        assert!(letters.is_empty(), "{letters:#?}\n{}", ended.stderr);
    }
    clickhouse.set(Fault::None);
    // A fault that passes still has all of its attempts.
    let absent = place(&hand, "GOODUSDT", 9)?;
    hand.delete(&absent.key)?;
    hand.publish_marker(&spec("GOODUSDT", 9).unit(), &[absent])?;
    project.puller(&["pull"])?.expect_code(1)?;
    good_ones_are_loaded(&project, 1)?;
    assert_eq!(classes(&hand)?, ["missing"]);
    let attempts = "SELECT outcome, max(attempt) FROM {db}.ingest_log GROUP BY outcome ORDER BY outcome FORMAT TSV";
    assert_eq!(ask(&project, attempts)?, "dead_letter\t3\nloaded\t1\nretry\t2");
    Ok(())
}

/// A worker ends while its insert is on the way, a correction is loaded, and then the insert lands.
#[test]
fn a_late_insert_leaves_no_row_of_a_former_revision() -> Result<()> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, "late-insert")?;
    project.set("puller.shutdown_grace", "1s")?;
    let clickhouse = Proxy::start(loopback(stack.clickhouse.port()))?;
    let port = clickhouse.address().port().to_string();
    let hand = Handmade::new(stack, &project)?;
    upload(&project, [spec("GOODUSDT", 1)])?;
    clickhouse.set(Fault::with_words(&["INSERT", ".klines"], 1, Act::Hold(Duration::from_secs(25))));
    let mut worker = project.spawn("puller", &["run"], &[("FERRY__CLICKHOUSE__PORT", &port)])?;
    project.wait_until("the insert", SOON, || Ok(clickhouse.met() > 0))?;
    std::thread::sleep(Duration::from_millis(500));
    worker.drain(SOON)?;
    let ended = Instant::now();

    spec("GOODUSDT", 1).missing([3, 4]).generated_at("2025-06-01T00:00:00Z").write(project.data_dir())?;
    project.uploader(&["upload"])?.expect_code(0)?;
    let shown = "SELECT count() FROM {db}.klines_latest";
    let _worker = project.spawn_puller(&["run"])?;
    project.wait_until("the correction", SOON, || Ok(ask(&project, shown)? == "22"))?;
    assert!(ended.elapsed() < Duration::from_secs(20), "the insert has landed before the correction");
    let stored = "SELECT count() FROM {db}.klines WHERE is_deleted = 0";
    project
        .wait_until("the insert to land", SOON, || Ok(ask(&project, stored)?.parse::<u64>().is_ok_and(|n| n >= 46)))?;
    // The former revision comes again when its insert must have landed.
    let done = "SELECT count() FROM {db}.ingest_log WHERE outcome IN ('loaded', 'skipped', 'superseded')";
    project.wait_until("the former revision", 3 * SOON, || Ok(ask(&project, done)? == "2"))?;
    project.check_tables(22)?;
    assert_eq!(hand.dead_letters()?.len(), 0);
    Ok(())
}

/// Archives with as many short rows as fit into the bytes that a genuine one may have.
#[test]
fn archives_of_many_short_rows_stay_within_the_memory() -> Result<()> {
    const ARCHIVES: usize = 1_000;
    let stack = Stack::shared();
    let mut project = Project::new(stack, "short-rows")?;
    project.set("puller.memory", "128MiB")?;
    let hand = Handmade::new(stack, &project)?;
    let day = spec("X", 1);
    let start = 1_740_787_200_000_u64;
    let csv: String = (0..1_400).map(|row| format!("{0},1,1,1,1,1,{0},1,1,1,1,0\n", start + row * 60_000)).collect();
    let mut objects = vec![place(&hand, "GOODUSDT", 1)?];
    for number in 0..ARCHIVES {
        let spec = spec(&format!("S{number:04}USDT"), 1);
        objects.push(hand.place(&spec, &spec.zip_of(csv.as_bytes()))?);
    }
    hand.publish_marker(&day.unit(), &objects)?;
    let mut worker = project.spawn_puller(&["run"])?;
    project.wait_until("the dead letter", SOON, || Ok(hand.dead_letters()?.len() == 1))?;
    let status = std::fs::read_to_string(format!("/proc/{}/status", worker.pid())).context("its status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
    let peak: u64 = peak.ok_or_else(|| Failure::new(status.clone()))?;
    assert!(peak < 128 * 1024, "{peak} KiB at the most");
    assert_eq!(project.archives_loaded()?, 1);
    worker.drain(SOON)?;
    Ok(())
}

/// Somebody puts yesterday's bucket back: what was announced today is not there, and is not taken for done.
#[test]
fn a_bucket_that_was_rolled_back_supersedes_nothing() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "rolled-back")?;
    let hand = Handmade::new(stack, &project)?;
    ship(&project, [spec("GOODUSDT", 1)])?;
    let unit = spec("GOODUSDT", 1).unit();
    let current = format!("{}/_markers/{unit}/current.json", project.prefix());
    let object = format!("{}/{}", project.prefix(), spec("GOODUSDT", 1).path());
    let yesterday = [(&current, hand.get(&current)?), (&object, hand.get(&object)?)];

    spec("GOODUSDT", 1).seed(1).generated_at("2025-06-01T00:00:00Z").write(project.data_dir())?;
    project.uploader(&["upload"])?.expect_code(0)?;
    let today = hand.get(&current)?;
    for (key, bytes) in &yesterday {
        hand.put(key, bytes)?;
    }
    project.puller(&["pull"])?.expect_code(1)?;
    assert_eq!(classes(&hand)?, ["mismatch"]);
    assert_eq!(ask(&project, "SELECT countIf(outcome = 'superseded') FROM {db}.ingest_log")?, "0");

    // A newer current.json alone is no announcement: its revision may never be loaded.
    let project = Project::new(stack, "unannounced")?;
    let hand = Handmade::new(stack, &project)?;
    let first = place(&hand, "GOODUSDT", 1)?;
    hand.publish_marker(&unit, &[first])?;
    let corrected = spec("GOODUSDT", 1).seed(1);
    hand.put(&format!("{}/{}", project.prefix(), corrected.path()), &corrected.zip())?;
    hand.put(&format!("{}/_markers/{unit}/current.json", project.prefix()), &today)?;
    project.puller(&["pull"])?.expect_code(1)?;
    assert_eq!(classes(&hand)?, ["mismatch"]);
    Ok(())
}

/// Loads one unit through a fault that is met so many times; returns how its attempts ended, sorted.
fn attempts(label: &str, words: &[&str], times: u64, act: Act) -> Result<String> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, label)?;
    let bucket = proxy_of_bucket(&mut project, stack)?;
    let clickhouse = proxy_of_clickhouse(&mut project, stack)?;
    let hand = Handmade::new(stack, &project)?;
    let placed = hand.place(&march(1), &march(1).zip())?;
    hand.publish_marker(&march(1).unit(), &[placed])?;
    let fault = Fault::with_words(words, times, act);
    for proxy in [&bucket, &clickhouse] {
        proxy.set(fault.clone());
    }
    project.puller(&["pull"])?.expect_code(0)?;
    assert_eq!(bucket.met() + clickhouse.met(), times, "{label}");
    assert_eq!(project.archives_loaded()?, 1);
    let attempts = "SELECT arrayStringConcat(arraySort(groupArray(outcome)), ' ') FROM {db}.ingest_log";
    Ok(project.query(attempts)?.trim().to_owned())
}

#[test]
fn an_object_refused_with_all_others_spends_no_attempt() -> Result<()> {
    // A refused request is made twice: by the short way, and by the library.
    assert_eq!(attempts("passing-403", &["GET ", "BTCUSDT-1h"], 2, DENIED)?, "loaded");
    // And once more for a second fault, which is the object's own.
    assert_eq!(attempts("lasting-403", &["GET ", "BTCUSDT-1h"], 4, DENIED)?, "loaded retry");
    Ok(())
}

#[test]
fn a_query_that_fails_with_all_others_spends_no_attempt() -> Result<()> {
    let words = ["cityHash64", "BTCUSDT"];
    assert_eq!(attempts("passing-241", &words, 1, TOO_MUCH_MEMORY)?, "loaded");
    assert_eq!(attempts("lasting-241", &words, 2, TOO_MUCH_MEMORY)?, "loaded retry");
    Ok(())
}
