//! How tables and views are, compared with how they must be.

use std::collections::HashMap;
use std::fmt;

use clickhouse::Row;
use serde::Deserialize;

use super::expected::{Table, tables, views};
use super::scripts::SCHEMA_MIGRATIONS;
use crate::clickhouse::client::{Warehouse, quoted};
use crate::error::clickhouse::{WarehouseError, WarehouseErrorKind};

/// Without these an acknowledged row may be in the server's cache only, or in a merged part that is.
const SYNC_SETTINGS: [&str; 4] = [
    "fsync_after_insert",
    "fsync_part_directory",
    "min_rows_to_fsync_after_merge",
    "min_compressed_bytes_to_fsync_after_merge",
];

/// Something about a table or view that is not as it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Defect {
    NoTable(&'static str),
    NoView(&'static str),
    NoColumn {
        table: &'static str,
        column: &'static str,
        type_name: &'static str,
    },
    /// There, and something else than ours.
    Differs {
        name: &'static str,
        what: String,
    },
}

impl fmt::Display for Defect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoTable(name) => write!(f, "table {name} is missing"),
            Self::NoView(name) => write!(f, "view {name} is missing, or lacks columns"),
            Self::NoColumn { table, column, .. } => write!(f, "column {column} of table {table} is missing"),
            Self::Differs { name, what } => {
                write!(f, "{name} {what}: rename it, then `puller migrate` makes the right one")?;
                if matches!(*name, "klines" | "archives") {
                    write!(f, " and `puller verify --fix` loads its rows")?;
                }
                Ok(())
            }
        }
    }
}

impl Defect {
    /// Whether `migrate` mends it.
    pub(crate) fn is_mendable(&self) -> bool {
        !matches!(self, Self::Differs { .. })
    }

    /// Whether what is made again lacks something that was loaded.
    pub(crate) fn loses_rows(&self) -> bool {
        matches!(self, Self::NoTable("klines" | "archives") | Self::NoColumn { table: "klines" | "archives", .. })
    }

    pub(super) fn column_statement(&self) -> Option<String> {
        let Self::NoColumn { table, column, type_name } = self else { return None };
        Some(format!("ALTER TABLE {{database}}.{table} ADD COLUMN IF NOT EXISTS {column} {type_name}"))
    }
}

/// The schema as it was found.
#[derive(Debug, Default)]
pub(crate) struct FoundSchema {
    /// The newest version applied; 0 when none is, or nobody knows.
    pub version: usize,
    pub defects: Vec<Defect>,
    engines: Vec<String>,
    /// Rows of those of our tables that are there.
    rows: u64,
    /// Tables whose acknowledged rows a power cut may take, and the settings that are off.
    pub unsynced: Vec<String>,
}

impl FoundSchema {
    /// Whether none of the tables is there.
    pub(super) fn is_empty(&self) -> bool {
        self.engines.is_empty()
    }

    /// Whether something that was loaded is gone with a table or column of ours. Tables without a version and without a row
    /// are those that another worker is making, or did not live to make in full.
    pub(super) fn has_lost_rows(&self) -> bool {
        let is_ours = self.defects.iter().all(Defect::is_mendable);
        is_ours && (self.version > 0 || self.rows > 0) && self.defects.iter().any(Defect::loses_rows)
    }

    /// Whether the tables are on storage that several servers share, as ClickHouse Cloud's are.
    pub(crate) fn has_shared_storage(&self) -> bool {
        self.engines.iter().any(|engine| engine.starts_with("Shared"))
    }

    pub(crate) fn is_replicated(&self) -> bool {
        self.engines.iter().any(|engine| engine.starts_with("Replicated"))
    }
}

#[derive(Debug, Row, Deserialize)]
struct FoundTable {
    name: String,
    engine: String,
    engine_full: String,
    partition_key: String,
    sorting_key: String,
    rows: u64,
}

#[derive(Debug, Row, Deserialize)]
struct FoundColumn {
    table: String,
    name: String,
    type_name: String,
}

impl Warehouse {
    pub(crate) async fn inspect(&self) -> Result<FoundSchema, WarehouseError> {
        let database = quoted(self.database());
        let found: Vec<FoundTable> = self
            .select(&format!(
                "SELECT name, engine, engine_full, partition_key, sorting_key, toUInt64(ifNull(total_rows, 0)) AS rows \
                 FROM system.tables WHERE database = {database}"
            ))
            .await?;
        let columns: Vec<FoundColumn> = self
            .select(&format!("SELECT table, name, type AS type_name FROM system.columns WHERE database = {database}"))
            .await?;
        let by_name: HashMap<&str, &FoundTable> = found.iter().map(|table| (table.name.as_str(), table)).collect();
        let version = if by_name.contains_key(SCHEMA_MIGRATIONS) { self.applied_version().await? } else { 0 };
        let mut defects = Vec::new();
        let (mut engines, mut rows) = (Vec::new(), 0);
        let mut unsynced = Vec::new();
        let defaults = self.sync_defaults().await?;
        for table in tables() {
            match by_name.get(table.name) {
                None => defects.push(Defect::NoTable(table.name)),
                Some(found) => {
                    defects.extend(compare_table(&table, found));
                    defects.extend(compare_columns(&table, &columns));
                    engines.push(found.engine.clone());
                    rows += found.rows;
                    let off = settings_off(&found.engine_full, &defaults);
                    if !off.is_empty() && !found.engine.starts_with("Shared") {
                        unsynced.push(format!("{} ({} = 0)", table.name, off.join(" = 0, ")));
                    }
                }
            }
        }
        for view in views() {
            let has = |column: &&&str| columns.iter().any(|found| found.table == view.name && found.name == **column);
            match by_name.get(view.name) {
                Some(found) if found.engine != "View" => {
                    let what = format!("is a table of engine {}, and must be a view", found.engine);
                    defects.push(Defect::Differs { name: view.name, what });
                }
                Some(_) if view.columns.iter().all(|column| has(&column)) => {}
                Some(_) | None => defects.push(Defect::NoView(view.name)),
            }
        }
        if !by_name.contains_key(SCHEMA_MIGRATIONS)
            && defects.iter().all(|defect| !matches!(defect, Defect::NoTable(_)))
        {
            defects.push(Defect::NoTable(SCHEMA_MIGRATIONS));
        }
        Ok(FoundSchema { version, defects, engines, rows, unsynced })
    }

    async fn applied_version(&self) -> Result<usize, WarehouseError> {
        let version: u32 = self.select_one("SELECT max(version) FROM {database}.schema_migrations").await?;
        Ok(version as usize)
    }

    /// What tables have that say nothing of these settings.
    async fn sync_defaults(&self) -> Result<HashMap<String, String>, WarehouseError> {
        let names = SYNC_SETTINGS.map(quoted).join(", ");
        let sql = format!("SELECT name, value FROM system.merge_tree_settings WHERE name IN ({names})");
        match self.select::<(String, String)>(&sql).await {
            Ok(defaults) => Ok(defaults.into_iter().collect()),
            // A worker's user need not be allowed to: our tables have settings of their own.
            Err(error) if error.kind == WarehouseErrorKind::Denied => Ok(HashMap::new()),
            Err(error) => Err(error),
        }
    }
}

fn compare_table(table: &Table, found: &FoundTable) -> Option<Defect> {
    let differs = |what: String| Some(Defect::Differs { name: table.name, what });
    let engine = found.engine.strip_prefix("Replicated").or_else(|| found.engine.strip_prefix("Shared"));
    if engine.unwrap_or(&found.engine) != table.engine {
        return differs(format!("is of engine {}, and must be of {}", found.engine, table.engine));
    }
    // Replicated ones name a path and a replica before them.
    let arguments = found.engine_full.strip_prefix(&found.engine).and_then(|rest| rest.strip_prefix('('));
    let arguments = arguments.and_then(|rest| rest.split_once(')')).map_or("", |(arguments, _)| arguments);
    if !table.engine_arguments.is_empty() && !arguments.ends_with(table.engine_arguments) {
        return differs(format!("is a {}({arguments}), and must be one of ({})", found.engine, table.engine_arguments));
    }
    if found.sorting_key != table.sorting_key {
        return differs(format!("is ordered by ({}), and must be by ({})", found.sorting_key, table.sorting_key));
    }
    let by = |key: &str| if matches!(key, "" | "tuple()") { "nothing".to_owned() } else { key.to_owned() };
    let (is, must) = (by(&found.partition_key), by(table.partition_key));
    if is != must {
        return differs(format!("is partitioned by {is}, and must be by {must}"));
    }
    None
}

fn compare_columns(table: &Table, found: &[FoundColumn]) -> Vec<Defect> {
    let mut defects = Vec::new();
    for column in &table.columns {
        match found.iter().find(|found| found.table == table.name && found.name == column.name) {
            None => {
                defects.push(Defect::NoColumn { table: table.name, column: column.name, type_name: column.type_name });
            }
            Some(found) if plain(&found.type_name) != plain(column.type_name) => {
                let (is, must) = (&found.type_name, column.type_name);
                let what = format!("has a column {} of type {is}, and must have it of {must}", column.name);
                defects.push(Defect::Differs { name: table.name, what });
            }
            Some(_) => {}
        }
    }
    defects
}

/// A dictionary changes how a text is stored and nothing else.
fn plain(type_name: &str) -> &str {
    let inner = type_name.strip_prefix("LowCardinality(").and_then(|rest| rest.strip_suffix(')'));
    inner.unwrap_or(type_name)
}

fn settings_off(engine_full: &str, defaults: &HashMap<String, String>) -> Vec<&'static str> {
    let settings = engine_full.rsplit_once(" SETTINGS ").map_or("", |(_, settings)| settings);
    let value = |name: &str| {
        let own = settings.split(", ").find_map(|setting| setting.strip_prefix(name)?.strip_prefix(" = "));
        own.or_else(|| defaults.get(name).map(String::as_str)).unwrap_or("0")
    };
    SYNC_SETTINGS.into_iter().filter(|name| matches!(value(name), "0" | "false")).collect()
}

pub(crate) fn describe(defects: &[Defect]) -> String {
    defects.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(engine: &str, arguments: &str) -> FoundTable {
        let table = &tables()[0];
        FoundTable {
            name: table.name.into(),
            engine: engine.into(),
            engine_full: format!("{engine}({arguments}) PARTITION BY toYYYYMM(open_time) ORDER BY (exchange)"),
            partition_key: table.partition_key.into(),
            sorting_key: table.sorting_key.into(),
            rows: 0,
        }
    }

    #[test]
    fn a_replicated_table_is_ours_and_another_engine_is_not() {
        let table = &tables()[0];
        let check = |found: &FoundTable, expected: Option<&str>| {
            let defect = compare_table(table, found).map(|defect| defect.to_string());
            match expected {
                None => assert_eq!(defect, None),
                Some(text) => assert!(defect.as_ref().is_some_and(|defect| defect.contains(text)), "{defect:?}"),
            }
        };
        let ours = found("ReplacingMergeTree", "version, is_deleted");
        check(&ours, None);
        check(&found("ReplicatedReplacingMergeTree", "'/a', '{replica}', version, is_deleted"), None);
        check(&found("SharedReplacingMergeTree", "'/a', '{replica}', version, is_deleted"), None);
        check(&found("MergeTree", ""), Some("is of engine MergeTree, and must be of ReplacingMergeTree"));
        check(&found("ReplacingMergeTree", "version"), Some("must be one of (version, is_deleted)"));
        check(&FoundTable { sorting_key: "symbol".into(), ..ours }, Some("is ordered by (symbol)"));
        let ours = found("ReplacingMergeTree", "version, is_deleted");
        check(&FoundTable { partition_key: String::new(), ..ours }, Some("is partitioned by nothing"));
    }

    #[test]
    fn a_setting_of_the_table_outranks_the_servers() {
        let defaults = |value: &str| SYNC_SETTINGS.map(|name| (name.to_owned(), value.to_owned())).into();
        let check = |engine_full: &str, default, off: usize| {
            assert_eq!(settings_off(engine_full, &defaults(default)).len(), off, "{engine_full}");
        };
        check("MergeTree ORDER BY a SETTINGS index_granularity = 8192", "0", 4);
        check("MergeTree ORDER BY a SETTINGS index_granularity = 8192", "1", 0);
        let all = SYNC_SETTINGS.map(|name| format!("{name} = 1")).join(", ");
        check(&format!("MergeTree ORDER BY a SETTINGS {all}, index_granularity = 8192"), "0", 0);
        check("MergeTree ORDER BY a SETTINGS fsync_after_insert = 0, fsync_part_directory = 1", "1", 1);
        check("MergeTree ORDER BY a SETTINGS fsync_after_insert = true, fsync_part_directory = false", "1", 1);
    }

    #[test]
    fn a_dictionary_is_no_other_type() {
        let column = |name: &str, type_name: &str| FoundColumn {
            table: "klines".into(),
            name: name.into(),
            type_name: type_name.into(),
        };
        let table = &tables()[0];
        let mut columns: Vec<FoundColumn> =
            table.columns.iter().map(|expected| column(expected.name, expected.type_name)).collect();
        columns[0].type_name = "String".into();
        assert_eq!(compare_columns(table, &columns), []);
        columns[7].type_name = "Float64".into();
        columns.remove(8);
        let text = describe(&compare_columns(table, &columns));
        assert!(text.contains("column open of type Float64") || text.contains("of type Float64"), "{text}");
        assert!(text.contains("is missing"), "{text}");
    }
}
