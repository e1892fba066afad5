//! Settings of tables that would drop rows, and those of statements that follow from the tables.

use std::net::SocketAddr;
use std::time::Duration;

use tests::Result;
use tests::data::{ArchiveSpec, Market, mark_all};
use tests::project::Project;
use tests::proxy::{Act, Fault, Proxy};
use tests::servers::Stack;

const SOON: Duration = Duration::from_secs(60);

/// As replicated and shared tables have it by default: blocks that were inserted before are dropped, deleted rows or not.
#[test]
fn rows_that_were_deleted_come_back_to_a_table_that_remembers_blocks() -> Result<()> {
    let project = Project::new(Stack::shared(), "deduplication")?;
    project.puller(&["migrate"])?.expect_code(0)?;
    for table in ["klines", "archives", "ingest_log"] {
        let window = "MODIFY SETTING non_replicated_deduplication_window = 1000";
        project.query(&format!("ALTER TABLE {{db}}.{table} {window}"))?;
    }
    ArchiveSpec::new(Market::Spot, "BTCUSDT", "1h", "2025-03-01").write(project.data_dir())?;
    mark_all(project.data_dir())?;
    project.uploader(&["upload"])?.expect_code(0)?;
    project.puller(&["pull"])?.expect_code(0)?;
    project.check_tables()?;
    project.query("ALTER TABLE {db}.klines DELETE WHERE 1 SETTINGS mutations_sync = 2")?;
    project.puller(&["verify", "--fix"])?.expect_code(0)?;
    project.puller(&["pull"])?.expect_code(0)?;
    project.check_tables()?;
    let inserts = project.query("SELECT count() FROM {db}.ingest_log WHERE outcome = 'loaded'")?;
    assert_eq!(inserts.trim(), "2");
    Ok(())
}

/// Tables that several servers share are known by their engines, also by the worker that made them a moment ago.
#[test]
fn a_worker_looks_at_the_engines_of_the_tables_that_it_has_made() -> Result<()> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, "engines")?;
    let clickhouse = Proxy::start(SocketAddr::from(([127, 0, 0, 1], stack.clickhouse.port())))?;
    project.set("clickhouse.port", clickhouse.address().port())?;
    // Counted, not held up.
    let questions = Fault::with_words(&["match(engine,"], u64::MAX, Act::Hold(Duration::ZERO));
    clickhouse.set(questions);
    let mut worker = project.spawn_puller(&["run"])?;
    project.wait_until("a worker", SOON, || {
        Ok(tests::http::get(worker.http(), "/readyz").is_ok_and(|ready| ready.status == 200))
    })?;
    // Once before there were tables, and after; more often on a machine on which a start is tried again.
    assert!(clickhouse.met() >= 2, "{} times", clickhouse.met());
    worker.sigterm()?;
    worker.wait(SOON)?.expect_code(0).map(drop)
}
