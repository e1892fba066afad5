//! A bucket that is far away: many workers of one slot, and one worker of many slots.

use std::time::Duration;

use tests::{
    Result,
    proxy::{Fault, Proxy},
};

use crate::{
    figures::Figures,
    ground::Ground,
    measured::{Contestant, measure_all},
    plan::Plan,
    shape::{Periods, Shape},
    world::World,
};

pub(crate) const SCENARIO: &str = "scaling, 80 ms to S3";
const EACH_WAY: Duration = Duration::from_millis(40);

pub(crate) fn workers_of_one_slot(workers: usize) -> String {
    format!("{workers} worker{} of 1 slot", if workers == 1 { "" } else { "s" })
}

/// `None` for the default.
pub(crate) fn worker_of_slots(slots: Option<u32>) -> String {
    slots.map_or("1 worker of default slots".to_owned(), |slots| format!("1 worker of {slots} slots"))
}

pub(crate) fn run(world: &World, plan: &Plan, figures: &mut Figures) -> Result<()> {
    let shape = Shape { symbols: 4, interval: "1h", periods: Periods::days("2025-02-01", plan.size(365, 12)) };
    let mut ground = Ground::prepare(world, "scaling", shape)?;
    figures.describe(SCENARIO, ground.size());
    let proxy = Proxy::start(world.stack.s3.address())?;
    proxy.set(Fault::Delay(EACH_WAY));
    ground.project.set("storage.r2.endpoint", format!("http://{}", proxy.address()))?;

    let mut contenders: Vec<(String, usize, Option<u32>)> = Vec::new();
    for &workers in plan.size::<&[usize]>(&[1, 2, 4, 8], &[1, 2]) {
        contenders.push((workers_of_one_slot(workers), workers, Some(1)));
    }
    // One worker of one slot is among those above.
    for &slots in plan.size::<&[Option<u32>]>(&[Some(4), Some(16), Some(64), None], &[None]) {
        contenders.push((worker_of_slots(slots), 1, slots));
    }
    for _ in 0..plan.rounds {
        for (name, workers, slots) in &contenders {
            let database = ground.fresh_destination()?;
            world.rest()?;
            let mut pullers = Vec::new();
            for _ in 0..*workers {
                let puller = Contestant::product(&ground.project, "puller", &["pull"])?;
                pullers.push(match slots {
                    Some(slots) => puller.env("FERRY__PULLER__SLOTS", slots),
                    None => puller,
                });
            }
            let usage = measure_all(world, pullers)?;
            ground.check(&database)?;
            ground.check_records(&database)?;
            ground.drop_database(&database)?;
            figures.add_usage(SCENARIO, name, &usage);
            figures.add(SCENARIO, name, "units", "units/s", ground.shape.units() as f64 / usage.wall_s);
        }
    }
    ground.remove(world)
}
