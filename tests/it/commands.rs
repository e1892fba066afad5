//! The command line as scripts and people meet it: one envelope, one table of exit codes, filters that refuse.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tests::data::{ArchiveSpec, Market, mark_all};
use tests::process::{Process, Program};
use tests::project::{Project, binary_path};
use tests::servers::{Stack, ensure_installed, repository};
use tests::{Context, Failure, Result};

use crate::handmade::{Handmade, Placed};

const DAY: &str = "2025-03-01";
const UNIT: &str = "binance/spot/klines/1h/2025-03-01";
const FREE_PORT: &str = "nats://127.0.0.1:9";
const SOON: Duration = Duration::from_secs(60);

fn spec(day: &str) -> ArchiveSpec {
    ArchiveSpec::new(Market::Spot, "BTCUSDT", "1h", day)
}

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
    row("puller", &["pause"], [0, 3, 0, 4]),
    row("puller", &["resume"], [0, 3, 0, 4]),
    filtered("puller", &["history"], [0, 0, 3, 4]),
    row("puller", &["explain", UNIT], [0, 3, 3, 4]),
    filtered("puller", &["verify"], [0, 3, 3, 4]),
    row("puller", &["doctor"], [0, 4, 4, 4]),
    row("puller", &["doctor", "--config-only"], [0, 0, 0, 0]),
    row("puller", &["healthcheck"], [1, 1, 1, 1]),
    filtered("uploader", &["upload", "--dry-run"], [0, 3, 0, 4]),
    filtered("uploader", &["upload"], [0, 3, 0, 4]),
    row("uploader", &["reconcile"], [0, 3, 0, 4]),
    row("uploader", &["mark", UNIT], [0, 0, 0, 0]),
    filtered("uploader", &["adopt", "--dry-run"], [0, 3, 0, 4]),
    row("uploader", &["doctor"], [0, 4, 0, 4]),
    row("uploader", &["doctor", "--config-only"], [0, 0, 0, 0]),
    row("uploader", &["healthcheck"], [1, 1, 1, 1]),
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
    spec(DAY).write(project.data_dir())?;
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
        (&["gaps", "--symbol", "BTC/USDT"], "BTCUSD_PERP"),
        (&["dead", "ls", "--class", "mising"], "did you mean missing?"),
        (&["history", "--outcome", "load"], "did you mean loaded?"),
        (&["history", "--class", "damage"], "did you mean damaged?"),
        (&["status", "--destination", "primary"], "--missing"),
        (&["verify", "--destination", "primry"], "did you mean primary?"),
        (&["explain", "binance/futures/klines/1h/2025-03-01"], "did you mean um?"),
    ] {
        let envelope = check(&project, "puller", args, 2)?;
        assert!(envelope["error"]["text"].as_str().is_some_and(|said| said.contains(text)), "{envelope:#}");
    }
    check(&project, "puller", &["replay", "--dry-run", "--symbol", "NONESUCH"], 4)?;
    check(&project, "puller", &["gaps", "--symbol", "NONESUCH"], 4)?;

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

/// What the last command of a pipe has seen enough of is no fault, and no panic.
#[test]
fn a_closed_pipe_ends_a_long_list_in_silence() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "pipes")?;
    let hand = Handmade::new(stack, &project)?;
    let many: Vec<String> =
        (1..=28).flat_map(|day| (1..=12).map(move |month| format!("2024-{month:02}-{day:02}"))).collect();
    for day in &many {
        hand.publish(&spec(day).unit(), b"{ this is not JSON")?;
    }
    project.puller(&["pull"])?.expect_code(1)?;
    for (binary, args) in [
        ("puller", &["dead", "ls", "--all"][..]),
        ("puller", &["dead", "ls", "--json"]),
        ("puller", &["history", "--limit", "1000"]),
        ("puller", &["history", "--json", "--limit", "1000"]),
        ("puller", &["replay", "--dry-run", "--all"]),
        ("puller", &["verify", "--all", "--verbose"]),
        ("uploader", &["reconcile", "--all"]),
        ("uploader", &["--help"]),
    ] {
        let mut command = Command::new(binary_path(binary)?);
        command.args(args).arg("--config").arg(project.config_path()).env("FERRY__LOG__LEVEL", "error");
        // A pipe whose reader is gone before anything is written.
        let (reader, writer) = std::io::pipe().context("a pipe")?;
        drop(reader);
        let output = command.stdout(writer).stderr(Stdio::piped()).output().context(binary)?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(141), "{args:?}: {stderr}");
        assert!(!stderr.contains("panicked") && !stderr.contains("Broken pipe"), "{args:?}: {stderr}");
    }
    Ok(())
}

/// Text from a bucket, a stream or another worker cannot write to the terminal as itself.
#[test]
fn no_text_from_outside_reaches_the_terminal_as_it_is() -> Result<()> {
    const EVIL: &str = "\u{1b}[2J\u{1b}]0;owned\u{7}\u{9b}31m\u{202e}gnp\u{2066}\u{200b}\u{feff}\r\u{8}";
    let stack = Stack::shared();
    let project = Project::new(stack, "escapes")?;
    let hand = Handmade::new(stack, &project)?;
    // The marker's uploader.
    let placed = Placed::of(&project, &spec(DAY), &spec(DAY).zip());
    hand.put(&placed.key, &spec(DAY).zip())?;
    let mut marker = hand.marker(&spec(DAY).unit(), std::slice::from_ref(&placed));
    marker["uploader"] = json!(format!("host{EVIL}"));
    hand.publish(&spec(DAY).unit(), marker.to_string().as_bytes())?;
    // A subject of five tokens that no unit has, and a payload that is no marker.
    hand.publish_on("marker.backfill.binance.\u{202e}um.klines.1h.2025-03-02", EVIL.as_bytes())?;
    hand.publish(&spec("2025-03-03").unit(), format!("{{\"schema\": \"{EVIL}\"").as_bytes())?;
    project.puller(&["pull"])?;
    // A letter as somebody else may store it, headers and all.
    hand.store_letter(
        "dead.primary.binance.\u{202e}um.klines.1h.2025-03-04",
        EVIL.as_bytes(),
        &[
            ("Ferry-Error", "an error with \u{1b}[31m and \u{202e}bidi"),
            ("Ferry-Class", "missing\u{1b}[2J"),
            ("Ferry-Worker", "w\u{202e}orker"),
        ],
    )?;
    // Whoever answers for the workers.
    hand.answer_roster(
        "primary",
        &json!({
            "worker": format!("host{EVIL}"),
            "started_at": "2026-01-01T00:00:00Z",
            "in_hand": [format!("binance/um/klines/1h/{EVIL}"), UNIT],
            "parked": 0,
            "waiting_for": format!("a server{EVIL}"),
        }),
    )?;
    let letters = project.puller(&["dead", "ls", "--json"])?.json()?;
    let sequences: BTreeSet<u64> =
        letters["findings"].as_array().into_iter().flatten().filter_map(|letter| letter["sequence"].as_u64()).collect();
    assert!(sequences.len() >= 3, "{letters:#}");
    let mut commands: Vec<Vec<String>> = vec![
        vec!["status".into()],
        vec!["explain".into(), UNIT.into()],
        vec!["dead".into(), "ls".into(), "--all".into()],
        vec!["history".into()],
        vec!["tasks".into(), "ls".into()],
        vec!["verify".into(), "--all".into()],
        vec!["pull".into(), "--dry-run".into(), "--all".into()],
        vec!["dead".into(), "discard".into(), "--all".into(), "--reason".into(), format!("why{EVIL}")],
    ];
    commands.splice(3..3, sequences.iter().map(|sequence| vec!["dead".into(), "show".into(), sequence.to_string()]));
    for args in &commands {
        for json in [false, true] {
            let mut words: Vec<&str> = args.iter().map(String::as_str).collect();
            if json {
                words.push("--json");
            }
            let finished = project.puller(&words)?;
            for (name, text) in [("stdout", &finished.stdout), ("stderr", &finished.stderr)] {
                let unseen = text.chars().find(|c| {
                    c.is_control() && *c != '\n' || matches!(*c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
                });
                assert_eq!(unseen, None, "{name} of {words:?}: {text:?}");
            }
        }
    }
    let status = project.puller(&["status"])?.stdout;
    assert!(status.contains("host\\u{1b}[2J"), "the worker is shown, escaped: {status}");
    Ok(())
}

/// Symbols with such characters are refused where markers are read.
#[test]
fn a_symbol_that_is_not_seen_as_itself_is_refused() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "unseen-symbols")?;
    let hand = Handmade::new(stack, &project)?;
    for (day, symbol) in [("2025-03-01", "BTC\u{202e}USDT"), ("2025-03-02", "BTC\u{200b}USDT")] {
        let placed = Placed { symbol: symbol.to_owned(), ..Placed::of(&project, &spec(day), &spec(day).zip()) };
        hand.put(&placed.key, &spec(day).zip())?;
        hand.publish_marker(&spec(day).unit(), std::slice::from_ref(&placed))?;
    }
    project.puller(&["pull"])?.expect_code(1)?;
    let letters = project.puller(&["dead", "ls", "--class", "refused", "--json"])?.expect_code(0)?.json()?;
    assert_eq!(letters["findings"].as_array().map(Vec::len), Some(2), "{letters:#}");
    Ok(())
}

/// Runs a command on a terminal of 80 columns; what it shows, line by line as it is drawn.
fn on_terminal(project: &Project, binary: &str, args: &[&str], code: i32) -> Result<Vec<String>> {
    let mut words: Vec<std::ffi::OsString> = vec![repository().join("tests/servers/terminal.py").into()];
    words.push(binary_path(binary)?.into());
    words.extend(args.iter().map(Into::into));
    words.extend(["--config".into(), project.config_path().into()]);
    let shown = Process::spawn(Program {
        name: format!("{binary} {} on a terminal", args.join(" ")),
        path: ensure_installed()?.python.clone(),
        args: words,
        env: vec![("TERM".to_owned(), "xterm".to_owned()), ("TERMINAL_COLUMNS".to_owned(), "80".to_owned())],
        dir: project.dir().to_owned(),
    })?
    .wait(SOON)?
    .expect_code(code)?
    .stdout;
    let lines = shown.split(['\r', '\n']).map(without_escapes).filter(|line| !line.trim().is_empty());
    // Of two bars the upper one fills its line, and the terminal goes to the next by itself.
    let parted = |line: String| match line.char_indices().nth(80) {
        Some((at, _)) if line.starts_with("units ") => vec![line[..at].to_owned(), line[at..].to_owned()],
        _ => vec![line],
    };
    Ok(lines.flat_map(parted).collect())
}

/// Without the sequences that move the cursor, clear a line or colour it.
fn without_escapes(line: &str) -> String {
    let mut parts = line.split("\u{1b}[");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        text.push_str(
            part.trim_start_matches(|c: char| c.is_ascii_digit() || matches!(c, ';' | '?'))
                .get(1..)
                .unwrap_or_default(),
        );
    }
    text
}

/// Sentences as they were before they were broken.
fn joined(lines: &[String]) -> String {
    lines.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ")
}

/// Bars are drawn again and again on one line.
fn without_bars(lines: &[String]) -> Vec<&String> {
    lines.iter().filter(|line| !line.contains(['░', '█'])).collect()
}

fn assert_fits(lines: &[String]) {
    for line in lines {
        assert!(line.chars().count() <= 80, "{} columns: {line:?} in {lines:#?}", line.chars().count());
    }
}

/// On a terminal a command shows its result in a few lines that fit; with -v, or elsewhere, a line a unit.
#[test]
fn a_terminal_of_80_columns_shows_results_and_no_log() -> Result<()> {
    const UNITS: usize = 40;
    let stack = Stack::shared();
    let project = Project::new(stack, "terminal-80")?;
    let hand = Handmade::new(stack, &project)?;
    for day in 1..=20 {
        for symbol in ["BTCUSDT", "ETHUSDT"] {
            ArchiveSpec::new(Market::Um, symbol, "1h", &format!("2025-03-{day:02}")).write(project.data_dir())?;
            ArchiveSpec::new(Market::Um, symbol, "4h", &format!("2025-03-{day:02}")).write(project.data_dir())?;
        }
    }
    mark_all(project.data_dir())?;
    let uploaded = on_terminal(&project, "uploader", &["upload"], 0)?;
    assert_fits(&uploaded);
    assert!(!uploaded.iter().any(|line| line.contains("INFO") || line.contains("WARN")), "{uploaded:#?}");
    assert!(joined(&uploaded).contains(&format!("{UNITS} published")), "{uploaded:#?}");

    let pending = on_terminal(&project, "puller", &["pull", "--dry-run"], 0)?;
    assert_fits(&pending);
    assert!(without_bars(&pending).len() <= 5, "a range a series: {pending:#?}");
    assert!(pending[0].contains("1h/2025-03-01..2025-03-20") && pending[1].contains("4h/"), "{pending:#?}");
    let verified = on_terminal(&project, "puller", &["verify"], 4)?;
    assert_fits(&verified);
    assert!(without_bars(&verified).len() < 20, "{verified:#?}");

    let pulled = on_terminal(&project, "puller", &["pull"], 0)?;
    assert_fits(&pulled);
    assert!(!pulled.iter().any(|line| line.contains("INFO") || line.contains("WARN")), "{pulled:#?}");
    assert!(joined(&pulled).contains(&format!("{UNITS} units")), "{pulled:#?}");
    let replayed = project.puller(&["replay", "--force"])?.expect_code(0)?;
    assert!(replayed.stdout.contains("40 units"), "{}", replayed.stdout);
    let told = on_terminal(&project, "puller", &["pull", "-v"], 0)?;
    assert!(told.iter().filter(|line| line.contains("INFO")).count() >= UNITS, "{told:#?}");

    // Letters with long errors, of long names.
    for day in 1..=9 {
        let unit = ArchiveSpec::new(Market::Um, "BTCUSDT", "15m", &format!("2025-04-{day:02}")).unit();
        hand.publish(&unit, format!("{{ this is {} no JSON", "very ".repeat(40)).as_bytes())?;
    }
    let failed = on_terminal(&project, "puller", &["pull"], 1)?;
    assert_fits(&failed);
    assert!(joined(&failed).contains("9 DEAD LETTERS"), "{failed:#?}");
    let letters = on_terminal(&project, "puller", &["dead", "ls"], 0)?;
    assert_fits(&letters);
    assert_eq!(letters.len(), 1 + 9 + 1, "a line a letter: {letters:#?}");
    for (args, code) in [
        (&["status"][..], 0),
        (&["history", "--failed"], 0),
        (&["history"], 0),
        (&["tasks", "ls"], 0),
        (&["explain", "binance/um/klines/15m/2025-04-01"], 4),
        (&["doctor"], 0),
        (&["gaps"], 0),
        (&["gaps", "--market", "futures"], 2),
    ] {
        assert_fits(&on_terminal(&project, "puller", args, code)?);
    }
    for args in [&["reconcile"][..], &["doctor"], &["adopt", "--dry-run"]] {
        let shown = on_terminal(&project, "uploader", args, if args == ["reconcile"] { 4 } else { 0 })?;
        assert_fits(&shown);
        assert!(without_bars(&shown).len() < 60, "{shown:#?}");
    }
    Ok(())
}

/// A pull that is held up by one object says by which, and how long.
#[test]
fn a_pull_that_waits_says_for_what() -> Result<()> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, "waits-for")?;
    project.set("retry.missing_object", "8s")?;
    let hand = Handmade::new(stack, &project)?;
    let absent = Placed::of(&project, &spec(DAY), &spec(DAY).zip());
    hand.publish_marker(&spec(DAY).unit(), std::slice::from_ref(&absent))?;
    let shown = on_terminal(&project, "puller", &["pull"], 1)?;
    assert_fits(&shown);
    let waits = shown.iter().filter(|line| line.contains(UNIT) && line.contains("retry in"));
    assert!(waits.count() > 2, "{shown:#?}");
    assert!(!shown.iter().any(|line| line.contains("ETA")), "{shown:#?}");
    Ok(())
}

/// Without a worker a replay that is waited for ends, and says what is missing.
#[test]
fn a_replay_that_nobody_works_on_is_not_waited_for_without_end() -> Result<()> {
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
    worker.sigterm()?;
    worker.wait(SOON)?.expect_code(0)?;
    Ok(())
}

/// What has ended keeps its state, whoever cancels it afterwards.
#[test]
fn a_finished_task_that_is_cancelled_stays_as_it_was() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "cancel-finished")?;
    let hand = Handmade::new(stack, &project)?;
    let absent = Placed::of(&project, &spec(DAY), &spec(DAY).zip());
    hand.publish_marker(&spec(DAY).unit(), std::slice::from_ref(&absent))?;
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
fn gaps_are_what_could_be_there_and_is_not() -> Result<()> {
    let project = Project::new(Stack::shared(), "gaps")?;
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
    month("LUNAUSDT").rows_at_most(7 * 24).write(project.data_dir())?;
    mark_all(project.data_dir())?;
    project.uploader(&["upload"])?.expect_code(0)?;
    project.puller(&["pull"])?.expect_code(0)?;
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
