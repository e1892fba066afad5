//! Wiring: from a command and a configuration to an exit code.

use std::sync::Arc;
use std::time::Duration;

use common::backoff::Backoff;
use common::catalogue::one_of;
use common::config::{Config, Destination as DestinationConfig, DestinationKind, Need};
pub(crate) use common::output::Failure;
use common::output::{FailureClass, Reply};
use common::service::doctor::machine::too_few_open_files;
use common::service::http::{Readiness, serve};
use common::text::shorten;
use nats::{Bus, BusError, ConsumerSettings, within};
use prometheus_client::registry::Registry;
use store::{End, ObjectStore};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::board::Board;
use crate::circuit::Circuit;
use crate::cli::Command;
use crate::destination::Destination;
use crate::fetch::Fetcher;
use crate::load::Loader;
use crate::memory::{Demand, MemoryBudget};
use crate::metrics::Metrics;
use crate::mirror::Mirror;
use crate::runner::Runner;
use crate::schema::MissingTables;
use crate::statements::Statements;
use crate::suspects::Suspects;
use crate::warehouse::{Warehouse, WarehouseError, WarehouseErrorKind};
use crate::worker::{ClockWatch, Worker};
use crate::{
    adopt, cli, dead, doctor, explain, gaps, history, migrate, pause, pull, replay, status, stream_metrics, sweep,
    tasks, verify,
};

impl Command {
    /// The settings the command cannot do without.
    pub fn needs(&self) -> &'static [Need] {
        match self {
            Self::Run(_) => &[Need::Storage, Need::Destination],
            Self::Pull(pull) if pull.no_ingest => &[Need::Storage, Need::DataDir],
            Self::Pull(_) | Self::Explain(_) | Self::Verify(_) | Self::Adopt(_) => &[Need::Storage, Need::Destination],
            Self::Replay(_)
            | Self::Status(_)
            | Self::Gaps(_)
            | Self::Migrate { .. }
            | Self::Pause(_)
            | Self::Resume(_)
            | Self::History(_) => &[Need::Destination],
            Self::Doctor { config_only: true, .. } => &[Need::Storage, Need::Destination],
            Self::Tasks(_) | Self::Doctor { .. } | Self::Dead(_) | Self::Healthcheck { .. } => &[],
        }
    }
}

/// How long it may take to look the streams and consumers up, or to make them.
pub(crate) const OPEN_MAX: Duration = Duration::from_secs(30);

/// What a command that was told to stop may still take, beside the grace of those that drain.
const STOP_SLACK: Duration = Duration::from_secs(15);

/// Runs a command to its end. `verbose`: lists have also what is right.
///
/// # Errors
/// Why it ended early.
pub async fn run(
    command: Command,
    mut config: Config,
    verbose: bool,
    stop: CancellationToken,
) -> Result<Reply, Failure> {
    if let Command::Run(cli::Run { bwlimit: Some(limit) }) | Command::Pull(cli::Pull { bwlimit: Some(limit), .. }) =
        &command
    {
        config.storage.bwlimit = limit.clone();
    }
    tracing::debug!(?config, "effective configuration");
    // Whoever drains ends by itself within this time after a signal; a command that waits for a server is left then.
    let drain = match command {
        Command::Run(_) | Command::Pull(_) => config.puller.shutdown_grace + STOP_SLACK,
        _ => STOP_SLACK,
    };
    let overdue = {
        let stop = stop.clone();
        async move {
            stop.cancelled().await;
            tokio::time::sleep(drain).await;
        }
    };
    tokio::select! {
        ended = carry_out(command, config, verbose, stop) => ended,
        () = overdue => Err(Failure::stopped("stopped by a signal before the end")),
    }
}

async fn carry_out(command: Command, config: Config, verbose: bool, stop: CancellationToken) -> Result<Reply, Failure> {
    match command {
        Command::Run(_) => serve_workers(config, stop).await,
        Command::Pull(args) => pull::run(&args, config, stop).await,
        Command::Replay(args) => replay::run(&args, &config, stop).await,
        Command::Tasks(args) => tasks::run(&args, &config).await,
        Command::Status(args) => status::run(&args, &config).await,
        Command::Gaps(args) => gaps::run(&args, &config).await,
        Command::Dead(command) => dead::run(&command, &config).await,
        Command::Pause(args) => pause::pause(&args, &config).await,
        Command::Resume(args) => pause::resume(&args, &config).await,
        Command::Explain(args) => explain::run(&args, &config).await,
        Command::History(args) => history::run(&args, &config).await,
        Command::Verify(args) => verify::run(&args, config, verbose, stop).await,
        Command::Adopt(args) => adopt::run(&args, config, verbose, stop).await,
        Command::Migrate { prune } => migrate::run(&config, prune).await,
        Command::Doctor { config_only } => Ok(doctor::run(&config, config_only).await),
        Command::Healthcheck { .. } => unreachable!("answered before a configuration is loaded"),
    }
}

impl From<WarehouseError> for Failure {
    fn from(error: WarehouseError) -> Self {
        let class = match error.kind {
            WarehouseErrorKind::Unavailable | WarehouseErrorKind::TooHeavy => FailureClass::Unreachable,
            WarehouseErrorKind::Denied | WarehouseErrorKind::AccountLimit => FailureClass::Denied,
            WarehouseErrorKind::MissingSchema => FailureClass::Missing,
            WarehouseErrorKind::Other | WarehouseErrorKind::Inconsistent => FailureClass::Failed,
        };
        Self::new(class, error.to_string()).advice(error.advice())
    }
}

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
        if let Some((found, advice)) = too_few_open_files(doctor::open_files_needed(&config)) {
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
                    decisions: crate::superseded_rows::Decisions::default(),
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
                board: Board::default(),
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
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_else(|_| "host".into());
    let since = common::clock::now().as_millisecond();
    format!("{}-{}-{since:x}", host.trim(), std::process::id())
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

async fn serve_workers(config: Config, stop: CancellationToken) -> Result<Reply, Failure> {
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "puller starts");
    let readiness = Readiness::default();
    let mut registry = Registry::default();
    let metrics = Metrics::new(&mut registry);
    readiness.not_ready("nats", "connecting");
    // Before the first of them is looked at: a part that has not said anything counts as ready.
    for destination in served(&config) {
        readiness.not_ready(&part(&destination), "starting");
    }
    if let Some(listen) = config.http_listen {
        serve(listen, readiness.clone(), registry, stop.clone())
            .await
            .map_err(|error| Failure::config(format!("http.listen: cannot listen on {listen}: {error}")))?;
    }
    let name = worker_name();
    let connecting = connect(&config, &name, &readiness);
    let Some(bus) = stop.run_until_cancelled(connecting).await else { return Ok(Reply::default()) };
    let shared = Arc::new(Shared::new(config, name, bus, readiness, metrics));
    let mut destinations = JoinSet::new();
    for destination in served(&shared.config) {
        destinations.spawn(serve_destination(shared.clone(), destination, stop.clone()));
    }
    destinations.spawn(sweep::run(shared.clone(), stop.clone()));
    destinations.spawn(stream_metrics::run(shared.clone(), stop.clone()));
    let (followed, ends) = (shared.clone(), stop.clone());
    destinations.spawn(async move {
        let following = followed.readiness.follow("nats", || std::future::ready(followed.bus.is_connected()));
        ends.run_until_cancelled(following).await;
    });
    while let Some(ended) = destinations.join_next().await {
        if let Err(error) = ended {
            stop.cancel();
            return Err(Failure::failed(format!("a destination's worker crashed: {error}")));
        }
    }
    shared.bus.close().await;
    tracing::info!("puller ends");
    Ok(Reply::default())
}

/// Connects to NATS, for as long as it takes.
async fn connect(config: &Config, name: &str, readiness: &Readiness) -> Bus {
    for attempt in 1.. {
        match Bus::connect(&config.nats, name).await {
            Ok(bus) => {
                readiness.ready("nats");
                return bus;
            }
            Err(error) => {
                tracing::warn!(%error, "trying again");
                readiness.not_ready("nats", error.to_string());
                tokio::time::sleep(Backoff::RECONNECT.delay(attempt)).await;
            }
        }
    }
    unreachable!("the attempts do not end")
}

fn part(destination: &DestinationConfig) -> String {
    format!("destination {}", destination.name)
}

async fn serve_destination(shared: Arc<Shared>, destination: DestinationConfig, stop: CancellationToken) {
    let part = part(&destination);
    let opening = async {
        for attempt in 1.. {
            let error = match shared.prepare_queue(&destination.name).await {
                Ok(()) => match shared.open(&destination, MissingTables::Make).await {
                    Ok(runner) => return Some(runner),
                    Err(error) => format!("{error} ({})", error.advice()),
                },
                Err(error) => error.to_string(),
            };
            tracing::warn!(destination = destination.name, error, "not ready, trying again");
            shared.readiness.not_ready(&part, error);
            tokio::time::sleep(Backoff::RECONNECT.delay(attempt)).await;
        }
        None
    };
    if let Some(Some(runner)) = stop.run_until_cancelled(opening).await {
        shared.readiness.ready(&part);
        tracing::info!(destination = destination.name, worker = shared.worker_name, "working");
        tokio::select! {
            () = runner.run(stop, true) => {}
            () = stream_metrics::watch_for_lost_units(&shared, &destination, &runner.opened) => {}
        }
    }
}

/// How long a one-shot command waits for the answers of workers.
pub(crate) const ROSTER_WAIT: Duration = Duration::from_millis(300);
