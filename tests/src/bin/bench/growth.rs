//! Does a unit take longer when there is much already: rows in the table, archives in the ledger, markers on the stream?

mod backlog;
mod filler;

use std::time::Duration;

use tests::Result;

use crate::{
    figures::Figures,
    ground::Ground,
    measured::Contestant,
    plan::Plan,
    shape::{Periods, Shape},
    world::World,
};

pub(crate) const DAY: &str = "growth, a 1m day";
pub(crate) const SMALL: &str = "growth, 60 small units";
pub(crate) const EMPTY: &str = "an empty database";
pub(crate) const FULL: &str = "a full one";
pub(crate) use backlog::{BACKLOG, LONG, SHORT};
pub(crate) use filler::fill;

/// Each round needs days that no round before it has loaded.
const ROUNDS_MAX: usize = 5;
/// What was filled in at once goes on being merged for long.
const MERGED_WITHIN: Duration = Duration::from_secs(1800);

pub(crate) fn run(world: &World, plan: &Plan, figures: &mut Figures) -> Result<()> {
    tables(world, plan, figures)?;
    backlog::run(world, plan, figures)
}

/// The same units into an empty database and into a full one.
fn tables(world: &World, plan: &Plan, figures: &mut Figures) -> Result<()> {
    let archives = plan.size(1_000_000, 10_000);
    let mut full = None;
    for round in 0..ROUNDS_MAX.min(plan.rounds as usize) {
        let first = |step: usize| format!("2025-{:02}-01", 2 + step * round);
        let shapes = [
            (DAY, Shape { symbols: plan.size(600, 20), interval: "1m", periods: Periods::days(&first(1), 1) }),
            (SMALL, Shape { symbols: 4, interval: "1h", periods: Periods::days(&first(2), plan.size(60, 10)) }),
        ];
        for (scenario, shape) in shapes {
            let mut ground = Ground::prepare(world, "growth", shape)?;
            if round == 0 {
                figures.describe(scenario, ground.size());
            }
            let database = match &full {
                Some(database) => String::clone(database),
                None => {
                    let database = ground.fresh_destination()?;
                    fill(world, &database, plan.table_rows, archives)?;
                    world.rest_within(MERGED_WITHIN)?;
                    figures.describe("growth", format!("{} rows and {archives} archives are there", plan.table_rows));
                    full.insert(database).clone()
                }
            };
            let fresh = ground.fresh_destination()?;
            let mut pair = [(EMPTY, fresh.as_str()), (FULL, database.as_str())];
            // Neither is always the first.
            pair.rotate_left(round % 2);
            for (name, database) in pair {
                ground.new_destination(database)?;
                world.rest()?;
                let usage = Contestant::product(&ground.project, "puller", &["pull"])?.measure(world)?;
                ground.check_in_full(database)?;
                figures.add_usage(scenario, name, &usage);
            }
            ground.drop_database(&fresh)?;
            ground.remove(world)?;
        }
    }
    match full {
        Some(database) => world.ask(&format!("DROP DATABASE {database} SYNC")).map(drop),
        None => Ok(()),
    }
}
