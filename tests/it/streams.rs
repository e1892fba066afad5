//! Streams have limits; a full, changed or overlapping stream is named with the remedy.

use std::ops::RangeInclusive;
use std::time::Duration;

use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType};
use serde_json::{Value, json};
use tests::data::{ArchiveSpec, Market, mark_all};
use tests::project::Project;
use tests::servers::{Nats, RunDir, Stack};
use tests::{Context, Result};

use crate::durables::{durable, remake_consumer};
use crate::handmade::Handmade;
use crate::scenario::{SOON, btc, is_checked, listed_letters, march, upload, write};

/// `uploader upload` of days that fails with `code`; what it says on stderr.
fn refused_upload(project: &Project, days: RangeInclusive<u32>, code: i32) -> Result<String> {
    write(project, days.map(march))?;
    Ok(project.uploader(&["upload"])?.expect_code(code)?.stderr)
}

#[test]
fn waiting_replays_leave_the_stream_of_markers_its_space() -> Result<()> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, "replays-apart")?;
    project.set("nats.limits.replays", "6KiB")?;
    let hand = Handmade::new(stack, &project)?;
    upload(&project, [march(1)])?;
    let one = ["replay", "--force", "--unit", "binance/spot/klines/1h/2025-03-01"];
    for _ in 0..12 {
        project.puller(&one)?.expect_code(0)?;
    }
    assert_eq!((hand.count("MARKERS")?, hand.count("REPLAYS")?), (1, 5));

    upload(&project, (2..=12).map(march))?;
    let full = project.puller(&["replay", "--force"])?.expect_code(1)?;
    assert!(full.stderr.contains("stream REPLAYS takes no more"), "{}", full.stderr);
    assert!(full.stderr.contains("nats.limits.replays"), "{}", full.stderr);
    // The next day is announced all the same.
    upload(&project, [march(13)])?;
    assert_eq!(hand.count("MARKERS")?, 13);

    // What was sent is loaded, and leaves; what was not is said.
    project.puller(&["pull"])?.expect_code(0)?;
    assert_eq!(hand.count("REPLAYS")?, 0);
    let tasks = project.puller(&["tasks", "ls", "--json"])?.expect_code(0)?.json()?;
    let tasks = tasks["tasks"].as_array().cloned().unwrap_or_default();
    let states: Vec<&str> = tasks.iter().filter_map(|task| task["state"].as_str()).collect();
    // Seven of the same unit gave way to newer ones.
    assert_eq!(states.iter().filter(|state| **state == "SUCCESS").count(), 4, "{states:?}");
    assert_eq!(states.iter().filter(|state| **state == "FAILED").count(), 9, "{states:?}");

    project.set("nats.limits.replays", "1MiB")?;
    let hand = Handmade::new(stack, &project)?;
    project.puller(&["replay", "--force"])?.expect_code(0)?;
    assert_eq!(hand.count("REPLAYS")?, 13);
    project.puller(&["pull"])?.expect_code(0)?;
    project.check_tables(312)
}

/// A worker makes room, and the command goes on.
#[test]
fn a_replay_larger_than_its_stream_waits_for_workers() -> Result<()> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, "replay-waits")?;
    project.set("nats.limits.replays", "4KiB")?;
    upload(&project, (1..=20).map(march))?;
    let _worker = project.spawn_puller(&["run"])?;
    project.wait_for_archives(20, SOON)?;
    project.puller(&["replay", "--force", "--wait"])?.expect_code(0)?;
    project.check_tables(480)
}

/// What was found is told also where not all of it can be sent, or nobody is there to load it.
#[test]
fn a_verify_that_cannot_send_all_reports_every_finding() -> Result<()> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, "verify-full")?;
    project.set("nats.limits.replays", "4KiB")?;
    project.puller(&["migrate"])?.expect_code(0)?;
    upload(&project, (1..=20).map(march))?;
    let one =
        ["verify", "--unit", "binance/spot/klines/1h/2025-03-01", "--fix", "--wait", "--max-wait", "2s", "--json"];
    let alone = project.puller(&one)?.expect_code(3)?.json()?;
    assert!(
        alone["error"]["text"].as_str().unwrap_or_default().contains("no worker of primary has answered"),
        "{alone}"
    );
    assert_eq!(alone["destinations"][0]["archives"]["not_loaded"], 1, "{alone}");
    let full = project.puller(&["verify", "--fix", "--json"])?.expect_code(1)?.json()?;
    assert!(full["error"]["text"].as_str().unwrap_or_default().contains("stream REPLAYS takes no more"), "{full}");
    let sent = full["destinations"][0]["replays_sent"].as_u64().unwrap_or_default();
    assert_eq!(full["findings"].as_array().map(|found| found.len() as u64), Some(sent + 1), "{full}");

    // With a worker there is room.
    let _worker = project.spawn_puller(&["run"])?;
    project.puller(&["verify", "--fix", "--wait"])?.expect_code(0)?;
    project.check_tables(480)
}

/// The command that sends a replay does not take the cancellation back, nor does one that waits for it count it as done.
#[test]
fn a_replay_cancelled_while_it_is_sent_stays_cancelled() -> Result<()> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, "cancel-sending")?;
    project.set("nats.limits.replays", "4KiB")?;
    upload(&project, (1..=20).map(march))?;
    project.puller(&["pull"])?.expect_code(0)?;
    let tasks = || -> Result<Vec<Value>> {
        let tasks = project.puller(&["tasks", "ls", "--json"])?.expect_code(0)?.json()?;
        Ok(tasks["tasks"].as_array().cloned().unwrap_or_default())
    };
    let replay = |number: usize, args: &[&str], sent: bool| -> Result<Value> {
        let mut replay = project.start("puller", &[&["replay", "--wait", "--json"], args].concat(), &[])?;
        project
            .wait_until("the task", SOON, || Ok(tasks()?.get(number).is_some_and(|task| task["published"] == sent)))?;
        let task = tasks()?[number].clone();
        project.puller(&["tasks", "cancel", task["task"].as_str().unwrap_or_default()])?.expect_code(0)?;
        // Workers pass over what was sent.
        let mut worker = sent.then(|| project.spawn_puller(&["run"])).transpose()?;
        let ended = replay.wait(SOON)?.expect_code(1)?.json()?;
        if let Some(worker) = &mut worker {
            worker.sigterm()?;
            worker.wait(SOON)?;
        }
        Ok(ended)
    };
    let error = |ended: &Value| ended["error"]["text"].as_str().unwrap_or_default().to_owned();
    // Not all has room, and nobody makes any.
    let cut = replay(0, &["--force"], false)?;
    assert!(error(&cut).contains("was cancelled while it was sent"), "{cut}");
    assert_eq!(tasks()?[0]["state"], "CANCELLED");
    project.puller(&["pull"])?.expect_code(0)?;
    let sent = replay(1, &["--force", "--unit", "binance/spot/klines/1h/2025-03-01"], true)?;
    assert!(error(&sent).contains("1 unit cancelled"), "{sent}");
    for task in tasks()? {
        assert_eq!((&task["state"], &task["progress"]["cancelled"]), (&"CANCELLED".into(), &task["units"]), "{task}");
    }
    Ok(())
}

#[test]
fn a_stream_limit_raised_by_an_operator_stays() -> Result<()> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, "raised")?;
    project.set("nats.limits.markers", "1MiB")?;
    let hand = Handmade::new(stack, &project)?;
    hand.change_stream("MARKERS", |config| (config.max_bytes, config.max_messages_per_subject) = (8 << 20, 50))?;
    hand.change_stream("TASKS", |config| config.max_bytes = -1)?;
    project.puller(&["doctor"])?.expect_code(0)?;
    project.puller(&["migrate"])?.expect_code(0)?;
    let config = hand.stream_config("MARKERS")?;
    assert_eq!((config.max_bytes, config.max_messages_per_subject), (8 << 20, 50));
    assert_eq!(hand.stream_config("TASKS")?.max_bytes, -1);
    // One that was lowered is named, and raised.
    hand.change_stream("MARKERS", |config| config.max_bytes = 4096)?;
    let doctor = project.puller(&["doctor", "--json"])?.expect_code(4)?.json()?;
    assert!(is_checked(&doctor, "max_bytes is 4096, needed is 1048576"), "{doctor:#}");
    project.puller(&["migrate"])?.expect_code(0)?;
    assert_eq!(hand.stream_config("MARKERS")?.max_bytes, 1 << 20);
    Ok(())
}

#[test]
fn a_full_stream_of_markers_names_the_remedy() -> Result<()> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, "markers-full")?;
    project.set("nats.limits.markers", "4KiB")?;
    let stderr = refused_upload(&project, 1..=12, 1)?;
    assert!(stderr.contains("stream MARKERS takes no more"), "{stderr}");
    assert!(stderr.contains("nats.limits.markers") && stderr.contains("puller migrate"), "{stderr}");
    project.puller(&["pull"])?.expect_code(0)?;
    let warnings = project.puller(&["status", "--json"])?.expect_code(0)?.json()?["warnings"].clone();
    assert!(warnings.to_string().contains("stream MARKERS holds"), "{warnings}");
    let doctor = project.puller(&["doctor", "--json"])?.json()?;
    assert!(is_checked(&doctor, "stream MARKERS holds"), "{doctor:#}");
    let worker = project.spawn_puller(&["run"])?;
    worker
        .wait_for_metric("marketferry_puller_stream_limit_bytes{stream=\"MARKERS\"}", SOON, |limit| limit == 4096.0)?;
    worker.wait_for_metric("marketferry_puller_stream_bytes{stream=\"MARKERS\"}", SOON, |bytes| bytes > 3000.0)?;
    drop(worker);

    project.set("nats.limits.markers", "1MiB")?;
    project.puller(&["migrate"])?.expect_code(0)?;
    project.uploader(&["upload"])?.expect_code(0)?;
    project.puller(&["pull"])?.expect_code(0)?;
    let warnings = project.puller(&["status", "--json"])?.expect_code(0)?.json()?["warnings"].clone();
    assert!(!warnings.to_string().contains("stream MARKERS holds"), "{warnings}");
    project.check_tables(288)
}

#[test]
fn a_full_stream_of_dead_letters_loses_none() -> Result<()> {
    const BAD: u64 = 8;
    let stack = Stack::shared();
    let mut project = Project::new(stack, "dead-full")?;
    project.set("nats.limits.dead", "6KiB")?;
    let hand = Handmade::new(stack, &project)?;
    let mut worker = project.spawn_puller(&["run"])?;
    for day in 1..=BAD {
        hand.publish(&btc(&format!("2025-02-{day:02}")).unit(), &[b'{'; 1000])?;
    }
    project.wait_until("a reason", SOON, || {
        let text = worker.reasons();
        Ok(text.contains("stream DEAD takes no more") && text.contains("puller dead ls"))
    })?;
    let status = project.puller(&["status", "--json"])?.expect_code(0)?.json()?;
    assert!(status.to_string().contains("stream DEAD takes no more"), "{status}");
    // Others are loaded meanwhile.
    upload(&project, (1..=2).map(march))?;
    project.wait_for_archives(2, SOON)?;

    let mut seen = 0;
    project.wait_until("a letter of each", SOON, || {
        let report = project.puller(&["dead", "discard", "--all", "--reason", "room", "--json"])?.expect_code(0)?;
        seen += report.json()?["done"].as_u64().unwrap_or_default();
        Ok(seen == BAD)
    })?;
    project.wait_until("readiness", SOON, || Ok(worker.is_ready()))?;
    worker.drain(SOON)?;
    // None was handed back to be delivered again.
    let attempts = "SELECT max(attempt) FROM {db}.ingest_log WHERE outcome = 'dead_letter'";
    assert_eq!(project.query(attempts)?.trim(), "1");
    assert_eq!(listed_letters(&project, &[])?.len(), 0);
    Ok(())
}

#[test]
fn a_stream_that_would_drop_markers_is_refused() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "stream-settings")?;
    let hand = Handmade::new(stack, &project)?;
    type Change = fn(&mut Config);
    let changed: [(&str, Change); 3] = [
        ("max_age is 2s", |config| {
            (config.max_age, config.duplicate_window) = (Duration::from_secs(2), Duration::ZERO);
        }),
        ("discard is old", |config| config.discard = DiscardPolicy::Old),
        ("max_msgs_per_subject is 1", |config| config.max_messages_per_subject = 1),
    ];
    for (day, (text, change)) in (1..).zip(changed) {
        hand.change_stream("MARKERS", change)?;
        let stderr = refused_upload(&project, day..=day, 2)?;
        assert!(stderr.contains(text) && stderr.contains("puller migrate"), "{stderr}");
        let pull = project.puller(&["pull"])?.expect_code(2)?;
        assert!(pull.stderr.contains(text), "{}", pull.stderr);
        for (binary, args, code) in
            [("puller", ["doctor"], 4), ("uploader", ["doctor"], 4), ("uploader", ["reconcile"], 2)]
        {
            let found = if binary == "puller" { project.puller(&args)? } else { project.uploader(&args)? };
            let found = found.expect_code(code)?;
            assert!(format!("{}{}", found.stdout, found.stderr).contains(text), "{binary} {args:?}: {}", found.stdout);
        }
        project.puller(&["migrate"])?.expect_code(0)?;
        project.uploader(&["upload"])?.expect_code(0)?;
        project.puller(&["pull"])?.expect_code(0)?;
    }
    // What the server cannot change is said with the way out, and by it.
    hand.remake_stream("MARKERS", |config| config.storage = StorageType::Memory)?;
    let migrate = project.puller(&["migrate"])?.expect_code(1)?;
    assert!(migrate.stderr.contains("storage is memory, needed is file"), "{}", migrate.stderr);
    assert!(migrate.stderr.contains("`nats stream rm MARKERS`"), "{}", migrate.stderr);
    project.puller(&["pull"])?.expect_code(2)?;
    hand.delete_stream("MARKERS")?;
    project.puller(&["migrate"])?.expect_code(0)?;
    project.uploader(&["reconcile", "--fix"])?.expect_code(0)?;
    hand.remake_stream("REPLAYS", |config| config.retention = RetentionPolicy::Limits)?;
    let pull = project.puller(&["pull"])?.expect_code(2)?;
    assert!(pull.stderr.contains("`nats stream rm REPLAYS`"), "{}", pull.stderr);
    hand.delete_stream("REPLAYS")?;
    project.puller(&["pull"])?.expect_code(0)?;
    project.puller(&["doctor"])?.expect_code(0)?;
    project.check_tables(72)
}

#[test]
fn a_revision_given_up_again_has_one_dead_letter() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "one-letter-each")?;
    let hand = Handmade::new(stack, &project)?;
    let unit = btc("2025-03-01").unit();
    let absent = crate::handmade::Placed::of(&project, &btc("2025-03-01"), &btc("2025-03-01").zip());
    let publish = || hand.publish_marker(&unit, std::slice::from_ref(&absent));
    let counts = || -> Result<Vec<u64>> {
        Ok(listed_letters(&project, &[])?.iter().map(|letter| letter["count"].as_u64().unwrap_or_default()).collect())
    };
    publish()?;
    project.puller(&["pull"])?.expect_code(1)?;
    assert_eq!(counts()?, [1]);
    let first = listed_letters(&project, &[])?[0]["sequence"].clone();
    // Replayed, announced again, on a stream made anew, by a consumer made anew, retried.
    project.puller(&["replay", "--force"])?.expect_code(0)?;
    project.puller(&["pull"])?.expect_code(1)?;
    assert_eq!(counts()?, [2]);
    assert_ne!(listed_letters(&project, &[])?[0]["sequence"], first);
    publish()?;
    project.puller(&["pull"])?.expect_code(1)?;
    assert_eq!(counts()?, [3]);
    hand.delete_stream("MARKERS")?;
    project.puller(&["migrate"])?.expect_code(0)?;
    publish()?;
    project.puller(&["pull"])?.expect_code(1)?;
    assert_eq!(counts()?, [4]);
    remake_consumer(&hand, durable(&project, "backfill"))?;
    project.puller(&["migrate"])?.expect_code(0)?;
    project.puller(&["pull"])?.expect_code(1)?;
    assert_eq!(counts()?, [5]);
    let sequence = listed_letters(&project, &[])?[0]["sequence"].to_string();
    project.puller(&["dead", "retry", &sequence])?.expect_code(0)?;
    assert_eq!(listed_letters(&project, &[])?.len(), 0);
    project.puller(&["pull"])?.expect_code(1)?;
    assert_eq!(counts()?, [6]);

    // Another revision of the unit has its own, with the latest error of each.
    let other = crate::handmade::Placed::of(&project, &btc("2025-03-01"), &btc("2025-03-01").seed(7).zip());
    hand.publish_marker(&unit, &[other])?;
    project.puller(&["pull"])?.expect_code(1)?;
    assert_eq!(counts()?, [6, 1]);
    assert_eq!(hand.count("DEAD")?, 2);
    let shown = project
        .puller(&["dead", "show", &listed_letters(&project, &[])?[0]["sequence"].to_string()])?
        .expect_code(0)?;
    assert!(shown.stdout.contains("Ferry-Count: 6"), "{}", shown.stdout);
    Ok(())
}

#[test]
fn an_account_with_too_little_space_is_refused_with_the_size_needed() -> Result<()> {
    let dir = RunDir::new("small-account")?;
    let limits = "{ max_file: 100MB, max_memory: 0, max_bytes_required: true }";
    let nats = Nats::start_configured(dir.path(), limits, "")?;
    let mut project = Project::new(Stack::shared(), "small-account")?;
    project.move_to(nats.account()?)?;
    for (binary, args, code) in [("puller", ["migrate"], 2), ("uploader", ["doctor"], 4)] {
        let ended = if binary == "puller" { project.puller(&args)? } else { project.uploader(&args)? };
        ended.expect_code(code)?;
    }
    let migrate = project.puller(&["migrate"])?.expect_code(2)?;
    for needed in ["stream MARKERS", "2 GiB", "3.1 GiB", "nats.limits.markers"] {
        assert!(migrate.stderr.contains(needed), "{needed}: {}", migrate.stderr);
    }
    for (name, size) in
        [("markers", "40MB"), ("replays", "20MB"), ("dead", "20MB"), ("advisories", "5MB"), ("tasks", "5MB")]
    {
        project.set(&format!("nats.limits.{name}"), size)?;
    }
    project.puller(&["migrate"])?.expect_code(0)?;
    project.puller(&["doctor"])?.expect_code(0)?;
    upload(&project, [march(1)])?;
    project.puller(&["pull"])?.expect_code(0)?;
    project.check_tables(24)
}

#[test]
fn an_overlapping_stream_is_named() -> Result<()> {
    let project = Project::new(Stack::shared(), "overlap")?;
    let account = project.account();
    let runtime = tokio::runtime::Runtime::new().context("a runtime")?;
    runtime.block_on(async {
        let options =
            async_nats::ConnectOptions::with_user_and_password(account.user.clone(), account.password.clone());
        let client = options.connect(&account.url).await.context("NATS")?;
        let config = Config { name: "SOMEBODYS".into(), subjects: vec!["marker.>".into()], ..Config::default() };
        async_nats::jetstream::new(client).create_stream(config).await.map(drop).context("a stream")
    })?;
    let migrate = project.puller(&["migrate"])?.expect_code(2)?;
    assert!(migrate.stderr.contains("stream SOMEBODYS has some of its subjects"), "{}", migrate.stderr);
    Ok(())
}

#[test]
fn a_server_limiting_messages_gets_markers_that_name_a_manifest() -> Result<()> {
    let dir = RunDir::new("short-messages")?;
    let nats = Nats::start_configured(dir.path(), "enabled", "max_payload: 32KB")?;
    let mut project = Project::new(Stack::shared(), "short-messages")?;
    project.move_to(nats.account()?)?;
    for number in 0..200 {
        ArchiveSpec::new(Market::Spot, &format!("S{number:03}USDT"), "1d", "2025-03-01").write(project.data_dir())?;
    }
    mark_all(project.data_dir())?;
    project.uploader(&["upload"])?.expect_code(0)?;
    project.puller(&["pull"])?.expect_code(0)?;
    project.puller(&["verify"])?.expect_code(0)?;
    project.check_tables(200)
}

#[test]
fn a_malformed_nkey_file_is_named() -> Result<()> {
    let mut project = Project::new(Stack::shared(), "bad-nkey")?;
    for key in ["user", "password"] {
        project.set(&format!("nats.{key}"), Value::Null)?;
    }
    let file = project.dir().join("worker.nk");
    std::fs::write(&file, "SUSECRETBUTNOSEED\n").context("writing")?;
    let path = file.to_str().unwrap_or_default().to_owned();
    project.set("nats.nkey_file", path.as_str())?;
    for ended in [project.puller(&["status"])?.expect_code(2)?, project.puller(&["doctor"])?.expect_code(4)?] {
        let said = format!("{}{}", ended.stdout, ended.stderr);
        assert!(said.contains(&path) && said.contains("seed of a user's nkey"), "{said}");
        assert!(!said.contains("SECRETBUTNOSEED"), "{said}");
    }
    Ok(())
}

/// As a `replay` leaves it that was killed between two messages.
#[test]
fn a_killed_replay_does_not_stay_running() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "killed-replay")?;
    let hand = Handmade::new(stack, &project)?;
    let at = "2025-06-01T00:00:00Z";
    let task = json!({
        "id": "primary-killed", "destination": "primary", "mode": "full", "selection": "everything", "force": true,
        "created_at": at, "created_by": "somebody", "units": 5, "archives": 5, "bytes": 5, "published": false,
        "follows": false,
    });
    hand.publish_on("task.primary-killed", task.to_string().as_bytes())?;
    for (day, state) in [(1, "SUCCESS"), (2, "INIT")] {
        let unit = btc(&format!("2025-03-{day:02}")).unit();
        let text = json!({ "unit": unit, "state": state, "at": at }).to_string();
        hand.publish_on(&format!("task.primary-killed.{}", unit.replace('/', ".")), text.as_bytes())?;
    }
    let shown = project.puller(&["tasks", "show", "primary-killed", "--json"])?.expect_code(0)?.json()?;
    assert_eq!((&shown["state"], &shown["progress"]["failed"]), (&json!("FAILED"), &json!(4)), "{shown}");
    let shown = project.puller(&["tasks", "show", "primary-killed"])?.expect_code(0)?;
    assert!(shown.stdout.contains("2 of 5 units sent"), "{}", shown.stdout);
    Ok(())
}

#[test]
fn the_consumers_of_a_former_destination_are_named_and_removed() -> Result<()> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, "prune")?;
    let path = project.dir().join("backup");
    std::fs::create_dir_all(&path).context("a folder")?;
    project.set("destinations", json!([{ "name": "backup", "type": "directory", "path": path }]))?;
    project.puller(&["migrate"])?.expect_code(0)?;
    project.set("destinations", json!([]))?;
    let doctor = project.puller(&["doctor"])?.expect_code(4)?;
    for lane in ["ingest", "backfill", "replay"] {
        assert!(doctor.stdout.contains(&format!("{lane}-backup")), "{}", doctor.stdout);
    }
    project.puller(&["migrate"])?.expect_code(0)?;
    project.puller(&["doctor"])?.expect_code(4)?;
    project.puller(&["migrate", "--prune"])?.expect_code(0)?;
    project.puller(&["doctor"])?.expect_code(0)?;
    Ok(())
}
