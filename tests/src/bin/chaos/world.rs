//! What is broken: a stack of servers, an uploader, and three workers behind proxies.

use std::net::SocketAddr;
use std::time::Duration;

use tests::data::{ArchiveSpec, Market, mark_all};
use tests::dice::Dice;
use tests::project::{Project, Service};
use tests::proxy::{Fault, Proxy};
use tests::servers::Stack;
use tests::truth::Truth;
use tests::{Context, Failure, Result};

const WORKERS: usize = 3;
const SYMBOLS: [&str; 4] = ["AAAUSDT", "BBBUSDT", "CCCUSDT", "DDDUSDT"];
/// Days there are to publish and correct.
const DAYS: u64 = 28;
const DRAIN: Duration = Duration::from_secs(300);

/// What happened so far.
#[derive(Default)]
pub(crate) struct Tally {
    worker_kills: u64,
    uploader_kills: u64,
    stops: u64,
    bucket_faults: u64,
    clickhouse_faults: u64,
    nats_kills: u64,
    clickhouse_kills: u64,
    publications: u64,
    replays: u64,
}

impl Tally {
    pub(crate) fn line(&self) -> String {
        format!(
            "{} worker kills, {} uploader kills, {} sleeps, {} bucket faults, {} ClickHouse faults, {} NATS kills, \
             {} ClickHouse kills, {} publications, {} replays",
            self.worker_kills,
            self.uploader_kills,
            self.stops,
            self.bucket_faults,
            self.clickhouse_faults,
            self.nats_kills,
            self.clickhouse_kills,
            self.publications,
            self.replays,
        )
    }
}

pub(crate) struct World {
    pub(crate) tally: Tally,
    workers: Vec<Service>,
    bucket: Proxy,
    clickhouse: Proxy,
    project: Project,
    stack: Stack,
    /// Each publication is generated a minute after the one before, by the clock of the archives.
    generation: i64,
}

impl World {
    pub(crate) fn start() -> Result<Self> {
        let stack = Stack::own()?;
        let mut project = Project::new(&stack, "chaos")?;
        let endpoint: SocketAddr = stack.s3.address();
        let bucket = Proxy::start(endpoint)?;
        let clickhouse = Proxy::start(SocketAddr::from(([127, 0, 0, 1], stack.clickhouse.port())))?;
        project.set("storage.r2.endpoint", format!("http://{}", bucket.address()))?;
        project.set("clickhouse.port", clickhouse.address().port())?;
        project.set("puller.ack_wait", "2s")?;
        project.set("publish.timeout", "10s")?;
        // A kill costs a delivery an attempt, and here is nothing but kills.
        project.set("retry.attempts", 24)?;
        project.puller(&["migrate"])?.expect_code(0)?;
        let tally = Tally::default();
        Ok(Self { tally, workers: Vec::new(), bucket, clickhouse, project, stack, generation: 0 })
    }

    pub(crate) fn ensure_workers(&mut self) -> Result<()> {
        self.workers.retain_mut(|worker| worker.is_running());
        while self.workers.len() < WORKERS {
            self.workers.push(self.project.spawn_puller(&["run"])?);
        }
        Ok(())
    }

    pub(crate) fn kill_worker(&mut self, dice: &mut Dice) -> Result<()> {
        if self.workers.is_empty() {
            return Ok(());
        }
        let index = usize::try_from(dice.below(self.workers.len() as u64)).unwrap_or_default();
        self.workers.swap_remove(index).kill9()?;
        self.tally.worker_kills += 1;
        Ok(())
    }

    /// A new day, or a day published anew with other values and a row or two less.
    fn write_something(&mut self, dice: &mut Dice) -> Result<()> {
        let day = format!("2025-03-{:02}", 1 + dice.below(DAYS));
        self.generation += 1;
        let generated_at = jiff::Timestamp::from_second(1_750_000_000 + 60 * self.generation).context("a time")?;
        let seed = dice.below(u64::from(u32::MAX));
        for symbol in SYMBOLS {
            let missing = (0..dice.below(3)).map(|_| usize::try_from(dice.below(24)).unwrap_or_default());
            let missing: Vec<usize> = missing.collect();
            ArchiveSpec::new(Market::Spot, symbol, "1h", &day)
                .seed(seed)
                .missing(missing)
                .generated_at(&generated_at.to_string())
                .write(self.project.data_dir())?;
        }
        mark_all(self.project.data_dir())?;
        self.tally.publications += 1;
        Ok(())
    }

    pub(crate) fn publish_something(&mut self, dice: &mut Dice) -> Result<()> {
        self.write_something(dice)?;
        // May fail while something is broken; the next one carries it on.
        self.project.uploader(&["upload"]).map(drop)
    }

    pub(crate) fn upload_and_kill(&mut self, dice: &mut Dice) -> Result<()> {
        self.write_something(dice)?;
        let mut uploader = self.project.start("uploader", &["upload"], &[])?;
        std::thread::sleep(Duration::from_millis(dice.below(600)));
        if uploader.is_running() {
            uploader.kill9()?;
            self.tally.uploader_kills += 1;
        }
        Ok(())
    }

    /// A worker sleeps through its leases and goes on.
    pub(crate) fn stop_and_continue(&mut self, dice: &mut Dice) -> Result<()> {
        if let Some(worker) = self.workers.first_mut() {
            worker.signal("STOP")?;
            std::thread::sleep(Duration::from_millis(1500 + dice.below(2000)));
            worker.signal("CONT")?;
            self.tally.stops += 1;
        }
        Ok(())
    }

    pub(crate) fn break_bucket(&mut self, fault: &Fault, dice: &mut Dice) -> Result<()> {
        self.tally.bucket_faults += 1;
        for_a_while(&self.bucket, fault, dice);
        Ok(())
    }

    pub(crate) fn break_clickhouse(&mut self, fault: &Fault, dice: &mut Dice) -> Result<()> {
        self.tally.clickhouse_faults += 1;
        for_a_while(&self.clickhouse, fault, dice);
        Ok(())
    }

    pub(crate) fn kill_nats(&mut self) -> Result<()> {
        self.tally.nats_kills += 1;
        self.stack.nats.kill()?;
        self.stack.nats.restart()
    }

    pub(crate) fn kill_clickhouse(&mut self) -> Result<()> {
        self.tally.clickhouse_kills += 1;
        self.stack.clickhouse.kill()?;
        self.stack.clickhouse.restart()
    }

    pub(crate) fn replay(&mut self, dice: &mut Dice) -> Result<()> {
        let day = format!("2025-03-{:02}", 1 + dice.below(DAYS));
        self.tally.replays += 1;
        self.project.puller(&["replay", "--force", "--from", &day, "--to", &day]).map(drop)
    }

    /// Mends everything, waits until nothing is left to do, and compares every row.
    pub(crate) fn finish(mut self) -> Result<String> {
        self.bucket.set(Fault::None);
        self.clickhouse.set(Fault::None);
        self.project.uploader(&["upload"])?.expect_code(0)?;
        self.ensure_workers()?;
        let mut dead = 0;
        self.project.wait_until("an empty queue", DRAIN, || {
            let status = self.project.puller(&["status", "--json"])?.expect_code(0)?.json()?;
            dead = status["destinations"][0]["dead"].as_u64().unwrap_or_default();
            Ok(["pending", "in_flight", "retries_scheduled"].iter().all(|key| status["destinations"][0][key] == 0))
        })?;
        for mut worker in self.workers.drain(..) {
            worker.sigterm()?;
            worker.wait(Duration::from_secs(60))?.expect_code(0)?;
        }
        self.project.check_tables(1)?;
        if dead > 0 {
            return Err(Failure::new(format!("{dead} dead letters, and nothing in this run explains any")));
        }
        let truth = Truth::of_tree(self.project.data_dir())?;
        Ok(format!(
            "{}\nequal: {} archives, {} rows, none missing, none doubled, no dead letter",
            self.tally.line(),
            truth.archives().len(),
            truth.rows()
        ))
    }
}

fn for_a_while(proxy: &Proxy, fault: &Fault, dice: &mut Dice) {
    proxy.set(fault.clone());
    std::thread::sleep(Duration::from_millis(300 + dice.below(2000)));
    proxy.set(Fault::None);
}
