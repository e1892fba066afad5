//! How tables and views must be, read from the scripts that make them.

use super::scripts::SCRIPTS;

/// A table as the scripts make it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Table {
    pub name: &'static str,
    pub columns: Vec<Column>,
    pub engine: &'static str,
    /// What the engine is given: the columns that decide which of two rows of one key is shown.
    pub engine_arguments: &'static str,
    pub partition_key: &'static str,
    pub sorting_key: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Column {
    pub name: &'static str,
    pub type_name: &'static str,
}

pub(super) struct View {
    pub name: &'static str,
    pub columns: &'static [&'static str],
}

const VIEWS: [View; 2] = [
    View {
        name: "klines_latest",
        columns: &[
            "exchange",
            "market",
            "dataset",
            "interval",
            "symbol",
            "open_time",
            "close_time",
            "open",
            "high",
            "low",
            "close",
            "volume",
            "quote_volume",
            "taker_buy_volume",
            "taker_buy_quote_volume",
            "trades",
            "version",
        ],
    },
    View {
        name: "coverage",
        columns: &[
            "exchange",
            "market",
            "dataset",
            "interval",
            "period",
            "symbol",
            "rows",
            "expected_rows",
            "missing_rows",
            "state",
            "loaded_at",
        ],
    },
];

pub(super) fn views() -> &'static [View] {
    &VIEWS
}

/// The statements of a script, in their order, without comments before them.
pub(super) fn statements(script: &'static str) -> impl Iterator<Item = &'static str> {
    let statement = |text: &'static str| {
        let mut text = text.trim().trim_end_matches(';');
        while text.starts_with("--") {
            text = text.split_once('\n').map_or("", |(_, rest)| rest);
        }
        text
    };
    script.split(";\n").map(statement).filter(|statement| !statement.is_empty())
}

/// The view that a statement makes.
pub(super) fn view_name(statement: &str) -> Option<&str> {
    statement.strip_prefix("CREATE OR REPLACE VIEW {database}.")?.split_once(" AS\n").map(|(name, _)| name)
}

pub(super) fn tables() -> Vec<Table> {
    SCRIPTS.into_iter().flat_map(statements).filter_map(table).collect()
}

/// What a `CREATE TABLE` says; one column, and one clause of the engine, a line.
fn table(statement: &'static str) -> Option<Table> {
    let (name, rest) = statement.strip_prefix("CREATE TABLE IF NOT EXISTS {database}.")?.split_once(" (\n")?;
    let (columns, clauses) = rest.split_once("\n)\n")?;
    let columns = columns.lines().filter_map(column).collect();
    let clause = |name: &str| clauses.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    let engine = clause("ENGINE = ");
    let (engine, engine_arguments) = engine.trim_end_matches(')').split_once('(').unwrap_or((engine, ""));
    let sorting_key = clause("ORDER BY ").trim_start_matches('(').trim_end_matches(')');
    Some(Table { name, columns, engine, engine_arguments, partition_key: clause("PARTITION BY "), sorting_key })
}

/// `name Type(…) CODEC(…) COMMENT '…',`
fn column(line: &'static str) -> Option<Column> {
    let (name, rest) = line.trim().split_once(' ')?;
    let mut depth = 0_usize;
    let end = rest.char_indices().find(|(_, c)| {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth == 0 && matches!(c, ' ' | ',')
    });
    Some(Column { name, type_name: &rest[..end.map_or(rest.len(), |(end, _)| end)] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scripts_are_read_as_they_are_meant() {
        let tables = tables();
        assert_eq!(tables.iter().map(|table| table.name).collect::<Vec<_>>(), ["klines", "archives", "ingest_log"]);
        let klines = &tables[0];
        assert_eq!((klines.engine, klines.engine_arguments), ("ReplacingMergeTree", "version, is_deleted"));
        assert_eq!(klines.partition_key, "toYYYYMM(open_time)");
        assert_eq!(klines.sorting_key, "exchange, market, dataset, interval, symbol, open_time");
        assert_eq!(klines.columns.len(), 18);
        assert_eq!(klines.columns[5], Column { name: "open_time", type_name: "DateTime64(6, 'UTC')" });
        assert_eq!(klines.columns[11], Column { name: "volume", type_name: "Decimal(38, 8)" });
        let log = &tables[2];
        assert_eq!((log.engine, log.engine_arguments, log.sorting_key), ("MergeTree", "", "finished_at"));
        assert_eq!(log.columns[26], Column { name: "trace_id", type_name: "String" });
    }

    #[test]
    fn the_scripts_hold_nothing_else_than_is_read() {
        for statement in SCRIPTS.into_iter().flat_map(statements) {
            let is_known = table(statement).is_some()
                || view_name(statement).is_some_and(|name| VIEWS.iter().any(|view| view.name == name))
                || statement.starts_with("ALTER TABLE {database}.")
                    && (statement.contains(" MODIFY SETTING ") || statement.contains(" COMMENT COLUMN "));
            assert!(is_known, "inspecting the schema knows nothing of: {statement}");
        }
    }
}
