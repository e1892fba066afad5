//! From archives in the bucket to rows in the table: every contender once a round, in turns.

use tests::{Failure, Result};

use crate::{
    figures::Figures,
    ground::Ground,
    limit,
    measured::{Contestant, Usage},
    peers,
    plan::{Contender, Plan, Workload},
    world::World,
};

pub(crate) fn run(world: &World, plan: &Plan, workload: &Workload, figures: &mut Figures) -> Result<()> {
    let mut ground = Ground::prepare(world, workload.name, workload.shape.clone())?;
    let gzips = if workload.contenders.contains(&Contender::S3Function) {
        Some(peers::place_gzips(world, &ground)?)
    } else {
        None
    };
    let job = limit::prepare(world, &ground)?;
    figures.describe(workload.name, ground.size());
    for round in 0..plan.rounds {
        // Another one begins each round.
        let count = workload.contenders.len();
        for place in 0..count {
            let contender = workload.contenders[(place + round as usize) % count];
            if contender.runs_once() && round > 0 {
                figures
                    .remark("The cron job with an insert per file, and the tuned ones, run in the first round only.");
                continue;
            }
            let database = ground.fresh_destination()?;
            world.rest()?;
            let usage = match contender {
                Contender::Ours => Contestant::product(&ground.project, "puller", &["pull"])?.measure(world)?,
                Contender::CronPerFile
                | Contender::CronPerUnit
                | Contender::CronPerFileTuned
                | Contender::CronPerUnitTuned => peers::cron_job(world, &ground, &database, contender)?,
                Contender::S3Function => {
                    peers::s3_function(world, &ground, &database, gzips.as_deref().unwrap_or_default())?
                }
                Contender::Limit => limit::measure(world, &job, &database)?,
            };
            let named = |failure| Failure::new(format!("{}: {failure}", contender.name()));
            ground.check(&database).map_err(named)?;
            if contender == Contender::Ours {
                ground.check_records(&database).map_err(named)?;
            }
            ground.drop_database(&database)?;
            record(figures, workload, contender, &ground, &usage);
        }
    }
    ground.remove(world)
}

fn record(figures: &mut Figures, workload: &Workload, contender: Contender, ground: &Ground, usage: &Usage) {
    let (rows, name) = (ground.written.totals.rows as f64, contender.name());
    figures.add_usage(workload.name, name, usage);
    figures.add(workload.name, name, "rows", "rows/s", rows / usage.wall_s);
    figures.add(workload.name, name, "units", "units/s", ground.shape.units() as f64 / usage.wall_s);
    if let Some(client) = usage.client {
        figures.add(workload.name, name, "client CPU per million rows", "s", client.cpu_s / rows * 1e6);
    }
}
