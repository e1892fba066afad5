//! A contender's process, and what it and the servers spent on it.

use std::{
    ffi::OsString,
    fs,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use serde_json::Value;
use tests::{
    Context, Failure, Result,
    process::{Process, Program},
    project::{Project, binary_path},
    servers::{ensure_installed, repository},
};

use crate::world::{Spent, World};

const TIMEOUT: Duration = Duration::from_secs(3600);

pub(crate) struct Contestant {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) args: Vec<OsString>,
    pub(crate) env: Vec<(String, String)>,
}

#[derive(Clone, Copy, Default)]
pub(crate) struct Usage {
    pub(crate) wall_s: f64,
    /// None where the server does it all.
    pub(crate) client: Option<Client>,
    pub(crate) servers: Spent,
}

#[derive(Clone, Copy, Default)]
pub(crate) struct Client {
    pub(crate) cpu_s: f64,
    /// Of the largest process.
    pub(crate) rss_mb: f64,
}

/// Of one process, by the machine's monotonic clock.
pub(crate) struct Lifetime {
    start_s: f64,
    end_s: f64,
    pub(crate) client: Client,
}

/// One that runs.
pub(crate) struct Running {
    process: Process,
    result: PathBuf,
}

impl Contestant {
    /// A binary of the product with a project's configuration.
    pub(crate) fn product(project: &Project, binary: &str, args: &[&str]) -> Result<Contestant> {
        let mut words: Vec<OsString> = args.iter().map(Into::into).collect();
        words.extend(["--config".into(), project.config_path().into()]);
        let name = [&[binary], args].concat().join(" ");
        Ok(Contestant { name, path: binary_path(binary)?, args: words, env: Vec::new() })
    }

    pub(crate) fn env(mut self, name: &str, value: impl ToString) -> Contestant {
        self.env.push((name.to_owned(), value.to_string()));
        self
    }

    pub(crate) fn start(self, world: &World) -> Result<Running> {
        static RUNS: AtomicU32 = AtomicU32::new(0);
        let dir = world.folder(&format!("run-{}", RUNS.fetch_add(1, Ordering::Relaxed)))?;
        let result = dir.join("usage.json");
        let mut args = vec![repository().join("tests/bench/measure.py").into(), result.clone().into()];
        args.push(self.path.into());
        args.extend(self.args);
        let python = ensure_installed()?.python.clone();
        let process = Process::spawn(Program { name: self.name, path: python, args, env: self.env, dir })?;
        Ok(Running { process, result })
    }

    /// From the start of the process to its end; anything but exit code 0 is a failure.
    pub(crate) fn measure(self, world: &World) -> Result<Usage> {
        measure_all(world, vec![self])
    }
}

impl Running {
    pub(crate) fn stop(&mut self) -> Result<()> {
        self.process.sigterm()
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.process.is_running()
    }

    pub(crate) fn said(&self) -> String {
        self.process.stderr()
    }

    /// What it used, once it has ended by itself or was told to.
    pub(crate) fn end(mut self) -> Result<Lifetime> {
        self.process.wait(TIMEOUT)?.expect_code(0)?;
        let text = fs::read_to_string(&self.result).context(self.result.display())?;
        let usage: Value = serde_json::from_str(&text).context(self.result.display())?;
        let number = |name: &str| usage[name].as_f64().ok_or_else(|| Failure::new(format!("no {name} in {usage}")));
        Ok(Lifetime {
            start_s: number("start_s")?,
            end_s: number("end_s")?,
            client: Client { cpu_s: number("cpu_s")?, rss_mb: number("max_rss_kb")? / 1024.0 },
        })
    }
}

/// Several at once: wall from the first start to the last end, CPU added up.
pub(crate) fn measure_all(world: &World, contestants: Vec<Contestant>) -> Result<Usage> {
    let before = world.spent()?;
    let running: Vec<Running> = contestants.into_iter().map(|one| one.start(world)).collect::<Result<_>>()?;
    let lifetimes: Vec<Lifetime> = running.into_iter().map(Running::end).collect::<Result<_>>()?;
    let servers = world.spent()?.minus(before);
    let start_s = lifetimes.iter().map(|lifetime| lifetime.start_s).fold(f64::INFINITY, f64::min);
    let end_s = lifetimes.iter().map(|lifetime| lifetime.end_s).fold(f64::NEG_INFINITY, f64::max);
    let client = Client {
        cpu_s: lifetimes.iter().map(|lifetime| lifetime.client.cpu_s).sum(),
        rss_mb: lifetimes.iter().map(|lifetime| lifetime.client.rss_mb).fold(0.0, f64::max),
    };
    Ok(Usage { wall_s: end_s - start_s, client: Some(client), servers })
}
