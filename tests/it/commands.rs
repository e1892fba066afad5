//! The command line as scripts and people meet it: one envelope, one table of exit codes, filters that refuse.

use std::fs;

use serde_json::Value;
use tests::data::{ArchiveSpec, Market, mark_all};
use tests::project::Project;
use tests::servers::Stack;
use tests::{Context, Failure, Result};

use crate::handmade::{Handmade, Placed};
use crate::scenario::{SOON, btc, ship, upload};

const DAY: &str = "2025-03-01";
const UNIT: &str = "binance/spot/klines/1h/2025-03-01";
const FREE_PORT: &str = "nats://127.0.0.1:9";

/// In which state of the world a command runs.
#[derive(Debug, Clone, Copy)]
enum World {
    Well,
    NatsAway,
    ClickHouseAway,
    /// Neither streams nor consumers nor tables, and no right to make them.
    NothingMade,
}

/// A command, and its exit code in each world: well, NATS away, ClickHouse away, nothing made. The table in docs/CLI.md
/// says why.
struct Row {
    binary: &'static str,
    args: &'static [&'static str],
    codes: [i32; 4],
    /// Whether it takes the filters of units.
    filters: bool,
}

const fn row(binary: &'static str, args: &'static [&'static str], codes: [i32; 4]) -> Row {
    Row { binary, args, codes, filters: false }
}

const fn filtered(binary: &'static str, args: &'static [&'static str], codes: [i32; 4]) -> Row {
    Row { binary, args, codes, filters: true }
}

/// Every command that ends by itself; last those that make what is missing.
const TABLE: &[Row] = &[
    row("puller", &["pull"], [0, 3, 0, 4]),
    row("puller", &["pull", "--dry-run"], [0, 3, 0, 4]),
    row("puller", &["status"], [0, 3, 3, 4]),
    filtered("puller", &["status", "--missing"], [0, 0, 3, 4]),
    filtered("puller", &["gaps"], [0, 0, 3, 4]),
    filtered("puller", &["replay", "--dry-run"], [0, 3, 0, 4]),
    row("puller", &["tasks", "ls"], [0, 3, 0, 4]),
    row("puller", &["tasks", "show", "none-such"], [4, 3, 4, 4]),
    row("puller", &["tasks", "cancel", "none-such"], [4, 3, 4, 4]),
    filtered("puller", &["dead", "ls"], [0, 3, 0, 4]),
    row("puller", &["dead", "show", "77"], [4, 3, 4, 4]),
    row("puller", &["dead", "retry", "77"], [4, 3, 4, 4]),
    row("puller", &["dead", "discard", "77", "--reason", "a test"], [4, 3, 4, 4]),
    row("puller", &["dead", "show", "0"], [4, 3, 4, 4]),
    row("puller", &["dead", "retry", "0"], [4, 3, 4, 4]),
    row("puller", &["dead", "discard", "0", "--reason", "a test"], [4, 3, 4, 4]),
    row("puller", &["pause"], [0, 3, 0, 4]),
    row("puller", &["resume"], [0, 3, 0, 4]),
    filtered("puller", &["history"], [0, 0, 3, 4]),
    row("puller", &["explain", UNIT], [0, 3, 3, 4]),
    filtered("puller", &["verify"], [0, 3, 3, 4]),
    row("puller", &["doctor"], [0, 4, 4, 4]),
    row("puller", &["doctor", "--config-only"], [0, 0, 0, 0]),
    row("puller", &["healthcheck"], [2, 2, 2, 2]),
    filtered("uploader", &["upload", "--dry-run"], [0, 3, 0, 4]),
    filtered("uploader", &["upload"], [0, 3, 0, 4]),
    row("uploader", &["reconcile"], [0, 3, 0, 4]),
    row("uploader", &["mark", UNIT], [0, 0, 0, 0]),
    filtered("uploader", &["adopt", "--dry-run"], [0, 3, 0, 4]),
    row("uploader", &["doctor"], [0, 4, 0, 4]),
    row("uploader", &["doctor", "--config-only"], [0, 0, 0, 0]),
    row("uploader", &["healthcheck"], [2, 2, 2, 2]),
    row("puller", &["adopt", "--ingested", "hints"], [0, 3, 3, 4]),
    row("puller", &["migrate"], [0, 3, 3, 0]),
];

/// Runs a command with `--json`, and checks its envelope and its exit code.
fn check(project: &Project, binary: &str, args: &[&str], code: i32) -> Result<Value> {
    let words = [args, &["--json"]].concat();
    let finished = project.start(binary, &words, &[])?.wait(SOON)?;
    let place = format!("{binary} {}", words.join(" "));
    let finished = finished.expect_code(code)?;
    let envelope = finished.json().context(&place)?;
    let name: Vec<&str> =
        args.iter().copied().take_while(|word| word.chars().all(|c| c.is_ascii_lowercase())).collect();
    let command = envelope["command"].as_str().unwrap_or_default();
    assert!(format!("{binary} {}", name.join(" ")).starts_with(command), "{place}: {command}");
    assert!(command.starts_with(binary) && command.len() > binary.len(), "{place}: {command}");
    let at = envelope["at"].as_str().unwrap_or_default();
    assert!(at.len() >= 20 && at.as_bytes()[10] == b'T' && at.ends_with('Z'), "{place}: {at}");
    assert_eq!(envelope["ok"], code == 0, "{place}: {envelope:#}");
    assert!(envelope["destinations"].is_array(), "{place}: {envelope:#}");
    for finding in envelope["findings"].as_array().ok_or_else(|| Failure::new(format!("{place}: no findings")))? {
        for key in ["unit", "symbol", "from", "to", "state", "class", "text", "since"] {
            assert!(finding.get(key).is_some(), "{place}: {key} of {finding:#}");
        }
    }
    match &envelope["error"] {
        Value::Null => assert!(code == 0 || code == 4, "{place}: {envelope:#}"),
        error => {
            let code_of_class = match error["class"].as_str() {
                Some("failed" | "stopped") => 1,
                Some("usage" | "config" | "denied" | "refused") => 2,
                Some("unreachable") => 3,
                Some("missing" | "no_match") => 4,
                other => return Err(Failure::new(format!("{place}: class {other:?}"))),
            };
            assert_eq!(code_of_class, code, "{place}: {error}");
            assert!(error["text"].as_str().is_some_and(|text| !text.is_empty()), "{place}: {error}");
            assert!(!finished.stderr.trim().is_empty(), "{place} says nothing on stderr");
        }
    }
    Ok(envelope)
}

/// A project in a world, with one unit that is loaded where that is possible.
fn project(world: World) -> Result<Project> {
    let mut project = Project::new(Stack::shared(), "commands")?;
    fs::create_dir(project.dir().join("hints")).context("hints")?;
    fs::write(project.dir().join(format!("hints/_SUCCESS__{DAY}__spot__1h")), "").context("a hint")?;
    btc(DAY).write(project.data_dir())?;
    mark_all(project.data_dir())?;
    if !matches!(world, World::NothingMade) {
        project.puller(&["migrate"])?.expect_code(0)?;
        project.uploader(&["upload"])?.expect_code(0)?;
        project.puller(&["pull"])?.expect_code(0)?;
    }
    project.set("publish.timeout", "1s")?;
    match world {
        World::Well => {}
        World::NatsAway => project.set("nats.url", FREE_PORT)?,
        World::ClickHouseAway => project.set("clickhouse.port", 9)?,
        World::NothingMade => project.set("nats.manage", false)?,
    }
    Ok(project)
}

fn every_command(world: World) -> Result<()> {
    let project = project(world)?;
    let mut wrong = Vec::new();
    for row in TABLE {
        let code = row.codes[world as usize];
        if let Err(failure) = check(&project, row.binary, row.args, code) {
            wrong.push(failure.to_string());
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(Failure::new(format!("{world:?}:\n{}", wrong.join("\n\n")))) }
}

#[test]
fn every_command_answers_in_one_envelope_where_all_is_well() -> Result<()> {
    every_command(World::Well)
}

#[test]
fn every_command_answers_in_one_envelope_without_nats() -> Result<()> {
    every_command(World::NatsAway)
}

#[test]
fn every_command_answers_in_one_envelope_without_clickhouse() -> Result<()> {
    every_command(World::ClickHouseAway)
}

#[test]
fn every_command_answers_in_one_envelope_where_nothing_was_made() -> Result<()> {
    every_command(World::NothingMade)
}

/// Wrong usage and wrong configuration have the envelope too, also of the services.
#[test]
fn every_command_answers_in_one_envelope_when_it_is_used_wrongly() -> Result<()> {
    let mut project = project(World::Well)?;
    let services = [row("puller", &["run"], [0; 4]), row("uploader", &["watch"], [0; 4])];
    let download = row("uploader", &["download"], [0; 4]);
    for Row { binary, args, .. } in TABLE.iter().chain(&services).chain([&download]) {
        let envelope = check(&project, binary, &[*args, &["--no-such-option"]].concat(), 2)?;
        assert_eq!(envelope["error"]["class"], "usage", "{envelope:#}");
    }
    for Row { binary, args, filters, .. } in TABLE {
        if *filters {
            let refused = [
                (["--market", "futures"], "did you mean um?"),
                (["--interval", "7h"], "did you mean"),
                (["--dataset", "candles"], "klines"),
                (["--from", "yesterday"], "2026-02"),
                (["--unit", "binance/*"], "binance/*"),
            ];
            for (filter, text) in refused {
                let envelope = check(&project, binary, &[*args, &filter].concat(), 2)?;
                assert!(envelope["error"]["text"].as_str().is_some_and(|said| said.contains(text)), "{envelope:#}");
            }
            check(&project, binary, &[*args, &["--from", "2025-03-02", "--to", "2025-03-01"]].concat(), 2)?;
            check(&project, binary, &[*args, &["--unit", "binance/futures"]].concat(), 2)?;
            let nothing =
                check(&project, binary, &[*args, &["--from", "1999-01-01", "--to", "1999-12-31"]].concat(), 4)?;
            assert_eq!(nothing["error"]["class"], "no_match", "{nothing:#}");
            check(&project, binary, &[*args, &["--market", "cm"]].concat(), 4)?;
        }
    }
    for (args, text) in [
        (&["replay", "--dry-run", "--symbol", "btcusdt"][..], "did you mean BTCUSDT?"),
        (&["replay", "--dry-run", "--since", "tomorrow"], "a day as 2026-02-14"),
        (&["gaps", "--symbol", "BTC/USDT"], "BTCUSD_PERP"),
        (&["dead", "ls", "--class", "mising"], "did you mean missing?"),
        (&["history", "--outcome", "load"], "did you mean loaded?"),
        (&["history", "--class", "damage"], "did you mean damaged?"),
        (&["status", "--market", "spot"], "--missing"),
        (&["pull", "--max-wait", "foo"], "30s, 10m or 2h"),
        (&["explain", "binance/futures/klines/1h/2025-03-01"], "did you mean um?"),
    ] {
        let envelope = check(&project, "puller", args, 2)?;
        assert!(envelope["error"]["text"].as_str().is_some_and(|said| said.contains(text)), "{envelope:#}");
    }
    for command in [
        &["status"][..],
        &["gaps"],
        &["replay", "--dry-run"],
        &["dead", "ls"],
        &["dead", "retry", "--all"],
        &["dead", "discard", "--all", "--reason", "a test"],
        &["pause"],
        &["resume"],
        &["history"],
        &["verify"],
        &["adopt", "--ingested", "hints"],
    ] {
        let envelope = check(&project, "puller", &[command, &["--destination", "primry"]].concat(), 2)?;
        assert_eq!(envelope["error"]["class"], "usage", "{envelope:#}");
        assert!(envelope["error"]["text"].as_str().is_some_and(|said| said.contains("primary")), "{envelope:#}");
    }
    let status = check(&project, "puller", &["status", "--destination", "primary"], 0)?;
    assert_eq!(status["destinations"].as_array().map(Vec::len), Some(1), "{status:#}");
    for (args, said) in [
        (&["verify", "--market", "cm"][..], "the only announced unit does not match the filters: market cm"),
        (
            &["replay", "--dry-run", "--symbol", "NONESUCH"],
            "announced unit does not match the filters: symbol NONESUCH",
        ),
        (&["gaps", "--symbol", "NONESUCH"], "the only loaded archive does not match the filters: symbol NONESUCH"),
        (&["history", "--failed", "--class", "missing"], "attempt does not match the filters: failed, class missing"),
        (&["dead", "ls", "--class", "missing"], "there is no dead letter, whatever the filters"),
    ] {
        let envelope = check(&project, "puller", args, 4)?;
        assert!(envelope["error"]["text"].as_str().is_some_and(|text| text.contains(said)), "{envelope:#}");
    }

    project.set("puller.slotz", 3)?;
    for Row { binary, args, .. } in TABLE.iter().chain(&services) {
        if args[0] == "healthcheck" {
            continue;
        }
        let envelope = check(&project, binary, args, 2)?;
        assert_eq!(envelope["error"]["class"], "config", "{envelope:#}");
    }
    Ok(())
}

/// A fault that stops a command is one line on stderr; a command that read nothing prints no summary.
#[test]
fn a_fault_is_printed_once_and_without_a_summary() -> Result<()> {
    let project = project(World::Well)?;
    upload(&project, [btc("2025-03-02")])?;
    let of_uploader = [&["upload"][..], &["upload", "--dry-run"], &["reconcile"], &["adopt"], &["adopt", "--dry-run"]];
    let of_puller = [&["verify"][..], &["adopt", "--ingested", "hints"], &["pull"], &["pull", "--dry-run"]];
    let bucket = "http://127.0.0.1:9";
    for (name, value, uploader, puller, code) in [
        ("FERRY__NATS__PASSWORD", "wrong", &of_uploader[..], &of_puller[..], 2),
        // A wrong prefix is a wrong configuration to everybody.
        ("FERRY__STORAGE__R2__PREFIX", "other", &of_uploader, &of_puller, 2),
        ("FERRY__STORAGE__R2__ENDPOINT", bucket, &of_uploader[2..], &[], 3),
        ("FERRY__CLICKHOUSE__PORT", "9", &[], &of_puller[..3], 3),
        ("FERRY__CLICKHOUSE__SECURE", "true", &[], &of_puller[..3], 3),
    ] {
        let commands =
            uploader.iter().map(|args| ("uploader", *args)).chain(puller.iter().map(|args| ("puller", *args)));
        for (binary, args) in commands {
            let mut finished = project.start(binary, args, &[(name, value)])?.wait(SOON)?;
            // On a busy machine a request may take longer than its 5 s, and then that is another fault.
            let late = ["timed out", "no answer for", "deadline has elapsed"];
            if late.iter().any(|words| finished.stderr.contains(words)) {
                finished = project.start(binary, args, &[(name, value)])?.wait(SOON)?;
            }
            let place = format!("{binary} {args:?} with {name}={value}: {}{}", finished.stdout, finished.stderr);
            assert_eq!((finished.code, finished.stdout.trim()), (Some(code), ""), "{place}");
            assert_eq!(finished.stderr.lines().count(), 1, "{place}");
            if name.ends_with("SECURE") {
                assert!(finished.stderr.contains("set clickhouse.secure to false"), "{place}");
            }
        }
    }
    Ok(())
}

/// Without a worker a replay that is waited for ends, and says what is missing.
#[test]
fn a_replay_without_a_worker_ends_with_the_reason() -> Result<()> {
    let project = project(World::Well)?;
    let args = ["replay", "--force", "--wait", "--max-wait", "3s"];
    let envelope = check(&project, "puller", &args, 3)?;
    let text = envelope["error"]["text"].as_str().unwrap_or_default();
    assert!(text.contains("no worker of primary has answered"), "{envelope:#}");
    // It is still there, and a worker does it.
    let mut worker = project.spawn_puller(&["run"])?;
    let task = envelope["destinations"][0]["task"].as_str().unwrap_or_default().to_owned();
    project.wait_until("the task", SOON, || {
        Ok(project.puller(&["tasks", "show", &task, "--json"])?.json()?["state"] == "SUCCESS")
    })?;
    check(&project, "puller", &["replay", "--force", "--wait", "--max-wait", "30s"], 0)?;
    worker.drain(SOON)?;
    Ok(())
}

/// What has ended keeps its state, whoever cancels it afterwards.
#[test]
fn cancelling_a_finished_task_changes_nothing() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "cancel-finished")?;
    let hand = Handmade::new(stack, &project)?;
    let absent = Placed::of(&project, &btc(DAY), &btc(DAY).zip());
    hand.publish_marker(&btc(DAY).unit(), std::slice::from_ref(&absent))?;
    let task = |args: &[&str]| -> Result<String> {
        let sent = project.puller(args)?.expect_code(0)?.json()?;
        Ok(sent["destinations"][0]["task"].as_str().unwrap_or_default().to_owned())
    };
    let id = task(&["replay", "--json"])?;
    project.puller(&["pull"])?.expect_code(1)?;
    let state = || -> Result<Value> { Ok(check(&project, "puller", &["tasks", "show", &id], 0)?["state"].clone()) };
    assert_eq!(state()?, "FAILED");
    let cancelled = project.puller(&["tasks", "cancel", &id])?.expect_code(0)?.stdout;
    assert!(cancelled.contains("FAILED") && cancelled.contains("nothing to cancel"), "{cancelled}");
    assert_eq!(state()?, "FAILED");
    let listed = check(&project, "puller", &["tasks", "ls"], 0)?;
    assert_eq!(listed["tasks"][0]["state"], "FAILED", "{listed:#}");
    Ok(())
}

/// Gaps are ranges: days without an archive, candles of three days only where one opens, days that a month lacks.
#[test]
fn gaps_lists_ranges_of_missing_archives() -> Result<()> {
    let project = Project::new(Stack::shared(), "gaps")?;
    project.puller(&["migrate"])?.expect_code(0)?;
    let nothing = project.puller(&["gaps"])?.expect_code(0)?.stdout;
    assert!(nothing.contains("nothing to compare with"), "{nothing}");
    let days = |symbol: &str, interval: &str, days: &[&str]| {
        let write =
            |day: &&str| ArchiveSpec::new(Market::Spot, symbol, interval, day).write(project.data_dir()).map(drop);
        days.iter().try_for_each(write)
    };
    days("BTCUSDT", "1h", &["2025-03-01", "2025-03-05", "2025-03-06"])?;
    days("ETHUSDT", "1h", &["2025-03-01", "2025-03-02", "2025-03-03", "2025-03-04", "2025-03-05"])?;
    // 2025-03-01 is day 20,148: a candle of three days opens on it, and on the 4th, the 7th, the 10th.
    days("BTCUSDT", "3d", &["2025-03-01", "2025-03-04", "2025-03-10"])?;
    // A month of which seven days are there, from the 11th on; before it the symbol was not listed.
    let month = |symbol: &str| ArchiveSpec::new(Market::Spot, symbol, "1h", "2025-01");
    month("SOLUSDT").missing(0..10 * 24).rows_at_most(7 * 24).write(project.data_dir())?;
    days("SOLUSDT", "1h", &["2025-02-01"])?;
    // One that was delisted in its only month.
    ship(&project, [month("LUNAUSDT").rows_at_most(7 * 24)])?;
    // As after another prefix: the archive stands in the ledger twice.
    project.query(
        "INSERT INTO {db}.archives SELECT * REPLACE (concat('former/', object_key) AS object_key) FROM {db}.archives \
         WHERE symbol = 'SOLUSDT'",
    )?;

    let found = check(&project, "puller", &["gaps"], 4)?;
    let same = check(&project, "puller", &["status", "--missing"], 4)?;
    assert_eq!(found["findings"], same["findings"]);
    let mut ranges: Vec<String> = found["findings"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|finding| {
            let text = |key: &str| finding[key].as_str().unwrap_or("?").to_owned();
            format!("{} {} {} {} {}", text("unit"), text("symbol"), text("state"), text("from"), text("to"))
        })
        .collect();
    ranges.sort();
    assert_eq!(
        ranges,
        [
            "binance/spot/klines/1h BTCUSDT missing 2025-03-02 2025-03-04",
            "binance/spot/klines/1h SOLUSDT empty 2025-01-18 2025-01-31",
            "binance/spot/klines/3d BTCUSDT missing 2025-03-07 2025-03-07",
        ]
    );
    let coverage = "SELECT period FROM {db}.coverage WHERE state = 'missing' AND interval = '3d' FORMAT TSV";
    assert_eq!(project.query(coverage)?.trim(), "2025-03-07");
    let one = check(&project, "puller", &["gaps", "--symbol", "SOLUSDT"], 4)?;
    assert_eq!(one["findings"].as_array().map(Vec::len), Some(1), "{one:#}");
    assert_eq!(one["destinations"][0]["days"], 14, "{one:#}");
    check(&project, "puller", &["gaps", "--symbol", "ETHUSDT"], 0)?;
    check(&project, "puller", &["gaps", "--symbol", "LUNAUSDT"], 0)?;
    let text = project.puller(&["gaps"])?.expect_code(4)?.stdout;
    assert!(text.contains("- binance/spot/klines/1h/2025-03-02..2025-03-04 BTCUSDT  no archive"), "{text}");
    Ok(())
}
