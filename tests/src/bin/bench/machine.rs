//! Where and with what it was measured.

use std::{fs, process::Command, thread};

use serde_json::{Value, json};
use tests::{
    Context, Result, http,
    servers::{ensure_installed, repository},
};

use crate::{peers, world::World};

pub(crate) struct Machine {
    facts: Vec<(&'static str, String)>,
}

impl Machine {
    pub(crate) fn read(world: &World) -> Result<Machine> {
        let line = |path: &str, name: &str| {
            let text = fs::read_to_string(path).unwrap_or_default();
            let found = text.lines().find_map(|line| line.strip_prefix(name)?.split_once(':'));
            found.map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
        };
        let varz = http::get_text(world.stack.nats.monitor(), "/varz")?;
        let varz: Value = serde_json::from_str(&varz).context("/varz")?;
        let python = ensure_installed()?.python.display().to_string();
        let facts = vec![
            ("started", jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
            ("cores", thread::available_parallelism().map_or(0, usize::from).to_string()),
            ("processor", line("/proc/cpuinfo", "model name")),
            ("memory", line("/proc/meminfo", "MemTotal")),
            ("kernel", fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()),
            ("profile", if cfg!(debug_assertions) { "debug: no figure counts" } else { "release" }.to_owned()),
            ("revision", revision()),
            ("ClickHouse", world.stack.clickhouse.query("SELECT version()")?.trim().to_owned()),
            ("nats-server", varz["version"].as_str().unwrap_or_default().to_owned()),
            ("S3", "s3s-fs with TCP_NODELAY".to_owned()),
            ("bucket in memory", world.bucket_in_memory.to_string()),
            ("ClickHouse in memory", world.clickhouse_in_memory.to_string()),
            (
                "rclone",
                peers::rclone().map_or("none: boto3 takes its place".to_owned(), |path| first_line(&path, "version")),
            ),
            ("Python", first_line(&python, "--version")),
            ("load before", load()),
        ];
        Ok(Machine { facts })
    }

    /// At the end.
    pub(crate) fn read_again(&mut self) {
        self.facts.push(("load after", load()));
    }

    pub(crate) fn lines(&self) -> String {
        self.facts.iter().map(|(name, value)| format!("{name}: {value}\n")).collect()
    }

    pub(crate) fn json(&self) -> Value {
        self.facts.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect()
    }
}

fn revision() -> String {
    let git = |args: &[&str]| {
        let output = Command::new("git").arg("-C").arg(repository()).args(args).output().ok()?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let changed = git(&["status", "--porcelain"]).is_some_and(|changes| !changes.is_empty());
    let revision = git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_default();
    if changed { revision + " with changes" } else { revision }
}

fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

fn first_line(program: &str, argument: &str) -> String {
    let output = Command::new(program).arg(argument).output();
    output
        .map(|output| String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned())
        .unwrap_or_default()
}
