//! `puller verify` finds rows that are not those of the archives, and has exactly their archives loaded again.

use std::time::Duration;

use serde_json::Value;
use tests::data::{ArchiveSpec, Market, mark_all};
use tests::project::Project;
use tests::servers::Stack;
use tests::{Context, Result};

use crate::handmade::Handmade;
use crate::scenario::{DAYS, SYMBOLS, hours, is_found, ship, three_units, unit_of, units_found, upload};

/// Whatever somebody did to the rows: it is found, and what is loaded again is what was wrong and nothing else.
#[test]
fn verify_finds_changed_rows_and_loads_only_their_archives() -> Result<()> {
    let project = Project::new(Stack::shared(), "rows-deleted")?;
    ship(&project, three_units())?;
    let all = project.puller(&["verify", "--verbose", "--json"])?.expect_code(0)?.json()?;
    assert_eq!(units_found(&all, "verified").len(), 3, "{all:#}");
    let one = hours(SYMBOLS[0], DAYS[1]);
    for (harm, archives, rows) in [
        ("DELETE FROM {db}.klines WHERE symbol = 'BTCUSDT' AND toStartOfHour(open_time) = '2025-03-02 05:00:00'", 1, 1),
        ("DELETE FROM {db}.klines WHERE symbol = 'BTCUSDT' AND toDate(open_time) = '2025-03-02'", 1, 24),
        ("ALTER TABLE {db}.klines DROP PARTITION 202503", 6, 24),
        ("TRUNCATE TABLE {db}.klines", 6, 24),
        (
            "ALTER TABLE {db}.klines UPDATE close = close + 1 WHERE symbol = 'BTCUSDT' \
             AND toDate(open_time) = '2025-03-02' SETTINGS mutations_sync = 2",
            1,
            0,
        ),
        (
            "INSERT INTO {db}.klines SELECT * REPLACE (close + 1 AS close) FROM {db}.klines FINAL \
             WHERE symbol = 'BTCUSDT' AND toDate(open_time) = '2025-03-02' SETTINGS insert_deduplicate = 0",
            1,
            0,
        ),
    ] {
        project.query(harm)?;
        let found = project.puller(&["verify", "--json"])?.expect_code(4)?.json()?;
        let wrong = units_found(&found, "wrong");
        assert_eq!(wrong.len(), archives, "{harm}\n{found:#}");
        assert!(wrong.contains(&one.unit()), "{harm}\n{found:#}");
        assert!(is_found(&found, &format!("{rows} rows missing")), "{harm}\n{found:#}");
        let narrowed = project.puller(&["verify", "--unit", &unit_of(DAYS[1]), "--json"])?.expect_code(4)?.json()?;
        assert_eq!(narrowed["destinations"][0]["units"], 1, "{narrowed}");
        assert_eq!(narrowed["findings"][0]["missing_rows"], rows, "{narrowed}");

        let before = rows_loaded(&project)?;
        let fixed = project.puller(&["verify", "--fix", "--json"])?.expect_code(0)?.json()?;
        assert_eq!(fixed["destinations"][0]["archives_sent"], archives, "{harm}\n{fixed:#}");
        // Asked twice, it is loaded once.
        project.puller(&["verify", "--fix"])?.expect_code(0)?;
        project.puller(&["pull"])?.expect_code(0)?;
        assert_eq!(rows_loaded(&project)? - before, 24 * archives as u64, "{harm}");
        project.puller(&["verify"])?.expect_code(0)?;
        project.check_tables(144)?;
    }
    Ok(())
}

fn rows_loaded(project: &Project) -> Result<u64> {
    let rows = project.query("SELECT sum(rows) FROM {db}.ingest_log")?;
    rows.trim().parse().context(rows)
}

#[test]
fn verify_loads_units_that_are_not_loaded() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "not-loaded")?;
    let hand = Handmade::new(stack, &project)?;
    upload(&project, three_units())?;
    // Announced, and nobody has pulled: found, and explained.
    let pending = project.puller(&["verify", "--to", DAYS[1], "--json"])?.expect_code(4)?.json()?;
    assert_eq!(units_found(&pending, "not_loaded"), [unit_of(DAYS[0]), unit_of(DAYS[1])], "{pending:#}");
    project.puller(&["pull"])?.expect_code(0)?;
    project.puller(&["verify"])?.expect_code(0)?;

    // The ledger has lost an archive, with its rows; a worker that runs brings it back.
    project.query("DELETE FROM {db}.archives WHERE symbol = 'ETHUSDT' AND period = '2025-03-02'")?;
    project.query("DELETE FROM {db}.klines WHERE symbol = 'ETHUSDT' AND toDate(open_time) = '2025-03-02'")?;
    let mut worker = project.spawn_puller(&["run"])?;
    let before = rows_loaded(&project)?;
    project.puller(&["verify", "--fix", "--wait"])?.expect_code(0)?;
    assert_eq!(rows_loaded(&project)? - before, 24);
    worker.drain(Duration::from_secs(30))?;
    project.check_tables(144)?;

    // Everything is lost but the stream: the ids of what was sent before do not stand in the way.
    for _ in 0..2 {
        project.query("DROP DATABASE {db} SYNC")?;
        let found = project.puller(&["verify"])?.expect_code(4)?;
        assert!(found.stderr.contains("run `puller migrate`"), "{}", found.stderr);
        project.puller(&["verify", "--fix"])?.expect_code(0)?;
        let found = project.puller(&["verify", "--json"])?.expect_code(4)?.json()?;
        assert_eq!(units_found(&found, "not_loaded").len(), 3, "{found:#}");
        project.puller(&["pull"])?.expect_code(0)?;
        project.puller(&["verify"])?.expect_code(0)?;
        project.check_tables(144)?;
    }

    // An archive that has to be looked at and is not in the bucket cannot be checked, and is named.
    project.query("DELETE FROM {db}.klines WHERE symbol = 'ETHUSDT' AND toHour(open_time) = 5")?;
    let lost = format!("{}/{}", project.prefix(), hours("ETHUSDT", DAYS[0]).path());
    hand.delete(&lost)?;
    let found = project.puller(&["verify", "--json"])?.expect_code(4)?.json()?;
    assert_eq!(units_found(&found, "not_checked"), [unit_of(DAYS[0])], "{found:#}");
    assert!(is_found(&found, &format!("{lost}: it is not in the bucket")), "{found:#}");
    project.puller(&["verify", "--fix"])?.expect_code(1)?;

    project.puller(&["verify", "--destination", "nowhere"])?.expect_code(2)?;
    project.puller(&["verify", "--unit", "binance/spot/klines/1h/2020-01-01"])?.expect_code(4)?;
    Ok(())
}

#[test]
fn verify_distinguishes_an_unreachable_server_from_a_difference() -> Result<()> {
    let mut project = Project::new(Stack::shared(), "recovery-away")?;
    let none = project.puller(&["verify"])?.expect_code(4)?;
    assert!(none.stderr.contains("run `uploader reconcile --fix`"), "{}", none.stderr);
    project.uploader(&["reconcile"])?.expect_code(4)?;
    upload(&project, three_units())?;
    // Nobody but the operator makes the stream where that is so.
    project.set("nats.manage", false)?;
    project.uploader(&["reconcile", "--fix"])?.expect_code(0)?;
    project.puller(&["verify", "--fix"])?.expect_code(4)?;
    for (key, binaries) in [
        ("clickhouse.port", &["puller"][..]),
        ("nats.url", &["puller", "uploader"]),
        ("storage.r2.endpoint", &["uploader"]),
    ] {
        let before = key.split('.').fold(project.config(), |config, part| &config[part]).clone();
        let away = match key {
            "clickhouse.port" => 9.into(),
            "nats.url" => Value::from("nats://127.0.0.1:9"),
            _ => "http://127.0.0.1:9".into(),
        };
        project.set(key, away)?;
        for binary in binaries {
            let ended =
                if *binary == "puller" { project.puller(&["verify"])? } else { project.uploader(&["reconcile"])? };
            ended.expect_code(3)?;
        }
        project.set(key, before)?;
    }
    Ok(())
}

/// Rows that a later archive replaced, or a correction took away, are not missing.
#[test]
fn verify_accepts_rows_replaced_by_a_later_archive() -> Result<()> {
    let project = Project::new(Stack::shared(), "replaced")?;
    ship(&project, three_units())?;
    hours(SYMBOLS[0], DAYS[0]).seed(1).missing([3]).generated_at("2025-03-05T00:00:00Z").write(project.data_dir())?;
    let monthly = ArchiveSpec::new(Market::Spot, SYMBOLS[0], "1h", "2025-03").seed(2).missing(0..30);
    monthly.generated_at("2025-04-07T00:00:00Z").write(project.data_dir())?;
    mark_all(project.data_dir())?;
    project.uploader(&["upload"])?.expect_code(0)?;
    project.puller(&["pull"])?.expect_code(0)?;
    let right = project.puller(&["verify", "--json"])?.expect_code(0)?.json()?;
    let destination = &right["destinations"][0];
    assert_eq!((&destination["units"], &destination["archives"]["verified"]), (&4.into(), &7.into()), "{right:#}");
    // A daily's own rows, of which the monthly has replaced some.
    project.query("DELETE FROM {db}.klines WHERE symbol = 'BTCUSDT' AND toDate(open_time) = '2025-03-02'")?;
    let found = project.puller(&["verify", "--json"])?.expect_code(4)?.json()?;
    assert_eq!(units_found(&found, "wrong").len(), 2, "{found:#}");
    project.puller(&["verify", "--fix"])?.expect_code(0)?;
    project.puller(&["pull"])?.expect_code(0)?;
    project.puller(&["verify"])?.expect_code(0).map(drop)
}
