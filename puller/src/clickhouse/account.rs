//! What a ClickHouse account's profile, constraints and quota do to our statements.
//!
//! A profile may change what a statement answers: a cached answer, an answer cut short, rows that are only queued. What can
//! be set otherwise is set by each statement; what is fixed stops the work, by name. A profile may also limit what a
//! statement may take; that is never set otherwise, since somebody wanted it so, and `doctor` says which limits are too low.

use std::collections::HashMap;

use clickhouse::Row;
use serde::Deserialize;

use crate::clickhouse::client::{Warehouse, quoted};
use crate::clickhouse::overrides::Overrides;
use crate::clickhouse::read_back::check_hash_function;
use crate::error::clickhouse::{WarehouseError, WarehouseErrorKind};
use common::config::ClickHouse;

/// A setting that statements need.
struct Needed {
    name: &'static str,
    value: &'static str,
    /// Whether answers or rows would be wrong with another value; otherwise inserts would only take longer.
    matters: bool,
}

const fn needed(name: &'static str, value: &'static str) -> Needed {
    Needed { name, value, matters: true }
}

/// Said by every query, also by the one that asks for the others: a profile could cut its answer short.
const ALWAYS: [(&str, &str); 5] = [
    ("limit", "0"),
    ("offset", "0"),
    ("use_query_cache", "0"),
    ("read_overflow_mode", "throw"),
    ("result_overflow_mode", "throw"),
];

/// Every answer is to be whole, of now, and of the rows as they are stored.
const QUERIES: [Needed; 12] = [
    needed("final", "0"),
    needed("additional_table_filters", "{}"),
    needed("additional_result_filter", ""),
    needed("apply_deleted_mask", "1"),
    needed("empty_result_for_aggregation_by_empty_set", "0"),
    needed("skip_unavailable_shards", "0"),
    needed("read_overflow_mode_leaf", "throw"),
    needed("timeout_overflow_mode", "throw"),
    needed("group_by_overflow_mode", "throw"),
    needed("sort_overflow_mode", "throw"),
    needed("distinct_overflow_mode", "throw"),
    needed("set_overflow_mode", "throw"),
];

/// An answer is to say that the rows are stored, and rows that were deleted are to come back when they are sent again:
/// deduplication would drop them. Since 26.2 `deduplicate_insert` decides over `insert_deduplicate`. Statistics on insert and
/// collapsing on insert cost half of the insert's time and add nothing: a block holds no key twice, and merges and FINAL do
/// the rest.
const INSERTS: [Needed; 7] = [
    needed("async_insert", "0"),
    needed("wait_for_async_insert", "1"),
    needed("insert_deduplicate", "0"),
    needed("deduplicate_insert", "disable"),
    needed("distributed_foreground_insert", "1"),
    Needed { matters: false, ..needed("materialize_statistics_on_insert", "0") },
    Needed { matters: false, ..needed("optimize_on_insert", "0") },
];

/// Where several servers have the rows, a query is to see what was inserted by another one. On `Replicated…` tables it does
/// where inserts are of a quorum.
const SEQUENTIAL: Needed = needed("select_sequential_consistency", "1");

/// A limit, and the least it may be; 0 always means that there is none.
struct Limit {
    name: &'static str,
    least: f64,
}

const fn limit(name: &'static str, least: f64) -> Limit {
    Limit { name, least }
}

/// By what the largest statements take: `verify` reads millions of rows, an insert is of 50 months, a correction of a month
/// of seconds answers with all its times.
const LIMITS: [Limit; 19] = [
    limit("max_rows_to_read", 1e9),
    limit("max_bytes_to_read", 1e11),
    limit("max_rows_to_read_leaf", 1e9),
    limit("max_bytes_to_read_leaf", 1e11),
    limit("max_result_rows", 5e6),
    limit("max_result_bytes", 1e9),
    limit("max_rows_to_group_by", 5e6),
    limit("max_rows_to_sort", 5e6),
    limit("max_bytes_to_sort", 1e9),
    limit("max_rows_in_distinct", 1e5),
    limit("max_rows_in_set", 1e5),
    limit("max_bytes_in_set", 1e8),
    limit("max_columns_to_read", 30.0),
    limit("max_partitions_to_read", 1e4),
    limit("max_partitions_per_insert_block", 100.0),
    limit("max_ast_elements", 5e4),
    limit("max_execution_time", 120.0),
    limit("max_memory_usage", 1e9),
    limit("max_memory_usage_for_user", 1e9),
];

#[derive(Debug, Row, Deserialize)]
struct Setting {
    name: String,
    value: String,
    fixed: u8,
}

impl Warehouse {
    /// A connection for commands that only look: also for an account that may not set anything, or not write.
    pub(crate) async fn read_only(config: &ClickHouse) -> Result<Self, WarehouseError> {
        let mut warehouse = Self::new(config);
        warehouse.learn_overrides_read_only().await?;
        Ok(warehouse)
    }

    /// Checks that the server answers, that it computes row hashes as we do, and that this account may be relied on; learns
    /// what statements must say.
    pub(crate) async fn connect(&mut self) -> Result<String, WarehouseError> {
        self.learn_overrides().await?;
        let version: String = self.select_one("SELECT version()").await?;
        check_hash_function(self).await?;
        Ok(version)
    }

    /// Learns what statements must say at this server, for this account.
    ///
    /// # Errors
    /// The account's profile fixes something that rows or answers would be wrong with. What may be set otherwise is set then
    /// too.
    pub(crate) async fn learn_overrides(&mut self) -> Result<(), WarehouseError> {
        match self.learn_plan().await?.refusal() {
            None => Ok(()),
            Some(refusal) => Err(WarehouseError::of_kind(WarehouseErrorKind::AccountLimit, refusal)),
        }
    }

    /// The same for commands that only look: what an insert would need does not matter, and what a query needs and may not
    /// set is warned of.
    pub(crate) async fn learn_overrides_read_only(&mut self) -> Result<(), WarehouseError> {
        let fixed = self.learn_plan().await?.fixed_queries;
        if !fixed.is_empty() {
            tracing::warn!(
                "this account's profile fixes {}: answers may be wrong; take the constraint away",
                fixed.join("; ")
            );
        }
        Ok(())
    }

    async fn learn_plan(&mut self) -> Result<Plan, WarehouseError> {
        let mut names: Vec<&str> = QUERIES.iter().chain(&INSERTS).map(|needed| needed.name).collect();
        names.extend([SEQUENTIAL.name, "readonly"]);
        // The server tells the settings as the statement that asks has them: what was learnt before must not be among them.
        self.set_overrides(Overrides::default());
        let found = self.settings(&names).await?;
        let alone = plan(&found, false);
        self.set_overrides(alone.overrides.clone());
        let engines = format!(
            "SELECT count() FROM system.tables WHERE database = {} AND match(engine, '^(Replicated|Shared)')",
            quoted(self.database())
        );
        if self.select_one::<u64>(&engines).await? == 0 {
            return Ok(alone);
        }
        let shared = plan(&found, true);
        self.set_overrides(shared.overrides.clone());
        Ok(shared)
    }

    /// Limits of this account that the largest statements would meet, as `name = value`.
    pub(crate) async fn low_limits(&self) -> Result<Vec<String>, WarehouseError> {
        let names: Vec<&str> = LIMITS.iter().map(|limit| limit.name).collect();
        Ok(too_low(&self.settings(&names).await?))
    }

    async fn settings(&self, names: &[&str]) -> Result<HashMap<String, Setting>, WarehouseError> {
        let names = names.iter().copied().map(quoted).collect::<Vec<_>>().join(", ");
        // To say what is so already is allowed to everybody.
        let always = ALWAYS.map(|(name, value)| format!("{name} = {}", quoted(value))).join(", ");
        let sql = format!(
            "SELECT name, value, toUInt8(ifNull(readonly, 0)) AS fixed FROM system.settings WHERE name IN ({names}) \
             SETTINGS {always}"
        );
        let found: Vec<Setting> = self.select(&sql).await?;
        Ok(found.into_iter().map(|setting| (setting.name.clone(), setting)).collect())
    }
}

/// What statements will say, and what they would have to and may not.
#[derive(Debug, Default)]
struct Plan {
    overrides: Overrides,
    /// The profile's `readonly`, where that is not 0.
    readonly: Option<String>,
    fixed_queries: Vec<String>,
    fixed_inserts: Vec<String>,
}

impl Plan {
    /// Why a worker cannot work with this account.
    fn refusal(&self) -> Option<String> {
        if let Some(readonly) = &self.readonly {
            return Some(format!("this account is read-only: its profile has readonly = {readonly}"));
        }
        let fixed = [self.fixed_queries.as_slice(), &self.fixed_inserts].concat();
        let fixed = Some(fixed).filter(|fixed| !fixed.is_empty())?;
        Some(format!("this account's profile fixes {}: take the constraint away", fixed.join("; ")))
    }
}

/// Beside what every query says, only what differs, and only to a server that knows it: others refuse it.
fn plan(found: &HashMap<String, Setting>, shared: bool) -> Plan {
    let readonly = found.get("readonly").map(|readonly| readonly.value.clone()).filter(|readonly| readonly != "0");
    // With readonly = 1 nothing may be set, with 2 everything else.
    let may_set = readonly.as_deref() != Some("1");
    let differing = |needed: &Needed, fixed: &mut Vec<String>| {
        let setting = found.get(needed.name).filter(|setting| setting.value != needed.value)?;
        if may_set && setting.fixed == 0 {
            return Some((needed.name, needed.value));
        }
        if needed.matters {
            fixed.push(format!("{} = {}, where {} is needed", needed.name, shown(&setting.value), shown(needed.value)));
        }
        None
    };
    let mut plan = Plan { readonly, ..Plan::default() };
    let of_queries = QUERIES.iter().chain(shared.then_some(&SEQUENTIAL));
    let queries: Vec<_> = of_queries.filter_map(|needed| differing(needed, &mut plan.fixed_queries)).collect();
    plan.overrides.queries = if may_set { ALWAYS.into_iter().chain(queries).collect() } else { Vec::new() };
    plan.overrides.inserts = INSERTS.iter().filter_map(|needed| differing(needed, &mut plan.fixed_inserts)).collect();
    plan
}

/// A setting's value; an empty one is seen as such.
fn shown(value: &str) -> &str {
    if value.is_empty() { "''" } else { value }
}

fn too_low(found: &HashMap<String, Setting>) -> Vec<String> {
    let is_low = |limit: &&Limit| {
        let value = found.get(limit.name).and_then(|setting| setting.value.parse::<f64>().ok());
        value.is_some_and(|value| value > 0.0 && value < limit.least)
    };
    let shown = |limit: &Limit| {
        let value = found.get(limit.name).map_or("", |setting| setting.value.as_str());
        format!("{} = {value} (0 or at least {})", limit.name, limit.least)
    };
    LIMITS.iter().filter(is_low).map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(list: &[(&str, &str, u8)]) -> HashMap<String, Setting> {
        let setting = |&(name, value, fixed): &(&str, &str, u8)| {
            (name.to_owned(), Setting { name: name.to_owned(), value: value.to_owned(), fixed })
        };
        list.iter().map(setting).collect()
    }

    #[test]
    fn what_differs_is_said_and_what_is_fixed_stops() {
        let found = settings(&[
            ("readonly", "0", 0),
            ("final", "1", 0),
            ("apply_deleted_mask", "1", 1),
            ("async_insert", "1", 0),
            ("select_sequential_consistency", "0", 0),
        ]);
        let plain = plan(&found, false);
        assert_eq!(plain.refusal(), None);
        assert_eq!(plain.overrides.queries[ALWAYS.len()..], [("final", "0")]);
        assert_eq!(plain.overrides.inserts, [("async_insert", "0")]);
        let shared = plan(&found, true);
        assert_eq!(shared.overrides.queries.last(), Some(&("select_sequential_consistency", "1")));

        // What is fixed stops a worker; what is not is set all the same.
        let fixed = settings(&[
            ("final", "1", 1),
            ("skip_unavailable_shards", "1", 0),
            ("optimize_on_insert", "1", 1),
            ("async_insert", "1", 1),
        ]);
        let fixed = plan(&fixed, false);
        assert_eq!(
            fixed.refusal().as_deref(),
            Some(
                "this account's profile fixes final = 1, where 0 is needed; async_insert = 1, where 0 is needed: take the \
                 constraint away"
            )
        );
        assert_eq!(fixed.overrides.queries[ALWAYS.len()..], [("skip_unavailable_shards", "0")]);
        assert_eq!(fixed.fixed_queries, ["final = 1, where 0 is needed"]);

        // A read-only account may look; nothing may be set then, unless readonly is 2.
        let read_only = |value| plan(&settings(&[("readonly", value, 0), ("final", "1", 0)]), false);
        let one = read_only("1");
        assert!(one.refusal().is_some_and(|refusal| refusal.contains("readonly = 1")), "{one:?}");
        assert_eq!((one.overrides.queries.len(), one.fixed_queries.len()), (0, 1));
        let two = read_only("2");
        assert!(two.refusal().is_some() && two.fixed_queries.is_empty(), "{two:?}");
        assert_eq!(two.overrides.queries.last(), Some(&("final", "0")));
    }

    #[test]
    fn limits_below_what_statements_take_are_named() {
        let found = settings(&[
            ("max_rows_to_read", "1000", 0),
            ("max_bytes_to_read", "0", 0),
            ("max_execution_time", "300", 0),
            ("max_memory_usage", "1000000", 0),
        ]);
        assert_eq!(
            too_low(&found),
            [
                "max_rows_to_read = 1000 (0 or at least 1000000000)",
                "max_memory_usage = 1000000 (0 or at least 1000000000)"
            ]
        );
    }
}
