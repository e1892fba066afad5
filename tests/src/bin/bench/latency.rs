//! Marker on the stream to rows queryable, on an idle system, one unit after another.

use std::{
    thread,
    time::{Duration, Instant, SystemTime},
};

use tests::{Context, Failure, Result, data::period_bounds};

use crate::{
    figures::{Figures, quantile},
    ground::Ground,
    measured::{Contestant, Running},
    plan::Plan,
    shape::{Periods, Shape},
    stream::Markers,
    world::World,
};

pub(crate) const SCENARIO: &str = "latency";
pub(crate) const OURS: &str = "marketferry";
const POLL_EVERY: Duration = Duration::from_millis(1);
/// Between two units, so that acks and log are written and each finds the worker idle.
const PAUSE: Duration = Duration::from_millis(150);
const DEADLINE: Duration = Duration::from_secs(60);

/// The markers are the uploader's own, taken off the stream and published again one by one, so that no uploader runs
/// while a worker is timed. The time counts from the server's stamp of the marker to the end of the query that saw the
/// rows; polling costs a part of a core, which the worker pays for here.
pub(crate) fn run(world: &World, plan: &Plan, figures: &mut Figures) -> Result<()> {
    let shape = Shape { symbols: 4, interval: "1h", periods: Periods::days("2025-02-01", plan.size(201, 11)) };
    let mut ground = Ground::prepare(world, SCENARIO, shape)?;
    figures.describe(SCENARIO, ground.size());
    let markers = Markers::open(ground.project.account())?;
    let announced = markers.read_messages(ground.shape.units())?;
    let database = ground.fresh_destination()?;
    world.rest()?;
    let mut worker = Contestant::product(&ground.project, "puller", &["run"])?.start(world)?;
    let mut latencies_ms = Vec::new();
    for (number, message) in announced.into_iter().enumerate() {
        let day = message.0.rsplit('.').next().unwrap_or_default().to_owned();
        let published_ns = markers.publish(message)?;
        let queryable_ns = wait_for_day(&ground, &database, &day, &mut worker)?;
        // The first one also waits for the start of the worker.
        if number > 0 {
            latencies_ms.push((queryable_ns - published_ns) as f64 / 1e6);
        }
        thread::sleep(PAUSE);
    }
    worker.stop()?;
    let usage = worker.end()?;
    ground.check(&database)?;
    ground.check_records(&database)?;
    figures.add_all(SCENARIO, OURS, "marker to queryable", "ms", &latencies_ms);
    figures.add(SCENARIO, OURS, "p50", "ms", quantile(&latencies_ms, 0.5));
    figures.add(SCENARIO, OURS, "p99", "ms", quantile(&latencies_ms, 0.99));
    figures.add(SCENARIO, OURS, "peak RSS", "MiB", usage.client.rss_mb);
    ground.drop_database(&database)?;
    ground.remove(world)
}

/// Returns the time at which they were seen, in ns since 1970.
fn wait_for_day(ground: &Ground, database: &str, day: &str, worker: &mut Running) -> Result<i128> {
    let (start, end) = period_bounds(day).ok_or_else(|| Failure::new(format!("the subject ends with {day:?}")))?;
    let rows = (ground.shape.symbols * 24).to_string();
    let sql = format!(
        "SELECT count() FROM {database}.klines_latest WHERE exchange = 'binance' AND market = 'spot' \
         AND dataset = 'klines' AND interval = '1h' AND symbol IN ({}) AND open_time >= fromUnixTimestamp64Micro({}, 'UTC') \
         AND open_time < fromUnixTimestamp64Micro({}, 'UTC')",
        ground.shape.symbols().map(|symbol| format!("'{symbol}'")).collect::<Vec<_>>().join(", "),
        start.as_microsecond(),
        end.as_microsecond()
    );
    let begun = Instant::now();
    while begun.elapsed() < DEADLINE {
        if ground.sql.query(&sql)?.trim() == rows {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).context("the clock")?;
            return Ok(now.as_nanos() as i128);
        }
        if !worker.is_running() {
            break;
        }
        thread::sleep(POLL_EVERY);
    }
    Err(Failure::new(format!("the rows of {day} did not come\n{}", worker.said())))
}
