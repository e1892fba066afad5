//! `current.json` and the manifests of a unit: read with one limit each, and what comes of it by name.

use bytes::Bytes;
use common::checksum::Sha256Sum;
use common::marker::{CURRENT_BYTES_MAX, Current, MANIFEST_BYTES_MAX, Marker};
use common::object_key::Prefix;
use common::unit::Unit;

use crate::error::StoreError;
use crate::object_store::ObjectStore;

/// What the store has under the key of a unit's `current.json`.
#[derive(Debug)]
pub enum CurrentFile {
    Absent,
    /// Why it cannot be understood.
    Unreadable(String),
    Read(Current),
}

impl CurrentFile {
    /// `None` also where it cannot be understood.
    pub fn readable(self) -> Option<Current> {
        match self {
            Self::Read(current) => Some(current),
            Self::Absent | Self::Unreadable(_) => None,
        }
    }
}

/// What the store has under the key of a manifest.
#[derive(Debug)]
pub enum ManifestFile {
    Absent,
    /// It is no manifest, or one of another unit or revision, and why.
    Faulty {
        json: Bytes,
        why: String,
    },
    /// Its objects are not checked: see [`Marker::checked_objects`].
    Read {
        json: Bytes,
        marker: Box<Marker>,
    },
}

impl ObjectStore {
    /// # Errors
    /// The store does not answer, or what it has is too large.
    pub async fn current(&self, prefix: &Prefix, unit: &Unit) -> Result<CurrentFile, StoreError> {
        Ok(match self.current_bytes(prefix, unit).await? {
            None => CurrentFile::Absent,
            Some(json) => serde_json::from_slice(&json)
                .map_or_else(|error| CurrentFile::Unreadable(error.to_string()), CurrentFile::Read),
        })
    }

    /// The same without reading it: whether there is one.
    ///
    /// # Errors
    /// As [`ObjectStore::current`].
    pub async fn current_bytes(&self, prefix: &Prefix, unit: &Unit) -> Result<Option<Bytes>, StoreError> {
        self.get_small(&prefix.current_key(unit), CURRENT_BYTES_MAX).await
    }

    /// # Errors
    /// The store does not answer, or what it has is too large.
    pub async fn manifest(
        &self,
        prefix: &Prefix,
        unit: &Unit,
        revision: &Sha256Sum,
    ) -> Result<ManifestFile, StoreError> {
        let Some(json) = self.manifest_bytes(&prefix.manifest_key(unit, revision)).await? else {
            return Ok(ManifestFile::Absent);
        };
        let why = match Marker::parse(&json) {
            Ok(marker) if marker.unit != *unit => "it is of another unit".to_owned(),
            Ok(marker) if marker.revision != *revision => "it is of another revision".to_owned(),
            Ok(marker) => return Ok(ManifestFile::Read { json, marker: Box::new(marker) }),
            Err(error) => error.to_string(),
        };
        Ok(ManifestFile::Faulty { json, why })
    }

    /// The bytes under the key of a manifest, for whoever knows their hash.
    ///
    /// # Errors
    /// As [`ObjectStore::manifest`].
    pub async fn manifest_bytes(&self, key: &str) -> Result<Option<Bytes>, StoreError> {
        self.get_small(key, MANIFEST_BYTES_MAX).await
    }
}
