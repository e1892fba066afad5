//! The same worker over a short and a long backlog of tiny units: how fast does it do the first few thousand?

use std::{
    thread,
    time::{Duration, Instant},
};

use serde_json::json;
use tests::{
    Context, Failure, Result,
    data::{ArchiveSpec, Market, sha256},
    project::Project,
};

use crate::{
    figures::Figures,
    ground::Ground,
    measured::Contestant,
    plan::Plan,
    shape::Periods,
    stream::{Markers, Message},
    world::World,
};

pub(crate) const SHORT: &str = "a short backlog";
pub(crate) const LONG: &str = "a long one";
pub(crate) const BACKLOG: &str = "growth, backlog";
const INTERVALS: [&str; 12] = ["1m", "3m", "5m", "15m", "30m", "1h", "2h", "4h", "6h", "8h", "12h", "1d"];
const POLL_INTERVAL: Duration = Duration::from_millis(20);
const DEADLINE: Duration = Duration::from_secs(900);

pub(super) fn run(world: &World, plan: &Plan, figures: &mut Figures) -> Result<()> {
    let (long, short): (usize, usize) = plan.size((100_000, 5_000), (600, 200));
    figures.describe(BACKLOG, format!("{short} and {long} markers of one archive of one row"));
    let days = Periods::days("2017-09-01", long.div_ceil(3 * INTERVALS.len()));
    let ground = |label, markers| prepare(world, label, &days, markers);
    let mut grounds = [(SHORT, ground("backlog-short", short)?), (LONG, ground("backlog-long", long)?)];
    // The last ones of the short backlog find no others beside them.
    let counted = short as u64 * 9 / 10;
    for _ in 0..plan.rounds {
        for (name, ground) in &mut grounds {
            measure(world, ground, figures, name, counted)?;
        }
        // Neither is always the first.
        grounds.rotate_left(1);
    }
    grounds.into_iter().try_for_each(|(_, ground)| ground.remove(world))
}

/// A stream of so many markers, and what they name in the bucket.
fn prepare(world: &World, label: &str, days: &Periods, markers: usize) -> Result<Ground> {
    let project = Project::in_dir(&world.stack, &world.fast_folder(label)?, label)?;
    let mut ground = Ground::of_project(world, project)?;
    // Which makes the stream.
    let database = ground.fresh_destination()?;
    ground.drop_database(&database)?;
    Markers::open(ground.project.account())?.publish_all(place_units(world, &ground, days, markers)?)?;
    Ok(ground)
}

/// Time from the start of the worker to the first unit, and the pace from then on until so many are counted.
fn measure(world: &World, ground: &mut Ground, figures: &mut Figures, name: &str, counted: u64) -> Result<()> {
    let database = ground.fresh_destination()?;
    world.rest()?;
    let mut worker = Contestant::product(&ground.project, "puller", &["run"])?.start(world)?;
    let (start, mut first) = (Instant::now(), None);
    loop {
        let answer = ground.sql.query(&format!("SELECT count() FROM {database}.archives"))?;
        let loaded: u64 = answer.trim().parse().context("a count")?;
        let now = start.elapsed();
        if loaded > 0 && first.is_none() {
            figures.add(BACKLOG, name, "start to first unit", "s", now.as_secs_f64());
            first = Some((now, loaded, world.spent()?));
        }
        if let Some((since, before, spent)) = first
            && loaded >= counted
        {
            let (units, servers) = ((loaded - before) as f64, world.spent()?.minus(spent));
            figures.add(BACKLOG, name, "units", "units/s", units / (now - since).as_secs_f64());
            for (metric, cpu_s) in [
                ("ClickHouse CPU a unit", servers.clickhouse_s),
                ("S3 CPU a unit", servers.s3_s),
                ("NATS CPU a unit", servers.nats_s),
            ] {
                figures.add(BACKLOG, name, metric, "ms", cpu_s * 1000.0 / units);
            }
            break;
        }
        if !worker.is_running() || now > DEADLINE {
            return Err(Failure::new(format!("{loaded} units were loaded, then none\n{}", worker.said())));
        }
        thread::sleep(POLL_INTERVAL);
    }
    worker.stop()?;
    figures.add(BACKLOG, name, "peak RSS", "MiB", worker.end()?.client.rss_mb);
    ground.drop_database(&database)
}

/// Units of one archive of one row, laid straight into the bucket's folder; returns their markers.
fn place_units(world: &World, ground: &Ground, days: &Periods, count: usize) -> Result<Vec<Message>> {
    let mut messages = Vec::with_capacity(count);
    for market in [Market::Spot, Market::Um, Market::Cm] {
        for interval in INTERVALS {
            for day in days.list() {
                if messages.len() < count {
                    let spec = ArchiveSpec::new(market, "BTCUSDT", interval, day).rows_at_most(1);
                    messages.push(place_unit(world, ground, &spec)?);
                }
            }
        }
    }
    Ok(messages)
}

fn place_unit(world: &World, ground: &Ground, spec: &ArchiveSpec) -> Result<Message> {
    let zip = spec.zip();
    let key = format!("{}/{}", ground.project.prefix(), spec.path());
    spec.write_unchecked(&world.stack.s3.bucket_dir().join(ground.project.prefix()), &zip)?;
    let (hash, unit) = (sha256(&zip), spec.unit());
    let parts: Vec<&str> = unit.split('/').collect();
    let [exchange, market, dataset, interval, period] = parts.as_slice() else {
        return Err(Failure::new(format!("{unit} is no unit")));
    };
    let marker = json!({
        "schema": "marketferry.marker/1",
        "id": "",
        "exchange": exchange, "market": market, "dataset": dataset, "interval": interval, "period": period,
        "revision": sha256(format!("{key}\t{}\t{hash}\n", zip.len()).as_bytes()),
        "bucket": world.stack.s3.bucket(),
        "objects": [{
            "key": key, "symbol": spec.symbol(), "size": zip.len(), "sha256": hash,
            "generated_at": "2025-06-01T00:00:00Z",
        }],
        "published_at": "2025-06-01T00:10:00Z",
        "uploader": "bench",
    });
    Ok((format!("marker.backfill.{}", unit.replace('/', ".")), marker.to_string().into_bytes()))
}
