//! The servers, each a process of its own, and what they spend.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use tests::{
    Context, Failure, Result,
    process::{Process, Program},
    servers::{Credentials, RunDir, S3, SqlClient, Stack, ensure_installed},
};

/// Bytes a row takes on disk, parts that merges are about to replace included.
const ROW_BYTES: u64 = 60;
const START_DEADLINE: Duration = Duration::from_secs(60);
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(1800);
/// Bucket, archives and ClickHouse's files are kept in memory where there is this much: on ext4, above all without a journal,
/// what the kernel takes to make a file depends on what has been deleted before, and varies several times over.
const FAST_BYTES_MIN: u64 = 4 << 30;
/// ClickHouse's files are not, where rows are filled in that take more than this share of it.
const FAST_SHARE: u64 = 3;
const FAST: &str = "/dev/shm";
/// A server is at rest when it spent no more than this share of a core lately.
const REST: f64 = 0.1;
const REST_POLL: Duration = Duration::from_millis(250);
const REST_DEADLINE: Duration = Duration::from_secs(20);

pub(crate) struct World {
    pub(crate) stack: Stack,
    s3: Process,
    pub(crate) bucket_in_memory: bool,
    pub(crate) clickhouse_in_memory: bool,
    // Last: the servers are gone before their files.
    fast: RunDir,
    dir: RunDir,
}

/// CPU seconds of each server since it started.
#[derive(Clone, Copy, Default)]
pub(crate) struct Spent {
    pub(crate) clickhouse_s: f64,
    pub(crate) s3_s: f64,
    pub(crate) nats_s: f64,
}

impl World {
    /// For scenarios that fill in up to so many rows.
    pub(crate) fn start(rows: u64) -> Result<World> {
        if !Path::new("/proc/self/stat").exists() {
            return Err(Failure::new("the bench reads CPU times from /proc, so it needs Linux"));
        }
        ensure_installed()?;
        let dir = RunDir::new("bench")?;
        let free = free_bytes(FAST).unwrap_or_default();
        let bucket_in_memory = free >= FAST_BYTES_MIN;
        let clickhouse_in_memory = bucket_in_memory && filled_bytes(rows) <= free / FAST_SHARE;
        let fast = if bucket_in_memory {
            RunDir::below(&Path::new(FAST).join("marketferry-bench"), "bench")?
        } else {
            RunDir::new("bench-data")?
        };
        let root = fast.path().join("s3");
        fs::create_dir_all(&root).context("making the bucket's folder")?;
        let mut s3 = Process::spawn(Program {
            name: "S3".to_owned(),
            path: env::current_exe().context("finding the running executable")?,
            args: vec!["serve-s3".into(), root.clone().into()],
            env: Vec::new(),
            dir: root.clone(),
        })?;
        let ready = s3.wait_for_line("READY ", START_DEADLINE)?;
        let mut words = ready.split(' ').skip(1);
        let mut word = || words.next().ok_or_else(|| Failure::new("the S3 server's first line is too short"));
        let port = word()?.parse().context("the port of the S3 server")?;
        let credentials = Credentials { access_key_id: word()?.to_owned(), secret_access_key: word()?.to_owned() };
        let servers = dir.path().join("servers");
        let clickhouse_dir = if clickhouse_in_memory { fast.path() } else { &servers };
        let stack = Stack::with_s3(&servers, clickhouse_dir, S3::elsewhere(&root, port, credentials))?;
        Ok(World { stack, s3, bucket_in_memory, clickhouse_in_memory, fast, dir })
    }

    /// An empty folder in memory, or what stands for it.
    pub(crate) fn fast_folder(&self, name: &str) -> Result<PathBuf> {
        empty_folder(self.fast.path(), name)
    }

    /// An empty folder on disk.
    pub(crate) fn folder(&self, name: &str) -> Result<PathBuf> {
        empty_folder(self.dir.path(), name)
    }

    /// Asks ClickHouse, and has patience.
    pub(crate) fn ask(&self, sql: &str) -> Result<String> {
        self.sql().query(sql)
    }

    pub(crate) fn sql(&self) -> SqlClient {
        self.stack.clickhouse.sql().with_timeout(STATEMENT_TIMEOUT)
    }

    pub(crate) fn spent(&self) -> Result<Spent> {
        let of = |pid: Option<u32>| pid.map_or_else(|| Err(Failure::new("a server is gone")), cpu_s);
        Ok(Spent {
            clickhouse_s: of(self.stack.clickhouse.pid())?,
            s3_s: of(Some(self.s3.pid()))?,
            nats_s: of(self.stack.nats.pid())?,
        })
    }

    /// Waits until the servers have done what an earlier run left them to do, merges above all.
    pub(crate) fn rest(&self) -> Result<()> {
        self.rest_within(REST_DEADLINE)
    }

    pub(crate) fn rest_within(&self, deadline: Duration) -> Result<()> {
        let start = Instant::now();
        while start.elapsed() < deadline {
            let before = self.spent()?;
            thread::sleep(REST_POLL);
            let spent = self.spent()?.minus(before);
            if spent.clickhouse_s + spent.s3_s + spent.nats_s <= REST * REST_POLL.as_secs_f64() {
                return Ok(());
            }
        }
        eprintln!("bench: the servers were still busy after {deadline:?}");
        Ok(())
    }
}

impl Spent {
    pub(crate) fn minus(self, before: Spent) -> Spent {
        Spent {
            clickhouse_s: self.clickhouse_s - before.clickhouse_s,
            s3_s: self.s3_s - before.s3_s,
            nats_s: self.nats_s - before.nats_s,
        }
    }
}

/// The body of the process that serves S3.
pub(crate) fn serve_s3(dir: &Path) -> Result<()> {
    let s3 = S3::start(dir)?;
    let Credentials { access_key_id, secret_access_key } = s3.credentials();
    println!("READY {} {access_key_id} {secret_access_key}", s3.address().port());
    // The bench ends it, or its death does.
    loop {
        thread::park();
    }
}

fn empty_folder(base: &Path, name: &str) -> Result<PathBuf> {
    let path = base.join(name);
    if path.exists() {
        fs::remove_dir_all(&path).context(format!("emptying {}", path.display()))?;
    }
    fs::create_dir_all(&path).context(format!("making {}", path.display()))?;
    Ok(path)
}

/// User and system time of a process that runs; its children are not counted.
fn cpu_s(pid: u32) -> Result<f64> {
    /// `sysconf(_SC_CLK_TCK)`, the same on every Linux that Rust runs on.
    const TICKS_A_SECOND: f64 = 100.0;
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).context(&path)?;
    // The name before them may hold anything, but ends with the last parenthesis.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Ok(ticks as f64 / TICKS_A_SECOND)
}

/// By `df`, for the standard library does not tell.
pub(crate) fn free_bytes(path: &str) -> Option<u64> {
    let output = Command::new("df").args(["--output=avail", "--block-size=1", path]).output().ok()?;
    String::from_utf8(output.stdout).ok()?.lines().nth(1)?.trim().parse().ok()
}

/// What so many rows take on disk.
pub(crate) fn filled_bytes(rows: u64) -> u64 {
    rows * ROW_BYTES
}
