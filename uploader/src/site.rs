//! What every step works with: the folder, the bucket, the queue, and the limits they share.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use common::config::{Config, Publish};
use common::object_key::Prefix;
use common::object_store::{ObjectStore, StoreErrorKind};
use tokio::sync::{OnceCell, Semaphore, SemaphorePermit};
use tokio_util::sync::CancellationToken;

use crate::cache::Cache;
use crate::check::{ARCHIVE_BYTES_MAX, Fault};
use crate::error::PassError;
use crate::metrics::Metrics;
use crate::progress::Progress;
use crate::queue::Queue;

/// Bytes of archives in memory at once. One archive of the largest size must fit.
const MEMORY_BYTES: u64 = ARCHIVE_BYTES_MAX;

/// Units being worked on at once. More than one, so that the link is not idle while one waits for its read-backs; few,
/// so that the newest are done first.
pub(crate) const UNITS_MAX: usize = 4;

pub(crate) struct Site {
    pub(crate) data_dir: PathBuf,
    pub(crate) store: ObjectStore,
    pub(crate) prefix: Prefix,
    pub(crate) queue: Queue,
    pub(crate) publish: Publish,
    pub(crate) cache: Arc<Cache>,
    pub(crate) metrics: Metrics,
    pub(crate) progress: Progress,
    pub(crate) shutdown: CancellationToken,
    /// This machine, as markers name it.
    pub(crate) host: String,
    /// Objects on their way at once.
    pub(crate) transfers_max: usize,
    units: Semaphore,
    transfers: Semaphore,
    /// Archives being checked at once: as many as there are processors.
    pub(crate) checks_max: usize,
    checks: Semaphore,
    memory: Semaphore,
    bucket_is_there: OnceCell<()>,
}

impl Site {
    pub(crate) fn new(
        config: &Config,
        data_dir: PathBuf,
        metrics: Metrics,
        progress: Progress,
        shutdown: CancellationToken,
    ) -> Self {
        let host = host_name();
        let checks_max = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            store: ObjectStore::new(&config.storage),
            prefix: config.storage.prefix.clone(),
            queue: Queue::new(config.nats.clone(), format!("uploader-{host}-{}", std::process::id())),
            publish: config.publish.clone(),
            cache: Arc::new(Cache::open(config.local.state_dir.as_deref(), &data_dir)),
            data_dir,
            metrics,
            progress,
            shutdown,
            host,
            transfers_max: config.storage.transfers,
            units: Semaphore::new(UNITS_MAX),
            transfers: Semaphore::new(config.storage.transfers),
            checks_max,
            checks: Semaphore::new(checks_max),
            memory: Semaphore::new(usize::try_from(MEMORY_BYTES).unwrap_or(Semaphore::MAX_PERMITS)),
            bucket_is_there: OnceCell::new(),
        }
    }

    /// Makes sure once, before anything is read from the bucket or put there, that it exists: the answer to a HEAD does
    /// not tell a missing bucket from a missing object, and some servers make a bucket of whatever name they are sent.
    pub(crate) async fn bucket_is_there(&self) -> Result<(), PassError> {
        let look = async || match self.store.probe(&self.prefix.to_string()).await {
            // A token that may read and write but not list is fine.
            Err(error) if error.kind != StoreErrorKind::Denied => Err(PassError::Bucket(error)),
            Ok(()) | Err(_) => Ok(()),
        };
        self.bucket_is_there.get_or_try_init(look).await.copied()
    }

    /// A unit's turn to be worked on; given in the order they were asked for.
    pub(crate) async fn unit(&self) -> Result<SemaphorePermit<'_>, PassError> {
        self.permit(&self.units, 1).await
    }

    /// A place among the transfers; none is given once the process is to stop.
    pub(crate) async fn transfer(&self) -> Result<SemaphorePermit<'_>, PassError> {
        self.permit(&self.transfers, 1).await
    }

    /// A place among the checks, and room for an archive of this size.
    pub(crate) async fn check(&self, bytes: u64) -> Result<(SemaphorePermit<'_>, SemaphorePermit<'_>), PassError> {
        let place = self.permit(&self.checks, 1).await?;
        // Whoever has memory waits for nothing but its own disk or link, so this always comes.
        Ok((place, self.memory(bytes).await?))
    }

    /// Room for an archive of this size. One that is too large is refused when it is read, which takes no memory.
    pub(crate) async fn memory(&self, bytes: u64) -> Result<SemaphorePermit<'_>, PassError> {
        let bytes = if bytes > ARCHIVE_BYTES_MAX { 0 } else { bytes };
        self.permit(&self.memory, u32::try_from(bytes).unwrap_or(u32::MAX)).await
    }

    async fn permit<'s>(&'s self, semaphore: &'s Semaphore, many: u32) -> Result<SemaphorePermit<'s>, PassError> {
        tokio::select! {
            biased;
            () = self.shutdown.cancelled() => Err(PassError::Stopped),
            permit = semaphore.acquire_many(many) => Ok(permit.expect("no semaphore of ours is ever closed")),
        }
    }

    /// Reads an archive again, on a thread that may block.
    pub(crate) async fn read(&self, path: &str) -> Result<Bytes, Fault> {
        let file = self.data_dir.join(path);
        blocking(move || crate::check::read(&file)).await.map(|(bytes, _)| bytes)
    }
}

/// Runs what blocks on a thread for it. A panic there is a panic here.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(error) => unreachable!("blocking work is never cancelled: {error}"),
        },
    }
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok().or_else(|| std::env::var("HOSTNAME").ok());
    let name: String = name.unwrap_or_default().trim().chars().filter(char::is_ascii_graphic).take(64).collect();
    if name.is_empty() { "unknown".into() } else { name }
}
