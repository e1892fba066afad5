//! Which symbols of a unit may show a wrong row, and must be compared with their archives.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use archive::Interval;
use clickhouse::Row;
use common::unit::Unit;
use serde::Deserialize;

use crate::clickhouse::client::Warehouse;
use crate::clickhouse::series::{Window, by_series, range_of};
use crate::clickhouse::version::RANKED;
use crate::error::clickhouse::WarehouseError;

/// Symbols one query names at most, so that it stays below the server's limit for a query's text.
pub(crate) const QUERY_SYMBOLS_MAX: usize = 1_000;

/// A unit's archives as they are recorded: symbols and the versions of their rows.
#[derive(Debug)]
pub(crate) struct Recorded {
    pub unit: Unit,
    pub versions: HashMap<String, u64>,
}

#[derive(Debug, Row, Deserialize)]
struct StoredVersion {
    symbol: String,
    bucket: u32,
    version: u64,
}

/// The symbols of these units that have rows of another revision of a recorded archive, shown or not, or rows that outrank
/// what is loaded. Usually none; so this reads no more than times and versions, and those of many units at once.
///
/// To be asked at the end of an attempt, after its own archives are recorded, unless what the read-backs saw answers it.
pub(crate) async fn unproven_symbols(
    warehouse: &Warehouse,
    units: &[Arc<Recorded>],
) -> Result<Vec<BTreeSet<String>>, WarehouseError> {
    let mut answers = vec![BTreeSet::new(); units.len()];
    for series in by_series(units, |recorded| &recorded.unit) {
        let Some((_, first)) = series.first() else { continue };
        if first.unit.interval.as_str().parse::<Interval>().is_ok_and(Interval::may_open_before_period) {
            // The neighbours' archives have rows in the period too: each row is looked at.
            for (index, recorded) in series {
                answers[index] = recorded.versions.keys().cloned().collect();
            }
            continue;
        }
        let mut window = Window::new(&first.unit);
        for (_, recorded) in series.iter().filter(|(_, recorded)| !recorded.versions.is_empty()) {
            let (start, end) = range_of(recorded.unit.period);
            window.add(recorded.versions.keys().map(String::as_str), start, end);
        }
        if window.is_empty() {
            continue;
        }
        let sql = format!(
            "SELECT symbol::String AS symbol, {bucket} AS bucket, version FROM {{database}}.klines \
             PREWHERE {condition} AND (version % 2 = {kind} OR version >= {RANKED} OR is_deleted = 1) \
             GROUP BY symbol, bucket, version",
            bucket = window.bucket(),
            condition = window.condition(),
            kind = u8::from(first.unit.period.is_month()),
        );
        let found: Vec<StoredVersion> = warehouse.select(&sql).await?;
        for (index, recorded) in series {
            let bucket = window.bucket_of(recorded.unit.period.start().as_microsecond());
            let others = found.iter().filter(|found| {
                found.bucket == bucket
                    && recorded.versions.get(&found.symbol).is_some_and(|version| *version != found.version)
            });
            answers[index] = others.map(|found| found.symbol.clone()).collect();
        }
    }
    Ok(answers)
}
