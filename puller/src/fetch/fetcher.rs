//! Fetching an object and checking that it is the one the marker names, before anything reads it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use common::checksum::Sha256Sum;
use common::marker::Object;
use common::object_key::Prefix;
use common::unit::Unit;
use nats::{Activity, Bus};
use sha2::{Digest, Sha256};
use store::{ObjectStore, StoreError, StoreErrorKind};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::error::work::{ObjectFault, WorkError};
use crate::job::resolve::Job;
use store::CurrentFile;

/// Larger objects are not fetched again only to see whether they can be.
const SAMPLE_BYTES_MAX: u64 = 1 << 20;
/// What is set aside at once for an object that is to come; more follows as it comes.
const FIRST_BYTES_MAX: u64 = 64 << 20;
/// How long it may take to see whether other objects can be read: longer than the store's own attempts.
const PROBE_TIMEOUT: Duration = Duration::from_secs(60);

/// Fetches objects for all units of a process, a limited number at once, and tells an object that cannot be read from a
/// store that cannot.
#[derive(Clone)]
pub(crate) struct Fetcher {
    pub store: ObjectStore,
    pub prefix: Prefix,
    slots: Arc<Semaphore>,
    /// One that was fetched, of the larger ones: asked for again when another one cannot be read.
    sample: Arc<Mutex<Option<Object>>>,
    /// When it was last asked, and whether objects could be read.
    probed: Arc<tokio::sync::Mutex<Option<(Instant, bool)>>>,
}

impl Fetcher {
    /// Fetches `transfers` objects at once, over all units.
    pub(crate) fn new(store: ObjectStore, prefix: Prefix, transfers: usize) -> Self {
        let slots = Arc::new(Semaphore::new(transfers));
        Self { store, prefix, slots, sample: Arc::default(), probed: Arc::default() }
    }

    /// The whole object of a unit, verified. The outer error stops the unit, the inner one is the object's own.
    pub(crate) async fn fetch(
        &self,
        unit: &Unit,
        object: &Object,
        activity: &Activity,
    ) -> Result<Result<Bytes, ObjectFault>, WorkError> {
        let error = match self.fetch_with_permit(object, activity).await {
            Err(FetchError::Store(error)) if is_doubtful(error.kind) => error,
            other => return classify_fetch(other),
        };
        if !activity.while_waiting(self.others_can_be_read(unit, object, error.kind)).await {
            return Err(error.into());
        }
        // What was wrong with the store may have passed between the two questions. Only what fails now, while others can be
        // read, is the object's own.
        match self.fetch_with_permit(object, activity).await {
            Err(FetchError::Store(error)) if is_doubtful(error.kind) => {
                Ok(Err(ObjectFault::Unreadable(error.advised())))
            }
            other => classify_fetch(other),
        }
    }

    /// One go at an object, when there is a transfer free for it.
    async fn fetch_with_permit(&self, object: &Object, activity: &Activity) -> Result<Bytes, FetchError> {
        let slots = Arc::clone(&self.slots);
        let slot = activity.while_waiting(slots.acquire_owned()).await;
        let _slot = slot.expect("the semaphore is never closed");
        let bytes = fetch(&self.store, object, activity).await?;
        self.remember(object);
        Ok(bytes)
    }

    fn remember(&self, object: &Object) {
        let mut sample = self.sample.lock().unwrap_or_else(PoisonError::into_inner);
        let larger = sample.as_ref().is_none_or(|sample| sample.size < object.size);
        if larger && object.size <= SAMPLE_BYTES_MAX {
            *sample = Some(object.clone());
        }
    }

    /// Whether other objects can be read now that this one could not.
    async fn others_can_be_read(&self, unit: &Unit, object: &Object, kind: StoreErrorKind) -> bool {
        let failed_at = Instant::now();
        // Waits for other probes, each of which has a time-out.
        let mut probed = self.probed.lock().await;
        if let Some((at, could)) = *probed
            && at >= failed_at
        {
            return could;
        }
        let began_at = Instant::now();
        let asked = tokio::time::timeout(PROBE_TIMEOUT, self.probe(unit, object, kind)).await;
        let could = asked.unwrap_or(false);
        *probed = Some((began_at, could));
        could
    }

    async fn probe(&self, unit: &Unit, object: &Object, kind: StoreErrorKind) -> bool {
        let sample = self.sample.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(sample) = sample.filter(|sample| sample.key != object.key) {
            match fetch(&self.store, &sample, &Activity::default()).await {
                Ok(_) => return true,
                Err(FetchError::Store(_)) => return false,
                // It was replaced since, and says nothing.
                Err(FetchError::Object(_)) => {
                    *self.sample.lock().unwrap_or_else(PoisonError::into_inner) = None;
                }
            }
        }
        // That small requests are answered says nothing of a line on which large answers break.
        kind != StoreErrorKind::Unavailable && self.answers(unit).await
    }

    /// Whether `current.json` names a revision that was published later than this one, and that was announced: markers may
    /// come out of order. One that is on no stream may never be told to anybody.
    pub(crate) async fn is_replaced(&self, bus: &Bus, job: &Job) -> Result<bool, WorkError> {
        let current = match self.store.current(&self.prefix, &job.unit).await? {
            CurrentFile::Absent => return Ok(false),
            CurrentFile::Read(current) => current,
            CurrentFile::Unreadable(error) => {
                tracing::warn!(unit = %job.unit, %error, "current.json is not understood");
                return Ok(false);
            }
        };
        let later = current.published_at.is_some_and(|at| at > job.published_at);
        Ok(later && current.revision != job.revision && bus.is_announced(&job.unit, &current.revision).await?)
    }

    /// Whether the store says of the unit's `current.json` what it has, or that it has none: then it accepts our keys.
    pub(crate) async fn answers(&self, unit: &Unit) -> bool {
        self.refusal(unit).await.is_none()
    }

    /// What the store has against a GET of the unit's `current.json`.
    pub(crate) async fn refusal(&self, unit: &Unit) -> Option<StoreErrorKind> {
        let asked = self.store.current_bytes(&self.prefix, unit);
        match tokio::time::timeout(PROBE_TIMEOUT, asked).await {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => Some(error.kind),
            Err(_) => Some(StoreErrorKind::Unavailable),
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error(transparent)]
    Object(ObjectFault),
    #[error(transparent)]
    Store(StoreError),
}

/// The outer error stops the unit, the inner one is the object's own.
fn classify_fetch(fetched: Result<Bytes, FetchError>) -> Result<Result<Bytes, ObjectFault>, WorkError> {
    match fetched {
        Ok(bytes) => Ok(Ok(bytes)),
        Err(FetchError::Object(fault)) => Ok(Err(fault)),
        Err(FetchError::Store(error)) if error.kind == StoreErrorKind::BadKey => {
            Ok(Err(ObjectFault::Refused(error.to_string())))
        }
        Err(FetchError::Store(error)) => Err(error.into()),
    }
}

/// Whether an answer may be to one object only, or to all of them.
fn is_doubtful(kind: StoreErrorKind) -> bool {
    matches!(kind, StoreErrorKind::Denied | StoreErrorKind::Unavailable | StoreErrorKind::Other)
}

/// Fetches the whole object into memory. The caller has set aside `object.size` bytes; more are never read.
async fn fetch(store: &ObjectStore, object: &Object, activity: &Activity) -> Result<Bytes, FetchError> {
    let differs = |why: String| FetchError::Object(ObjectFault::Differs(why));
    let mut download = store.get(&object.key, object.size).await.map_err(|error| match error.kind {
        StoreErrorKind::NotFound => FetchError::Object(ObjectFault::Missing),
        StoreErrorKind::TooLarge => differs(format!("it is larger than {} bytes", object.size)),
        _ => FetchError::Store(error),
    })?;
    // A marker's word is not enough to set aside whatever it says.
    let mut bytes = BytesMut::with_capacity(usize::try_from(object.size.min(FIRST_BYTES_MAX)).unwrap_or_default());
    let mut digest = Sha256::new();
    while let Some(chunk) = download.chunk().await.map_err(FetchError::Store)? {
        activity.bump();
        if bytes.len() as u64 + chunk.len() as u64 > object.size {
            return Err(differs(format!("it is larger than {} bytes", object.size)));
        }
        digest.update(&chunk);
        bytes.extend_from_slice(&chunk);
    }
    if bytes.len() as u64 != object.size {
        return Err(differs(format!("it has {} bytes, the marker says {}", bytes.len(), object.size)));
    }
    let sha256 = Sha256Sum::from_digest(digest);
    if sha256 != object.sha256 {
        return Err(differs(format!("its sha256 is {sha256}, the marker says {}", object.sha256)));
    }
    Ok(bytes.freeze())
}
