//! Settings of tables that would drop rows.

use tests::Result;
use tests::data::{ArchiveSpec, Market, mark_all};
use tests::project::Project;
use tests::servers::Stack;

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
