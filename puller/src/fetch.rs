//! Fetching an object and checking that it is the one the marker names, before anything reads it.

use bytes::{Bytes, BytesMut};
use common::checksum::Sha256Sum;
use common::marker::Object;
use common::object_store::{ObjectStore, StoreError, StoreErrorKind};
use nats::Activity;
use sha2::{Digest, Sha256};

use crate::error::ObjectFault;

#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error(transparent)]
    Object(ObjectFault),
    #[error(transparent)]
    Store(StoreError),
}

/// Fetches the whole object into memory. The caller has set aside `object.size` bytes; more are never read.
pub(crate) async fn fetch(store: &ObjectStore, object: &Object, activity: &Activity) -> Result<Bytes, FetchError> {
    let differs = |why: String| FetchError::Object(ObjectFault::Differs(why));
    let mut download = store.get(&object.key, object.size).await.map_err(|error| match error.kind {
        StoreErrorKind::NotFound => FetchError::Object(ObjectFault::Missing),
        StoreErrorKind::TooLarge => differs(format!("it is larger than {} bytes", object.size)),
        _ => FetchError::Store(error),
    })?;
    let mut bytes = BytesMut::with_capacity(usize::try_from(object.size).unwrap_or_default());
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
