//! What every step works with: the folder, the bucket, the queue, and the limits they share.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::config::{Config, Publish};
use common::object_key::Prefix;
use common::service::host::host_name;
use common::unit::Unit;
use jiff::Timestamp;
use store::parts::{PART_BYTES_MAX, SINGLE_BYTES_MAX};
use store::{End, ObjectStore, StoreErrorKind};
use tokio::sync::{OnceCell, Semaphore, SemaphorePermit};
use tokio_util::sync::CancellationToken;

use crate::error::PassError;
use crate::local::check::{Fault, STREAM_BYTES};
use crate::local::complete::CompletenessRule;
use crate::local::signs;
use crate::site::metrics::Metrics;
use crate::site::progress::Progress;
use crate::site::queue::Queue;
use crate::site::refusals::Refusals;
use crate::state::cache::Cache;
use crate::state::pending::Pending;

/// Bytes of archives in memory at once, whole or in parts, whatever their sizes and `storage.r2.transfers`.
const MEMORY_BYTES: u64 = 128 << 20;
// One of the largest must fit, or it would be waited for without end.
const _: () = assert!(PART_BYTES_MAX <= MEMORY_BYTES && SINGLE_BYTES_MAX <= MEMORY_BYTES);

/// Listing uploads is a request that is billed, and they become stale in days.
const CLEAR_EVERY: Duration = Duration::from_secs(6 * 3600);

/// Units being worked on at once. More than one, so that the link is not idle while one waits for its read-backs; few,
/// so that the newest are done first.
pub(crate) const UNITS_MAX: usize = 4;

/// Remembers when the stream was last compared, and how often the queue had been connected to by then.
#[derive(Default)]
pub(crate) struct Standing(pub(crate) Mutex<Option<(Instant, u64)>>);

/// What somebody has said that a pass does not do by itself.
#[derive(Debug, Default, Clone)]
pub(crate) struct Accepted {
    /// Units announced from another bucket or prefix are announced from this one.
    pub(crate) move_here: bool,
    /// What lies in the bucket is all there is of a unit, whatever a list that cannot be read has named: for `adopt`.
    pub(crate) bucket_is_whole: bool,
    /// Older publications of these units' archives are shown again.
    pub(crate) rollbacks: HashSet<Unit>,
}

pub(crate) struct Site {
    pub(crate) data_dir: PathBuf,
    pub(crate) store: ObjectStore,
    pub(crate) prefix: Prefix,
    pub(crate) queue: Queue,
    pub(crate) publish: Publish,
    pub(crate) accepted: Accepted,
    pub(crate) completeness: Arc<CompletenessRule>,
    /// An archive written to a shorter time ago is left for later by a service.
    pub(crate) min_age: Duration,
    pub(crate) cache: Arc<Cache>,
    pub(crate) pending: Pending,
    pub(crate) refusals: Refusals,
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
    /// One walk over `data_dir` at a time: one that blocks on a disk goes on after its pass was given up.
    pub(crate) walks: Arc<Semaphore>,
    bucket_is_there: OnceCell<()>,
    pub(crate) standing: Standing,
    /// When uploads left behind were last looked for.
    cleared: Mutex<Option<Instant>>,
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
            store: ObjectStore::new(&config.storage, End::Uploader),
            prefix: config.storage.prefix.clone(),
            queue: Queue::new(config.nats.clone(), format!("uploader-{host}-{}", std::process::id())),
            publish: config.publish.clone(),
            accepted: Accepted::default(),
            completeness: Arc::new(CompletenessRule::new(config)),
            min_age: config.watch.min_age,
            cache: Arc::new(Cache::open(config.local.state_dir.as_deref(), &data_dir)),
            pending: Pending::open(config.local.state_dir.as_deref(), &config.storage),
            data_dir,
            refusals: Refusals::default(),
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
            walks: Arc::new(Semaphore::new(1)),
            bucket_is_there: OnceCell::new(),
            standing: Standing::default(),
            cleared: Mutex::default(),
        }
    }

    /// What an answer of the stream holds for: the same archives elsewhere are other objects.
    pub(crate) fn place(&self) -> String {
        format!("{} {}", self.store.bucket(), self.prefix)
    }

    /// As which time older publications of a unit's archives are shown again, if somebody wants that.
    pub(crate) fn rollback_at(&self, unit: &Unit) -> Option<Timestamp> {
        self.accepted.rollbacks.contains(unit).then(common::clock::now)
    }

    /// Makes sure once, before anything is read from the bucket or put there, that it exists: the answer to a HEAD does
    /// not tell a missing bucket from a missing object, and some servers make a bucket of whatever name they are sent.
    pub(crate) async fn bucket_is_there(&self) -> Result<(), PassError> {
        let probe = async || {
            match self.store.probe(&self.prefix.to_string()).await {
                Ok(()) => {}
                // A token that may not list is fine, where what is absent is said to be absent all the same.
                Err(error) if error.kind == StoreErrorKind::Denied => {
                    let absent = format!("{}-absent", self.prefix.probe_key());
                    self.store.head(&absent).await.map_err(PassError::Bucket)?;
                }
                Err(error) => return Err(PassError::Bucket(error)),
            }
            match self.store.check_clock().await {
                Err(error) if error.kind == StoreErrorKind::ClockSkew => Err(PassError::Bucket(error)),
                // Where nothing may be written, no clock can be asked, and nothing will be dated.
                Ok(()) | Err(_) => Ok(()),
            }
        };
        self.bucket_is_there.get_or_try_init(probe).await.copied()
    }

    /// Whether to look for uploads left behind; true once in [`CLEAR_EVERY`].
    pub(crate) fn is_time_to_clear(&self) -> bool {
        let mut cleared = self.cleared.lock().unwrap_or_else(PoisonError::into_inner);
        let due = cleared.is_none_or(|cleared| cleared.elapsed() > CLEAR_EVERY);
        if due {
            *cleared = Some(Instant::now());
        }
        due
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
        // One that is held whole is unpacked at once, up to a limit. Rows that repeat themselves shrink to a thirtieth.
        let unpacked = bytes.saturating_mul(32).min(SINGLE_BYTES_MAX);
        let bytes = if bytes > SINGLE_BYTES_MAX { STREAM_BYTES } else { bytes + unpacked };
        // Whoever has memory waits for nothing but its own disk or link, so this always comes.
        Ok((place, self.memory(bytes).await?))
    }

    /// Room for an archive, or a part of one.
    pub(crate) async fn memory(&self, bytes: u64) -> Result<SemaphorePermit<'_>, PassError> {
        self.permit(&self.memory, u32::try_from(bytes.min(MEMORY_BYTES)).unwrap_or(u32::MAX)).await
    }

    async fn permit<'s>(&'s self, semaphore: &'s Semaphore, many: u32) -> Result<SemaphorePermit<'s>, PassError> {
        tokio::select! {
            biased;
            () = self.shutdown.cancelled() => Err(PassError::Stopped),
            // No time-out: whoever holds one waits for a disk, the bucket or the queue, each of which has its own.
            permit = semaphore.acquire_many(many) => {
                signs::bump();
                Ok(permit.expect("no semaphore of ours is ever closed"))
            }
        }
    }

    /// Reads an archive that goes out by a single PUT again, on a thread that may block.
    pub(crate) async fn read(&self, path: &str) -> Result<Bytes, Fault> {
        let file = self.data_dir.join(path);
        blocking(move || crate::local::check::read(&file)).await
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
