//! A republished archive: which rows its former self had and it no longer has.
//!
//! Rows carry the version of the archive that brought them. What ClickHouse shows with the old archive's version once
//! the new one's rows are laid over it, are the rows the new one lacks. They are taken away by tombstones of the new
//! version. Rows that another archive brought have another version and stay.

use std::collections::HashSet;

use common::marker::Object;
use common::unit::Unit;

use crate::decode::Klines;
use crate::error::ObjectFault;
use crate::ledger::Entry;
use crate::native::{Rows, Slice, UnitColumns};
use crate::warehouse::{Warehouse, WarehouseError};

/// open_times (µs) that this archive takes away; a fault when they are more than it may.
pub(crate) async fn removed_by(
    warehouse: &Warehouse,
    unit: &Unit,
    object: &Object,
    klines: &Klines,
    former: Option<&Entry>,
    shrink_limit: f64,
) -> Result<Result<Vec<i64>, ObjectFault>, WarehouseError> {
    // An archive that was generated earlier than the one loaded corrects nothing: its rows lose where both have one.
    let Some(former) = former.filter(|former| !former.is(object) && former.version() < version(object)) else {
        return Ok(Ok(Vec::new()));
    };
    let range = (former.first_open_time, former.last_open_time);
    let shown = warehouse.open_times_of_version(unit, &object.symbol, former.version(), range).await?;
    let kept: HashSet<i64> = klines.open_time.iter().copied().collect();
    let removed: Vec<i64> = shown.into_iter().filter(|open_time| !kept.contains(open_time)).collect();
    if removed.len() as f64 > former.rows as f64 * shrink_limit {
        return Ok(Err(ObjectFault::Shrunk { gone: removed.len() as u64, rows: former.rows }));
    }
    Ok(Ok(removed))
}

/// Repairs what two workers that loaded two revisions of an archive at the same time did not see of each other.
///
/// Each calls this after its own row in the ledger is written, so the later of the two sees both rows.
pub(crate) async fn settle_races(warehouse: &Warehouse, unit: &Unit, loaded: &[&Object]) -> Result<(), WarehouseError> {
    let versions = warehouse.ledger_versions(unit).await?;
    for object in loaded {
        let others = versions.iter().filter(|e| e.object_key == object.key && !e.is(object));
        for other in others {
            let mine = versions.iter().find(|e| e.object_key == object.key && e.is(object));
            let Some(mine) = mine else { continue };
            let (older, newer) = if other.version() < mine.version() { (other, mine) } else { (mine, other) };
            if older.version() == newer.version() {
                continue;
            }
            let range = (older.first_open_time, older.last_open_time);
            let left = warehouse.open_times_of_version(unit, &object.symbol, older.version(), range).await?;
            if left.is_empty() {
                continue;
            }
            tracing::info!(%unit, object.key, rows = left.len(), "taking away rows that only the older revision had");
            let slices = [Slice { symbol: &object.symbol, version: newer.version(), rows: Rows::Tombstones(&left) }];
            insert(warehouse, unit, &slices, || ()).await?;
        }
    }
    Ok(())
}

/// Inserts slices into `klines`; `progress` is called after every block.
pub(crate) async fn insert(
    warehouse: &Warehouse,
    unit: &Unit,
    slices: &[Slice<'_>],
    progress: impl Fn(),
) -> Result<(), WarehouseError> {
    let columns = UnitColumns {
        exchange: unit.exchange.as_str(),
        market: unit.market.as_str(),
        dataset: unit.dataset.as_str(),
        interval: unit.interval.as_str(),
    };
    let mut insert = warehouse.insert("klines", "Native");
    for block in crate::native::blocks(columns, slices) {
        insert.send(block).await?;
        progress();
    }
    insert.end().await
}

/// The version of an archive's rows: when it was generated, in ms.
pub(crate) fn version(object: &Object) -> u64 {
    u64::try_from(object.generated_at.as_millisecond()).unwrap_or_default()
}
