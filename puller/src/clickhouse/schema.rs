//! The tables and views of a ClickHouse destination: how they must be, how they are, and making them so.
//!
//! What is missing is told from the tables themselves, not only from `schema_migrations`: a restore of some of the tables,
//! a slip or another program may have taken one away. All that is missing is made again; what is there and different is
//! never changed, only explained.

mod expected;
mod inspect;
mod scripts;

use expected::{statements, view_name};
pub(crate) use inspect::{Defect, FoundSchema, describe};
use scripts::{SCHEMA_MIGRATIONS_TABLE, SCRIPTS};

use crate::clickhouse::client::Warehouse;
use crate::error::clickhouse::{WarehouseError, WarehouseErrorKind};

/// What opening a destination does where tables are missing.
#[derive(Debug, Clone, Copy)]
pub(crate) enum MissingTables {
    Make,
    /// A command that only looks changes nothing.
    Refuse,
}

/// What [`Warehouse::migrate`] did, and what it could not do.
#[derive(Debug, Default)]
pub(crate) struct Migrated {
    /// Versions that were not applied before.
    pub applied: usize,
    /// What was missing although its version was applied, and is there again.
    pub mended: Vec<Defect>,
    /// What a person must look at.
    pub left: Vec<Defect>,
}

impl Warehouse {
    /// Makes what is missing of the database, its tables, columns and views.
    ///
    /// # Errors
    /// The server refuses a statement, or something is missing of a schema that is newer than this program's.
    pub(crate) async fn migrate(&self) -> Result<Migrated, WarehouseError> {
        // Looked at first: where nothing is missing, nothing is asked for that takes the right to change tables.
        let before = self.inspect().await?;
        let newest = SCRIPTS.len();
        if before.version > newest {
            return self.leave_newer_schema(before);
        }
        // Beside a table that is not ours, what is missing could not be made: a view is of its columns.
        let is_foreign = before.defects.iter().any(|defect| !defect.is_mendable());
        if is_foreign || before.version == newest && before.defects.is_empty() {
            return Ok(Migrated { left: before.defects, ..Migrated::default() });
        }
        self.execute("CREATE DATABASE IF NOT EXISTS {database}").await?;
        self.execute(SCHEMA_MIGRATIONS_TABLE).await?;
        for sql in before.defects.iter().filter_map(Defect::column_statement) {
            self.execute(&sql).await?;
        }
        for statement in migration(before.version, before.has_shared_storage()) {
            self.execute(statement).await?;
        }
        for version in before.version + 1..=newest {
            self.execute(&format!("INSERT INTO {{database}}.schema_migrations (version) VALUES ({version})")).await?;
        }
        let after = self.inspect().await?;
        let is_new = before.is_empty();
        let mended = before.defects.into_iter().filter(|defect| !is_new && !after.defects.contains(defect)).collect();
        Ok(Migrated { applied: newest - before.version, mended, left: after.defects })
    }

    /// The same for a worker: what was made again is logged, and what is left stops it.
    ///
    /// # Errors
    /// `MissingSchema` also where rows were lost with a table or column: made again, empty, it would hide the loss, since
    /// neither the ledger nor the queue knows of it. An operator's `puller migrate` makes it, and is told what follows.
    pub(crate) async fn prepare_tables(&self) -> Result<(), WarehouseError> {
        self.inspect().await?.refuse_lost_rows()?;
        let migrated = match self.migrate().await {
            Ok(migrated) => migrated,
            // Only people read the views.
            Err(error) if error.kind == WarehouseErrorKind::Denied && self.lacks_only_views().await? => {
                tracing::warn!(%error, "a view is missing; an operator's `puller migrate` makes it");
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        migrated.log(self.database());
        match migrated.left.as_slice() {
            [] => Ok(()),
            left => Err(WarehouseError::of_kind(WarehouseErrorKind::MissingSchema, describe(left))),
        }
    }

    /// The same for a command that reads `klines` and `archives`: it makes nothing, and needs nothing else.
    ///
    /// # Errors
    /// `MissingSchema`: one of them, or a column of it, is not there, or is not ours.
    pub(crate) async fn check_tables(&self) -> Result<(), WarehouseError> {
        let found = self.inspect().await?;
        found.refuse_lost_rows()?;
        let is_newer = found.is_newer();
        let breaks = |defect: &Defect| defect.loses_rows() || !is_newer && !defect.is_mendable();
        match found.defects.into_iter().filter(breaks).collect::<Vec<_>>().as_slice() {
            [] => Ok(()),
            broken => Err(WarehouseError::of_kind(WarehouseErrorKind::MissingSchema, describe(broken))),
        }
    }

    async fn lacks_only_views(&self) -> Result<bool, WarehouseError> {
        let found = self.inspect().await?;
        Ok(found.versions_missing() == 0 && found.defects.iter().all(|defect| matches!(defect, Defect::NoView(_))))
    }

    fn leave_newer_schema(&self, found: FoundSchema) -> Result<Migrated, WarehouseError> {
        let missing: Vec<Defect> = found.defects.into_iter().filter(Defect::is_mendable).collect();
        if missing.is_empty() {
            return Ok(Migrated::default());
        }
        let message = format!(
            "{}; the schema is of version {}, newer than this program's {}: run `puller migrate` of that version",
            describe(&missing),
            found.version,
            SCRIPTS.len()
        );
        Err(WarehouseError::of_kind(WarehouseErrorKind::MissingSchema, message))
    }

    /// What is wrong with the tables as far as it concerns what was loaded, a line each.
    ///
    /// # Errors
    /// `MissingSchema` also where nobody asked for the table, or the column, that is not there.
    pub(crate) async fn warnings(&self) -> Result<Vec<String>, WarehouseError> {
        let mut found = self.inspect().await?;
        if found.is_newer() {
            found.defects.retain(Defect::is_mendable);
        }
        if found.has_lost_rows() {
            let lost: Vec<Defect> = found.defects.into_iter().filter(Defect::loses_rows).collect();
            return Err(WarehouseError::of_kind(WarehouseErrorKind::MissingSchema, describe(&lost)));
        }
        if !found.defects.is_empty() {
            return Ok(vec![format!("{} (run `puller doctor`)", describe(&found.defects))]);
        }
        let mut warnings = Vec::new();
        if !found.unsynced.is_empty() {
            let tables = found.unsynced.join("; ");
            warnings.push(format!("a power cut can take acknowledged rows: {tables} (run `puller doctor`)"));
        }
        if self.has_lost_all_rows().await? {
            warnings.push("klines is empty, and the ledger names archives: run `puller verify --fix`".to_owned());
        }
        Ok(warnings)
    }

    /// Whether the ledger names archives while there is no row at all, as after a restore of some of the tables.
    pub(crate) async fn has_lost_all_rows(&self) -> Result<bool, WarehouseError> {
        const ONE_OF: &str = "SELECT count() FROM (SELECT 1 FROM {database}";
        let rows: u64 = self.select_one(&format!("{ONE_OF}.klines LIMIT 1)")).await?;
        Ok(rows == 0 && self.select_one::<u64>(&format!("{ONE_OF}.archives WHERE rows > 0 LIMIT 1)")).await? > 0)
    }
}

impl Migrated {
    /// Says what was made again, and what follows from it.
    pub(crate) fn log(&self, database: &str) {
        for defect in &self.mended {
            tracing::warn!(database, "{defect}: made again");
        }
        if self.mended.iter().any(Defect::loses_rows) {
            tracing::warn!(database, "what was lost with it is not loaded again by itself: run `puller verify --fix`");
        }
    }
}

impl FoundSchema {
    /// Whether a later version of this program has changed the tables.
    pub(crate) fn is_newer(&self) -> bool {
        self.version > SCRIPTS.len()
    }

    /// Where rows were lost with a table or column, an operator must act first.
    fn refuse_lost_rows(&self) -> Result<(), WarehouseError> {
        if self.is_newer() || !self.has_lost_rows() {
            return Ok(());
        }
        let lost: Vec<Defect> = self.defects.iter().filter(|defect| defect.loses_rows()).cloned().collect();
        let message = format!(
            "{}, and what was loaded is lost with it: run `puller migrate`, then `puller verify --fix`",
            describe(&lost)
        );
        Err(WarehouseError::of_kind(WarehouseErrorKind::MissingSchema, message))
    }

    /// What is promised of acknowledged rows, where all tables are as they must be.
    pub(crate) fn promise(&self) -> &'static str {
        if self.has_shared_storage() {
            "rows are in shared storage before they are acknowledged"
        } else if self.is_replicated() {
            "rows are on the disk of the server that took them before they are acknowledged; let clickhouse.host name one \
             server, no balancer, unless inserts wait for a quorum (insert_quorum)"
        } else {
            "rows are on disk before they are acknowledged"
        }
    }

    /// Versions that are still to be applied.
    pub(crate) fn versions_missing(&self) -> usize {
        SCRIPTS.len().saturating_sub(self.version)
    }
}

/// The statements that bring a schema of this version to the newest one, and make what it lacks, in their order.
fn migration(version: usize, has_shared_storage: bool) -> Vec<&'static str> {
    let all: Vec<(usize, &'static str)> = SCRIPTS
        .into_iter()
        .enumerate()
        .flat_map(|(index, script)| statements(script).map(move |statement| (index, statement)))
        .collect();
    let runs = |(at, (index, statement)): (usize, &(usize, &'static str))| {
        // Run again only where it is new: what an operator has set since is not taken back. Where storage is shared
        // (ClickHouse Cloud) there is no disk of the server's to sync to.
        let is_setting = statement.contains(" MODIFY SETTING ");
        let is_not_to_be_set = is_setting && (*index < version || has_shared_storage);
        // Only the last definition of a view: a reader never meets a former one, nor does one stay after a death in between.
        let is_replaced = view_name(statement)
            .is_some_and(|name| all[at + 1..].iter().any(|(_, later)| view_name(later) == Some(name)));
        (!is_not_to_be_set && !is_replaced).then_some(*statement)
    };
    all.iter().enumerate().filter_map(runs).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_each_view_only_the_last_definition_is_run() {
        for version in 0..=SCRIPTS.len() {
            let statements = migration(version, false);
            let mut names: Vec<&str> = statements.iter().filter_map(|statement| view_name(statement)).collect();
            names.sort_unstable();
            assert_eq!(names, ["coverage", "klines_latest"], "from version {version}");
            let has = |text: &str| statements.iter().any(|statement| statement.contains(text));
            assert!(has("bitAnd(klines.version, 281474976710655)") && has("AS phase"), "from version {version}");
        }
        let settings = |version, shared| {
            migration(version, shared).iter().filter(|statement| statement.contains(" MODIFY SETTING ")).count()
        };
        assert_eq!((settings(0, false), settings(0, true), settings(SCRIPTS.len(), false)), (4, 0, 0));
    }
}
