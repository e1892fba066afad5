//! Commands on a terminal: results that fit its width, no control characters from outside, and lists that may be cut short.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use serde_json::json;
use tests::data::{ArchiveSpec, Market, mark_all};
use tests::project::{Project, binary_path};
use tests::servers::{Stack, ensure_installed, repository};
use tests::{Context, Result};

use crate::handmade::{Handmade, Placed};
use crate::scenario::{SOON, btc};

const DAY: &str = "2025-03-01";
const UNIT: &str = "binance/spot/klines/1h/2025-03-01";

#[test]
fn an_answer_that_cannot_be_written_fails_the_command() -> Result<()> {
    let project = Project::new(Stack::shared(), "full-stdout")?;
    for args in [&["--help"][..], &["help", "pull"], &["doctor", "--config-only"]] {
        let full = std::fs::File::options().write(true).open("/dev/full").context("/dev/full")?;
        let mut command = Command::new(binary_path("puller")?);
        command.args(args).env("FERRY_CONFIG", project.config_path());
        let output = command.stdout(full).stderr(Stdio::piped()).output().context("puller")?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {stderr}");
        assert!(stderr.contains("cannot write to stdout"), "{args:?}: {stderr}");
    }
    Ok(())
}

#[test]
fn a_closed_pipe_ends_a_long_list_silently() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "pipes")?;
    let hand = Handmade::new(stack, &project)?;
    let many: Vec<String> =
        (1..=28).flat_map(|day| (1..=12).map(move |month| format!("2024-{month:02}-{day:02}"))).collect();
    for day in &many {
        hand.publish(&btc(day).unit(), b"{ this is not JSON")?;
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
fn control_characters_from_outside_are_escaped() -> Result<()> {
    const EVIL: &str = "\u{1b}[2J\u{1b}]0;owned\u{7}\u{9b}31m\u{202e}gnp\u{2066}\u{200b}\u{feff}\r\u{8}";
    let stack = Stack::shared();
    let project = Project::new(stack, "escapes")?;
    let hand = Handmade::new(stack, &project)?;
    // The marker's uploader.
    let placed = Placed::of(&project, &btc(DAY), &btc(DAY).zip());
    hand.put(&placed.key, &btc(DAY).zip())?;
    let mut marker = hand.marker(&btc(DAY).unit(), std::slice::from_ref(&placed));
    marker["uploader"] = json!(format!("host{EVIL}"));
    hand.publish(&btc(DAY).unit(), marker.to_string().as_bytes())?;
    // A subject of five tokens that no unit has, and a payload that is no marker.
    hand.publish_on("marker.backfill.binance.\u{202e}um.klines.1h.2025-03-02", EVIL.as_bytes())?;
    hand.publish(&btc("2025-03-03").unit(), format!("{{\"schema\": \"{EVIL}\"").as_bytes())?;
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
    hand.answer_presence(
        "primary",
        &json!({
            "worker": format!("host{EVIL}"),
            "started_at": "2026-01-01T00:00:00Z",
            "in_flight": [format!("binance/um/klines/1h/{EVIL}"), UNIT],
            "retries_scheduled": 0,
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
fn a_symbol_with_invisible_characters_is_refused() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "unseen-symbols")?;
    let hand = Handmade::new(stack, &project)?;
    for (day, symbol) in [("2025-03-01", "BTC\u{202e}USDT"), ("2025-03-02", "BTC\u{200b}USDT")] {
        let placed = Placed { symbol: symbol.to_owned(), ..Placed::of(&project, &btc(day), &btc(day).zip()) };
        hand.put(&placed.key, &btc(day).zip())?;
        hand.publish_marker(&btc(day).unit(), std::slice::from_ref(&placed))?;
    }
    project.puller(&["pull"])?.expect_code(1)?;
    let letters = project.puller(&["dead", "ls", "--class", "refused", "--json"])?.expect_code(0)?.json()?;
    assert_eq!(letters["findings"].as_array().map(Vec::len), Some(2), "{letters:#}");
    Ok(())
}

/// Runs a command on a terminal of 80 columns; what it shows, line by line as it is drawn.
fn on_terminal(project: &Project, binary: &str, args: &[&str], code: i32) -> Result<Vec<String>> {
    let (python, terminal) = (&ensure_installed()?.python, repository().join("tests/servers/terminal.py"));
    let env = [("TERM", "xterm"), ("TERMINAL_COLUMNS", "80")];
    let shown = project
        .start_by(&[python.as_ref(), terminal.as_ref()], binary, args, &env)?
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
    let mut project = Project::new(stack, "terminal-80")?;
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
    let lines = on_terminal(&project, "puller", &["pull", "-v"], 0)?;
    assert!(lines.iter().filter(|line| line.contains("INFO")).count() >= UNITS, "{lines:#?}");

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

    // A line of the log that a command shows meanwhile fits too.
    project.set("puller.ack_wait", "90s")?;
    project.set("nats.manage", false)?;
    let warned = on_terminal(&project, "puller", &["pull"], 0)?;
    assert_fits(&warned);
    assert!(joined(&warned).contains("WARN consumer ingest-primary of stream MARKERS: ack_wait is"), "{warned:#?}");
    project.set("nats.url", "nats://127.0.0.1:9")?;
    project.set("publish.timeout", "1s")?;
    let unannounced = on_terminal(&project, "uploader", &["upload"], 3)?;
    assert_fits(&unannounced);
    let reasons = joined(&without_bars(&unannounced).into_iter().cloned().collect::<Vec<_>>());
    assert_eq!(reasons.matches("Connection refused").count(), 1, "the reason is said once: {unannounced:#?}");
    Ok(())
}

/// A pull that is held up by one object says by which, and how long.
#[test]
fn a_waiting_pull_names_the_reason() -> Result<()> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, "waits-for")?;
    project.set("retry.missing_object", "8s")?;
    let hand = Handmade::new(stack, &project)?;
    let absent = Placed::of(&project, &btc(DAY), &btc(DAY).zip());
    hand.publish_marker(&btc(DAY).unit(), std::slice::from_ref(&absent))?;
    let shown = on_terminal(&project, "puller", &["pull"], 1)?;
    assert_fits(&shown);
    let waits = shown.iter().filter(|line| line.contains(UNIT) && line.contains("retry in"));
    assert!(waits.count() > 2, "{shown:#?}");
    assert!(!shown.iter().any(|line| line.contains("ETA")), "{shown:#?}");
    Ok(())
}
