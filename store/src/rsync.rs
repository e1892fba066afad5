//! The puller's end of a store that is the remote site's data_dir: each object is fetched by the rsync program over SSH.
//!
//! rsync writes into a file of its own in the staging folder, from where the object is read and then removed. What a
//! broken connection left there is the start of the next try. Nothing here is trusted for having come over SSH: the
//! caller compares size and sha256 as with any store.

mod command;
mod shares;
mod staging;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore};

use crate::bandwidth::Bandwidth;
use crate::error::{StoreError, StoreErrorKind, StoreType};
use crate::folder::{Fault, FileDownload, unblocked};
use crate::path;
use command::{Ended, Remote, Running};
use common::config;
use common::object_key::Prefix;
use shares::{Share, Shares};
use staging::{StagedPart, Staging};

const STORE: StoreType = StoreType::Rsync;
/// How often it is looked whether bytes arrive.
const TICK: Duration = Duration::from_millis(500);
/// Longer than rsync's own limit, which knows better what it waits for.
const SILENCE_MAX: Duration = Duration::from_secs(120);

#[derive(Clone)]
pub(crate) struct Rsync {
    shared: Arc<Shared>,
}

struct Shared {
    remote: Remote,
    prefix: Prefix,
    /// One for each rsync process.
    processes: Arc<Semaphore>,
    shares: Arc<Shares>,
    staging: OnceCell<Arc<Staging>>,
    settings: config::Rsync,
}

impl Rsync {
    pub(crate) fn new(settings: &config::Rsync, prefix: &Prefix, transfers: usize, bandwidth: Bandwidth) -> Self {
        let shared = Shared {
            remote: Remote::new(settings),
            prefix: prefix.clone(),
            processes: Arc::new(Semaphore::new(transfers)),
            shares: Shares::new(bandwidth),
            staging: OnceCell::new(),
            settings: settings.clone(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Begins to fetch an object; returns when bytes of it arrive, or all have.
    pub(crate) async fn get(&self, key: &str, bytes_max: u64) -> Result<RsyncDownload, StoreError> {
        let refused = |why| StoreError::new(STORE, StoreErrorKind::BadKey, "GET", key, why);
        let path = self.shared.prefix.strip(key).ok_or_else(|| refused("the key is outside storage.r2.prefix"))?;
        path::check(path).map_err(refused)?;
        if path.contains(['*', '?', '[', ']']) {
            return Err(refused("the key has a character that the remote rsync would take for a pattern"));
        }
        let slot = self.process().await;
        let staging = self.staging().await.map_err(|fault| fault.into_error(STORE, "GET", key))?;
        let claimed = key.to_owned();
        let part = unblocked(move || Ok(staging.claim(&claimed)?)).await;
        let part = part.map_err(|fault| fault.into_error(STORE, "GET", key))?;
        let mut download = RsyncDownload {
            store: self.clone(),
            key: key.to_owned(),
            path: path.to_owned(),
            bytes_max,
            seen: part.bytes(),
            running: None,
            part,
            share: Some(self.shared.shares.acquire().await),
            slot: Some(slot),
            file: None,
        };
        download.start()?;
        download.arriving().await?;
        Ok(download)
    }

    /// Looks whether the remote folder is there.
    pub(crate) async fn probe(&self) -> Result<(), StoreError> {
        let _slot = self.process().await;
        self.inspect().await
    }

    async fn inspect(&self) -> Result<(), StoreError> {
        let shown = &self.shared.settings.path;
        let error = |kind, message: String| StoreError::new(STORE, kind, "LIST", shown, message);
        let mut running = self.shared.remote.inspect().map_err(|fault| fault.into_error(STORE, "LIST", shown))?;
        match tokio::time::timeout(SILENCE_MAX, running.ended()).await {
            Ok(Ok(Ended { said })) if said.starts_with('d') => Ok(()),
            Ok(Ok(_)) => Err(error(StoreErrorKind::NoSuchBucket, "it is no folder".into())),
            Ok(Err((StoreErrorKind::NotFound, message))) => Err(error(StoreErrorKind::NoSuchBucket, message)),
            Ok(Err((kind, message))) => Err(error(kind, message)),
            Err(_) => Err(error(StoreErrorKind::Unavailable, silent())),
        }
    }

    async fn process(&self) -> OwnedSemaphorePermit {
        // No time-out: whoever holds one runs an rsync, which has its own.
        let processes = Arc::clone(&self.shared.processes);
        processes.acquire_owned().await.expect("the semaphore is never closed")
    }

    async fn staging(&self) -> Result<Arc<Staging>, Fault> {
        let state_dir = self.shared.settings.state_dir.clone();
        let open = async || unblocked(move || Ok(Arc::new(Staging::open(state_dir.as_deref())?))).await;
        self.shared.staging.get_or_try_init(open).await.cloned()
    }
}

fn silent() -> String {
    format!("nothing arrived for {} s", SILENCE_MAX.as_secs())
}

/// An object on its way into a file, and then that file chunk by chunk.
pub(crate) struct RsyncDownload {
    store: Rsync,
    key: String,
    /// Below the remote folder.
    path: String,
    bytes_max: u64,
    /// Bytes that were there when it was looked last.
    seen: u64,
    /// Ended before the part is let go of: dropping it kills the process.
    running: Option<Running>,
    part: StagedPart,
    share: Option<Share>,
    slot: Option<OwnedSemaphorePermit>,
    file: Option<FileDownload>,
}

impl RsyncDownload {
    /// The next bytes, or an empty chunk while they arrive in the file; `None` at the end.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, StoreError> {
        loop {
            if let Some(file) = &mut self.file {
                return file.chunk().await;
            }
            self.arriving().await?;
            if self.file.is_none() {
                return Ok(Some(Bytes::new()));
            }
        }
    }

    fn start(&mut self) -> Result<(), StoreError> {
        let rate = self.share.as_ref().and_then(Share::rate);
        let running = self.store.shared.remote.fetch(&self.path, self.bytes_max, rate, &self.part);
        self.running = Some(running.map_err(|fault| fault.into_error(STORE, "GET", &self.key))?);
        Ok(())
    }

    /// Waits until more has arrived, or everything.
    async fn arriving(&mut self) -> Result<(), StoreError> {
        let mut since = Instant::now();
        let ended = loop {
            let Some(running) = &mut self.running else { return Ok(()) };
            match tokio::time::timeout(TICK, running.ended()).await {
                Ok(ended) => break ended,
                Err(_) if self.share.as_mut().is_some_and(Share::has_changed) => {
                    running.kill().await;
                    self.start()?;
                    since = Instant::now();
                }
                Err(_) if self.part.bytes() != self.seen => {
                    self.seen = self.part.bytes();
                    return Ok(());
                }
                Err(_) if since.elapsed() > SILENCE_MAX => break Err((StoreErrorKind::Unavailable, silent())),
                Err(_) => {}
            }
        };
        self.running = None;
        let outcome = self.judge(ended).await;
        (self.share, self.slot) = (None, None);
        outcome
    }

    /// What the end of the process means for the object.
    async fn judge(&mut self, ended: Result<Ended, (StoreErrorKind, String)>) -> Result<(), StoreError> {
        let error = |kind, message: String| StoreError::new(STORE, kind, "GET", &self.key, message);
        match ended {
            Ok(Ended { said }) if said.lines().any(|line| line.trim().parse::<u64>().is_ok()) => {
                let file = self.part.open().map_err(|error| Fault::from(error).into_error(STORE, "GET", &self.key))?;
                self.file = Some(FileDownload::new(STORE, &self.key, file));
                Ok(())
            }
            // It succeeded and sent nothing: it says so of what is no file, and nothing of what is too large.
            Ok(Ended { said }) => {
                self.part.discard();
                let larger = format!("is larger than {} bytes", self.bytes_max);
                Err(match said.trim() {
                    "" => error(StoreErrorKind::TooLarge, larger),
                    what => error(StoreErrorKind::NotFound, what.to_owned()),
                })
            }
            Err((StoreErrorKind::NotFound, message)) => {
                self.part.discard();
                // A disk that is not mounted over there is not an archive that is missing.
                self.store.inspect().await?;
                Err(error(StoreErrorKind::NotFound, message))
            }
            Err((kind, message)) => Err(error(kind, message)),
        }
    }
}
