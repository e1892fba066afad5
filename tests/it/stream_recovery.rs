//! A lost stream of markers is named by every command, and filled again from the bucket; nothing is loaded twice.

use std::fs;
use std::time::Duration;

use serde_json::Value;
use tests::project::Project;
use tests::servers::{RunDir, Stack};
use tests::{Context, Result};

use crate::handmade::Handmade;
use crate::scenario::{
    DAYS, SOON, assert_nothing_pulled, assert_nothing_uploaded, is_checked, march, ship, three_units, unit_of,
    units_found, upload,
};

/// Rows as they were inserted, before ClickHouse merges any.
fn rows_inserted(project: &Project) -> Result<String> {
    project.query("SELECT sum(rows), countIf(outcome = 'skipped') FROM {db}.ingest_log FORMAT TSV")
}

#[test]
fn a_deleted_stream_is_filled_from_the_bucket() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "stream-deleted")?;
    let hand = Handmade::new(stack, &project)?;
    ship(&project, three_units())?;
    let same = project.uploader(&["reconcile", "--verbose", "--json"])?.expect_code(0)?.json()?;
    assert_eq!(units_found(&same, "same").len(), 3, "{same:#}");
    let before = hand.markers()?;

    hand.delete_stream("MARKERS")?;
    // The first one did not make it.
    for _ in 0..2 {
        let found = project.uploader(&["reconcile", "--json"])?.expect_code(4)?.json()?;
        assert_eq!(units_found(&found, "bucket_only"), DAYS.map(unit_of), "{found:#}");
        assert_eq!((&found["stream_was_missing"], &found["units"]["bucket_only"]), (&Value::Bool(true), &3.into()));
    }

    project.uploader(&["reconcile", "--fix"])?.expect_code(0)?;
    let mut after = hand.markers()?;
    after.sort_by(|a, b| a.0.cmp(&b.0));
    let mut expected = before;
    expected.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(after, expected, "the same ids and times");
    project.uploader(&["reconcile"])?.expect_code(0)?;

    // The worker gets all of it again, and finds it done.
    project.puller(&["pull"])?.expect_code(0)?;
    assert_eq!(rows_inserted(&project)?.trim(), "144\t3");
    project.check_tables(144)?;
    // And the uploader has nothing to add.
    assert_nothing_uploaded(&project.uploader(&["upload", "--json"])?.expect_code(0)?.json()?);
    Ok(())
}

/// A worker that runs makes its consumers again and goes through everything, skipping what is loaded.
#[test]
fn a_running_worker_goes_on_after_the_loss_of_the_stream() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "stream-under-worker")?;
    let hand = Handmade::new(stack, &project)?;
    upload(&project, three_units())?;
    let mut worker = project.spawn_puller(&["run"])?;
    project.wait_for_archives(6, Duration::from_secs(30))?;
    hand.delete_stream("MARKERS")?;
    project.uploader(&["reconcile", "--fix"])?.expect_code(0)?;
    project.wait_until("three skipped units", Duration::from_secs(60), || {
        Ok(rows_inserted(&project)?.trim() == "144\t3")
    })?;
    worker.drain(Duration::from_secs(30))?;
    project.puller(&["verify"])?.expect_code(0)?;
    project.check_tables(144)
}

/// Markers that were purged are remembered by their ids for two days; they come back all the same.
#[test]
fn a_purged_stream_is_filled_from_the_bucket() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "stream-purged")?;
    let hand = Handmade::new(stack, &project)?;
    ship(&project, three_units())?;
    for _ in 0..2 {
        hand.purge_stream("MARKERS")?;
        project.uploader(&["reconcile"])?.expect_code(4)?;
        project.uploader(&["reconcile", "--fix"])?.expect_code(0)?;
        assert_eq!(hand.markers()?.len(), 3);
    }
    project.puller(&["pull"])?.expect_code(0)?;
    project.check_tables(144)
}

/// NATS starts with an empty disk: streams, consumers and positions are gone.
#[test]
fn a_wiped_nats_is_filled_from_the_bucket() -> Result<()> {
    let dir = RunDir::new("wiped")?;
    let mut stack = Stack::start(dir.path())?;
    let project = Project::new(&stack, "nats-wiped")?;
    ship(&project, three_units())?;
    stack.nats.stop()?;
    fs::remove_dir_all(dir.path().join("nats/store")).context("wiping NATS")?;
    stack.nats.restart()?;
    // Meanwhile somebody deleted rows too.
    project.query("DELETE FROM {db}.klines WHERE symbol = 'ETHUSDT' AND toDate(open_time) = '2025-03-02'")?;

    let found = project.uploader(&["reconcile", "--json"])?.expect_code(4)?.json()?;
    assert_eq!(units_found(&found, "bucket_only").len(), 3, "{found:#}");
    project.uploader(&["reconcile", "--fix"])?.expect_code(0)?;
    project.puller(&["verify", "--fix"])?.expect_code(0)?;
    project.puller(&["pull"])?.expect_code(0)?;
    project.puller(&["verify"])?.expect_code(0)?;
    project.check_tables(144)?;
    // One archive of 24 rows was loaded besides the six of before.
    assert_eq!(rows_inserted(&project)?.split('\t').next(), Some("168"));
    Ok(())
}

#[test]
fn a_lost_stream_is_named_by_every_command() -> Result<()> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, "lost-stream")?;
    let hand = Handmade::new(stack, &project)?;
    upload(&project, (1..=3).map(march))?;
    project.puller(&["pull"])?.expect_code(0)?;
    hand.delete_stream("MARKERS")?;
    project.set("nats.manage", false)?;
    let unit = march(1).unit();
    for args in [&["status"][..], &["explain", &unit], &["verify"], &["pull"], &["replay"], &["doctor"]] {
        let ended = project.puller(args)?.expect_code(4)?;
        let said = format!("{}{}", ended.stdout, ended.stderr);
        assert!(said.contains("MARKERS") && said.contains("puller migrate"), "{args:?}: {said}");
    }
    project.uploader(&["reconcile"])?.expect_code(4)?;

    // Made again by whoever comes first, it is empty: nothing pending is not all there is to say.
    project.set("nats.manage", true)?;
    let dry_run = |said: &str| -> Result<()> {
        let ended = project.puller(&["pull", "--dry-run", "--json"])?.expect_code(4)?.json()?;
        let destination = &ended["destinations"][0];
        assert_eq!((&destination["lost"], &destination["lost_in_bucket"]), (&3.into(), &true.into()), "{ended}");
        let error = ended["error"]["text"].as_str().unwrap_or_default();
        assert!(error.starts_with(&format!("the stream MARKERS {said}: primary has loaded 3 units")), "{ended}");
        Ok(())
    };
    dry_run("was lost")?;
    let pull = project.puller(&["pull"])?.expect_code(4)?;
    assert!(!pull.stdout.contains("nothing to do"), "{}", pull.stdout);
    for text in [&pull.stdout, &pull.stderr] {
        assert!(text.contains("uploader reconcile --fix"), "{text}");
    }
    dry_run("was lost and made anew")?;
    let doctor = project.puller(&["doctor", "--json"])?.expect_code(4)?.json()?;
    assert!(is_checked(&doctor, "was lost and made anew"), "{doctor:#}");
    for args in [&["status"][..], &["verify"], &["verify", "--fix"], &["replay"], &["replay", "--dry-run"]] {
        let ended = project.puller(args)?.expect_code(4)?;
        let said = format!("{}{}", ended.stdout, ended.stderr);
        assert!(said.contains("was lost and made anew"), "{args:?}: {said}");
    }
    let mut worker = project.spawn_puller(&["run"])?;
    worker.wait_for_line("was lost and made anew", SOON)?;
    worker.drain(SOON)?;

    project.uploader(&["reconcile", "--fix"])?.expect_code(0)?;
    project.puller(&["pull", "--dry-run"])?.expect_code(0)?;
    project.puller(&["pull"])?.expect_code(0)?;
    for command in ["doctor", "status"] {
        project.puller(&[command])?.expect_code(0)?;
    }
    assert_nothing_pulled(&project.puller(&["pull", "--json"])?.expect_code(0)?.json()?);

    // A worker that runs meanwhile makes the stream itself: then nobody else would find it missing.
    let mut worker = project.spawn_puller(&["run"])?;
    let lost = "marketferry_puller_lost_units{destination=\"primary\"}";
    worker.wait_for_metric(lost, SOON, |lost| lost == 0.0)?;
    Handmade::new(stack, &project)?.delete_stream("MARKERS")?;
    worker.wait_for_line("was lost and made anew", SOON)?;
    worker.wait_for_metric(lost, SOON, |lost| lost == 3.0)?;
    worker.drain(SOON)?;
    project.uploader(&["reconcile", "--fix"])?.expect_code(0)?;
    project.check_tables(72)?;
    project.check_tables(72)?;

    // What the bucket does not have either cannot be announced again: it is told, and fails nothing.
    let markers = stack.s3.bucket_dir().join(project.prefix()).join("_markers");
    fs::remove_dir_all(markers).context("manifests")?;
    Handmade::new(stack, &project)?.delete_stream("MARKERS")?;
    for args in [&["pull", "--json"][..], &["pull", "--dry-run", "--json"]] {
        let report = project.puller(args)?.expect_code(0)?.json()?;
        let destination = &report["destinations"][0];
        assert_eq!((&destination["lost"], &destination["lost_in_bucket"]), (&3.into(), &false.into()), "{report:#}");
    }
    for command in ["doctor", "status"] {
        let ended = project.puller(&[command])?.expect_code(0)?;
        assert!(ended.stdout.contains("nor is any of them in the bucket"), "{command}: {}", ended.stdout);
    }
    Ok(())
}
