//! Tables, views and columns that were dropped or replaced are named, made again or explained.

use tests::project::Project;
use tests::servers::Stack;
use tests::{Context, Result};

use crate::handmade::Handmade;
use crate::scenario::{SOON, hours, is_checked, upload};

const UNIT: &str = "binance/spot/klines/1h/2025-03-01";
const KEY: &str = "(exchange, market, dataset, interval, symbol, open_time)";

fn upload_day(project: &Project, day: &str) -> Result<()> {
    upload(project, ["BTCUSDT", "ETHUSDT"].map(|symbol| hours(symbol, day)))
}

#[test]
fn dropped_tables_views_and_columns_are_named_and_made_again() -> Result<()> {
    let project = Project::new(Stack::shared(), "dropped")?;
    project.puller(&["migrate"])?.expect_code(0)?;
    upload_day(&project, "2025-03-01")?;
    upload_day(&project, "2025-03-02")?;
    project.puller(&["pull"])?.expect_code(0)?;
    for (statement, named, loses) in [
        ("DROP TABLE {db}.klines SYNC", "table klines is missing", true),
        ("DROP TABLE {db}.archives SYNC", "table archives is missing", true),
        ("DROP TABLE {db}.ingest_log SYNC", "table ingest_log is missing", false),
        ("DROP TABLE {db}.schema_migrations SYNC", "table schema_migrations is missing", false),
        ("DROP VIEW {db}.klines_latest", "view klines_latest is missing", false),
        ("DROP VIEW {db}.coverage", "view coverage is missing", false),
        ("ALTER TABLE {db}.klines DROP COLUMN trades", "column trades of table klines is missing", true),
        ("ALTER TABLE {db}.archives DROP COLUMN sha256", "column sha256 of table archives is missing", true),
        ("ALTER TABLE {db}.ingest_log DROP COLUMN error", "column error of table ingest_log is missing", false),
    ] {
        project.query(statement)?;
        let doctor = project.puller(&["doctor", "--json"])?.expect_code(4)?.json()?;
        assert!(is_checked(&doctor, named), "{statement}: {doctor:#}");
        // As to the commands that read the rows.
        project.puller(&["status"])?.expect_code(if loses { 4 } else { 0 })?;
        // This one reads the other tables, too.
        let is_view = named.starts_with("view");
        let explain = project.puller(&["explain", UNIT])?.expect_code(if is_view { 0 } else { 4 })?;
        assert_eq!(explain.stdout.contains("verified"), is_view, "{statement}: {}", explain.stdout);
        assert!(!loses || explain.stderr.contains(named), "{statement}: {}", explain.stderr);
        let migrate = project.puller(&["migrate"])?.expect_code(0)?;
        assert!(
            migrate.stderr.lines().any(|line| line.contains(named) && line.contains("made again")),
            "{}",
            migrate.stderr
        );
        if loses {
            assert!(migrate.stderr.contains("run `puller verify --fix`"), "{statement}: {}", migrate.stderr);
            project.puller(&["verify"])?.expect_code(4)?;
            project.puller(&["verify", "--fix"])?.expect_code(0)?;
            project.puller(&["pull"])?.expect_code(0)?;
        }
        project.puller(&["verify"])?.expect_code(0)?;
        project.puller(&["doctor"])?.expect_code(0)?;
        project.check_tables(96)?;
    }
    Ok(())
}

/// A look changes nothing, whatever is missing.
#[test]
fn commands_that_only_read_make_no_database_table_or_view() -> Result<()> {
    let project = Project::new(Stack::shared(), "look-only")?;
    upload_day(&project, "2025-03-01")?;
    let hints = project.dir().join("_ingested");
    std::fs::create_dir(&hints).context("a folder")?;
    std::fs::write(hints.join("_SUCCESS__2025-03-01__spot__1h"), "").context("a hint")?;
    let adopt = ["adopt", "--dry-run", "--ingested", hints.to_str().unwrap_or_default()];
    let names = "SELECT name FROM system.tables WHERE database = '{db}' ORDER BY name FORMAT TSV";
    project.query("DROP DATABASE IF EXISTS {db} SYNC")?;
    for args in [&["verify"][..], &adopt] {
        let ended = project.puller(&[args, &["--json"]].concat())?.expect_code(4)?.json()?;
        let error = (&ended["error"]["class"], &ended["error"]["advice"]);
        assert_eq!(error, (&"missing".into(), &"run `puller migrate`".into()), "{args:?}: {ended}");
        let databases = "SELECT count() FROM system.databases WHERE name = '{db}' FORMAT TSV";
        assert_eq!(project.query(databases)?.trim(), "0", "{args:?}");
    }
    project.puller(&["migrate"])?.expect_code(0)?;
    project.puller(&["pull"])?.expect_code(0)?;
    project.query("DROP VIEW {db}.coverage")?;
    project.query("DROP TABLE {db}.ingest_log SYNC")?;
    let before = project.query(names)?;
    project.puller(&["verify"])?.expect_code(0)?;
    project.puller(&adopt)?.expect_code(0)?;
    assert_eq!(project.query(names)?, before);
    project.query("RENAME TABLE {db}.klines TO {db}.elsewhere")?;
    for args in [&["verify"][..], &adopt] {
        let ended = project.puller(args)?.expect_code(4)?;
        assert!(ended.stderr.contains("table klines is missing"), "{args:?}: {}", ended.stderr);
    }
    project.query("RENAME TABLE {db}.elsewhere TO {db}.klines")?;
    project.puller(&["migrate"])?.expect_code(0)?;
    project.check_tables(48)
}

/// As a restore of some of the tables leaves it.
#[test]
fn rows_recorded_in_the_ledger_and_missing_are_loaded_again() -> Result<()> {
    let project = Project::new(Stack::shared(), "restored-empty")?;
    project.puller(&["migrate"])?.expect_code(0)?;
    upload_day(&project, "2025-03-01")?;
    project.puller(&["pull"])?.expect_code(0)?;
    project.query("TRUNCATE TABLE {db}.klines")?;
    for command in [&["doctor"][..], &["status"], &["explain", UNIT]] {
        let said = project.puller(command)?;
        assert!(said.stdout.contains("klines is empty"), "{command:?}: {}", said.stdout);
    }
    let verify = project.puller(&["verify", "--fix"])?.expect_code(0)?;
    assert!(verify.stdout.contains("none of its rows is there"), "{}", verify.stdout);
    project.puller(&["pull"])?.expect_code(0)?;
    project.puller(&["doctor"])?.expect_code(0)?;
    project.check_tables(48)
}

/// Made again by the worker, empty, the table would hide what is lost. The log holds nothing that was loaded.
#[test]
fn a_worker_waits_for_an_operator_where_loaded_rows_were_dropped() -> Result<()> {
    let project = Project::new(Stack::shared(), "dropped-under-worker")?;
    let mut worker = project.spawn_puller(&["run"])?;
    upload_day(&project, "2025-03-01")?;
    project.wait_for_archives(2, SOON)?;
    project.query("DROP TABLE {db}.ingest_log SYNC")?;
    upload_day(&project, "2025-03-02")?;
    worker.wait_for_line("table ingest_log is missing: made again", SOON)?;
    project.wait_for_archives(4, SOON)?;
    project.query("DROP TABLE {db}.klines SYNC")?;
    upload_day(&project, "2025-03-03")?;
    let named = "table klines is missing, and what was loaded is lost with it: run `puller migrate`, then `puller verify --fix`";
    worker.wait_for_line(named, SOON)?;
    // Nor does a command that would.
    let pull = project.puller(&["pull", "--max-wait", "20s"])?.expect_code(4)?;
    assert!(pull.stderr.contains(named), "{}", pull.stderr);
    let tables = "SELECT count() FROM system.tables WHERE database = '{db}' AND name = 'klines' FORMAT TSV";
    assert_eq!(project.query(tables)?.trim(), "0");
    project.puller(&["migrate"])?.expect_code(0)?;
    project.wait_for_archives(6, SOON)?;
    project.puller(&["verify", "--fix", "--wait"])?.expect_code(0)?;
    project.check_tables(144)?;
    worker.drain(SOON).map(drop)
}

#[test]
fn a_foreign_table_is_explained_and_causes_no_dead_letter() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "not-ours")?;
    let hand = Handmade::new(stack, &project)?;
    upload_day(&project, "2025-03-01")?;
    project.puller(&["pull"])?.expect_code(0)?;
    let month = "PARTITION BY toYYYYMM(open_time)";
    let engine = "ENGINE = ReplacingMergeTree(version, is_deleted)";
    for (number, (create, named)) in [
        (format!("AS {{db}}.ours ENGINE = MergeTree {month} ORDER BY {KEY}"), "is of engine MergeTree"),
        (
            format!("AS {{db}}.ours ENGINE = ReplacingMergeTree(version) {month} ORDER BY {KEY}"),
            "(version, is_deleted)",
        ),
        (format!("AS {{db}}.ours {engine} {month} ORDER BY (symbol, open_time)"), "is ordered by (symbol, open_time)"),
        (
            format!("AS {{db}}.ours {engine} PARTITION BY toDate(open_time) ORDER BY {KEY}"),
            "is partitioned by toDate(open_time)",
        ),
        (
            format!(
                "{engine} {month} ORDER BY {KEY} AS SELECT * REPLACE (toFloat64(open) AS open) FROM {{db}}.ours WHERE 0"
            ),
            "has a column open of type Float64",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        project.query("RENAME TABLE {db}.klines TO {db}.ours")?;
        project.query(&format!("CREATE TABLE {{db}}.klines {create}"))?;
        upload_day(&project, &format!("2025-03-{:02}", number + 2))?;
        let doctor = project.puller(&["doctor", "--json"])?.expect_code(4)?.json()?;
        assert!(is_checked(&doctor, named), "{create}: {doctor:#}");
        let migrate = project.puller(&["migrate"])?.expect_code(1)?;
        assert!(migrate.stderr.contains(named), "{create}: {}", migrate.stderr);
        let pull = project.puller(&["pull"])?.expect_code(4)?;
        assert!(pull.stderr.contains(named), "{create}: {}", pull.stderr);
        project.query("DROP TABLE {db}.klines SYNC")?;
        project.query("RENAME TABLE {db}.ours TO {db}.klines")?;
        project.puller(&["pull"])?.expect_code(0)?;
        project.check_tables(96)?;
    }

    // Replaced under a worker: it waits and says why, and goes on with the right one.
    let mut worker = project.spawn_puller(&["run"])?;
    worker.wait_for_line("working", SOON)?;
    project.query("RENAME TABLE {db}.klines TO {db}.ours")?;
    project.query(&format!("CREATE TABLE {{db}}.klines AS {{db}}.ours ENGINE = MergeTree {month} ORDER BY {KEY}"))?;
    project.query("ALTER TABLE {db}.klines DROP COLUMN trades")?;
    upload_day(&project, "2025-03-20")?;
    worker.wait_for_line("waiting, nothing is pulled meanwhile", SOON)?;
    worker.wait_for_line("is of engine MergeTree", SOON)?;
    assert_eq!(hand.dead_letters()?.len(), 0);
    project.query("DROP TABLE {db}.klines SYNC")?;
    project.query("RENAME TABLE {db}.ours TO {db}.klines")?;
    project.wait_until("all rows", SOON, || Ok(project.check_tables(336).is_ok()))?;
    worker.drain(SOON).map(drop)
}
