//! Whether a server hashes rows as this program does.

use crate::clickhouse::client::Warehouse;
use crate::error::clickhouse::WarehouseError;
use archive::{Kline, Klines};

/// Asks the server to hash two known rows, so that a server that hashes otherwise is noticed before it makes every
/// load look wrong.
pub(crate) async fn check_hash_function(warehouse: &Warehouse) -> Result<(), WarehouseError> {
    let rows = [
        Kline {
            open_time: 1_735_689_600_000_000,
            close_time: 1_735_689_659_999_999,
            open: 9_357_600_000_000,
            high: 9_361_098_000_000,
            low: 9_353_745_000_000,
            close: -1,
            volume: 827_151_000,
            quote_volume: 77_390_228_290_000_000_000_000_000,
            taker_buy_volume: 0,
            taker_buy_quote_volume: -77_390,
            trades: 1_631,
        },
        Kline {
            open_time: 0,
            close_time: 0,
            open: 0,
            high: 0,
            low: 0,
            close: 0,
            volume: 0,
            quote_volume: 0,
            taker_buy_volume: 0,
            taker_buy_quote_volume: 0,
            trades: 0,
        },
    ];
    let mut klines = Klines::default();
    rows.iter().for_each(|row| klines.push(row));
    let literal = |row: &Kline| {
        let price = |value: i64| format!("reinterpret(toInt64({value}), 'Decimal(18, 8)')");
        let volume = |value: i128| format!("reinterpret(toInt128('{value}'), 'Decimal(38, 8)')");
        format!(
            "cityHash64(fromUnixTimestamp64Micro({}, 'UTC'), fromUnixTimestamp64Micro({}, 'UTC'), {}, {}, {}, {}, {}, {}, {}, {}, toUInt64({}))",
            row.open_time,
            row.close_time,
            price(row.open),
            price(row.high),
            price(row.low),
            price(row.close),
            volume(row.volume),
            volume(row.quote_volume),
            volume(row.taker_buy_volume),
            volume(row.taker_buy_quote_volume),
            row.trades,
        )
    };
    let sql = format!("SELECT {} + {}", literal(&rows[0]), literal(&rows[1]));
    let answer: u64 = warehouse.select_one(&sql).await?;
    if answer == klines.hash() {
        return Ok(());
    }
    Err(WarehouseError::wrong("it computes cityHash64 of a row otherwise than known; rows could not be verified"))
}
