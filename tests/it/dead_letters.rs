//! Dead letters: no unit is given up silently, and an operator can retry or discard every letter.

use std::time::Duration;

use serde_json::json;
use tests::Result;
use tests::data::{ArchiveSpec, mark_all};
use tests::project::Project;
use tests::servers::Stack;
use tests::truth::Truth;

use crate::handmade::{Handmade, Placed};
use crate::scenario::{btc, listed_letters};

/// A marker whose object is not in the bucket.
fn announce_missing(project: &Project, hand: &Handmade<'_>, day: &str) -> Result<Placed> {
    let placed = Placed::of(project, &btc(day), &btc(day).zip());
    hand.publish_marker(&btc(day).unit(), std::slice::from_ref(&placed))?;
    Ok(placed)
}

fn expect_tables(project: &Project, days: &[&str]) -> Result<()> {
    let archives: Vec<ArchiveSpec> = days.iter().map(|day| btc(day)).collect();
    project.check_tables_against(&Truth::of_specs(&archives)?, 24 * days.len())
}

/// The rows of `ingest_log` that a person's decisions left, oldest first.
fn decisions(project: &Project) -> Result<String> {
    let sql = "SELECT period, outcome, error_class, error FROM {db}.ingest_log WHERE outcome LIKE 'dead\\_%ed' \
               ORDER BY period, finished_at FORMAT TSV";
    Ok(project.query(sql)?.trim().to_owned())
}

#[test]
fn a_retried_letter_loads_the_missing_archive() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "dead-retry")?;
    let hand = Handmade::new(stack, &project)?;
    assert_eq!(listed_letters(&project, &[])?.len(), 0);
    let placed = announce_missing(&project, &hand, "2025-03-01")?;
    announce_missing(&project, &hand, "2025-03-02")?;
    hand.publish(&btc("2025-03-03").unit(), b"{ this is not JSON")?;
    project.puller(&["pull"])?.expect_code(1)?;

    let letters = listed_letters(&project, &[])?;
    assert_eq!(letters.len(), 3, "{letters:#?}");
    let first = &listed_letters(&project, &["--unit", "binance/spot/klines/1h/2025-03-01"])?[0];
    assert_eq!((&first["class"], &first["destination"]), (&json!("missing"), &json!("primary")));
    assert_eq!(listed_letters(&project, &["--unit", "binance/spot/klines/1h"])?.len(), 3);
    assert_eq!(listed_letters(&project, &["--unit", "binance/um"])?.len(), 0);
    assert_eq!(listed_letters(&project, &["--class", "missing", "--destination", "primary"])?.len(), 2);
    project.puller(&["dead", "ls", "--destination", "elsewhere"])?.expect_code(2)?;
    assert_eq!(listed_letters(&project, &["--older-than", "1h"])?.len(), 0);
    assert_eq!(listed_letters(&project, &["--newer-than", "1h"])?.len(), 3);
    let table = project.puller(&["dead", "ls"])?.expect_code(0)?.stdout;
    assert!(table.contains("not in the bucket") && table.contains("3 dead letters"), "{table}");

    let sequence = first["sequence"].to_string();
    let shown = project.puller(&["dead", "show", &sequence, "--json"])?.expect_code(0)?.json()?;
    assert_eq!(shown["marker"]["objects"][0]["key"], json!(placed.key), "{shown}");
    assert_eq!(shown["headers"]["Ferry-Class"], "missing", "{shown}");
    let text = project.puller(&["dead", "show", &sequence])?.expect_code(0)?.stdout;
    assert!(text.contains("Ferry-Worker") && text.contains(&placed.sha256), "{text}");

    hand.put(&placed.key, &btc("2025-03-01").zip())?;
    // A letter that is not there does not hold the other up.
    let retry = ["dead", "retry", "999", &sequence, "--reason", "it's there now", "--json"];
    let finished = project.puller(&retry)?.expect_code(1)?;
    let report = finished.json()?;
    assert_eq!((&report["chosen"], &report["done"]), (&json!(2), &json!(1)), "{report:#}");
    assert!(finished.stderr.contains("there is no dead letter 999"), "{}", finished.stderr);
    project.puller(&["pull"])?.expect_code(0)?;
    expect_tables(&project, &["2025-03-01"])?;
    assert_eq!(decisions(&project)?, "2025-03-01\tdead_retried\tmissing\tit\\'s there now");
    assert_eq!(listed_letters(&project, &[])?.len(), 2);

    // What fails again is a new letter.
    let finished = project.puller(&["dead", "retry", "--all", "--class", "missing", "--json"])?.expect_code(0)?;
    assert_eq!(finished.json()?["done"], 1);
    project.puller(&["pull"])?.expect_code(1)?;
    let again = listed_letters(&project, &["--class", "missing"])?;
    assert_eq!(again.len(), 1);
    assert!(again[0]["sequence"].as_u64() > Some(3), "{again:#?}");
    Ok(())
}

#[test]
fn an_accepted_correction_removes_its_rows() -> Result<()> {
    let project = Project::new(Stack::shared(), "accept-shrink")?;
    let ship = |archive: &ArchiveSpec, code| {
        archive.write(project.data_dir())?;
        mark_all(project.data_dir())?;
        project.uploader(&["upload"])?.expect_code(0)?;
        project.puller(&["pull"])?.expect_code(code).map(drop)
    };
    ship(&btc("2025-03-01"), 0)?;
    ship(&btc("2025-03-01").rows_at_most(12).generated_at("2025-03-05T00:00:00Z"), 1)?;
    let letters = listed_letters(&project, &["--class", "shrunk"])?;
    let sequence = letters[0]["sequence"].to_string();
    // A plain retry is held again.
    project.puller(&["dead", "retry", &sequence])?.expect_code(0)?;
    project.puller(&["pull"])?.expect_code(1)?;
    let letters = listed_letters(&project, &["--class", "shrunk"])?;
    assert_eq!(letters.len(), 1);
    let sequence = letters[0]["sequence"].to_string();
    project.puller(&["dead", "retry", &sequence, "--accept-shrink", "--reason", "looked at"])?.expect_code(0)?;
    project.puller(&["pull"])?.expect_code(0)?;
    assert_eq!(listed_letters(&project, &[])?.len(), 0);
    assert_eq!(project.query("SELECT count() FROM {db}.klines_latest")?.trim(), "12");
    project.check_tables(12)
}

#[test]
fn a_discarded_letter_leaves_its_reason_in_the_log() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "dead-discard")?;
    let hand = Handmade::new(stack, &project)?;
    for day in ["2025-03-01", "2025-03-02", "2025-04-01"] {
        announce_missing(&project, &hand, day)?;
    }
    hand.publish_on("marker.backfill.a.b.c.d.e", b"no unit at all")?;
    project.puller(&["pull"])?.expect_code(1)?;

    project.puller(&["dead", "discard", "1"])?.expect_code(2)?;
    project.puller(&["dead", "discard", "--reason", "which one?"])?.expect_code(2)?;
    project.puller(&["dead", "retry", "1", "--class", "missing"])?.expect_code(2)?;
    project.puller(&["dead", "show", "77"])?.expect_code(4)?;
    for sequence in ["0", "77"] {
        let said = format!("there is no dead letter {sequence}");
        said_once(&project, &["dead", "retry", sequence], &said)?;
        said_once(&project, &["dead", "discard", sequence, "--reason", "a test"], &said)?;
    }
    assert_eq!(listed_letters(&project, &[])?.len(), 4);

    // One that no worker can ever load is named, and the rest goes on.
    let retried = project.puller(&["dead", "retry", "--all", "--json"])?.expect_code(1)?;
    let report = retried.json()?;
    assert_eq!((&report["chosen"], &report["done"]), (&json!(4), &json!(3)), "{report:#}");
    assert!(retried.stderr.contains("marker.backfill.a.b.c.d.e names no unit"), "{}", retried.stderr);
    project.puller(&["pull"])?.expect_code(1)?;

    let march = ["--unit", "binance/spot/klines/1h/2025-03", "--reason", "never mind", "--json"];
    let report = project.puller(&[&["dead", "discard", "--all"], &march[..]].concat())?.expect_code(0)?.json()?;
    assert_eq!((&report["chosen"], &report["done"]), (&json!(2), &json!(2)), "{report}");
    let discard = ["dead", "discard", "--all", "--reason", "the rest", "--json"];
    let discarded = project.puller(&discard)?.expect_code(0)?;
    let report = discarded.json()?;
    assert_eq!((&report["chosen"], &report["done"]), (&json!(2), &json!(2)), "{report:#}");
    assert!(discarded.stderr.contains("the rest"), "{}", discarded.stderr);
    assert_eq!(listed_letters(&project, &[])?.len(), 0);
    let expected = [
        "2025-03-01\tdead_retried\tmissing\t",
        "2025-03-01\tdead_discarded\tmissing\tnever mind",
        "2025-03-02\tdead_retried\tmissing\t",
        "2025-03-02\tdead_discarded\tmissing\tnever mind",
        "2025-04-01\tdead_retried\tmissing\t",
        "2025-04-01\tdead_discarded\tmissing\tthe rest",
    ];
    assert_eq!(decisions(&project)?, expected.join("\n"));

    hand.delete_stream("DEAD")?;
    said_once(&project, &["dead", "retry", "1", "2"], "stream DEAD")?;
    said_once(&project, &["dead", "discard", "1", "--reason", "a test"], "stream DEAD")
}

/// That nothing was there to work on is one line.
fn said_once(project: &Project, args: &[&str], said: &str) -> Result<()> {
    let ended = project.puller(args)?.expect_code(4)?;
    assert!(ended.stderr.contains(said), "{args:?}: {}", ended.stderr);
    assert_eq!((ended.stdout.as_str(), ended.stderr.lines().count()), ("", 1), "{args:?}: {}", ended.stderr);
    Ok(())
}

/// As if the command had died between the publish and the delete, twice.
#[test]
fn an_interrupted_retry_sends_each_letter_once() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "dead-once")?;
    let hand = Handmade::new(stack, &project)?;
    announce_missing(&project, &hand, "2025-03-01")?;
    project.puller(&["pull"])?.expect_code(1)?;
    hand.forbid_deleting_letters()?;
    for _ in 0..2 {
        project.puller(&["dead", "retry", "1"])?.expect_code(1)?;
    }
    let replays = || hand.count("REPLAYS");
    assert_eq!(replays()?, 1);
    // Asking for something else is another message.
    project.puller(&["dead", "retry", "1", "--force"])?.expect_code(1)?;
    assert_eq!(replays()?, 2);
    Ok(())
}

/// Workers died over it again and again: the next one does not try.
#[test]
fn a_crash_loop_ends_in_a_dead_letter() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "crash-loop")?;
    let hand = Handmade::new(stack, &project)?;
    let placed = hand.place(&btc("2025-03-01"), &btc("2025-03-01").zip())?;
    hand.publish_marker(&btc("2025-03-01").unit(), &[placed])?;
    // retry.attempts is 3 here, and ten more are worked on.
    hand.spend_deliveries("backfill-primary", 13)?;
    project.puller(&["pull"])?.expect_code(1)?;
    let letters = listed_letters(&project, &["--class", "exhausted"])?;
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0]["attempt"], 14, "{letters:#?}");
    assert_eq!(project.archives_loaded()?, 0);
    let logged = "SELECT outcome, error_class, attempt FROM {db}.ingest_log FORMAT TSV";
    assert_eq!(project.query(logged)?.trim(), "dead_letter\texhausted\t14");

    project.puller(&["dead", "retry", "--all"])?.expect_code(0)?;
    project.puller(&["pull"])?.expect_code(0)?;
    expect_tables(&project, &["2025-03-01"])
}

/// No worker ever acked it, and the server gave it up.
#[test]
fn deliveries_that_run_out_at_the_server_are_dead_letters() -> Result<()> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, "sweeper")?;
    // No worker changes the limit of deliveries back.
    project.set("nats.manage", false)?;
    let hand = Handmade::new(stack, &project)?;
    let placed = hand.place(&btc("2025-03-01"), &btc("2025-03-01").zip())?;
    hand.publish_marker(&btc("2025-03-01").unit(), &[placed])?;
    // The server's own limit is out of reach.
    hand.limit_deliveries("backfill-primary", 25)?;
    hand.spend_deliveries("backfill-primary", 25)?;

    let mut worker = project.spawn_puller(&["run"])?;
    let patience = Duration::from_secs(30);
    project.wait_until("the letter", patience, || Ok(listed_letters(&project, &[])?.len() == 1))?;
    let letter = &hand.dead_letters()?[0];
    assert_eq!((letter.class.as_str(), letter.subject.split('.').nth(1)), ("exhausted", Some("primary")));
    assert_eq!(project.archives_loaded()?, 0);
    let logged = "SELECT outcome, error_class, attempt FROM {db}.ingest_log FORMAT TSV";
    project.wait_until("the row", patience, || Ok(project.query(logged)?.trim() == "dead_letter\texhausted\t25"))?;

    // The same advisory again, one of a marker that is gone, and one that is nobody's.
    hand.advise("backfill-primary", 1)?;
    hand.advise("ingest-primary", 4711)?;
    hand.advise("somebody-elses", 1)?;
    project.wait_until("all advisories to be acked", patience, || Ok(hand.swept()? == Some(4)))?;
    assert_eq!(hand.dead_letters()?.len(), 1);

    project.puller(&["dead", "retry", "--all"])?.expect_code(0)?;
    project.wait_for_archives(1, patience)?;
    worker.drain(patience)?;
    expect_tables(&project, &["2025-03-01"])
}

/// A letter a worker has stored and one the sweeper would store are the same letter.
#[test]
fn worker_and_sweeper_write_one_letter() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "one-letter")?;
    let hand = Handmade::new(stack, &project)?;
    hand.publish(&btc("2025-03-01").unit(), b"{ this is not JSON")?;
    project.puller(&["pull"])?.expect_code(1)?;
    hand.advise("backfill-primary", 1)?;
    let mut worker = project.spawn_puller(&["run"])?;
    project.wait_until("the advisory to be acked", Duration::from_secs(30), || Ok(hand.swept()? == Some(1)))?;
    let classes: Vec<String> = hand.dead_letters()?.into_iter().map(|letter| letter.class).collect();
    assert_eq!(classes, ["malformed"]);
    worker.drain(Duration::from_secs(30))?;
    Ok(())
}
