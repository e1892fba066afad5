//! Inserts into `klines`.

use common::unit::Unit;

use crate::clickhouse::client::Warehouse;
use crate::clickhouse::native::{Slice, UnitColumns, blocks};
use crate::error::clickhouse::WarehouseError;

/// Inserts slices into `klines`; `progress` is called after every block.
pub(crate) async fn insert(
    warehouse: &Warehouse,
    slices: &[Slice<'_>],
    progress: impl Fn(),
) -> Result<(), WarehouseError> {
    let mut insert = warehouse.insert("klines", "Native");
    for block in blocks(slices) {
        insert.send(block).await?;
        progress();
    }
    insert.end().await
}

pub(crate) fn columns(unit: &Unit) -> UnitColumns<'_> {
    UnitColumns {
        exchange: unit.exchange.as_str(),
        market: unit.market.as_str(),
        dataset: unit.dataset.as_str(),
        interval: unit.interval.as_str(),
    }
}
