//! One interface over every kind of store: put, head, get, list.

use std::path::Path;

use bytes::Bytes;
use jiff::SignedDuration;

use common::checksum::Sha256Sum;
use common::config::{Place, Storage};

use crate::bandwidth::{Bandwidth, Direction};
use crate::data_dir::DataDir;
use crate::error::{StoreError, StoreErrorKind, StoreType};
use crate::folder::{FileDownload, Folder};
use crate::interface::{Details, End, Given, Over, Page, Put, Stored};
use crate::rsync::{Rsync, RsyncDownload};
use crate::s3::{S3, S3Download};

/// How far clocks may be apart before archives would be dated wrongly by one of them.
const SKEW_MAX: SignedDuration = SignedDuration::from_hours(24);

/// A store of objects. Cheap to clone.
#[derive(Clone)]
pub struct ObjectStore {
    pub(crate) backend: Backend,
    bandwidth: Bandwidth,
}

#[derive(Clone)]
pub(crate) enum Backend {
    S3(S3),
    Folder(Folder),
    DataDir(DataDir),
    Rsync(Rsync),
}

impl ObjectStore {
    pub fn new(storage: &Storage, end: End) -> Self {
        let bandwidth = Bandwidth::new(storage.bwlimit.clone());
        let backend = match (&storage.place, end) {
            (Place::S3(bucket), _) => Backend::S3(S3::new(bucket, bandwidth.clone())),
            (Place::Folder { path }, _) => Backend::Folder(Folder::new(path, bandwidth.clone())),
            (Place::Rsync(rsync), End::Uploader) => {
                // Without one the empty path leads nowhere, which is said as such.
                let data_dir = rsync.data_dir.clone().unwrap_or_default();
                Backend::DataDir(DataDir::new(&data_dir, &storage.prefix))
            }
            (Place::Rsync(rsync), End::Puller) => {
                Backend::Rsync(Rsync::new(rsync, &storage.prefix, storage.transfers, bandwidth.clone()))
            }
        };
        Self { backend, bandwidth }
    }

    /// The limit that all who fetch from the store or send to it share, for whoever else is to share it.
    pub fn bandwidth(&self) -> &Bandwidth {
        &self.bandwidth
    }

    /// What markers name as the bucket. A folder has no name that holds on every machine that mounts it, so that the
    /// type stands for it: one stream goes with one folder, or one data_dir.
    pub fn bucket(&self) -> &str {
        match &self.backend {
            Backend::S3(s3) => s3.bucket(),
            Backend::Folder(_) => "fs",
            Backend::DataDir(_) | Backend::Rsync(_) => "rsync",
        }
    }

    /// What is stored under a key; `None` when nothing is.
    ///
    /// Where there is no bucket the whole file is read for it, so that what is compared is what is stored.
    pub async fn head(&self, key: &str) -> Result<Option<Stored>, StoreError> {
        match &self.backend {
            Backend::S3(s3) => s3.head(key).await,
            Backend::Folder(folder) => folder.head(key).await,
            Backend::DataDir(data_dir) => data_dir.head(key).await,
            Backend::Rsync(_) => Err(only_fetches("HEAD", key)),
        }
    }

    /// Whether an object lies under a key. Its content is not read.
    pub async fn exists(&self, key: &str) -> Result<bool, StoreError> {
        match &self.backend {
            Backend::S3(s3) => Ok(s3.head(key).await?.is_some()),
            Backend::Folder(folder) => folder.exists(key).await,
            Backend::DataDir(data_dir) => data_dir.exists(key).await,
            Backend::Rsync(_) => Err(only_fetches("HEAD", key)),
        }
    }

    /// Whether what lies under a key is this very file, so that removing one removes the other.
    pub async fn is_this_file(&self, key: &str, file: &Path) -> Result<bool, StoreError> {
        match &self.backend {
            Backend::S3(_) => Ok(false),
            Backend::Folder(folder) => folder.is_this_file(key, file).await,
            Backend::DataDir(_) => Ok(true),
            Backend::Rsync(_) => Err(only_fetches("HEAD", key)),
        }
    }

    /// Compares this machine's clock with that of the server that keeps a folder, as a bucket does by itself: every
    /// request to one is signed with the time.
    ///
    /// # Errors
    /// `ClockSkew`: they are more than a day apart.
    pub async fn check_clock(&self) -> Result<(), StoreError> {
        let server = match &self.backend {
            Backend::S3(_) | Backend::Rsync(_) => return Ok(()),
            Backend::Folder(folder) => folder.server_time().await?,
            Backend::DataDir(data_dir) => data_dir.server_time().await?,
        };
        let now = common::clock::now();
        if now.duration_since(server).abs() <= SKEW_MAX {
            return Ok(());
        }
        let message = format!("this machine's clock says {now}, that of the disk or file server {server}");
        Err(StoreError::new(self.store_type(), StoreErrorKind::ClockSkew, "PUT", "", message))
    }

    /// What is known of an object beyond [`Stored`]; `None` when nothing is there.
    pub async fn details(&self, key: &str) -> Result<Option<Details>, StoreError> {
        match &self.backend {
            Backend::S3(s3) => s3.details(key).await,
            Backend::Folder(_) | Backend::DataDir(_) | Backend::Rsync(_) => {
                Ok(self.head(key).await?.map(|stored| Details { stored, md5: None, modified: None }))
            }
        }
    }

    /// Gives the object with this ETag the sha256 that a `put` of ours would have given it, without sending it.
    pub async fn give_sha256(&self, key: &str, etag: &str, sha256: Sha256Sum) -> Result<Given, StoreError> {
        match &self.backend {
            Backend::S3(s3) => s3.give_sha256(key, etag, sha256).await,
            // They say the sha256 of whatever lies there.
            Backend::Folder(_) | Backend::DataDir(_) | Backend::Rsync(_) => Ok(Given::Done),
        }
    }

    /// Stores an object, with its sha256.
    pub async fn put(&self, key: &str, body: Bytes, sha256: Sha256Sum) -> Result<(), StoreError> {
        match &self.backend {
            Backend::S3(s3) => s3.put_over(key, body, sha256, Over::Anything).await.map(drop),
            Backend::Folder(folder) => folder.put_over(key, body, Over::Anything).await.map(drop),
            Backend::DataDir(data_dir) => data_dir.put_over(key, body, sha256, Over::Anything).await.map(drop),
            Backend::Rsync(_) => Err(only_fetches("PUT", key)),
        }
    }

    /// The same, only over what HEAD showed: two uploaders with different archives of one key do not replace each other's
    /// without having seen it.
    ///
    /// A bucket decides this itself (`If-Match`, `If-None-Match`). One that refuses such headers, and a folder, are asked for
    /// the object again as late as can be: whoever stores another in the moment after that is replaced.
    pub async fn put_over(&self, key: &str, body: Bytes, sha256: Sha256Sum, over: Over<'_>) -> Result<Put, StoreError> {
        match &self.backend {
            Backend::S3(s3) => s3.put_over(key, body, sha256, over).await,
            Backend::Folder(folder) => folder.put_over(key, body, over).await,
            Backend::DataDir(data_dir) => data_dir.put_over(key, body, sha256, over).await,
            Backend::Rsync(_) => Err(only_fetches("PUT", key)),
        }
    }

    /// Tries once to store an object where nothing lies. False: something lies there, or the store was not asked, or its
    /// answer was not understood; the object may be stored all the same.
    pub async fn put_new(&self, key: &str, body: Bytes, sha256: Sha256Sum) -> bool {
        match &self.backend {
            Backend::S3(s3) => s3.put_new(key, body, sha256).await,
            Backend::Folder(_) | Backend::DataDir(_) | Backend::Rsync(_) => false,
        }
    }

    /// Whether objects are stored by copying a file here, rather than by requests to a server.
    pub fn copies_files(&self) -> bool {
        matches!(self.backend, Backend::Folder(_) | Backend::DataDir(_))
    }

    /// Stores a file of any size over what HEAD showed, where the store [copies files](Self::copies_files).
    pub async fn put_file(&self, key: &str, file: &Path, sha256: Sha256Sum, over: Over<'_>) -> Result<Put, StoreError> {
        match &self.backend {
            Backend::Folder(folder) => folder.put_file(key, file, sha256, over).await,
            // It lies there already, or it does not.
            Backend::DataDir(data_dir) => data_dir.put_over(key, Bytes::new(), sha256, over).await,
            Backend::S3(_) | Backend::Rsync(_) => Err(only_fetches("PUT", key)),
        }
    }

    /// Begins to fetch an object. No store sends or keeps much more than `bytes_max` of it; that it is larger may be
    /// told by an error ([`StoreErrorKind::TooLarge`]) or by more bytes than that.
    pub async fn get(&self, key: &str, bytes_max: u64) -> Result<Download, StoreError> {
        let body = match &self.backend {
            Backend::S3(s3) => Body::S3(s3.get(key).await?),
            Backend::Folder(folder) => Body::File(folder.get(key).await?),
            Backend::DataDir(data_dir) => Body::File(data_dir.get(key).await?),
            Backend::Rsync(rsync) => Body::Rsync(Box::new(rsync.get(key, bytes_max).await?)),
        };
        Ok(Download { body, arrived: Bytes::new(), bandwidth: self.bandwidth.clone() })
    }

    /// Fetches a small object whole; `None` when there is none.
    ///
    /// # Errors
    /// Also when the object is larger than `bytes_max`.
    pub async fn get_small(&self, key: &str, bytes_max: u64) -> Result<Option<Bytes>, StoreError> {
        let mut download = match self.get(key, bytes_max).await {
            Ok(download) => download,
            Err(error) if error.kind == StoreErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        while let Some(chunk) = download.chunk().await? {
            if (bytes.len() + chunk.len()) as u64 > bytes_max {
                let message = format!("is larger than {bytes_max} bytes");
                let (store, kind) = (self.store_type(), StoreErrorKind::TooLarge);
                return Err(StoreError::new(store, kind, "GET", key, message));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(Some(bytes.into()))
    }

    /// One page of the keys below a prefix, in their order; `after` is what the page before said comes next.
    pub async fn list(&self, prefix: &str, after: Option<String>) -> Result<Page, StoreError> {
        match &self.backend {
            Backend::S3(s3) => s3.list(prefix, after).await,
            Backend::Folder(folder) => folder.list(prefix, after).await,
            Backend::DataDir(data_dir) => data_dir.list(prefix, after).await,
            Backend::Rsync(_) => Err(only_fetches("LIST", prefix)),
        }
    }

    /// Asks whether the store is there and may be read: a missing bucket and a missing permission answer differently.
    pub async fn probe(&self, prefix: &str) -> Result<(), StoreError> {
        match &self.backend {
            Backend::S3(s3) => s3.probe(prefix).await,
            Backend::Folder(folder) => folder.probe(prefix).await,
            Backend::DataDir(data_dir) => data_dir.probe(prefix).await,
            Backend::Rsync(rsync) => rsync.probe().await,
        }
    }

    /// Asks whether the store may be written to, as far as that can be told without leaving anything there: of a bucket
    /// it cannot.
    pub async fn probe_writing(&self) -> Result<(), StoreError> {
        match &self.backend {
            Backend::S3(_) => Ok(()),
            Backend::Folder(folder) => folder.probe_writing().await,
            Backend::DataDir(data_dir) => data_dir.probe_writing().await,
            Backend::Rsync(_) => Err(only_fetches("PUT", "")),
        }
    }

    pub(crate) fn store_type(&self) -> StoreType {
        match &self.backend {
            Backend::S3(_) => StoreType::S3,
            Backend::Folder(_) => StoreType::Folder,
            Backend::DataDir(_) => StoreType::DataDir,
            Backend::Rsync(_) => StoreType::Rsync,
        }
    }
}

fn only_fetches(operation: &'static str, key: &str) -> StoreError {
    let message = "with storage.type rsync this site only fetches; the uploader runs where the data_dir is";
    StoreError::new(StoreType::Rsync, StoreErrorKind::Other, operation, key, message)
}

/// The body of an object, chunk by chunk.
pub struct Download {
    body: Body,
    /// Read from the store and not handed on yet.
    arrived: Bytes,
    bandwidth: Bandwidth,
}

enum Body {
    S3(S3Download),
    File(FileDownload),
    Rsync(Box<RsyncDownload>),
}

impl Download {
    /// The next bytes, as fast as the limit allows; `None` at the end. An empty chunk is a sign of life: bytes are arriving
    /// elsewhere first.
    ///
    /// # Errors
    /// The connection broke, or nothing came for 30 seconds.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, StoreError> {
        if self.arrived.is_empty() {
            let chunk = match &mut self.body {
                Body::S3(download) => download.chunk().await?,
                Body::File(download) => download.chunk().await?,
                // Came as fast as rsync was told to let it.
                Body::Rsync(download) => return download.chunk().await,
            };
            match chunk {
                Some(chunk) => self.arrived = chunk,
                None => return Ok(None),
            }
        }
        // What is not handed on is not read on either, so the sender slows down too.
        let granted = self.bandwidth.acquire(Direction::Down, self.arrived.len()).await;
        Ok(Some(self.arrived.split_to(granted)))
    }
}
