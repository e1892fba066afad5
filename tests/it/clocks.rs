//! A wrong clock: an uploader's decides nothing about which archive wins, and a worker's delays no other worker.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::{Value, json};
use tests::data::{ArchiveSpec, Market, mark_all, sha256};
use tests::project::{Project, Service};
use tests::proxy::{Fault, Proxy};
use tests::servers::Stack;
use tests::{Context, Result};

use crate::handmade::Handmade;
use crate::scenario::{SOON, assert_nothing_uploaded, btc, is_drained, march, upload};
use crate::server_faults::{check_units, write_units};

/// So many archives make a list too long for a marker.
const LONG: usize = 1_200;

fn day() -> ArchiveSpec {
    btc("2025-03-10")
}

fn generated_at(marker: &Value) -> Option<&str> {
    marker["objects"][0]["generated_at"].as_str()
}

fn on_a_folder(label: &str) -> Result<Project> {
    let mut project = Project::new(Stack::shared(), label)?;
    let share = project.dir().join("share");
    std::fs::create_dir(&share).context("the share")?;
    project.set("storage.type", "fs")?;
    project.set("storage.fs.path", share.to_string_lossy().into_owned())?;
    Ok(project)
}

/// Lets the uploader remember nothing. Of archives that it read within 100 ms of their writing it does not, and then there
/// is no cache.
fn forget(project: &Project) -> Result<()> {
    match std::fs::remove_dir_all(project.dir().join("state")) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        removed => removed.context("the cache"),
    }
}

/// How many seconds ago a time is, for a clock that stands there.
fn back_to(time: &str) -> Result<String> {
    let at: Timestamp = time.parse().context(time)?;
    Ok((at.as_second() - Timestamp::now().as_second()).to_string())
}

/// The clock stands at 5 April, the corrected day was generated on the 20th. Dated by the clock it would lose against the
/// month of the 7th.
#[test]
fn an_archive_stamped_after_the_clocks_time_is_held_back() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "clock-behind")?;
    let hand = Handmade::new(stack, &project)?;
    day().seed(3).generated_at("2025-04-20T00:00:00Z").write(project.data_dir())?;
    mark_all(project.data_dir())?;
    let clock = back_to("2025-04-05T00:00:00Z")?;
    let behind = project.start("uploader", &["upload"], &[("FERRY_CLOCK_OFFSET_S", &clock)])?.wait(SOON)?;
    let behind = behind.expect_code(1)?;
    let reason = "the clock is behind, or the stamp lies in the future";
    assert!(behind.stderr.contains(reason), "{}", behind.stderr);
    assert_eq!(hand.markers()?.len(), 0);
    project.uploader(&["upload"])?.expect_code(0)?;
    assert_eq!(generated_at(&hand.markers()?[0].1), Some("2025-04-20T00:00:00Z"));
    Ok(())
}

/// An uploader before this one dated an archive by its clock: its own stamp counts as soon as somebody looks.
#[test]
fn a_time_from_a_wrong_clock_is_corrected() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "clock-was-behind")?;
    let hand = Handmade::new(stack, &project)?;
    let month = ArchiveSpec::new(Market::Spot, "BTCUSDT", "1h", "2025-03").generated_at("2025-04-07T00:00:00Z");
    month.write(project.data_dir())?;
    upload(&project, [day().seed(3).generated_at("2025-04-20T00:00:00Z")])?;
    let (_, mut wrong) =
        hand.markers()?.into_iter().find(|(_, marker)| marker["period"] == "2025-03-10").expect("a day");
    wrong["objects"][0]["generated_at"] = "2025-04-05T00:00:00Z".into();
    hand.purge_stream("MARKERS")?;
    hand.publish(&day().unit(), wrong.to_string().as_bytes())?;
    project.puller(&["pull"])?.expect_code(0)?;

    forget(&project)?;
    project.uploader(&["upload"])?.expect_code(0)?;
    let times = |marker: &(String, Value)| generated_at(&marker.1).map(str::to_owned);
    assert!(hand.markers()?.iter().filter_map(times).any(|at| at == "2025-04-20T00:00:00Z"), "{:#?}", hand.markers()?);
    project.puller(&["pull"])?.expect_code(0)?;
    project.check_tables(744)?;
    assert_nothing_uploaded(&project.uploader(&["upload", "--json"])?.expect_code(0)?.json()?);
    Ok(())
}

/// The same where the list of archives is too long for the marker: their times are in the bucket.
#[test]
fn times_from_a_wrong_clock_are_corrected_in_a_long_list() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "long-list-dated")?;
    let hand = Handmade::new(stack, &project)?;
    let spec = |symbol: usize, period| ArchiveSpec::new(Market::Spot, &format!("S{symbol:04}USDT"), "1d", period);
    spec(0, "2025-03").generated_at("2025-04-07T00:00:00Z").write(project.data_dir())?;
    let days: Vec<ArchiveSpec> = (0..LONG).map(|symbol| spec(symbol, "2025-03-10").seed(3)).collect();
    let days: Vec<_> = days.into_iter().map(|day| day.generated_at("2025-04-20T00:00:00Z")).collect();
    for day in &days {
        day.write_unchecked(project.data_dir(), &day.zip())?;
    }
    mark_all(project.data_dir())?;
    project.uploader(&["upload"])?.expect_code(0)?;

    let of_day = |(_, marker): &(String, Value)| marker["period"] == "2025-03-10";
    let (_, mut wrong) = hand.markers()?.into_iter().find(of_day).expect("a day");
    let key = wrong["manifest"]["key"].as_str().expect("a list in the bucket").to_owned();
    let mut manifest: Value = serde_json::from_slice(&hand.get(&key)?).context(key.as_str())?;
    for object in manifest["objects"].as_array_mut().expect("a list") {
        object["generated_at"] = "2025-04-05T00:00:00Z".into();
    }
    let manifest = manifest.to_string();
    hand.put(&key, manifest.as_bytes())?;
    wrong["manifest"]["sha256"] = sha256(manifest.as_bytes()).into();
    hand.purge_stream("MARKERS")?;
    hand.publish(&days[0].unit(), wrong.to_string().as_bytes())?;
    project.puller(&["pull"])?.expect_code(0)?;

    project.uploader(&["upload"])?.expect_code(0)?;
    let (_, right) = hand.markers()?.into_iter().rfind(of_day).expect("a day");
    assert_eq!(right["revision"], wrong["revision"]);
    let symbols: Vec<&str> = days.iter().map(ArchiveSpec::symbol).collect();
    assert_eq!(right["manifest"]["dates"], json!({ "2025-04-20T00:00:00Z": symbols }));
    project.puller(&["pull"])?.expect_code(0)?;
    project.check_tables(1230)?;
    // Also for an uploader that remembers nothing.
    forget(&project)?;
    assert_nothing_uploaded(&project.uploader(&["upload", "--json"])?.expect_code(0)?.json()?);
    project.uploader(&["reconcile"])?.expect_code(0)?;
    // What the bucket says is enough to announce it again as it was.
    hand.purge_stream("MARKERS")?;
    project.uploader(&["reconcile", "--fix"])?.expect_code(0)?;
    let (_, restored) = hand.markers()?.into_iter().find(of_day).expect("a day");
    assert_eq!(restored["manifest"], right["manifest"]);
    Ok(())
}

/// No server compares the time of a request where the store is a folder: the folder's own clock does, and what NATS has
/// stored.
#[test]
fn a_clock_that_is_behind_is_detected_without_a_bucket() -> Result<()> {
    let project = on_a_folder("fs-clock-behind")?;
    day().write(project.data_dir())?;
    mark_all(project.data_dir())?;
    let upload = |offset: &str| project.start("uploader", &["upload"], &[("FERRY_CLOCK_OFFSET_S", offset)])?.wait(SOON);
    let behind = upload("-172800")?.expect_code(2)?;
    assert!(behind.stderr.contains("file server"), "{}", behind.stderr);
    project.uploader(&["upload"])?.expect_code(0)?;
    let behind = upload("-172800")?.expect_code(2)?;
    assert!(behind.stderr.contains("NATS has stored a message at"), "{}", behind.stderr);
    Ok(())
}

/// Of two revisions the one published later is the newer, also by the clock of an uploader that is behind.
#[test]
fn a_later_revision_is_never_published_earlier() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "published-later")?;
    let hand = Handmade::new(stack, &project)?;
    for (seed, offset) in [(1, "0"), (2, "-7200")] {
        day().seed(seed).generated_at(&format!("2025-04-0{seed}T00:00:00Z")).write(project.data_dir())?;
        mark_all(project.data_dir())?;
        let upload = project.start("uploader", &["upload"], &[("FERRY_CLOCK_OFFSET_S", offset)])?.wait(SOON)?;
        upload.expect_code(0)?;
    }
    let markers = hand.markers()?;
    // As times, for their texts leave out the zeros at the end of a second's fraction.
    let time = |(_, marker): &(String, Value)| marker["published_at"].as_str()?.parse::<Timestamp>().ok();
    let times = markers.iter().map(time).collect::<Option<Vec<_>>>().expect("times");
    assert!(times.len() == 2 && times[0] < times[1], "{times:?}");
    project.uploader(&["reconcile"])?.expect_code(0).map(drop)
}

/// Starts a worker beside one that waits for its clock, and has the queue to itself.
fn another_has_all(project: &Project, waiting: &Service, word: &str) -> Result<()> {
    project.wait_until("the reason", SOON, || Ok(waiting.is_not_ready_for(&[word])))?;
    let begun = Instant::now();
    let mut other = project.spawn_puller(&["run"])?;
    // Less than the time after which a unit in doubt is put off, and for which it is.
    project.wait_for_archives(12, Duration::from_secs(20))?;
    eprintln!("{word}: the other worker loaded all in {:?}", begun.elapsed());
    assert!(waiting.is_not_ready_for(&[word]));
    other.drain(SOON)?;
    project.check_tables(288)?;
    let attempts = format!("SELECT max(attempt), countIf(outcome != 'loaded') FROM {}.ingest_log", project.database());
    assert_eq!(project.query(&attempts)?.trim(), "1\t0");
    Ok(())
}

/// By the NATS server's clock it is days behind.
#[test]
fn a_worker_with_a_wrong_clock_leaves_all_units_to_others() -> Result<()> {
    let project = Project::new(Stack::shared(), "waits-for-clock")?;
    project.puller(&["migrate"])?.expect_code(0)?;
    upload(&project, (1..=12).map(march))?;
    let mut behind = project.spawn("puller", &["run"], &[("FERRY_CLOCK_OFFSET_S", "-259200")])?;
    another_has_all(&project, &behind, "clock")?;
    behind.drain(SOON).map(drop)
}

/// The bucket says that the time of its requests is wrong; once the clock is right it goes on by itself.
#[test]
fn a_worker_refused_for_its_clock_leaves_all_units_to_others() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "refused-for-time")?;
    project.puller(&["migrate"])?.expect_code(0)?;
    upload(&project, (1..=12).map(march))?;
    let bucket = Proxy::start(stack.s3.address())?;
    let body = "<Error><Code>RequestTimeTooSkewed</Code><Message>The difference is too large.</Message></Error>";
    bucket.set(Fault::Answer { status: "403 Forbidden", headers: "", body });
    let through = format!("http://{}", bucket.address());
    let mut skewed = project.spawn("puller", &["run"], &[("FERRY__STORAGE__R2__ENDPOINT", &through)])?;
    another_has_all(&project, &skewed, "clock")?;
    bucket.set(Fault::None);
    upload(&project, (13..=14).map(march))?;
    project.wait_for_archives(14, SOON)?;
    project.wait_until("a worker that is ready", SOON, || Ok(skewed.is_ready()))?;
    skewed.drain(SOON).map(drop)
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
    check_units(&project, &hand, 6)
}
