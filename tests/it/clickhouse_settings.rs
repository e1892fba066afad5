//! Settings of tables that would drop rows, and settings of statements that follow from the tables' engines.

use std::time::Duration;

use tests::Result;
use tests::project::Project;
use tests::proxy::{Act, Fault};
use tests::servers::Stack;

use crate::scenario::{SOON, btc, proxy_of_clickhouse, ship};

/// As replicated and shared tables have it by default: blocks that were inserted before are dropped, deleted rows or not.
#[test]
fn deleted_rows_return_to_a_table_that_deduplicates_blocks() -> Result<()> {
    let project = Project::new(Stack::shared(), "deduplication")?;
    project.puller(&["migrate"])?.expect_code(0)?;
    for table in ["klines", "archives", "ingest_log"] {
        let window = "MODIFY SETTING non_replicated_deduplication_window = 1000";
        project.query(&format!("ALTER TABLE {{db}}.{table} {window}"))?;
    }
    ship(&project, [btc("2025-03-01")])?;
    project.check_tables(24)?;
    project.query("ALTER TABLE {db}.klines DELETE WHERE 1 SETTINGS mutations_sync = 2")?;
    project.puller(&["verify", "--fix"])?.expect_code(0)?;
    project.puller(&["pull"])?.expect_code(0)?;
    project.check_tables(24)?;
    let inserts = project.query("SELECT count() FROM {db}.ingest_log WHERE outcome = 'loaded'")?;
    assert_eq!(inserts.trim(), "2");
    Ok(())
}

/// Tables that several servers share are known by their engines, also by the worker that made them a moment ago.
#[test]
fn a_worker_reads_the_engines_of_the_tables_that_it_made() -> Result<()> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, "engines")?;
    let clickhouse = proxy_of_clickhouse(&mut project, stack)?;
    // Counted, not held up.
    let questions = Fault::with_words(&["match(engine,"], u64::MAX, Act::Hold(Duration::ZERO));
    clickhouse.set(questions);
    let mut worker = project.spawn_puller(&["run"])?;
    project.wait_until("a worker", SOON, || Ok(worker.is_ready()))?;
    // Once before there were tables, and after; more often on a machine on which a start is tried again.
    assert!(clickhouse.met() >= 2, "{} times", clickhouse.met());
    worker.drain(SOON).map(drop)
}
