//! `klines_latest` shows the rows of the current archives, whatever was loaded before: overlapping days and months,
//! corrections that lack rows, and rows that only a former revision had.

use std::time::Duration;

use tests::data::{ArchiveSpec, Market};
use tests::project::Project;
use tests::proxy::{Fault, Proxy};
use tests::servers::Stack;
use tests::truth::Truth;
use tests::{Context, Result};

use crate::handmade::Handmade;
use crate::scenario::{SOON, btc, loopback, ship, upload, weeks, write_with_week_before};

/// Rows of 10 March in the month of March, counted from 0.
const TENTH: std::ops::Range<usize> = 9 * 24..10 * 24;

fn day() -> ArchiveSpec {
    btc("2025-03-10").generated_at("2025-03-11T00:44:00Z")
}

fn month() -> ArchiveSpec {
    ArchiveSpec::new(Market::Spot, "BTCUSDT", "1h", "2025-03").generated_at("2025-04-07T00:00:00Z")
}

/// The tables are right, all commands say so, and saying so changes nothing.
fn check(project: &Project) -> Result<()> {
    project.check_tables(8)?;
    project.puller(&["verify"])?.expect_code(0)?;
    project.check_tables(8)
}

#[test]
fn a_month_corrected_without_a_day_shows_the_days_own_archive() -> Result<()> {
    let project = Project::new(Stack::shared(), "forgotten-day")?;
    for archive in [day(), month(), month().missing(TENTH).generated_at("2025-04-20T00:00:00Z")] {
        ship(&project, [archive])?;
        check(&project)?;
    }
    // The month remembers; forgets once more; and the day itself loses an hour that no month has then.
    ship(&project, [month().seed(3).generated_at("2025-04-21T00:00:00Z")])?;
    check(&project)?;
    ship(&project, [month().seed(4).missing(TENTH).generated_at("2025-04-22T00:00:00Z")])?;
    check(&project)?;
    ship(&project, [day().seed(5).missing([7]).generated_at("2025-04-23T00:00:00Z")])?;
    check(&project)
}

#[test]
fn a_day_corrected_with_fewer_rows_shows_the_months_rows() -> Result<()> {
    let project = Project::new(Stack::shared(), "forgotten-hours")?;
    for archive in [
        month(),
        day().seed(1).generated_at("2025-04-10T00:00:00Z"),
        day().seed(2).missing([3, 17]).generated_at("2025-04-20T00:00:00Z"),
    ] {
        ship(&project, [archive])?;
        check(&project)?;
    }
    Ok(())
}

#[test]
fn a_day_generated_before_a_tombstone_and_loaded_after_it_is_shown() -> Result<()> {
    let project = Project::new(Stack::shared(), "late-day")?;
    for archive in [month(), month().missing(TENTH).generated_at("2025-04-20T00:00:00Z"), day()] {
        ship(&project, [archive])?;
        check(&project)?;
    }
    project.query("OPTIMIZE TABLE {db}.klines FINAL")?;
    check(&project)?;
    // What is loaded once more by force changes nothing either.
    project.puller(&["replay", "--unit", &day().unit(), "--force"])?.expect_code(0)?;
    project.puller(&["pull"])?.expect_code(0)?;
    check(&project)
}

/// A day is loaded slowly: its rows are there, and not recorded yet when a correction of the month writes tombstones.
#[test]
fn a_day_recorded_while_a_correction_writes_its_tombstones_is_shown() -> Result<()> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, "day-recorded-late")?;
    project.set("puller.ack_wait", "30s")?;
    let server = loopback(stack.clickhouse.port());
    let line = Proxy::start(server)?;
    ship(&project, [month()])?;
    let port = line.address().port().to_string();
    let environment = [("FERRY__CLICKHOUSE__PORT", port.as_str()), ("FERRY__PULLER__SLOTS", "1")];
    let mut slow = project.spawn("puller", &["run"], &environment)?;
    project.wait_until("the slow worker", SOON, || Ok(slow.is_ready()))?;
    line.set(Fault::Slow(Duration::from_millis(1_200)));
    upload(&project, [day()])?;
    // The day is in flight in its only slot.
    upload(&project, [month().missing(TENTH).generated_at("2025-04-20T00:00:00Z")])?;
    let days_rows = "SELECT count() FROM {db}.klines WHERE version % 2 = 0 AND is_deleted = 0";
    project.wait_until("the day's rows", SOON, || Ok(project.query(days_rows)?.trim() == "24"))?;
    assert_eq!(project.archives_loaded()?, 1, "the day is recorded already: nothing is tested");
    project.puller(&["pull"])?.expect_code(0)?;
    check(&project)?;
    line.set(Fault::None);
    slow.drain(SOON).map(drop)
}

/// The worker died after it had inserted the first revision; the second one has half of its rows.
#[test]
fn a_correction_of_what_was_inserted_and_not_recorded_is_held_when_it_shrinks() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "correction-of-unrecorded")?;
    let hand = Handmade::new(stack, &project)?;
    upload(&project, [day()])?;
    let mut dies = project.start("puller", &["pull"], &[("FERRY_FAILPOINT", "puller.inserted")])?;
    assert_eq!(dies.wait(SOON)?.code, None, "killed");
    upload(&project, [day().rows_at_most(12).generated_at("2025-03-12T00:00:00Z")])?;
    project.puller(&["pull"])?.expect_code(1)?;
    let letters = hand.dead_letters()?;
    let classes: Vec<&str> = letters.iter().map(|letter| letter.class.as_str()).collect();
    assert_eq!(classes, ["shrunk"], "{letters:?}");
    assert!(letters[0].error.contains("12 of the 24 rows"), "{}", letters[0].error);
    assert_eq!(project.query("SELECT count() FROM {db}.klines_latest")?.trim(), "24");
    project.puller(&["dead", "retry", "--all", "--accept-shrink", "--reason", "a test"])?.expect_code(0)?;
    project.puller(&["pull"])?.expect_code(0)?;
    check(&project)
}

/// The server finishes an INSERT of a worker that is gone, after all other inserts.
#[test]
fn late_rows_of_a_former_revision_are_found_and_removed() -> Result<()> {
    let project = Project::new(Stack::shared(), "landed-late")?;
    ship(&project, [day()])?;
    project.query("CREATE TABLE {db}.late ENGINE = Memory AS SELECT * FROM {db}.klines")?;
    project.query("TRUNCATE TABLE {db}.klines")?;
    project.query("TRUNCATE TABLE {db}.archives")?;
    ship(&project, [day().seed(1).missing([3, 17]).generated_at("2025-03-12T00:00:00Z")])?;
    check(&project)?;
    project.query("INSERT INTO {db}.klines SELECT * FROM {db}.late")?;
    let found = project.puller(&["verify"])?.expect_code(4)?;
    assert!(found.stdout.contains("2 rows of a former revision"), "{}", found.stdout);
    project.puller(&["verify", "--fix"])?.expect_code(0)?;
    project.puller(&["pull"])?.expect_code(0)?;
    check(&project)
}

/// A former version of this program wrote a month's tombstones above the rows of a day, with the month's own version.
#[test]
fn tombstones_of_a_former_version_that_hide_a_day_are_found_and_outranked() -> Result<()> {
    let project = Project::new(Stack::shared(), "old-tombstones")?;
    ship(&project, [day()])?;
    ship(&project, [month().missing(TENTH)])?;
    project.query(
        "INSERT INTO {db}.klines SELECT * REPLACE (1 AS is_deleted, \
         (SELECT max(version) FROM {db}.klines WHERE version % 2 = 1) AS version) \
         FROM (SELECT * FROM {db}.klines WHERE version % 2 = 0)",
    )?;
    assert_eq!(project.query("SELECT count() FROM {db}.klines_latest")?.trim(), "720");
    let found = project.puller(&["verify"])?.expect_code(4)?;
    assert!(found.stdout.contains("24 rows hidden"), "{}", found.stdout);
    project.puller(&["verify", "--fix"])?.expect_code(0)?;
    project.puller(&["pull"])?.expect_code(0)?;
    check(&project)
}

/// The worker dies after it has written tombstones that are wrong by now; who comes after it sees that.
#[test]
fn a_worker_that_dies_after_writing_tombstones_is_followed_by_one_that_derives_again() -> Result<()> {
    let project = Project::new(Stack::shared(), "dies-deriving")?;
    ship(&project, [month()])?;
    upload(&project, [month().missing(TENTH).generated_at("2025-04-20T00:00:00Z")])?;
    let mut dies = project.start("puller", &["pull"], &[("FERRY_FAILPOINT", "puller.rows_outranked")])?;
    assert_eq!(dies.wait(SOON)?.code, None, "killed");
    upload(&project, [day()])?;
    project.puller(&["pull"])?.expect_code(0)?;
    check(&project)
}

#[test]
fn rows_of_a_deleted_object_are_copied_from_the_table_or_waited_for() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "left-the-bucket")?;
    let hand = Handmade::new(stack, &project)?;
    project.query("SYSTEM STOP MERGES {db}.klines")?;
    ship(&project, [day()])?;
    ship(&project, [month()])?;
    let key = format!("{}/{}", project.prefix(), day().path());
    hand.delete(&key)?;
    // All rows of the day are still stored.
    ship(&project, [month().missing(TENTH.skip(12)).generated_at("2025-04-20T00:00:00Z")])?;
    project.check_tables(744)?;

    project.query("SYSTEM START MERGES {db}.klines")?;
    project.query("OPTIMIZE TABLE {db}.klines FINAL")?;
    upload(&project, [month().seed(2).missing(TENTH).generated_at("2025-04-21T00:00:00Z")])?;
    project.puller(&["pull"])?.expect_code(1)?;
    let letters = hand.dead_letters()?;
    let classes: Vec<&str> = letters.iter().map(|letter| letter.class.as_str()).collect();
    assert_eq!(classes, ["missing"], "{letters:?}");
    assert!(letters[0].error.contains(&key), "{}", letters[0].error);
    hand.place(&day(), &day().zip())?;
    project.puller(&["dead", "retry", "--all", "--reason", "a test"])?.expect_code(0)?;
    project.puller(&["pull"])?.expect_code(0)?;
    check(&project)
}

/// The exchange goes back to former bytes with their former stamp: the archive generated last keeps winning, and every
/// command calls that right.
#[test]
fn a_rollback_by_the_exchange_changes_nothing_and_verifies() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "rolled-back")?;
    let hand = Handmade::new(stack, &project)?;
    let (first, second) = (day(), day().seed(1).missing([3, 17]).generated_at("2025-03-12T00:00:00Z"));
    let publish = |spec: &ArchiveSpec, generated_at: &str| -> Result<()> {
        hand.publish_generated_at(spec, generated_at)?;
        project.puller(&["pull"])?.expect_code(0).map(drop)
    };
    publish(&first, "2025-03-11T00:44:00Z")?;
    publish(&second, "2025-03-12T00:00:00Z")?;
    publish(&first, "2025-03-11T00:44:00Z")?;
    let truth = Truth::of_specs([&second])?;
    let right = || -> Result<()> {
        truth.compare_rows(project.sql(), project.database(), 22)?;
        let verified = project.puller(&["verify"])?.expect_code(0)?;
        assert!(verified.stdout.contains("generated later than what is announced"), "{}", verified.stdout);
        let explained = project.puller(&["explain", &first.unit()])?.expect_code(0)?;
        let named = "BTCUSDT  what is loaded, of 2025-03-12T00:00:00Z, was generated later than what is announced";
        assert!(explained.stdout.contains(named), "{}", explained.stdout);
        Ok(())
    };
    right()?;
    project.puller(&["verify", "--fix"])?.expect_code(0)?;
    project.puller(&["replay", "--unit", &first.unit(), "--force"])?.expect_code(0)?;
    project.puller(&["pull"])?.expect_code(0)?;
    right()
}

/// A week of the next month's archive must not make each attempt at this month's wait for a record that is there.
#[test]
fn a_week_of_the_next_archive_delays_no_attempt() -> Result<()> {
    let mut project = Project::new(Stack::shared(), "week-held-up")?;
    project.set("corrections.shrink_limit", 1.0)?;
    let february = weeks("2025-02").generated_at("2025-10-20T00:00:00Z");
    write_with_week_before(&project, &february)?;
    ship(&project, [weeks("2025-01").missing([3]).generated_at("2025-10-15T00:00:00Z")])?;
    project.puller(&["replay", "--unit", &weeks("2025-01").unit(), "--force"])?.expect_code(0)?;
    project.puller(&["pull"])?.expect_code(0)?;
    let duration = project.query("SELECT max(dateDiff('ms', started_at, finished_at)) FROM {db}.ingest_log")?;
    assert!(duration.trim().parse::<u64>().context(duration.clone())? < 5_500, "an attempt took {duration} ms");
    check(&project)
}
