//! `puller adopt --ingested`: a hint only; archives whose rows are all there are recorded as loaded.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use tests::data::{ArchiveSpec, Market, mark_all};
use tests::project::Project;
use tests::servers::Stack;
use tests::{Context, Result};

use crate::handmade::Handmade;
use crate::scenario::{hours, ship};

const DAYS: [&str; 4] = ["2025-03-01", "2025-03-02", "2025-03-03", "2025-03-04"];
const SYMBOLS: [&str; 2] = ["BTCUSDT", "ETHUSDT"];

fn unit(day: &str) -> String {
    hours(SYMBOLS[0], day).unit()
}

/// Rows as a worker loads them, and nothing that says so: no ledger, and every marker still to be worked.
fn loaded_by_hand<'p>(stack: &Stack, project: &'p Project) -> Result<Handmade<'p>> {
    let hand = Handmade::new(stack, project)?;
    for day in DAYS {
        SYMBOLS.iter().try_for_each(|symbol| hours(symbol, day).write(project.data_dir()).map(drop))?;
    }
    mark_all(project.data_dir())?;
    project.uploader(&["upload"])?.expect_code(0)?;
    project.puller(&["pull"])?.expect_code(0)?;
    for table in ["archives", "ingest_log"] {
        project.query(&format!("TRUNCATE TABLE {{db}}.{table}"))?;
    }
    hand.delete_stream("MARKERS")?;
    project.uploader(&["reconcile", "--fix"])?.expect_code(0)?;
    project.puller(&["migrate"])?.expect_code(0)?;
    Ok(hand)
}

fn ingested(project: &Project, names: &[String]) -> Result<PathBuf> {
    let folder = project.dir().join("_ingested");
    for name in names {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap_or(&folder)).context("a folder")?;
        fs::write(path, "").context("a file")?;
    }
    Ok(folder)
}

/// Changes rows of one symbol and day, in place.
fn spoil(project: &Project, symbol: &str, day: &str, change: &str) -> Result<()> {
    let rows = format!("symbol = '{symbol}' AND toDate(open_time) = '{day}'");
    project
        .query(&format!("ALTER TABLE {{db}}.klines {} SETTINGS mutations_sync = 1", change.replace("{rows}", &rows)))?;
    Ok(())
}

fn adopt(project: &Project, more: &[&str], code: i32) -> Result<Value> {
    let folder = project.dir().join("_ingested");
    let args = [&["adopt", "--json", "--ingested", folder.to_str().unwrap_or_default()], more].concat();
    let answer = project.puller(&args)?.expect_code(code)?.json()?;
    let mut report = answer["destinations"][0].clone();
    report["findings"] = answer["findings"].clone();
    Ok(report)
}

/// `state unit symbol` of each finding.
fn findings(report: &Value) -> Vec<String> {
    let text = |finding: &Value, key: &str| finding[key].as_str().unwrap_or_default().to_owned();
    let line =
        |finding: &Value| format!("{} {} {}", text(finding, "state"), text(finding, "unit"), text(finding, "symbol"));
    report["findings"].as_array().into_iter().flatten().map(line).collect()
}

#[test]
fn complete_archives_are_adopted_and_the_rest_is_loaded() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "ingested")?;
    loaded_by_hand(stack, &project)?;
    // A row lacks, a value is another in its last digit.
    spoil(&project, "ETHUSDT", DAYS[1], "DELETE WHERE {rows} AND toHour(open_time) = 23")?;
    spoil(
        &project,
        "BTCUSDT",
        DAYS[2],
        "UPDATE volume = volume + toDecimal128('0.00000001', 8) WHERE {rows} AND toHour(open_time) = 7",
    )?;
    ingested(
        &project,
        &[
            format!("_SUCCESS__{}__spot__1h", DAYS[0]),
            format!("_SUCCESS__{}__spot__1h", DAYS[1]),
            hours("BTCUSDT", DAYS[2]).path(),
            // Flat, so that it could be of any market; and one symbol only: of the other nothing is said.
            format!("ETHUSDT-1h-{}.zip", DAYS[3]),
            "_SUCCESS__2024-01-01__um__1h".into(),
            "XRPUSDT-1h-2024-01-01.zip".into(),
            "yesterday.done".into(),
            // What `pull --no-ingest` leaves beside the archives.
            format!(".ferry/delivered/{}", hours("BTCUSDT", DAYS[2]).path()),
        ],
    )?;

    let preview = adopt(&project, &["--dry-run"], 4)?;
    assert_eq!((&preview["archives"]["adopted"], project.archives_loaded()?), (&4.into(), 0));

    let report = adopt(&project, &[], 4)?;
    assert_eq!(
        findings(&report),
        [
            "not_announced XRPUSDT-1h-2024-01-01.zip ".to_owned(),
            format!("differs {} ETHUSDT", unit(DAYS[1])),
            format!("differs {} BTCUSDT", unit(DAYS[2])),
            "not_announced binance/um/klines/1h/2024-01-01 ".to_owned(),
        ]
    );
    assert_eq!(report["not_understood"], serde_json::json!(["yesterday.done"]));
    let archives = &report["archives"];
    assert_eq!((&archives["adopted"], &archives["differ"], project.archives_loaded()?), (&4.into(), &2.into(), 4));
    let units = &report["units"];
    assert_eq!((&units["verified"], &units["differ"], &units["not_announced"]), (&2.into(), &2.into(), &2.into()));

    let again = adopt(&project, &[], 4)?;
    assert_eq!((&again["archives"]["adopted"], &again["archives"]["recorded_before"]), (&0.into(), &4.into()));

    // The workers load what differs and what nobody hinted at, and skip the rest.
    project.puller(&["pull"])?.expect_code(0)?;
    let counts = "SELECT sum(archives_loaded), sum(archives_skipped) FROM {db}.ingest_log FORMAT TSV";
    assert_eq!(project.query(counts)?.trim(), "4\t4");
    project.puller(&["verify"])?.expect_code(0)?;
    project.check_tables(192)
}

/// The right values are not enough: under a version of their own, rows would win against the wrong archives, or lose
/// against the right ones.
#[test]
fn rows_with_another_version_are_not_adopted() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "ingested-versions")?;
    loaded_by_hand(stack, &project)?;
    let move_version = |day: &str, by: &str| {
        let columns = "* REPLACE (version ";
        let rows = format!("toDate(open_time) = '{day}'");
        project.query(&format!(
            "CREATE TABLE {{db}}.moved ENGINE = Memory AS SELECT {columns} {by} AS version) FROM {{db}}.klines FINAL WHERE {rows}"
        ))?;
        project.query(&format!("ALTER TABLE {{db}}.klines DELETE WHERE {rows} SETTINGS mutations_sync = 1"))?;
        project.query("INSERT INTO {db}.klines SELECT * FROM {db}.moved")?;
        project.query("DROP TABLE {db}.moved").map(drop)
    };
    move_version(DAYS[0], "* 0")?;
    move_version(DAYS[1], "- 2000")?;
    move_version(DAYS[2], "+ 86400000")?;
    ingested(&project, &DAYS.map(|day| format!("_SUCCESS__{day}__spot__1h")))?;
    let report = adopt(&project, &[], 4)?;
    assert_eq!((&report["archives"]["adopted"], &report["archives"]["differ"]), (&2.into(), &6.into()));
    project.puller(&["pull"])?.expect_code(0)?;
    project.check_tables(192)?;

    // A stale month arrives last. Where rows are the archives' own, with their version, it changes nothing.
    let stale = ArchiveSpec::new(Market::Spot, "BTCUSDT", "1h", "2025-03").seed(8).generated_at("2025-03-01T12:00:00Z");
    ship(&project, [stale])?;
    project.check_tables(840)
}

#[test]
fn long_names_that_are_no_hints_fit_the_terminal() -> Result<()> {
    let project = Project::new(Stack::shared(), "ingested-long")?;
    project.puller(&["migrate"])?.expect_code(0)?;
    let long = "a-name-that-is-none-of-ours/".repeat(4);
    let flat = format!("{}USDT-1h-2024-01-01.zip", "LONG".repeat(20));
    let folder = ingested(&project, &[format!("{long}yesterday.done"), flat])?;
    let args = ["adopt", "--dry-run", "--ingested", folder.to_str().unwrap_or_default()];
    let ended = project.start("puller", &args, &[("COLUMNS", "80")])?.wait(Duration::from_secs(60))?.expect_code(4)?;
    assert!(ended.stdout.contains("? a-name-that-is-none"), "{}", ended.stdout);
    assert!(ended.stdout.contains("- LONGLONG"), "{}", ended.stdout);
    assert!(ended.stdout.lines().all(|line| line.chars().count() <= 80), "{}", ended.stdout);
    Ok(())
}

/// A unit that only the bucket knows, and a folder that is none.
#[test]
fn a_unit_known_only_to_the_bucket_is_adopted() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "ingested-no-stream")?;
    let hand = loaded_by_hand(stack, &project)?;
    hand.delete_stream("MARKERS")?;
    let folder = ingested(&project, &[format!("_SUCCESS__{}__spot__1h", DAYS[0])])?;
    let lost = ["adopt", "--dry-run", "--ingested", folder.to_str().unwrap_or_default()];
    let ended = project.puller(&lost)?.expect_code(4)?;
    assert!(ended.stderr.contains("there is no stream MARKERS"), "{}", ended.stderr);
    assert_eq!(ended.stdout, "");
    project.puller(&["migrate"])?.expect_code(0)?;
    let report = adopt(&project, &[], 0)?;
    assert_eq!(report["archives"]["adopted"], 2);
    let nowhere = project.puller(&["adopt", "--ingested", "/nowhere"])?.expect_code(2)?;
    assert!(nowhere.stderr.contains("--ingested: /nowhere cannot be read"), "{}", nowhere.stderr);
    Ok(())
}
