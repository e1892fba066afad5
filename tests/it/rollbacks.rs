//! An older publication that comes back is named, and published only when an operator accepts it.

use std::time::Duration;

use serde_json::Value;
use tests::Result;
use tests::data::ArchiveSpec;
use tests::project::Project;
use tests::servers::Stack;

use crate::handmade::Handmade;
use crate::scenario::{SOON, assert_units, btc, ship, upload};

fn first() -> ArchiveSpec {
    btc("2025-03-01").generated_at("2025-03-02T00:00:00Z")
}

/// Two hours fewer, generated later.
fn second() -> ArchiveSpec {
    first().missing([3, 4]).generated_at("2025-03-05T00:00:00Z")
}

fn rows(project: &Project) -> Result<String> {
    Ok(project.query("SELECT count() FROM {db}.klines_latest")?.trim().to_owned())
}

/// The exchange publishes an archive, a correction of it, and then the former bytes again.
fn rolled_back(project: &Project) -> Result<()> {
    for spec in [first(), second(), first()] {
        ship(project, [spec])?;
    }
    Ok(())
}

#[test]
fn an_older_publication_is_held_until_it_is_accepted() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "rollback")?;
    let hand = Handmade::new(stack, &project)?;
    rolled_back(&project)?;
    let unit = first().unit();
    let key = format!("{}/{}", project.prefix(), first().path());
    assert_eq!((hand.markers()?.len(), rows(&project)?.as_str()), (2, "22"));
    assert_eq!(hand.get(&key)?, second().zip(), "the announced object is in the bucket");

    // Each run names it, whether anything was cached or not.
    for _ in 0..2 {
        let upload = project.uploader(&["upload", "--json"])?.expect_code(0)?;
        assert!(upload.stderr.contains(&format!("--accept-rollback {unit}")), "{}", upload.stderr);
        let older = &upload.json()?["older"];
        assert_eq!((&older[0]["unit"], &older[0]["archives"][0]["symbol"]), (&unit.as_str().into(), &"BTCUSDT".into()));
    }
    let text = project.uploader(&["upload"])?.expect_code(0)?;
    assert!(text.stdout.contains("before the announced archive of 2025-03-05T00:00:00Z"), "{}", text.stdout);
    let reconcile = project.uploader(&["reconcile"])?.expect_code(0)?;
    assert!(reconcile.stdout.contains(&format!("--accept-rollback {unit}")), "{}", reconcile.stdout);
    let named = format!("{unit}: BTCUSDT in data_dir was generated at 2025-03-02T00:00:00Z");
    let doctor = project.uploader(&["doctor", "--json"])?.expect_code(0)?.json()?;
    let findings = |doctor: &Value| -> Vec<Value> {
        let checks = doctor["checks"].as_array().into_iter().flatten();
        let older = checks.filter(|check| check["name"] == "older publications" && check["warning"] == true);
        older.map(|check| check["found"].clone()).collect()
    };
    let found = findings(&doctor);
    assert!(found.len() == 1 && found[0].as_str().is_some_and(|text| text.contains(&named)), "{doctor:#}");
    // The announced archive stays, whichever command runs.
    project.puller(&["verify"])?.expect_code(0)?;
    project.puller(&["explain", &unit])?.expect_code(0)?;
    project.puller(&["replay", "--unit", &unit, "--force"])?.expect_code(0)?;
    project.puller(&["pull"])?.expect_code(0)?;
    project.puller(&["doctor"])?.expect_code(0)?;
    assert_eq!(rows(&project)?, "22");
    // Nothing goes from the disk that the bucket does not have.
    let cleanup = project.uploader(&["upload", "--cleanup"])?.expect_code(0)?;
    assert!(project.data_dir().join(first().path()).exists(), "{}", cleanup.stdout);

    project.uploader(&["upload", "--accept-rollback", &unit])?.expect_code(0)?;
    project.puller(&["pull"])?.expect_code(0)?;
    assert_eq!((rows(&project)?.as_str(), hand.get(&key)?), ("24", first().zip()));
    project.check_tables(24)?;
    let after = project.uploader(&["upload", "--json"])?.expect_code(0)?.json()?;
    assert_eq!((&after["units"]["unchanged"], after["older"].as_array().map(Vec::len)), (&1.into(), Some(0)));
    let reconcile = project.uploader(&["reconcile"])?.expect_code(0)?;
    assert!(!reconcile.stdout.contains("--accept-rollback"), "{}", reconcile.stdout);
    assert_eq!(findings(&project.uploader(&["doctor", "--json"])?.expect_code(0)?.json()?), [] as [Value; 0]);

    // Units of which nothing is at hand are named, all of them; and filters are not ignored.
    let absent = ["binance/spot/klines/1h/2025-03-08", "binance/spot/klines/1h/2025-03-09"];
    for command in ["upload", "adopt"] {
        let accept = [command, "--accept-rollback", absent[0], "--accept-rollback", absent[1]];
        let refused = project.uploader(&accept)?.expect_code(4)?;
        assert!(absent.iter().all(|unit| refused.stderr.contains(unit)), "{}", refused.stderr);
        let refused = project.uploader(&[command, "--accept-rollback", "binance/usd/klines/1h/2025-03-09"])?;
        assert!(refused.expect_code(2)?.stderr.contains("did you mean"));
    }
    project.uploader(&["upload", "--accept-rollback", &unit, "--market", "um"])?.expect_code(2)?;
    Ok(())
}

#[test]
fn the_service_names_an_older_publication_once() -> Result<()> {
    let mut project = Project::new(Stack::shared(), "rollback-watch")?;
    project.set("watch.rescan", "300ms")?;
    project.set("watch.min_age", "100ms")?;
    rolled_back(&project)?;
    let mut watch = project.spawn_uploader(&["watch"])?;
    watch.wait_for_line("--accept-rollback", SOON)?;
    // Some more passes.
    std::thread::sleep(Duration::from_secs(2));
    watch.sigterm()?;
    let ended = watch.wait(SOON)?.expect_code(0)?;
    assert_eq!(ended.stderr.matches("--accept-rollback").count(), 1, "{}", ended.stderr);
    Ok(())
}

/// Another program puts the older publication over the announced one.
#[test]
fn an_older_object_in_the_bucket_is_not_adopted_unasked() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "rollback-adopt")?;
    let hand = Handmade::new(stack, &project)?;
    for spec in [first(), second()] {
        upload(&project, [spec])?;
    }
    hand.put(&format!("{}/{}", project.prefix(), first().path()), &first().zip())?;
    let adopted = project.uploader(&["adopt"])?.expect_code(1)?;
    assert!(adopted.stderr.contains("before the announced archive"), "{}", adopted.stderr);
    assert_eq!(hand.markers()?.len(), 2);
    project.uploader(&["adopt", "--accept-rollback", &first().unit()])?.expect_code(0)?;
    assert_eq!(hand.markers()?.len(), 3);
    Ok(())
}

const AWAY: [(&str, &str); 2] = [("FERRY__NATS__URL", "nats://127.0.0.1:9"), ("FERRY__PUBLISH__TIMEOUT", "1s")];

/// The bucket has the older archive by then, so whoever fetches what is announced finds other bytes.
#[test]
fn an_accepted_rollback_is_announced_by_the_next_run() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "rollback-away")?;
    let hand = Handmade::new(stack, &project)?;
    rolled_back(&project)?;
    let args = ["upload", "--accept-rollback", &first().unit()];
    project.start("uploader", &args, &AWAY)?.wait(SOON)?.expect_code(3)?;
    assert_eq!(hand.get(&format!("{}/{}", project.prefix(), first().path()))?, first().zip());
    let upload = project.uploader(&["upload", "--json"])?.expect_code(0)?;
    assert_units(&upload.json()?, &[("published", 1)]);
    project.puller(&["pull"])?.expect_code(0)?;
    assert_eq!(rows(&project)?, "24");
    project.uploader(&["reconcile", "--content"])?.expect_code(0)?;
    project.check_tables(24)
}

#[test]
fn an_interrupted_rollback_is_held_until_it_is_accepted_again() -> Result<()> {
    let project = Project::new(Stack::shared(), "rollback-killed")?;
    rolled_back(&project)?;
    let args = ["upload", "--accept-rollback", &first().unit()];
    project.start("uploader", &args, &[("FERRY_FAILPOINT", "uploader.object_put")])?.wait(SOON)?;
    for _ in 0..2 {
        let held_back = project.uploader(&["upload"])?.expect_code(1)?;
        assert!(held_back.stderr.contains("a roll-back was cut short"), "{}", held_back.stderr);
    }
    project.uploader(&args)?.expect_code(0)?;
    project.puller(&["pull"])?.expect_code(0)?;
    assert_eq!(rows(&project)?, "24");
    project.check_tables(24)
}

/// What `adopt` has stored without the queue it announces by its next run, though it finds all as it is named.
#[test]
fn a_unit_adopted_without_the_queue_is_announced_by_the_next_run() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "adopt-away")?;
    let hand = Handmade::new(stack, &project)?;
    upload(&project, [first()])?;
    hand.put(&format!("{}/{}", project.prefix(), first().path()), &second().zip())?;
    project.start("uploader", &["adopt"], &AWAY)?.wait(SOON)?.expect_code(3)?;
    assert_eq!(hand.markers()?.len(), 1);
    project.uploader(&["adopt"])?.expect_code(0)?;
    assert_eq!(hand.markers()?.len(), 2);
    project.uploader(&["reconcile"])?.expect_code(0).map(drop)
}
