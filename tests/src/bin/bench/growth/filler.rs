//! Rows made by the server itself: a year of minutes of as many symbols as it takes, and a ledger of other archives.
//!
//! A statement fills a part of one month, so that little is left to be merged: a table of years has been merged long since.

use std::time::{Duration, Instant};

use tests::{Failure, Result};

use crate::world::{World, filled_bytes, free_bytes};

/// A statement makes one part of so many rows.
const CHUNK_ROWS: u64 = 5_000_000;
const MONTHS: u64 = 12;
/// Of the shortest one.
const MINUTES_A_MONTH: u64 = 28 * 1440;
const MERGES_DEADLINE: Duration = Duration::from_secs(1200);

/// Fills `klines` and `archives`, in the months that the units of this scenario are of, and waits for the merges.
pub(crate) fn fill(world: &World, database: &str, rows: u64, archives: u64) -> Result<()> {
    let folder = world.folder("room")?;
    let free = free_bytes(&folder.to_string_lossy()).unwrap_or(u64::MAX);
    if free < filled_bytes(rows) && !world.clickhouse_in_memory {
        return Err(Failure::new(format!(
            "{rows} rows need about {} GB of disk, {} GB are free: ask for fewer (ROWS=…)",
            filled_bytes(rows) / 1_000_000_000,
            free / 1_000_000_000
        )));
    }
    let month_rows = rows.div_ceil(MONTHS);
    for month in 1..=MONTHS {
        let mut done = 0;
        while done < month_rows {
            let count = CHUNK_ROWS.min(month_rows - done);
            world.ask(&format!(
                "INSERT INTO {database}.klines (exchange, market, dataset, interval, symbol, open_time, close_time, open, \
                 high, low, close, volume, quote_volume, taker_buy_volume, taker_buy_quote_volume, trades, version) \
                 WITH toDateTime64('2025-{month:02}-01 00:00:00', 6, 'UTC') + (number % {MINUTES_A_MONTH}) * 60 AS t, \
                 toDecimal64(1 + number % 9973, 8) AS price, toDecimal128(cityHash64(number) % 100000, 8) AS amount \
                 SELECT 'binance', 'spot', 'klines', '1m', \
                 concat('FILL', leftPad(toString(intDiv(number, {MINUTES_A_MONTH})), 5, '0'), 'USDT'), t, t + 59, \
                 price, price, price, price, amount, amount, amount, amount, number % 1000, 1 \
                 FROM numbers({done}, {count}) SETTINGS max_insert_threads = 1, optimize_on_insert = 0, \
                 min_insert_block_size_rows = {CHUNK_ROWS}, min_insert_block_size_bytes = 0"
            ))?;
            done += count;
        }
    }
    world.ask(&format!(
        "INSERT INTO {database}.archives (exchange, market, dataset, interval, period, symbol, object_key, sha256, size, \
         generated_at, rows, expected_rows, first_open_time, last_open_time, missing_rows, loaded_at, marker_id, worker) \
         WITH toString(toDate('2019-01-01') + number % 2000) AS day, \
         concat('FILL', leftPad(toString(intDiv(number, 2000)), 5, '0'), 'USDT') AS name \
         SELECT 'binance', 'spot', 'klines', '1h', day, name, \
         concat('download/data/spot/daily/klines/', name, '/1h/', name, '-1h-', day, '.zip'), \
         lower(hex(SHA256(toString(number)))), 1000, toDateTime64('2025-01-01 00:00:00', 3, 'UTC'), 24, 24, \
         toDateTime64(day, 6, 'UTC'), toDateTime64(day, 6, 'UTC') + 82800, 0, now64(3), 'filled', 'filler' \
         FROM numbers({archives})"
    ))?;
    let start = Instant::now();
    while world.ask(&format!("SELECT count() FROM system.merges WHERE database = '{database}'"))?.trim() != "0" {
        if start.elapsed() > MERGES_DEADLINE {
            return Err(Failure::new(format!("merges of the filled table went on for {MERGES_DEADLINE:?}")));
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    Ok(())
}
