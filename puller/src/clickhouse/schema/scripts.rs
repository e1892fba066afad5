//! The scripts that make the schema.

/// The schema, one step a version; only ever appended to, and each step safe to run again.
pub(super) const SCRIPTS: [&str; 4] = [
    include_str!("../../../schema/0001_init.sql"),
    include_str!("../../../schema/0002_sync_to_disk.sql"),
    include_str!("../../../schema/0003_own_version.sql"),
    include_str!("../../../schema/0004_coverage.sql"),
];
pub(super) const SCHEMA_MIGRATIONS: &str = "schema_migrations";
pub(super) const SCHEMA_MIGRATIONS_TABLE: &str = "CREATE TABLE IF NOT EXISTS {database}.schema_migrations \
     (version UInt32, applied_at DateTime DEFAULT now()) ENGINE = ReplacingMergeTree ORDER BY version \
     SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, min_rows_to_fsync_after_merge = 1, \
     min_compressed_bytes_to_fsync_after_merge = 1";
