//! For each open_time the archive generated last decides, in whatever order archives arrive.

use std::time::Duration;

use tests::data::{ArchiveSpec, Market, mark_all};
use tests::project::Project;
use tests::proxy::{Fault, Proxy};
use tests::servers::Stack;
use tests::truth::Truth;
use tests::{Context, Result};

use crate::handmade::Handmade;
use crate::scenario::{SOON, assert_nothing_uploaded, btc, loopback, ship, upload, weeks, write_with_week_before};

fn spec() -> ArchiveSpec {
    btc("2025-03-01")
}

#[test]
fn a_republished_archive_replaces_its_rows() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "republished")?;
    let hand = Handmade::new(stack, &project)?;
    ship(&project, [spec()])?;
    project.check_tables(24)?;

    // Other values, and two rows that are no longer there.
    let second = spec().seed(1).missing([3, 17]).generated_at("2025-03-05T00:00:00Z");
    ship(&project, [second])?;
    project.check_tables(22)?;
    let latest = format!("SELECT count() FROM {}.klines_latest", project.database());
    assert_eq!(project.query(&latest)?.trim(), "22");

    // The same again is the same revision: nothing is sent and nothing loaded.
    assert_nothing_uploaded(&project.uploader(&["upload", "--json"])?.expect_code(0)?.json()?);
    assert_eq!(hand.markers()?.len(), 2);

    // And the two rows come back.
    ship(&project, [spec().seed(2).generated_at("2025-03-06T00:00:00Z")])?;
    project.check_tables(24)
}

/// Within the stream's duplicate window the message id of the first revision is still known.
#[test]
fn a_unit_can_go_back_to_an_earlier_revision() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "back-again")?;
    let hand = Handmade::new(stack, &project)?;
    let versions = [spec(), spec().seed(1).generated_at("2025-03-05T00:00:00Z"), spec()];
    for version in &versions {
        upload(&project, [version])?;
    }
    project.uploader(&["upload", "--accept-rollback", &spec().unit()])?.expect_code(0)?;
    let revisions: Vec<_> = hand.markers()?.into_iter().map(|(_, marker)| marker["revision"].clone()).collect();
    assert_eq!(revisions.len(), 3);
    assert_eq!(revisions[0], revisions[2]);
    assert_ne!(revisions[0], revisions[1]);
    Ok(())
}

/// Three archives of one time stamp, the third of them the first one again: the last to be published is to win.
#[test]
fn a_revision_that_returns_within_one_time_stamp_is_loaded() -> Result<()> {
    let project = Project::new(Stack::shared(), "back-at-once")?;
    for archive in [spec(), spec().seed(1), spec()] {
        ship(&project, [archive])?;
        project.check_tables(24)?;
    }
    Ok(())
}

/// The same of a unit whose list of archives is too long for its marker. The manifest of the first revision stays as it
/// was, and yet each of its archives is dated later than the second's.
#[test]
fn a_long_list_that_returns_within_one_time_stamp_is_loaded() -> Result<()> {
    const LONG: usize = 1_200;
    let project = Project::new(Stack::shared(), "long-back-at-once")?;
    for seed in [0, 1, 0] {
        for number in 0..LONG {
            let spec = ArchiveSpec::new(Market::Spot, &format!("S{number:04}USDT"), "1d", "2025-03-01").seed(seed);
            spec.write_unchecked(project.data_dir(), &spec.zip())?;
        }
        mark_all(project.data_dir())?;
        project.uploader(&["upload"])?.expect_code(0)?;
        project.puller(&["pull"])?.expect_code(0)?;
        project.check_tables(1200)?;
    }
    project.uploader(&["reconcile"])?.expect_code(0)?;
    project.puller(&["verify"])?.expect_code(0).map(drop)
}

/// The one in between is in the table and not in the ledger, for its worker died.
#[test]
fn a_revision_that_returns_after_an_unrecorded_one_is_loaded() -> Result<()> {
    let project = Project::new(Stack::shared(), "back-unrecorded")?;
    ship(&project, [spec()])?;
    spec().seed(1).write(project.data_dir())?;
    project.uploader(&["upload"])?.expect_code(0)?;
    let mut dies = project.start("puller", &["pull"], &[("FERRY_FAILPOINT", "puller.inserted")])?;
    assert_eq!(dies.wait(SOON)?.code, None, "killed");
    ship(&project, [spec()])?;
    project.check_tables(24)?;
    project.puller(&["verify"])?.expect_code(0).map(drop)
}

/// It was published when it came back, not when it was like this first: the time by which archives leave the disk, and by
/// which of two revisions the newer is told.
#[test]
fn a_returned_revision_is_dated_by_its_return() -> Result<()> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, "back-in-time")?;
    let hand = Handmade::new(stack, &project)?;
    let path = spec().write(project.data_dir())?;
    mark_all(project.data_dir())?;
    let upload = |hours_ago: i64| {
        let offset = (-3600 * hours_ago).to_string();
        let unit = spec().unit();
        let args: &[&str] = if hours_ago == 0 { &["upload", "--accept-rollback", &unit] } else { &["upload"] };
        project.start("uploader", args, &[("FERRY_CLOCK_OFFSET_S", &offset)])?.wait(SOON)?.expect_code(0)
    };
    upload(20)?;
    let manifests = || -> Result<Vec<_>> {
        let keys = hand.keys()?.into_iter().filter(|key| key.contains("/_markers/") && !key.ends_with("current.json"));
        keys.map(|key| Ok((hand.get(&key)?, key))).collect()
    };
    let first = manifests()?;
    spec().seed(1).generated_at("2025-03-05T00:00:00Z").write(project.data_dir())?;
    upload(10)?;
    spec().write(project.data_dir())?;
    upload(0)?;
    let markers = hand.markers()?;
    let published_at = |marker: usize| markers[marker].1["published_at"].as_str().unwrap_or_default().to_owned();
    assert!(published_at(0) < published_at(1) && published_at(1) < published_at(2), "{markers:#?}");
    assert_eq!(markers[0].1["revision"], markers[2].1["revision"]);
    assert!(manifests()?.contains(&first[0]), "a manifest is never rewritten");

    // A stream that was restored from a backup does not win against the bucket.
    let (stale, newest) = (&markers[1], &markers[2]);
    hand.purge_stream("MARKERS")?;
    hand.publish(&spec().unit(), stale.1.to_string().as_bytes())?;
    let found = project.uploader(&["reconcile"])?.expect_code(4)?;
    assert!(found.stdout.contains("the bucket's is newer"), "{}", found.stdout);
    project.uploader(&["reconcile", "--fix"])?.expect_code(0)?;
    assert_eq!(hand.markers()?.last(), Some(newest));

    project.set("publish.cleanup_after", "1h")?;
    project.uploader(&["upload"])?.expect_code(0)?;
    assert!(path.exists(), "it came back a moment ago");
    Ok(())
}

/// A week may open in January and be in February's archive only. January's, repaired later, takes it away no more than it
/// keeps weeks of its own that it lacks.
#[test]
fn a_week_that_the_next_months_archive_has_stays() -> Result<()> {
    let mut project = Project::new(Stack::shared(), "week")?;
    project.set("corrections.shrink_limit", 1.0)?;
    let february = weeks("2025-02").generated_at("2025-03-01T00:00:00Z");
    write_with_week_before(&project, &february)?;
    let january = |missing: &[usize], seed| weeks("2025-01").missing(missing.iter().copied()).seed(seed);
    ship(&project, [january(&[3], 0).generated_at("2025-10-15T00:00:00Z")])?;
    let shown = || -> Result<Vec<String>> {
        let days = project.query("SELECT toDate(open_time) FROM {db}.klines_latest ORDER BY open_time FORMAT TSV")?;
        Ok(days.lines().map(|day| day.trim_start_matches("2025-").to_owned()).collect())
    };
    assert_eq!(shown()?, ["01-06", "01-13", "01-20", "01-27", "02-03", "02-10", "02-17", "02-24"]);
    ship(&project, [january(&[1, 3], 1).generated_at("2025-10-16T00:00:00Z")])?;
    assert_eq!(shown()?, ["01-06", "01-20", "01-27", "02-03", "02-10", "02-17", "02-24"]);
    Ok(())
}

#[test]
fn a_stale_monthly_changes_nothing_a_corrected_daily_says() -> Result<()> {
    let project = Project::new(Stack::shared(), "stale-monthly")?;
    let daily = spec().seed(9).generated_at("2025-04-20T00:00:00Z");
    ship(&project, [&daily])?;
    // Generated before the daily was corrected, and it has forgotten half of that day's rows and all of another's.
    let monthly = ArchiveSpec::new(Market::Spot, "BTCUSDT", "1h", "2025-03")
        .missing((0..12).chain(48..72))
        .generated_at("2025-04-07T00:00:00Z");
    ship(&project, [monthly])?;
    project.check_tables(720)?;
    // A later monthly takes nothing away from a day either, but its values win where it has any.
    let later = ArchiveSpec::new(Market::Spot, "BTCUSDT", "1h", "2025-03")
        .seed(4)
        .missing((0..12).chain(48..72))
        .generated_at("2025-05-07T00:00:00Z");
    ship(&project, [&later])?;
    let truth = Truth::of_specs([&daily, &later])?;
    truth.compare_rows(project.sql(), project.database(), 720)
}

#[test]
fn a_correction_that_removes_too_much_is_held() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "shrunk")?;
    let hand = Handmade::new(stack, &project)?;
    ship(&project, [spec()])?;
    let before = spec();
    // 12 of 24 rows: the exchange has published a file before its time.
    spec().rows_at_most(12).generated_at("2025-03-05T00:00:00Z").write(project.data_dir())?;
    project.uploader(&["upload"])?.expect_code(0)?;
    project.puller(&["pull"])?.expect_code(1)?;
    let letters = hand.dead_letters()?;
    assert_eq!(letters.iter().map(|letter| letter.class.as_str()).collect::<Vec<_>>(), ["shrunk"]);
    assert!(letters[0].error.contains("12 of the 24 rows"), "{}", letters[0].error);
    let truth = Truth::of_specs([&before])?;
    project.check_tables_against(&truth, 24)
}

/// A worker that has loaded the newer of two revisions takes its time to record it. Meanwhile another one loads the older:
/// its rows come too late for the first one to see, and only the second one can know that they are to go.
#[test]
fn an_older_revision_delivered_late_changes_nothing() -> Result<()> {
    let stack = Stack::shared();
    let server = loopback(stack.clickhouse.port());
    // So late that the first worker still relies on what it saw, and so late that it looks again.
    for (label, late) in [("late", Duration::from_secs(1)), ("later", Duration::from_secs(2))] {
        let mut project = Project::new(stack, label)?;
        project.set("puller.ack_wait", "30s")?;
        let hand = Handmade::new(stack, &project)?;
        let line = Proxy::start(server)?;
        let port = line.address().port().to_string();
        // Of one slot, so that the older one is another worker's.
        let environment = [("FERRY__CLICKHOUSE__PORT", port.as_str()), ("FERRY__PULLER__SLOTS", "1")];
        let mut first = project.spawn("puller", &["run"], &environment)?;
        project.wait_until("the first worker", SOON, || Ok(first.is_ready()))?;
        line.set(Fault::Slow(late));
        let newer = spec().seed(1).missing([3, 17]).generated_at("2025-03-05T00:00:00Z");
        hand.publish_generated_at(&newer, "2025-03-05T00:00:00Z")?;
        let stored = "SELECT count() FROM {db}.klines";
        project.wait_until("the newer rows", SOON, || Ok(project.query(stored)?.trim() == "22"))?;
        // The answer to the insert is under way so long; then the rows are read back at once.
        std::thread::sleep(late + Duration::from_millis(300));
        assert_eq!(project.archives_loaded()?, 0, "it is recorded already: nothing is tested");
        hand.publish_generated_at(&spec(), "2025-03-02T00:44:00Z")?;
        project.puller(&["pull"])?.expect_code(0)?;
        project.wait_until("the record", SOON, || {
            let log = "SELECT count() FROM {db}.ingest_log WHERE outcome = 'loaded'";
            Ok(project.query(log)?.trim() == "2")
        })?;
        let truth = Truth::of_specs([&newer])?;
        truth.compare_rows(project.sql(), project.database(), 22)?;
        line.set(Fault::None);
        first.drain(SOON)?;
    }
    Ok(())
}

/// Loading something twice, whole or in part, ends in the same tables.
#[test]
fn a_redelivered_marker_loads_only_missing_archives() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "again")?;
    let hand = Handmade::new(stack, &project)?;
    let specs =
        ["AAAUSDT", "BBBUSDT", "CCCUSDT"].map(|symbol| ArchiveSpec::new(Market::Spot, symbol, "1m", "2025-03-01"));
    let placed = specs.iter().map(|spec| hand.place(spec, &spec.zip())).collect::<Result<Vec<_>>>()?;
    hand.publish_marker(&specs[0].unit(), &placed)?;
    project.puller(&["pull"])?.expect_code(0)?;
    // As if a worker had died between the insert and the ledger, for one archive.
    project.query(&format!("DELETE FROM {}.archives WHERE symbol = 'BBBUSDT'", project.database()))?;
    hand.publish_marker(&specs[0].unit(), &placed)?;
    project.puller(&["pull"])?.expect_code(0)?;
    let truth = Truth::of_specs(&specs)?;
    project.check_tables_against(&truth, 4320)?;
    let log = "SELECT archives_loaded, archives_skipped FROM {db}.ingest_log ORDER BY stream_sequence FORMAT TSV";
    assert_eq!(project.query(&log.replace("{db}", project.database()))?.trim(), "3\t0\n1\t2");
    Ok(())
}

/// A unit larger than puller.memory is loaded in parts.
#[test]
fn a_unit_larger_than_the_memory_is_loaded_in_parts() -> Result<()> {
    let mut project = Project::new(Stack::shared(), "parts")?;
    project.set("puller.memory", "16MiB")?;
    for number in 0..120 {
        ArchiveSpec::new(Market::Spot, &format!("S{number:03}USDT"), "1m", "2025-03-01").write(project.data_dir())?;
    }
    mark_all(project.data_dir())?;
    project.uploader(&["upload"])?.expect_code(0)?;
    let mut worker = project.spawn_puller(&["run"])?;
    project.wait_for_archives(120, Duration::from_secs(60))?;
    worker.drain(Duration::from_secs(30))?;
    project.check_tables(172_800)?;
    let parts = format!("SELECT uniq(loaded_at) > 1 FROM {}.archives FINAL", project.database());
    assert_eq!(project.query(&parts)?.trim().parse::<u8>().context("a flag")?, 1);
    Ok(())
}
