//! What can go wrong with a store, as far as callers treat it differently.

use common::output::{Failure, FailureClass};
use common::text::shorten;

/// What a caller can do about a failed request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreErrorKind {
    NotFound,
    /// The bucket, or the folder that stands for it.
    NoSuchBucket,
    /// Wrong keys, or keys that may not do this.
    Denied,
    /// The signature's time is too far from the server's.
    ClockSkew,
    /// Away, overloaded, full or slow: worth another try.
    Unavailable,
    /// No object can have such a key there: it is too long, or leads elsewhere.
    BadKey,
    /// The object has more bytes than the caller takes.
    TooLarge,
    Other,
}

/// Which store it was, for the advice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StoreType {
    S3,
    Folder,
    /// The uploader's side of rsync.
    DataDir,
    /// The puller's side of it.
    Rsync,
}

#[derive(Debug, Clone, thiserror::Error)]
#[error("{operation} of '{key}': {message}")]
pub struct StoreError {
    pub(crate) store: StoreType,
    pub kind: StoreErrorKind,
    pub(crate) operation: &'static str,
    pub(crate) key: String,
    pub(crate) message: String,
}

impl StoreError {
    pub(crate) fn new(
        store: StoreType,
        kind: StoreErrorKind,
        operation: &'static str,
        key: &str,
        message: impl Into<String>,
    ) -> Self {
        Self { store, kind, operation, key: shorten(key), message: message.into() }
    }

    /// An error of this kind, for tests of what follows from it.
    #[doc(hidden)]
    pub fn sample(kind: StoreErrorKind) -> Self {
        Self::new(StoreType::S3, kind, "GET", "key", "a sample")
    }

    /// The error with what to do about it, for a person.
    pub fn advised(&self) -> String {
        self.advice().map_or_else(|| self.to_string(), |advice| format!("{self} ({advice})"))
    }

    /// What to do about it; `None` where the message is all there is to say.
    pub fn advice(&self) -> Option<&'static str> {
        use StoreErrorKind::{BadKey, ClockSkew, Denied, NoSuchBucket, NotFound, Other, TooLarge, Unavailable};
        let advice = match (self.kind, self.store) {
            (NotFound, StoreType::DataDir | StoreType::Rsync) => {
                "the archive is no longer in the remote data_dir: put it back there"
            }
            (NotFound, _) => "check storage.r2.prefix, and that the uploader has finished",
            (NoSuchBucket, StoreType::S3) => {
                "there is no bucket of that name: check storage.r2.bucket, and that storage.r2.endpoint is the account's \
                 (it must not carry the bucket's name)"
            }
            (NoSuchBucket, StoreType::Folder) => {
                "check storage.fs.path, and that the share is mounted; the folder itself is never made"
            }
            (NoSuchBucket, StoreType::DataDir) => "check local.data_dir, and that its disk is mounted",
            (NoSuchBucket, StoreType::Rsync) => {
                "check storage.rsync.path: the remote site's data_dir as storage.rsync.user finds it there"
            }
            (Denied, StoreType::S3) => {
                "check storage.r2.access_key_id and secret_access_key, and that the token may read, write and list this \
                 bucket: without the right to list it (s3:ListBucket), S3 answers 403 for an object that is not there"
            }
            (Denied, StoreType::Folder) => {
                "this user must be allowed to read below storage.fs.path, and the uploader's to write there"
            }
            (Denied, StoreType::DataDir) => {
                "this user must be allowed to read local.data_dir, and to write to _markers in it"
            }
            (Denied, StoreType::Rsync) => {
                "check storage.rsync.user and key_file, that the remote host's key is known (storage.rsync.known_hosts), \
                 and that the user may read storage.rsync.path; `ssh` by hand with the same options says more"
            }
            (ClockSkew, StoreType::Folder | StoreType::DataDir) => {
                "synchronise the clocks of this machine and of the file server (NTP): archives are dated by them"
            }
            (ClockSkew, _) => "this machine's clock is off: synchronise it (NTP), requests are signed with the time",
            (Unavailable, StoreType::S3) => "check storage.r2.endpoint and the network",
            (Unavailable, StoreType::Folder | StoreType::DataDir) => {
                "check that the disk or share answers and has room"
            }
            (Unavailable, StoreType::Rsync) => {
                "check storage.rsync.host and port, the network, that rsync is installed on both machines, and that \
                 local.state_dir has room"
            }
            (TooLarge | BadKey | Other, _) => return None,
        };
        Some(advice)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let class = match error.kind {
            StoreErrorKind::NoSuchBucket | StoreErrorKind::ClockSkew => FailureClass::Config,
            StoreErrorKind::Denied => FailureClass::Denied,
            StoreErrorKind::Unavailable => FailureClass::Unreachable,
            StoreErrorKind::NotFound | StoreErrorKind::TooLarge | StoreErrorKind::BadKey | StoreErrorKind::Other => {
                FailureClass::Failed
            }
        };
        Self { advice: error.advice().map(str::to_owned), ..Self::new(class, error.to_string()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_without_advice_is_its_message_alone() {
        for kind in [StoreErrorKind::TooLarge, StoreErrorKind::BadKey, StoreErrorKind::Other] {
            assert_eq!(StoreError::sample(kind).advised(), "GET of 'key': a sample");
        }
        let away = StoreError::sample(StoreErrorKind::Unavailable).advised();
        assert_eq!(away, "GET of 'key': a sample (check storage.r2.endpoint and the network)");
    }
}
