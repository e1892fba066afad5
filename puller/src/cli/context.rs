//! What every command begins with: connections, the choice of destinations, and what a worker is made of.

use std::sync::Arc;
use std::time::Duration;

use common::catalogue::one_of;
use common::config::{Config, Destination as DestinationConfig, DestinationKind};
use common::output::Failure;
use common::service::doctor::machine::too_few_open_files;
use common::service::host::host_name;
use common::service::http::Readiness;
use common::text::shorten;
use nats::{Bus, BusError, ConsumerSettings, within};
use store::{End, ObjectStore};
use tokio::sync::{Notify, Semaphore};

use crate::clickhouse::client::Warehouse;
use crate::clickhouse::schema::MissingTables;
use crate::clickhouse::statements::Statements;
use crate::directory::mirror::Mirror;
use crate::error::clickhouse::WarehouseError;
use crate::fetch::fetcher::Fetcher;
use crate::job::memory::{Demand, MemoryBudget};
use crate::load::decisions::Decisions;
use crate::load::loader::Loader;
use crate::worker::circuit::Circuit;
use crate::worker::context::{ClockWatch, Worker};
use crate::worker::destination::Destination;
use crate::worker::metrics::Metrics;
use crate::worker::runner::{OPEN_MAX, Runner};
use crate::worker::stats::WorkerStats;
use crate::worker::suspects::Suspects;

/// What all destinations of a process share.
pub(crate) struct Shared {
    pub config: Config,
    pub worker_name: String,
    pub bus: Bus,
    pub readiness: Readiness,
    pub metrics: Metrics,
    pub fetcher: Fetcher,
    memory: MemoryBudget,
    decodings: Arc<Semaphore>,
}

impl Shared {
    pub(crate) fn new(config: Config, worker_name: String, bus: Bus, readiness: Readiness, metrics: Metrics) -> Self {
        if let Some((found, advice)) = too_few_open_files(open_files_needed(&config)) {
            tracing::warn!("open files: {found} ({advice})");
        }
        Self {
            fetcher: Fetcher::new(
                ObjectStore::new(&config.storage, End::Puller),
                config.storage.prefix.clone(),
                config.storage.transfers * config.puller.slots,
            ),
            memory: MemoryBudget::new(config.puller.memory),
            decodings: Arc::new(Semaphore::new(std::thread::available_parallelism().map_or(2, usize::from))),
            config,
            worker_name,
            bus,
            readiness,
            metrics,
        }
    }

    pub(crate) fn consumer_settings(&self, destination: &str) -> ConsumerSettings {
        ConsumerSettings { destination: destination.to_owned(), ack_wait: self.config.puller.ack_wait }
    }

    /// Makes the streams and the destination's consumers where that is this process's right, and makes sure that
    /// nothing announced can be lost or skipped on its way through them.
    pub(crate) async fn prepare_queue(&self, destination: &str) -> Result<(), BusError> {
        let settings = self.consumer_settings(destination);
        let preparing = async {
            if self.config.nats.manage {
                self.bus.create_streams().await?;
                self.bus.create_consumers(&settings).await?;
            }
            self.bus.check_destination(&settings).await
        };
        for fault in within(OPEN_MAX, "preparing streams and consumers", preparing).await? {
            tracing::warn!("{} ({})", fault.what, fault.advice);
        }
        Ok(())
    }

    /// A runner for a destination whose server answers and has its tables.
    pub(crate) async fn open(
        &self,
        destination: &DestinationConfig,
        missing: MissingTables,
    ) -> Result<Runner, WarehouseError> {
        let mut tables_since = None;
        let opened = match &destination.kind {
            DestinationKind::Directory { path } => Destination::Directory(Box::new(Mirror {
                root: path.clone(),
                fetcher: self.fetcher.clone(),
                memory: self.memory.clone(),
            })),
            DestinationKind::ClickHouse(config) => {
                let mut warehouse = Warehouse::new(config);
                warehouse.connect().await?;
                match missing {
                    MissingTables::Make => warehouse.prepare_tables().await?,
                    MissingTables::Refuse => warehouse.check_tables().await?,
                }
                // Whether several servers have the rows shows by the tables' engines, once there are tables.
                warehouse.learn_overrides().await?;
                if destination.initial_days.is_some() {
                    tables_since = warehouse.served_since().await?;
                }
                Destination::ClickHouse(Box::new(Loader {
                    demand: Demand::new(&self.memory),
                    statements: Statements::new(&warehouse, &self.config.puller.group),
                    warehouse,
                    fetcher: self.fetcher.clone(),
                    memory: self.memory.clone(),
                    decodings: self.decodings.clone(),
                    corrections: self.config.corrections.clone(),
                    decisions: Decisions::default(),
                    preparing: tokio::sync::Mutex::default(),
                    worker: self.worker_name.clone(),
                }))
            }
        };
        let puller = &self.config.puller;
        self.metrics.serves(&destination.name);
        Ok(Runner {
            worker: Arc::new(Worker {
                name: self.worker_name.clone(),
                destination_name: destination.name.clone(),
                destination: opened,
                bus: self.bus.clone(),
                fetcher: self.fetcher.clone(),
                memory: self.memory.clone(),
                suspects: Suspects::default(),
                retry: self.config.retry.clone(),
                circuit: Circuit::new(&destination.name, self.readiness.clone()),
                clock_watch: ClockWatch::default(),
                metrics: self.metrics.clone(),
                stats: WorkerStats::default(),
                initial_days: destination.initial_days,
                tables_since,
            }),
            settings: self.consumer_settings(&destination.name),
            slots: puller.slots,
            stall_timeout: puller.stall_timeout,
            shutdown_grace: puller.shutdown_grace,
            manage: self.config.nats.manage,
            opened: Notify::new(),
        })
    }
}

/// A name that no other start of a worker has: host, process and time.
pub(crate) fn worker_name() -> String {
    let since = common::clock::now().as_millisecond();
    format!("{}-{}-{since:x}", host_name(), std::process::id())
}

/// The destination of that name.
pub(crate) fn destination(config: &Config, name: &str) -> Result<DestinationConfig, Failure> {
    config.destination(name).cloned().ok_or_else(|| not_configured(config, name))
}

/// Whether there is a destination of that name, or it is what `pull --no-ingest` fills.
pub(crate) fn check_name(config: &Config, name: &str) -> Result<(), Failure> {
    let is_mirror = || config.mirror().is_some_and(|mirror| mirror.name == name);
    if config.destination(name).is_some() || is_mirror() { Ok(()) } else { Err(not_configured(config, name)) }
}

fn not_configured(config: &Config, name: &str) -> Failure {
    let names: Vec<&str> = config.destinations.iter().map(|known| known.name.as_str()).collect();
    let problem = if names.is_empty() {
        "the configuration has no destination".to_owned()
    } else {
        one_of(name, &names).err().unwrap_or_default()
    };
    Failure::usage(format!("--destination: '{}' is not configured: {problem}", shorten(name)))
}

/// The destination that was named, or those this process serves.
pub(crate) fn named_or_served(config: &Config, name: Option<&str>) -> Result<Vec<DestinationConfig>, Failure> {
    name.map_or_else(|| Ok(served(config)), |name| Ok(vec![destination(config, name)?]))
}

/// The ClickHouse destination of that name, or all that are served here.
pub(crate) fn clickhouse_destinations(name: Option<&str>, config: &Config) -> Result<Vec<DestinationConfig>, Failure> {
    let is_database = |destination: &DestinationConfig| matches!(destination.kind, DestinationKind::ClickHouse(_));
    let databases: Vec<_> = named_or_served(config, name)?.into_iter().filter(is_database).collect();
    match (name, databases.is_empty()) {
        (_, false) => Ok(databases),
        (Some(name), true) => {
            Err(Failure::usage(format!("'{name}' is a directory; this reads ClickHouse destinations")))
        }
        (None, true) => Err(Failure::config("no ClickHouse destination is configured: there is nothing to look at")),
    }
}

/// The configured destinations, or the one that was named.
pub(crate) fn named_or_configured(config: &Config, name: Option<&str>) -> Result<Vec<String>, Failure> {
    match name {
        None => Ok(config.destinations.iter().map(|destination| destination.name.clone()).collect()),
        Some(name) => Ok(vec![destination(config, name)?.name]),
    }
}

/// A connection to NATS, where the stream of markers is.
pub(crate) async fn connect_to_stream(config: &Config) -> Result<Bus, Failure> {
    let bus = Bus::connect(&config.nats, &worker_name()).await?;
    if !bus.has_stream().await? {
        return Err(no_stream());
    }
    Ok(bus)
}

/// The one answer of every command that needs the stream of markers and finds none.
pub(crate) fn no_stream() -> Failure {
    Failure::missing("there is no stream MARKERS, so nothing is known to be announced").advice(
        "if the stream was lost, run `uploader reconcile --fix`, which makes it again from the bucket; on a new \
         installation `puller migrate`",
    )
}

/// The destinations this process serves.
pub(crate) fn served(config: &Config) -> Vec<DestinationConfig> {
    let chosen = &config.puller.destinations;
    let serves = |name: &String| chosen.is_empty() || chosen.contains(name);
    config.destinations.iter().filter(|destination| serves(&destination.name)).cloned().collect()
}

/// How long a one-shot command waits for the answers of workers.
pub(crate) const PRESENCE_WAIT: Duration = Duration::from_millis(300);

/// Connections to the bucket are the most of what a worker has open; beside them are the servers, the log and files.
pub(crate) fn open_files_needed(config: &Config) -> u64 {
    const BESIDE: u64 = 128;
    (config.storage.transfers as u64).saturating_mul(config.puller.slots as u64).saturating_add(BESIDE)
}
