//! What readers pay for the rank epoch: the view as it is, against one that shows `version` as it is stored.

use std::time::{Duration, Instant};

use tests::{Context, Failure, Result};

use crate::{
    figures::Figures,
    ground::Ground,
    growth,
    plan::Plan,
    shape::{Periods, Shape},
    world::World,
};

const NOW: &str = "klines_latest";
const FORMER: &str = "klines_former";
/// What was filled in at once goes on being merged for long.
const MERGED_WITHIN: Duration = Duration::from_secs(1800);
const SERIES: &str = "exchange = 'binance' AND market = 'spot' AND dataset = 'klines' AND interval = '1m'";

pub(crate) fn run(world: &World, plan: &Plan, figures: &mut Figures) -> Result<()> {
    let shape = Shape { symbols: 1, interval: "1h", periods: Periods::days("2024-02-01", 1) };
    let mut ground = Ground::prepare(world, "readers", shape)?;
    let database = ground.fresh_destination()?;
    growth::fill(world, &database, plan.table_rows, 1)?;
    // One row in a thousand was written again by a correction.
    world.ask(&format!(
        "INSERT INTO {database}.klines SELECT * REPLACE (281474976710656 + version AS version) \
         FROM {database}.klines WHERE cityHash64(symbol, open_time) % 1000 = 0"
    ))?;
    world.rest_within(MERGED_WITHIN)?;
    let former = world.ask(&format!(
        "SELECT create_table_query FROM system.tables WHERE database = '{database}' AND name = '{NOW}'"
    ))?;
    let (_, query) = former.split_once(" AS SELECT ").ok_or_else(|| Failure::new("the view is no SELECT"))?;
    let stored = with_stored_version(query);
    world.ask(&format!("CREATE VIEW {database}.{FORMER} AS SELECT {stored}"))?;
    let day = "open_time >= '2025-06-11 00:00:00' AND open_time < '2025-06-12 00:00:00'";
    let what = "count(), sum(close), sum(volume), max(version)";
    let queries = [
        ("readers, a symbol's year", format!("SELECT {what} FROM VIEW WHERE {SERIES} AND symbol = 'FILL00000USDT'")),
        ("readers, a day of all", format!("SELECT symbol, {what} FROM VIEW WHERE {SERIES} AND {day} GROUP BY symbol")),
        ("readers, everything", format!("SELECT symbol, {what} FROM VIEW GROUP BY symbol")),
    ];
    for (scenario, query) in queries {
        figures.describe(scenario, format!("{} rows in the table, one in a thousand written twice", plan.table_rows));
        for round in 0..(5 * plan.rounds as usize) {
            let mut pair = [("now", NOW), ("as stored", FORMER)];
            // Neither is always the first.
            pair.rotate_left(round % 2);
            for (name, view) in pair {
                let query = query.replace("VIEW", &format!("{database}.{view}"));
                let started = Instant::now();
                world.ask(&format!("{query} FORMAT Null")).context(scenario)?;
                // The first is the one that reads the disk.
                if round > 0 {
                    figures.add(scenario, name, "query", "ms", started.elapsed().as_secs_f64() * 1000.0);
                }
            }
        }
    }
    ground.drop_database(&database)?;
    ground.remove(world)
}

/// The view's columns with `version` as it is stored.
fn with_stored_version(query: &str) -> String {
    let Some((before, rest)) = query.split_once("bitAnd(") else { return query.to_owned() };
    let after = rest.split_once("AS version").map_or("", |(_, after)| after);
    format!("{before}version{after}")
}
