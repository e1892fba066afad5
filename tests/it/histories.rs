//! Random histories of archives that come, are corrected, lose rows and get them back, while workers die: `klines_latest`
//! shows the rows of the current archives, as a newly filled database does.
//!
//! A history is a symbol of one series; all histories of a series share its units, so that each step publishes archives of
//! many of them at once. A failure prints the seed and the whole history of the first symbols that differ.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::json;
use tests::data::{ArchiveSpec, Market, Record, mark_all};
use tests::dice::Dice;
use tests::process::Process;
use tests::project::Project;
use tests::servers::Stack;
use tests::truth::Truth;
use tests::{Context, Failure, Result};

use crate::scenario::listed_letters;

/// Repeats a run.
const SEED: &str = "FERRY_HISTORIES_SEED";
/// Runs more histories than the usual number, or longer ones.
const HISTORIES: &str = "FERRY_HISTORIES";
const STEPS: &str = "FERRY_HISTORIES_STEPS";
const PATIENCE: Duration = Duration::from_secs(240);
/// Where a worker may die.
const DEATHS: [&str; 6] = [
    "puller.decoded",
    "puller.inserted",
    "puller.read_back",
    "puller.archives_recorded",
    "puller.rows_outranked",
    "puller.attempt_recorded",
];

/// Candles of one length: the periods that have archives, each with the open times that its archives may have.
struct Series {
    interval: &'static str,
    length: jiff::SignedDuration,
    periods: &'static [(&'static str, &'static [&'static str])],
    /// Of 20 histories.
    share: usize,
}

/// Days within their month; and candles that open before the period of an archive that may have them.
const SERIES: [Series; 3] = [
    Series {
        interval: "8h",
        length: jiff::SignedDuration::from_hours(8),
        periods: &[
            ("2025-03", &["03-01T00", "03-01T08", "03-01T16", "03-02T00", "03-02T08", "03-02T16", "03-03T08"]),
            ("2025-03-01", &["03-01T00", "03-01T08", "03-01T16"]),
            ("2025-03-02", &["03-02T00", "03-02T08", "03-02T16"]),
        ],
        share: 14,
    },
    Series {
        interval: "1w",
        length: jiff::SignedDuration::from_hours(7 * 24),
        periods: &[
            ("2025-01", &["01-13T00", "01-20T00", "01-27T00"]),
            ("2025-02", &["01-27T00", "02-03T00", "02-10T00"]),
        ],
        share: 3,
    },
    Series {
        interval: "3d",
        length: jiff::SignedDuration::from_hours(3 * 24),
        periods: &[
            ("2025-01", &["01-24T00", "01-27T00", "01-30T00"]),
            ("2025-02", &["01-30T00", "02-02T00", "02-05T00"]),
            ("2025-02-01", &["01-30T00"]),
        ],
        share: 3,
    },
];

/// One symbol of a series.
struct History {
    series: &'static Series,
    symbol: String,
    /// By period: when the current archive was generated (s), and which open times it has.
    archives: BTreeMap<&'static str, (i64, BTreeSet<&'static str>)>,
    log: Vec<String>,
}

impl History {
    /// Publishes an archive, or a revision of one that is there, in the tree.
    fn step(&mut self, dice: &mut Dice, step: usize, data_dir: &Path) -> Result<()> {
        let (period, times) = dice.pick(self.series.periods);
        // Most rows stay; now and then many go.
        let loses = if dice.one_in(3) { 2 } else { 4 };
        let mut retained: BTreeSet<&str> = times.iter().copied().filter(|_| !dice.one_in(loses)).collect();
        if retained.is_empty() {
            retained.insert(dice.pick(times));
        }
        // Even seconds, of which no two archives of a history have the same: older than others' or newer, and newer than
        // the former revision.
        let former = self.archives.get(period).map(|(generated_at, _)| *generated_at);
        let first = Timestamp::constant(1_743_500_000, 0).as_second();
        let mut generated_at = former.unwrap_or(first) + 2 + 2 * dice.below(200_000) as i64;
        while self.archives.values().any(|(other, _)| *other == generated_at) {
            generated_at += 2;
        }
        self.log.push(format!("step {step}: {period} generated at {generated_at} has {retained:?}"));
        let stamp = Timestamp::from_second(generated_at).context("a time")?;
        let spec =
            ArchiveSpec::new(Market::Spot, &self.symbol, self.series.interval, period).generated_at(&stamp.to_string());
        let records: Vec<Record> =
            retained.iter().map(|time| self.record(time, dice.below(900_000))).collect::<Result<_>>()?;
        spec.write_bytes(data_dir, &spec.zip_of(&spec.csv_of(&records)))?;
        self.archives.insert(period, (generated_at, retained));
        Ok(())
    }

    fn record(&self, time: &str, value: u64) -> Result<Record> {
        let open: Timestamp = format!("2025-{time}:00:00Z").parse().context(time)?;
        let close = open + self.series.length - jiff::SignedDuration::from_micros(1);
        let price = format!("{}.{:08}", 100 + value % 100, value);
        let volume = format!("{value}.50000000");
        Ok([
            open.as_microsecond().to_string(),
            price.clone(),
            price.clone(),
            price.clone(),
            price,
            volume.clone(),
            close.as_microsecond().to_string(),
            volume.clone(),
            value.to_string(),
            volume.clone(),
            volume,
            "0".into(),
        ])
    }
}

/// Two workers, of which one dies now and then.
struct Workers<'p> {
    project: &'p Project,
    running: Vec<Process>,
    /// How many of those that are still to be started are to die.
    deaths: u64,
}

impl<'p> Workers<'p> {
    fn start(&mut self, dice: &mut Dice) -> Result<()> {
        while self.running.len() < 2 {
            // The first that are started are to die.
            let place = if self.deaths > 0 { dice.pick(&DEATHS) } else { "none" };
            self.deaths = self.deaths.saturating_sub(1);
            eprintln!("a worker starts that dies at {place}");
            self.running.push(self.project.start("puller", &["run"], &[("FERRY_FAILPOINT", place)])?);
        }
        Ok(())
    }

    /// Stops the one that runs longest in good order, so that another takes its place.
    fn replace_one(&mut self, dice: &mut Dice) -> Result<()> {
        if !self.running.is_empty() {
            let mut oldest = self.running.remove(0);
            if oldest.is_running() {
                oldest.sigterm()?;
                oldest.wait(PATIENCE)?;
            }
        }
        self.start(dice)
    }

    /// Starts others for those that died.
    fn supervise(&mut self, dice: &mut Dice) -> Result<()> {
        self.running.retain_mut(Process::is_running);
        self.start(dice)
    }

    /// Waits until every marker is acknowledged.
    fn drain(&mut self, dice: &mut Dice) -> Result<()> {
        let started = Instant::now();
        loop {
            self.supervise(dice)?;
            let status = self.project.puller(&["status", "--json"])?;
            let status = status.json()?;
            let counts = |name: &str| sum_of(&status, name);
            if counts("pending") + counts("in_flight") + counts("retries_scheduled") == 0 {
                return Ok(());
            }
            if started.elapsed() > PATIENCE {
                return Err(Failure::new(format!("not drained within {PATIENCE:?}: {status:#}")));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn stop(&mut self) -> Result<()> {
        for mut worker in self.running.drain(..) {
            if worker.is_running() {
                worker.sigterm()?;
                worker.wait(PATIENCE)?;
            }
        }
        Ok(())
    }
}

/// The sum of all numbers called `name`, and of the lengths of all lists.
fn sum_of(value: &serde_json::Value, name: &str) -> u64 {
    match value {
        serde_json::Value::Object(map) => map
            .iter()
            .map(|(key, value)| match value {
                _ if key != name => sum_of(value, name),
                serde_json::Value::Array(items) => items.len() as u64,
                other => other.as_u64().unwrap_or_default(),
            })
            .sum(),
        serde_json::Value::Array(items) => items.iter().map(|item| sum_of(item, name)).sum(),
        _ => 0,
    }
}

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

#[test]
fn random_histories_end_with_the_rows_of_a_newly_filled_database() -> Result<()> {
    let (histories, steps) = (number(HISTORIES, 2_000), number(STEPS, 9));
    let seed = number(SEED, usize::try_from(std::process::id()).unwrap_or(1)) as u64;
    eprintln!("{SEED}={seed} {HISTORIES}={histories} {STEPS}={steps}");
    let mut dice = Dice::new(seed);
    let mut project = Project::new(Stack::shared(), "histories")?;
    let bucket = project.dir().join("bucket");
    std::fs::create_dir_all(&bucket).context("a folder")?;
    let bucket = bucket.to_str().ok_or_else(|| Failure::new("a path that is not UTF-8"))?.to_owned();
    for (key, value) in [
        ("storage.type", json!("fs")),
        ("storage.fs.path", json!(bucket)),
        ("corrections.shrink_limit", json!(1.0)),
        ("retry.attempts", json!(20)),
        ("retry.missing_object", json!("30s")),
        // Not all revisions of a unit at once.
        ("puller.slots", json!(4)),
    ] {
        project.set(key, value)?;
    }
    project.puller(&["migrate"])?.expect_code(0)?;
    let mut all: Vec<History> = Vec::new();
    for series in &SERIES {
        for number in 0..(histories * series.share).div_ceil(20) {
            let symbol = format!("S{number:04}USDT");
            all.push(History { series, symbol, archives: BTreeMap::new(), log: Vec::new() });
        }
    }
    let started = Instant::now();
    let mut workers = Workers { project: &project, running: Vec::new(), deaths: 0 };
    for step in 0..steps {
        // At first everybody has something; later a third of them in each step.
        for history in &mut all {
            if step == 0 || dice.one_in(3) {
                history.step(&mut dice, step, project.data_dir())?;
            }
        }
        mark_all(project.data_dir())?;
        project.uploader(&["upload"])?.expect_code(0)?;
        // In each step some die, not all in the first.
        workers.deaths = dice.below(3);
        workers.replace_one(&mut dice)?;
        // Half of the time the next step comes while this one is being loaded.
        if dice.one_in(2) {
            workers.drain(&mut dice)?;
        }
        eprintln!("step {step} after {:?}", started.elapsed());
    }
    workers.drain(&mut dice)?;
    workers.stop()?;
    let letters = listed_letters(&project, &[])?;
    assert!(letters.is_empty(), "{letters:#?}");
    let ranked =
        "SELECT countIf(is_deleted = 0 AND version >= 281474976710656), countIf(is_deleted = 1) FROM {db}.klines";
    eprintln!("rows and tombstones with a rank epoch: {}", project.query(ranked)?.trim());

    check(&project, project.database(), &all)?;
    project.puller(&["verify"])?.expect_code(0)?;
    project.query("OPTIMIZE TABLE {db}.klines FINAL")?;
    check(&project, project.database(), &all)?;
    eprintln!("checked after {:?}", started.elapsed());

    let (history, anew) = (project.database().to_owned(), format!("{}_anew", project.database()));
    let mut primary = project.config()["clickhouse"].clone();
    primary["name"] = json!("anew");
    primary["type"] = json!("clickhouse");
    primary["database"] = json!(anew);
    project.set("destinations", json!([primary]))?;
    project.set("puller.destinations", json!(["anew"]))?;
    project.puller(&["migrate"])?.expect_code(0)?;
    project.puller(&["pull"])?.expect_code(0)?;
    eprintln!("filled anew after {:?}", started.elapsed());
    check(&project, &anew, &all)?;
    let sum =
        |database: &str| project.query(&format!("SELECT count(), sum(cityHash64(*)) FROM `{database}`.klines_latest"));
    assert_eq!(sum(&history)?, sum(&anew)?, "versions differ");
    Ok(())
}

/// Compares with the archives as they are now, and tells the histories that differ.
fn check(project: &Project, database: &str, all: &[History]) -> Result<()> {
    let truth = Truth::of_tree(project.data_dir())?;
    let Err(failure) = truth.compare_rows(project.sql(), database, 1) else {
        return Ok(());
    };
    let report = failure.to_string();
    let named = |history: &&History| report.contains(&format!("/{}/{} ", history.series.interval, history.symbol));
    let mut text = format!("{report}\n");
    for history in all.iter().filter(named).take(3) {
        text += &format!("{} {}:\n  {}\n", history.series.interval, history.symbol, history.log.join("\n  "));
        let rows = format!(
            "SELECT open_time, bitShiftRight(version, 48), bitAnd(version, 281474976710655), is_deleted \
             FROM `{database}`.klines WHERE symbol = '{}' AND interval = '{}' ORDER BY open_time, version FORMAT TSV",
            history.symbol, history.series.interval
        );
        text += &project.query(&rows)?;
    }
    Err(Failure::new(text))
}
