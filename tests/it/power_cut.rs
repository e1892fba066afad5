//! A power cut just after an acknowledgement loses only data that a server had not asked its disk to sync.
//!
//! The server's files are on a file system of their own, in a file. A copy of that file is what the disk would hold: what
//! the file system has only in memory is not in it. While it is copied nothing may be written to it, or the copy would be
//! of several moments: the server is suspended, and the file system writes its journal when it is asked to only.

use std::path::{Path, PathBuf};
use std::process::Command;

use tests::data::mark_all;
use tests::project::Project;
use tests::root::is_root;
use tests::servers::{ClickHouse, Nats, RunDir, S3, Stack};
use tests::truth::Truth;
use tests::{Context, Failure, Result};

use crate::scenario::{assert_units, btc, hours, is_checked};

const SETTINGS: [&str; 4] = [
    "fsync_after_insert",
    "fsync_part_directory",
    "min_rows_to_fsync_after_merge",
    "min_compressed_bytes_to_fsync_after_merge",
];

/// A file system in a file.
struct Disk {
    image: PathBuf,
    path: PathBuf,
}

impl Disk {
    /// `None` where this user may not mount anything.
    fn make(run: &RunDir, name: &str) -> Result<Option<Disk>> {
        if !is_root("to mount a file system")? {
            return Ok(None);
        }
        let image = run.path().join(format!("{name}.img"));
        run_command("truncate", &["--size=512M".as_ref(), &image])?;
        run_command("mkfs.ext4", &["-q".as_ref(), "-F".as_ref(), &image])?;
        Disk::mount(image, run.path().join(name)).map(Some)
    }

    fn mount(image: PathBuf, path: PathBuf) -> Result<Disk> {
        std::fs::create_dir(&path).context("the mount point")?;
        run_command("mount", &["-o".as_ref(), "loop,commit=600".as_ref(), &image, &path])?;
        Ok(Disk { image, path })
    }

    /// The disk as a power cut would leave it now, mounted again. `signal` reaches the server whose files it holds.
    fn cut(&self, name: &str, mut signal: impl FnMut(&str) -> Result<()>) -> Result<Disk> {
        let image = self.image.with_file_name(format!("{name}.img"));
        signal("STOP")?;
        let copied = run_command("cp", &["--sparse=always".as_ref(), &self.image, &image]);
        signal("CONT")?;
        copied?;
        Disk::mount(image, self.path.with_file_name(name))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a server that was killed a moment ago may still be at work in it.
        drop(run_command("umount", &["--lazy".as_ref(), &self.path]));
    }
}

fn run_command(program: &str, args: &[&Path]) -> Result<()> {
    let paths = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let done = Command::new("env").arg(format!("PATH={paths}")).arg(program).args(args).output().context(program)?;
    if done.status.success() {
        return Ok(());
    }
    Err(Failure::new(format!("{program}: {}", String::from_utf8_lossy(&done.stderr))))
}

fn ship(project: &Project, days: std::ops::RangeInclusive<u32>) -> Result<()> {
    for day in days {
        for symbol in ["BTCUSDT", "ETHUSDT"] {
            hours(symbol, &format!("2025-03-{day:02}")).write(project.data_dir())?;
        }
        mark_all(project.data_dir())?;
        project.uploader(&["upload"])?.expect_code(0)?;
        project.puller(&["pull"])?.expect_code(0)?;
    }
    Ok(())
}

/// Starts a server on what is left, and looks for all that was acknowledged.
fn expect_everything(project: &Project, disk: &Disk, units: u32) -> Result<()> {
    let server = ClickHouse::start(&disk.path.join("clickhouse"))?;
    let truth = Truth::of_tree(project.data_dir())?;
    truth.compare_rows(server.sql(), project.database(), 240)?;
    truth.compare_ledger(server.sql(), project.database(), project.prefix())?;
    let database = project.database();
    let log = server.query(&format!("SELECT count() FROM `{database}`.ingest_log WHERE outcome = 'loaded'"))?;
    assert_eq!(log.trim(), units.to_string(), "rows of ingest_log");
    let broken =
        server.query(&format!("SELECT name, reason FROM system.detached_parts WHERE database = '{database}'"))?;
    assert_eq!(broken, "", "parts that were not whole");
    Ok(())
}

#[test]
fn acknowledged_rows_survive_a_power_cut() -> Result<()> {
    let run = RunDir::new("power-cut")?;
    let Some(disk) = Disk::make(&run, "disk")? else { return Ok(()) };
    let mut stack = Stack::with_s3(run.path(), &disk.path, S3::start(&run.path().join("s3"))?)?;
    let project = Project::new(&stack, "power-cut")?;
    ship(&project, 1..=5)?;
    // At once: nothing but the servers' own requests has brought it to the disk.
    expect_everything(&project, &disk.cut("after-pull", |name| stack.clickhouse.signal(name))?, 5)?;

    // Merged parts stand in for those that were synchronised, which go soon after.
    for table in ["klines", "archives", "ingest_log"] {
        project.query(&format!("OPTIMIZE TABLE {{db}}.{table} FINAL"))?;
    }
    expect_everything(&project, &disk.cut("after-merge", |name| stack.clickhouse.signal(name))?, 5)
}

#[test]
fn acknowledged_markers_survive_a_power_cut() -> Result<()> {
    let run = RunDir::new("power-cut-nats")?;
    let Some(disk) = Disk::make(&run, "disk")? else { return Ok(()) };
    let mut stack = Stack::with_s3(&disk.path, run.path(), S3::start(&run.path().join("s3"))?)?;
    let mut project = Project::new(&stack, "power-cut-nats")?;
    project.puller(&["migrate"])?.expect_code(0)?;
    btc("2025-03-01").write(project.data_dir())?;
    mark_all(project.data_dir())?;
    let pass = project.uploader(&["upload", "--json"])?.expect_code(0)?;
    assert_units(&pass.json()?, &[("published", 1)]);

    let cut = disk.cut("after-upload", |name| stack.nats.signal(name))?;
    let nats = Nats::start(&cut.path.join("nats"))?;
    let account = nats.account()?;
    project.set("nats.url", account.url)?;
    project.set("nats.password", account.password)?;
    // The stream, the durable consumers and the marker are there, and the work goes on.
    let pending = project.puller(&["pull", "--dry-run"])?.expect_code(0)?;
    assert!(pending.stdout.contains("2025-03-01"), "{}", pending.stdout);
    project.puller(&["pull"])?.expect_code(0)?;
    project.check_tables(24)
}

#[test]
fn migrate_makes_old_tables_sync_and_respects_an_operators_choice() -> Result<()> {
    let project = Project::new(Stack::shared(), "sync-settings")?;
    project.puller(&["migrate"])?.expect_code(0)?;
    let synced = || -> Result<Vec<bool>> {
        ["klines", "archives", "ingest_log", "schema_migrations"]
            .into_iter()
            .map(|table| {
                let query = project.query(&format!("SHOW CREATE TABLE {{db}}.{table}"))?;
                Ok(SETTINGS.iter().all(|name| query.contains(&format!("{name} = 1"))))
            })
            .collect()
    };
    assert_eq!(synced()?, [true; 4]);
    let reset = || -> Result<()> {
        for table in ["klines", "archives", "ingest_log", "schema_migrations"] {
            project.query(&format!("ALTER TABLE {{db}}.{table} RESET SETTING {}", SETTINGS.join(", ")))?;
        }
        Ok(())
    };
    reset()?;
    project.query("TRUNCATE TABLE {db}.schema_migrations")?;
    project.query("INSERT INTO {db}.schema_migrations (version) VALUES (1)")?;
    let doctor = project.puller(&["doctor", "--json"])?.expect_code(4)?.json()?;
    assert!(is_checked(&doctor, "3 migrations are missing"), "{doctor:#}");
    assert!(is_checked(&doctor, "klines (fsync_after_insert = 0"), "{doctor:#}");
    project.puller(&["migrate"])?.expect_code(0)?;
    assert_eq!(synced()?, [true; 4]);
    project.puller(&["doctor"])?.expect_code(0)?;

    // Switched off later, that is somebody's decision: it is said, and not taken back.
    reset()?;
    let doctor = project.puller(&["doctor", "--json"])?.expect_code(4)?.json()?;
    assert!(is_checked(&doctor, "inserts are acknowledged before they are on disk"), "{doctor:#}");
    let status = project.puller(&["status"])?.expect_code(0)?;
    assert!(status.stdout.contains("a power cut can take acknowledged rows"), "{}", status.stdout);
    project.query("DROP VIEW {db}.coverage")?;
    project.puller(&["migrate"])?.expect_code(0)?;
    assert_eq!(synced()?, [false; 4]);
    ship(&project, 1..=1)?;
    project.check_tables(48)
}
