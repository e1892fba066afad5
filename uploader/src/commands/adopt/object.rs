//! One object of the bucket: known, or fetched, checked and given our metadata.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bytes::Bytes;
use common::backoff::Backoff;
use common::checksum::Md5Sum;
use common::marker::Object;
use common::unit::Unit;
use store::{Details, Given, Over, Put};
use tempfile::TempDir;
use tokio::fs::File;
use tokio::io::AsyncWriteExt;

use super::list::ListedArchive;
use crate::contents::digest::Digested;
use crate::error::{PassError, UnitError};
use crate::local::check::Checked;
use crate::local::{check, layout};
use crate::site::context::{Site, blocking};

/// A `.CHECKSUM` is one line of about 100 bytes.
const CHECKSUM_BYTES_MAX: u64 = 4096;
/// Largest object that is looked into; a bucket copies no larger one.
const OBJECT_BYTES_MAX: u64 = 5 << 30;
/// To fetch an object whose body breaks off.
const ATTEMPTS: u32 = 6;

pub(super) struct Adopter<'s> {
    pub(super) site: &'s Site,
    /// A folder for what is being checked.
    pub(super) scratch: &'s Path,
    pub(super) dry_run: bool,
}

/// What is to be fetched of an archive.
struct FetchTask<'w> {
    key: &'w str,
    /// Below the prefix.
    path: &'w str,
    details: &'w Details,
    /// Whether a `.CHECKSUM` lies beside it.
    checksum: bool,
}

/// What is known of an object now.
pub(super) enum CheckedObject {
    /// A manifest names it, and the bucket still has it so.
    AsPublished,
    /// No manifest names what it holds. `None` in a dry run, which does not fetch.
    New { bytes: u64, archive: Option<Digested> },
    /// Why it cannot be announced.
    Faulty(String),
}

impl Adopter<'_> {
    pub(super) async fn check_object(
        &self,
        unit: &Unit,
        found: &ListedArchive,
        published: &HashMap<&str, &Object>,
    ) -> Result<CheckedObject, UnitError> {
        let path = layout::archive_path(unit, &found.symbol);
        let key = self.site.prefix.archive_key(&path);
        let faulty = |why: String| Ok(CheckedObject::Faulty(format!("bucket: {key} {why}")));
        let place = self.site.transfer().await?;
        let Some(details) = self.site.store.details(&key).await? else {
            return faulty("was there a moment ago and is gone; run this again".into());
        };
        let stored = &details.stored;
        if let Some(object) = published.get(key.as_str())
            && stored.size == object.size
            && stored.sha256 == Some(object.sha256)
        {
            return Ok(CheckedObject::AsPublished);
        }
        let bytes = stored.size;
        if bytes > OBJECT_BYTES_MAX {
            return faulty(format!("has {bytes} bytes: that is no archive of candles"));
        }
        if self.dry_run {
            return Ok(CheckedObject::New { bytes, archive: None });
        }
        let folder = self.folder()?;
        let task = FetchTask { key: &key, path: &path, details: &details, checksum: found.checksum };
        let file = self.fetch(&task, &folder).await?;
        drop(place);
        let file = match file {
            Ok(file) => file,
            Err(why) => return faulty(why),
        };
        let (checked, fingerprint) = {
            let _permits = self.site.check(bytes).await?;
            let file = file.clone();
            match blocking(move || check::check_file(&file, common::clock::now())).await {
                Ok(good) => good,
                Err(fault) => return faulty(fault.to_string()),
            }
        };
        match self.give_metadata(&key, &details, &checked, &file).await? {
            Ok(()) => {
                let archive = Some(Digested { symbol: found.symbol.to_string(), path, fingerprint, checked });
                Ok(CheckedObject::New { bytes, archive })
            }
            Err(why) => faulty(why),
        }
    }

    fn folder(&self) -> Result<TempDir, UnitError> {
        tempfile::tempdir_in(self.scratch).map_err(|error| self.no_space(&error))
    }

    fn no_space(&self, error: &io::Error) -> UnitError {
        UnitError::held_back(format!(
            "{}: an archive cannot be kept there while it is checked: {error}; free some space, or set local.state_dir to \
             a folder with some",
            self.scratch.display()
        ))
    }

    /// Fetches an object, again while the bucket or the way to it is at fault: what else is under way need not be fetched
    /// again because one body was cut.
    async fn fetch(&self, task: &FetchTask<'_>, folder: &TempDir) -> Result<Result<PathBuf, String>, UnitError> {
        let fetching = Backoff::RECONNECT.retry(
            || self.fetch_once(task, folder.path()),
            |error, attempt| {
                let passes = attempt < ATTEMPTS && error.is_of_the_link();
                if passes {
                    tracing::debug!(%error, attempt, "fetching again");
                }
                passes
            },
        );
        self.site.shutdown.run_until_cancelled(fetching).await.unwrap_or(Err(PassError::Stopped.into()))
    }

    /// Fetches the object, and its `.CHECKSUM` if it has one, into a folder of its own.
    async fn fetch_once(&self, task: &FetchTask<'_>, folder: &Path) -> Result<Result<PathBuf, String>, UnitError> {
        let &FetchTask { key, path, details, checksum } = task;
        let name = path.rsplit('/').next().unwrap_or(path);
        let file = folder.join(name);
        let mut writer = File::create(&file).await.map_err(|error| self.no_space(&error))?;
        let mut download = self.site.store.get(key, details.stored.size).await?;
        let mut bytes = 0;
        while let Some(chunk) = download.chunk().await? {
            bytes += chunk.len() as u64;
            if bytes > details.stored.size {
                break;
            }
            writer.write_all(&chunk).await.map_err(|error| self.no_space(&error))?;
        }
        if bytes != details.stored.size {
            return Ok(Err(format!(
                "changed while it was fetched: {bytes} bytes of {}; run this again",
                details.stored.size
            )));
        }
        // What an archive without a sound time of its own is dated by.
        let modified = details.modified.map_or(SystemTime::UNIX_EPOCH, SystemTime::from);
        writer.flush().await.map_err(|error| self.no_space(&error))?;
        writer.into_std().await.set_modified(modified).map_err(|error| self.no_space(&error))?;
        if checksum
            && let Some(line) = self.site.store.get_small(&format!("{key}.CHECKSUM"), CHECKSUM_BYTES_MAX).await?
        {
            let file = folder.join(format!("{name}.CHECKSUM"));
            tokio::fs::write(file, line).await.map_err(|error| self.no_space(&error))?;
        }
        Ok(Ok(file))
    }

    /// Makes the bucket say of the object what its content is.
    async fn give_metadata(
        &self,
        key: &str,
        details: &Details,
        checked: &Checked,
        file: &Path,
    ) -> Result<Result<(), String>, UnitError> {
        let stored = &details.stored;
        if !stored.encrypted && stored.etag.parse::<Md5Sum>().is_ok() && stored.etag != checked.md5 {
            return Ok(Err("is not what the bucket says of it: its ETag is another; run this again".into()));
        }
        match stored.sha256 {
            Some(sha256) if sha256 == checked.sha256 => return Ok(Ok(())),
            Some(sha256) => {
                return Ok(Err(format!("has sha256 {}, and its metadata says {sha256}", checked.sha256)));
            }
            None => {}
        }
        let _place = self.site.transfer().await?;
        match self.site.store.give_sha256(key, &stored.etag, checked.sha256).await? {
            Given::Done => Ok(Ok(())),
            Given::Changed => Ok(Err("was replaced while it was looked at; run this again".into())),
            Given::Refused(why) => {
                self.site.refusals.refused(key, &why);
                if checked.parts_etag.is_some() {
                    return Ok(Err(
                        "is too large to be sent again by one request, and the bucket does not copy it: put it into \
                                   data_dir, and run `uploader upload`"
                            .into(),
                    ));
                }
                let _memory = self.site.memory(stored.size).await?;
                let bytes = tokio::fs::read(file).await.map_err(|error| self.no_space(&error))?;
                match self.site.store.put_over(key, Bytes::from(bytes), checked.sha256, Over::This(stored)).await? {
                    Put::Done => Ok(Ok(())),
                    Put::Changed | Put::OtherBytes => {
                        Ok(Err("was replaced while it was looked at; run this again".into()))
                    }
                }
            }
        }
    }
}
