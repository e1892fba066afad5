//! All workers of a destination at once, and what is known of a unit.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::project::Project;
use tests::servers::Stack;
use tests::{Context, Result};

use crate::handmade::{Handmade, Placed};
use crate::scenario::{SOON, btc, status, upload};

/// One destination is paused under a running worker; the other goes on, and after the resume so does the first.
#[test]
fn a_pause_stops_one_destination_until_the_resume() -> Result<()> {
    let mut project = Project::new(Stack::shared(), "pause")?;
    let copies = project.dir().join("copies");
    std::fs::create_dir_all(&copies).context("a folder")?;
    project.set("destinations", json!([{ "name": "copies", "type": "directory", "path": copies.to_str() }]))?;
    project.puller(&["migrate"])?.expect_code(0)?;
    let mut worker = project.spawn_puller(&["run"])?;
    upload(&project, [btc("2025-03-01")])?;
    project.wait_for_archives(1, SOON)?;

    let paused = project.puller(&["pause", "--destination", "primary"])?.expect_code(0)?;
    assert!(paused.stdout.contains("puller resume --destination primary"), "{}", paused.stdout);
    assert_eq!(status(&project, "primary")?["paused"], true);
    assert_eq!(status(&project, "copies")?["paused"], false);
    for day in ["2025-03-02", "2025-03-03"] {
        upload(&project, [btc(day)])?;
        let copy = copies.join(btc(day).path());
        project.wait_until("the copy", SOON, || Ok(copy.is_file()))?;
    }
    assert_eq!(project.archives_loaded()?, 1);
    assert_eq!(status(&project, "primary")?["pending"], 2);

    // Neither a change of settings nor another worker takes the pause back.
    project.set("puller.ack_wait", "7s")?;
    project.puller(&["migrate"])?.expect_code(0)?;
    let pulled = project.puller(&["pull"])?.expect_code(1)?;
    assert!(pulled.stderr.contains("primary is paused"), "{}", pulled.stderr);
    assert_eq!(project.archives_loaded()?, 1);

    project.puller(&["resume"])?.expect_code(0)?;
    project.wait_for_archives(3, SOON)?;
    assert_eq!(status(&project, "primary")?["paused"], false);
    worker.drain(SOON)?;
    project.check_tables(72)
}

/// A marker that comes while a pull has been open for a while is taken by that pull, and is not lost with it.
#[test]
fn an_idle_worker_loads_a_new_marker_at_once() -> Result<()> {
    let project = Project::new(Stack::shared(), "idle")?;
    let mut worker = project.spawn_puller(&["run"])?;
    upload(&project, [btc("2025-03-01")])?;
    project.wait_for_archives(1, SOON)?;
    let idle = Instant::now();
    project.wait_until("an idle time", SOON, || Ok(idle.elapsed() > Duration::from_secs(7)))?;
    upload(&project, [btc("2025-03-02")])?;
    project.wait_for_archives(2, Duration::from_secs(5))?;
    assert_eq!(project.query("SELECT max(attempt) FROM {db}.ingest_log")?.trim(), "1");
    worker.drain(SOON).map(drop)
}

#[test]
fn a_pause_with_an_end_ends_by_itself() -> Result<()> {
    let project = Project::new(Stack::shared(), "pause-until")?;
    project.puller(&["migrate"])?.expect_code(0)?;
    upload(&project, [btc("2025-03-01")])?;
    for wrong in
        [&["pause", "--until", "2020-01-01"][..], &["pause", "--until", "soon"], &["pause", "--destination", "no"]]
    {
        project.puller(wrong)?.expect_code(2)?;
    }
    let paused = project.puller(&["pause", "--until", "6s", "--json"])?.expect_code(0)?.json()?;
    assert!(paused["destinations"][0]["until"].is_string(), "{paused}");
    project.puller(&["pull"])?.expect_code(1)?;
    assert_eq!(project.archives_loaded()?, 0);
    let mut worker = project.spawn_puller(&["run"])?;
    project.wait_for_archives(1, SOON)?;
    worker.drain(SOON)?;
    project.check_tables(24)
}

#[test]
fn history_lists_attempts_newest_first() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "history")?;
    let hand = Handmade::new(stack, &project)?;
    let nothing = project.puller(&["history"])?.expect_code(0)?;
    assert!(nothing.stdout.contains("nothing was tried"), "{}", nothing.stdout);
    let absent = Placed::of(&project, &btc("2025-03-01"), &btc("2025-03-01").zip());
    hand.publish_marker(&btc("2025-03-01").unit(), std::slice::from_ref(&absent))?;
    project.puller(&["pull"])?.expect_code(1)?;
    upload(&project, [btc("2025-03-02")])?;
    project.puller(&["pull"])?.expect_code(0)?;

    let outcomes = |args: &[&str]| -> Result<Vec<String>> {
        let rows = project.puller(&[&["history", "--json"], args].concat())?.expect_code(0)?.json()?;
        Ok(rows["findings"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|row| row["state"].as_str().unwrap_or("?").to_owned())
            .collect())
    };
    assert_eq!(outcomes(&[])?, ["loaded", "dead_letter", "retry", "retry"]);
    assert_eq!(outcomes(&["--failed"])?, ["dead_letter", "retry", "retry"]);
    assert_eq!(outcomes(&["--limit", "1"])?, ["loaded"]);
    assert_eq!(outcomes(&["binance/spot/klines/1h/2025-03-02"])?, ["loaded"]);
    assert_eq!(outcomes(&["binance/spot", "--limit", "2"])?, ["loaded", "dead_letter"]);
    project.puller(&["history", "binance/um"])?.expect_code(4)?;
    let text = project.puller(&["history", "--failed"])?.expect_code(0)?.stdout;
    assert!(text.contains("OUTCOME") && text.contains("missing: "), "{text}");
    project.puller(&["history", "--destination", "elsewhere"])?.expect_code(2)?;
    project.puller(&["history", "a/b/c/d/e/f"])?.expect_code(2)?;
    Ok(())
}

#[test]
fn explain_names_the_state_of_a_unit() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "explain")?;
    let hand = Handmade::new(stack, &project)?;
    let unit = btc("2025-03-01").unit();
    let explain = |code, state: &str, words: &str| -> Result<Value> {
        let text = project.puller(&["explain", &unit])?.expect_code(code)?.stdout;
        let first = text.lines().next().unwrap_or_default();
        assert!(first.starts_with(&unit) && first.contains(words), "{text}");
        let json = project.puller(&["explain", &unit, "--json"])?.expect_code(code)?.json()?;
        assert_eq!(json["destinations"][0]["state"], state, "{json}");
        Ok(json)
    };
    project.puller(&["explain", "binance/um"])?.expect_code(2)?;
    explain(4, "unknown", "never announced")?;
    let placed = Placed::of(&project, &btc("2025-03-01"), &btc("2025-03-01").zip());
    hand.publish_marker(&unit, std::slice::from_ref(&placed))?;
    let pending = explain(4, "pending", "waits to be delivered")?;
    assert_eq!(pending["destinations"][0]["missing"][0]["object_key"], json!(placed.key));
    assert_eq!(pending["marker"]["archives"], 1);
    project.puller(&["pause"])?.expect_code(0)?;
    explain(4, "pending", "primary is paused")?;
    project.puller(&["resume"])?.expect_code(0)?;

    project.puller(&["pull"])?.expect_code(1)?;
    let dead = explain(4, "dead", "puller dead show 1")?;
    assert_eq!(dead["destinations"][0]["attempts"].as_array().map(Vec::len), Some(3), "{dead}");
    assert_eq!(dead["destinations"][0]["messages"][0]["standing"], "settled", "{dead}");
    project.puller(&["dead", "discard", "1", "--reason", "to see what is said"])?.expect_code(0)?;
    explain(4, "not_loaded", "nobody is going to load the rest")?;

    hand.put(&placed.key, &btc("2025-03-01").zip())?;
    hand.publish_marker(&unit, &[placed])?;
    project.puller(&["pull"])?.expect_code(0)?;
    let loaded = explain(0, "loaded", "primary has its only archive, verified")?;
    assert_eq!(loaded["destinations"][0]["attempts"][0]["state"], "loaded", "{loaded}");
    Ok(())
}
