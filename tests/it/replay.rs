//! A replay loads announced units again, and ends with the same tables.

use std::time::Duration;

use serde_json::Value;
use tests::data::mark_all;
use tests::project::Project;
use tests::servers::Stack;
use tests::{Failure, Result};

use crate::scenario::hours;

const DAYS: [&str; 4] = ["2025-03-01", "2025-03-02", "2025-03-03", "2025-03-04"];

/// Four days of two symbols, uploaded and loaded.
fn loaded(label: &str) -> Result<Project> {
    let project = Project::new(Stack::shared(), label)?;
    for day in DAYS {
        for symbol in ["BTCUSDT", "ETHUSDT"] {
            hours(symbol, day).write(project.data_dir())?;
        }
    }
    mark_all(project.data_dir())?;
    project.uploader(&["upload"])?.expect_code(0)?;
    project.puller(&["pull"])?.expect_code(0)?;
    Ok(project)
}

fn outcomes(project: &Project) -> Result<String> {
    let sql = "SELECT outcome, count() FROM {db}.ingest_log GROUP BY outcome ORDER BY outcome FORMAT TSV";
    Ok(project.query(&sql.replace("{db}", project.database()))?.trim().replace('\t', " "))
}

#[test]
fn verified_archives_are_skipped_unless_forced() -> Result<()> {
    let project = loaded("replay-skips")?;
    let plan = project.puller(&["replay", "--dry-run", "--json"])?.expect_code(0)?.json()?;
    assert_eq!(
        (&plan["destinations"][0]["units"], &plan["destinations"][0]["archives"]),
        (&4.into(), &8.into()),
        "{plan}"
    );
    assert!(
        plan["destinations"][0]["bytes"].as_u64() > Some(0) && plan["destinations"][0]["estimated_seconds"].is_u64(),
        "{plan}"
    );
    assert_eq!(outcomes(&project)?, "loaded 4");

    let worker = project.spawn_puller(&["run"])?;
    project.puller(&["replay", "--wait", "--reason", "a try"])?.expect_code(0)?;
    assert_eq!(outcomes(&project)?, "loaded 4\nskipped 4");
    project.puller(&["replay", "--wait", "--force", "--from", "2025-03-02", "--to", "2025-03-03"])?.expect_code(0)?;
    assert_eq!(outcomes(&project)?, "loaded 6\nskipped 4");
    drop(worker);

    let tasks = project.puller(&["tasks", "ls", "--json"])?.expect_code(0)?.json()?;
    let states: Vec<&Value> = tasks["tasks"].as_array().into_iter().flatten().map(|task| &task["state"]).collect();
    assert_eq!(states, ["SUCCESS", "SUCCESS"], "{tasks}");
    assert_eq!(tasks["tasks"][0]["reason"], "a try");
    let id = tasks["tasks"][1]["task"].as_str().unwrap_or_default();
    let shown = project.puller(&["tasks", "show", id, "--json"])?.expect_code(0)?.json()?;
    assert_eq!(shown["progress"]["success"], 2, "{shown}");
    assert_eq!(shown["findings"][0]["unit"], "binance/spot/klines/1h/2025-03-02", "{shown}");
    assert_eq!(shown["findings"][0]["rows"], 48, "{shown}");
    project.puller(&["tasks", "show", "nothing"])?.expect_code(4)?;
    project.check_tables(192)
}

/// Deduplication of inserts would swallow all of these.
#[test]
fn deleted_rows_are_loaded_again() -> Result<()> {
    let project = loaded("replay-deleted")?;
    let _workers = [project.spawn_puller(&["run"])?, project.spawn_puller(&["run"])?];
    for damage in [
        "DELETE FROM {db}.klines WHERE symbol = 'BTCUSDT' AND toHour(open_time) = 7",
        "ALTER TABLE {db}.klines DROP PARTITION 202503",
        "TRUNCATE TABLE {db}.klines",
    ] {
        project.query(&damage.replace("{db}", project.database()))?;
        if project.check_tables(192).is_ok() {
            return Err(Failure::new(format!("nothing was damaged by: {damage}")));
        }
        project.puller(&["replay", "--force", "--wait"])?.expect_code(0)?;
        project.check_tables(192)?;
    }
    Ok(())
}

#[test]
fn a_replay_is_filtered_and_cancelled() -> Result<()> {
    let project = loaded("replay-narrow")?;
    project.query(&format!("TRUNCATE TABLE {}.klines", project.database()))?;
    let narrow = ["replay", "--force", "--symbol", "ETHUSDT", "--unit", "binance/spot/klines/1h/2025-03-02"];
    project.puller(&narrow)?.expect_code(0)?;
    project.puller(&["pull"])?.expect_code(0)?;
    let there = format!("SELECT symbol, count() FROM {}.klines_latest GROUP BY symbol FORMAT TSV", project.database());
    assert_eq!(project.query(&there)?.trim(), "ETHUSDT\t24");

    for since in ["2199-01-01T00:00:00Z", "2199-01-01"] {
        let nothing = project.puller(&["replay", "--dry-run", "--json", "--since", since])?.expect_code(4)?.json()?;
        assert_eq!(nothing["error"]["class"], "no_match", "{nothing}");
    }
    for since in ["2025-03-01", "1h"] {
        let all = project.puller(&["replay", "--dry-run", "--json", "--since", since])?.expect_code(0)?.json()?;
        assert_eq!(all["destinations"][0]["units"], 4, "{since}: {all}");
    }

    let sent = project.puller(&["replay", "--force", "--json"])?.expect_code(0)?.json()?;
    let id = sent["destinations"][0]["task"].as_str().unwrap_or_default().to_owned();
    let shown = project.puller(&["tasks", "show", &id, "--json"])?.expect_code(0)?.json()?;
    assert_eq!((&shown["state"], &shown["progress"]["init"]), (&"INIT".into(), &4.into()), "{shown}");
    project.puller(&["tasks", "cancel", &id])?.expect_code(0)?;
    project.puller(&["pull"])?.expect_code(0)?;
    let shown = project.puller(&["tasks", "show", &id, "--json"])?.expect_code(0)?.json()?;
    assert_eq!((&shown["state"], &shown["progress"]["cancelled"]), (&"CANCELLED".into(), &4.into()), "{shown}");
    assert_eq!(project.query(&there)?.trim(), "ETHUSDT\t24");

    project.puller(&["replay", "--force", "--mode", "2"])?.expect_code(0)?;
    project.puller(&["pull"])?.expect_code(0)?;
    let tasks = project.puller(&["tasks", "ls", "--json"])?.expect_code(0)?.json()?;
    assert_eq!(tasks["tasks"][2]["state"], "FOLLOWING", "{tasks}");
    project.check_tables(192)
}

/// A worker that dies in mid-replay leaves its units to the others.
#[test]
fn a_replay_survives_its_workers() -> Result<()> {
    let project = loaded("replay-survives")?;
    let mut first = project.spawn_puller(&["run"])?;
    let sent = project.puller(&["replay", "--force", "--json"])?.expect_code(0)?.json()?;
    let id = sent["destinations"][0]["task"].as_str().unwrap_or_default().to_owned();
    first.kill9()?;
    let _second = project.spawn_puller(&["run"])?;
    project.wait_until("a finished task", Duration::from_secs(60), || {
        let shown = project.puller(&["tasks", "show", &id, "--json"])?.expect_code(0)?.json()?;
        Ok(shown["state"] == "SUCCESS" && shown["progress"]["success"] == 4)
    })?;
    project.check_tables(192)
}
