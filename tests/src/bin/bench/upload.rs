//! Many small archives from disk into the bucket, and again with nothing to do: `uploader upload` and its peers.

use std::{fs, path::Path};

use serde_json::json;
use tests::{Context, Failure, Result, project::Project};

use crate::{
    figures::Figures,
    ground::Ground,
    measured::{Contestant, Usage},
    peers,
    plan::Plan,
    shape::{Periods, Shape},
    world::World,
};

pub(crate) const FIRST: &str = "upload";
pub(crate) const AGAIN: &str = "upload, nothing to do";
pub(crate) const OURS: &str = "marketferry";
pub(crate) const RCLONE: &str = "rclone --transfers 8 --checksum";
const BOTO3: &str = "boto3, 8 threads";

pub(crate) fn run(world: &World, plan: &Plan, figures: &mut Figures) -> Result<()> {
    let days = plan.size(25, 5);
    let shape = Shape { symbols: plan.size(400, 20), interval: "1h", periods: Periods::days("2025-02-01", days) };
    let ground = Ground::generate(world, "upload", shape)?;
    figures.describe(FIRST, ground.size());
    let mut contenders = vec![OURS, BOTO3];
    if peers::rclone().is_some() {
        contenders.push(RCLONE);
    } else {
        figures.remark("rclone is neither installed nor to be had: no figure against it.");
    }
    for round in 0..plan.rounds as usize {
        for place in 0..contenders.len() {
            let contender = contenders[(place + round) % contenders.len()];
            let prefix = one(world, &ground, contender, figures)?;
            let objects = world.stack.s3.bucket_dir().join(prefix);
            fs::remove_dir_all(&objects).context(format!("removing {}", objects.display()))?;
        }
    }
    ground.remove_archives()
}

/// Both runs of one contender, into a prefix of its own, which is returned.
fn one(world: &World, ground: &Ground, contender: &str, figures: &mut Figures) -> Result<String> {
    // An account, a bucket prefix and a cache that nobody has used.
    let mut project = Project::in_dir(&world.stack, &world.fast_folder("uploading")?, "uploading")?;
    project.set("local.data_dir", ground.project.data_dir().to_string_lossy().into_owned())?;
    project.set("publish.live_days", 36_500)?;
    project.set("log.level", "warn")?;
    for scenario in [FIRST, AGAIN] {
        world.rest()?;
        let usage = if contender == OURS {
            Contestant::product(&project, "uploader", &["upload"])?.measure(world)?
        } else {
            with_tool(world, ground, if contender == RCLONE { "rclone" } else { "boto3" }, project.prefix())?
        };
        check(&world.stack.s3.bucket_dir().join(project.prefix()), ground)
            .map_err(|failure| Failure::new(format!("{contender}: {failure}")))?;
        figures.add_usage(scenario, contender, &usage);
        figures.add(scenario, contender, "archives", "archives/s", ground.shape.archives() as f64 / usage.wall_s);
    }
    Ok(project.prefix().to_owned())
}

fn with_tool(world: &World, ground: &Ground, tool: &str, prefix: &str) -> Result<Usage> {
    let more = json!({ "tool": tool, "prefix": prefix });
    peers::python(world, ground, "upload.py", ground.project.data_dir(), &more)?.measure(world)
}

/// As many archives, and as many bytes of them, as were generated.
fn check(objects: &Path, ground: &Ground) -> Result<()> {
    let (mut count, mut bytes) = (0, 0);
    let mut folders = vec![objects.join("data")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).context(folder.display())? {
            let entry = entry.context(folder.display())?;
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "zip") {
                count += 1;
                bytes += entry.metadata().context(path.display())?.len();
            }
        }
    }
    if (count, bytes) == (ground.shape.archives(), ground.written.zip_bytes) {
        return Ok(());
    }
    Err(Failure::new(format!("{count} archives of {bytes} bytes are in the bucket, not all")))
}
