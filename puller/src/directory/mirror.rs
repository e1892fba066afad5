//! A directory destination: keeps the verified archives as files, in the tree they came from.
//!
//! A file is replaced only by those who know where it comes from: one whose bytes the stream never brought here may be the
//! only copy of what it holds, in the `data_dir` of an uploader, say. It stays, and the unit says so.

mod delivered;
mod file;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use common::checksum::Sha256Sum;
use common::marker::Object;
use futures::StreamExt;
use nats::Activity;
use tokio::sync::{OnceCell, OwnedSemaphorePermit};

use crate::error::work::{FaultyObject, ObjectFault, WorkError};
use crate::fetch::fetcher::Fetcher;
use crate::job::memory::MemoryBudget;
use crate::job::place::acceptable;
use crate::job::resolve::Job;
use crate::job::spec::FETCHES_MAX;
use crate::job::work::Work;
use delivered::Delivered;

/// Another worker with the same unit is done at once; who keeps writing there is none of ours.
const PUTS_MAX: usize = 3;

pub(crate) struct Mirror {
    pub root: PathBuf,
    pub fetcher: Fetcher,
    pub memory: MemoryBudget,
}

enum Stored {
    Already,
    Fetched { bytes: u64 },
    Faulty(ObjectFault),
}

/// An archive in memory. A write that hangs holds it longer than whoever waited for that, and the room that it takes.
#[derive(Clone)]
struct Fetched {
    bytes: Bytes,
    _memory: Arc<OwnedSemaphorePermit>,
}

impl AsRef<[u8]> for Fetched {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Mirror {
    pub(crate) async fn store(&self, job: &Job, activity: &Activity) -> Result<Work, WorkError> {
        let started = Instant::now();
        let mut work = Work::default();
        delivered::record_objects(&self.root, &job.unit, &job.objects, &self.fetcher.prefix)
            .await
            .map_err(|source| self.no_record(source))?;
        let delivered = OnceCell::new();
        let stores: Vec<_> =
            job.objects.iter().map(|object| self.store_one(job, object, &delivered, activity)).collect();
        let mut storing = futures::stream::iter(stores).buffered(FETCHES_MAX);
        let mut objects = job.objects.iter();
        while let (Some(outcome), Some(object)) = (storing.next().await, objects.next()) {
            match outcome? {
                Stored::Already => work.skipped += 1,
                Stored::Fetched { bytes } => {
                    work.loaded += 1;
                    work.bytes += bytes;
                }
                Stored::Faulty(fault) => work.faults.push(FaultyObject { key: object.key.clone(), fault }),
            }
        }
        drop(storing);
        work.times.fetch = started.elapsed();
        Ok(work)
    }

    async fn store_one(
        &self,
        job: &Job,
        object: &Object,
        delivered: &OnceCell<Delivered>,
        activity: &Activity,
    ) -> Result<Stored, WorkError> {
        if let Err(fault) = acceptable(job, object, &self.fetcher.prefix, &self.memory) {
            return Ok(Stored::Faulty(fault));
        }
        let name = match self.fetcher.prefix.archive_path(&object.key) {
            Ok(name) => name,
            Err(error) => return Ok(Stored::Faulty(ObjectFault::Refused(error.to_string()))),
        };
        let path = self.root.join(name);
        // Memory first, as the loader does: the other order could leave each waiting for what the other holds.
        let memory = Arc::new(activity.while_waiting(self.memory.acquire(object.size)).await);
        if tokio::fs::metadata(&path).await.is_ok_and(|there| there.is_dir()) {
            let why = format!("a folder lies where it belongs: {}", path.display());
            return Ok(Stored::Faulty(ObjectFault::Refused(why)));
        }
        match self.twice(|| holds(&path, object)).await? {
            Ok(true) => {
                activity.bump();
                return Ok(Stored::Already);
            }
            Ok(false) => {}
            Err(fault) => return Ok(Stored::Faulty(fault)),
        }
        let bytes = match self.fetcher.fetch(&job.unit, object, activity).await? {
            Ok(bytes) => bytes,
            Err(fault) => return Ok(Stored::Faulty(fault)),
        };
        let fetched = Fetched { bytes, _memory: memory };
        match self.twice(|| self.put(&path, name, &fetched, (job, object), delivered)).await? {
            Ok(None) => {
                activity.bump();
                Ok(Stored::Fetched { bytes: object.size })
            }
            Ok(Some(fault)) | Err(fault) => Ok(Stored::Faulty(fault)),
        }
    }

    /// Puts the bytes of an object where nothing is, or what the stream brought before. Some: what is there instead.
    async fn put(
        &self,
        path: &Path,
        name: &str,
        fetched: &Fetched,
        (job, object): (&Job, &Object),
        delivered: &OnceCell<Delivered>,
    ) -> Result<Option<ObjectFault>, WorkError> {
        let failed = |source| WorkError::Disk { path: path.to_owned(), source };
        for _ in 0..PUTS_MAX {
            let seen = file::read_entry(path).await.map_err(failed)?;
            if let Some(seen) = &seen {
                if seen.sha256 == Some(object.sha256) {
                    return Ok(None);
                }
                let delivered = delivered.get_or_try_init(|| Delivered::read(&self.root, &job.unit));
                let delivered = delivered.await.map_err(|source| self.no_record(source))?;
                if !seen.sha256.is_some_and(|sha256| delivered.has(name, sha256)) {
                    return Ok(Some(ObjectFault::NotOurs(path.to_owned())));
                }
            }
            if file::replace_seen(path, fetched.clone(), seen).await.map_err(failed)? {
                return Ok(None);
            }
        }
        Ok(Some(ObjectFault::Unwritable(format!("{} changes again and again", path.display()))))
    }

    fn no_record(&self, source: io::Error) -> WorkError {
        WorkError::Disk { path: self.root.join(delivered::FOLDER), source }
    }

    /// Does something to a file. An error is the file's own where another file could be written meanwhile and it comes again
    /// after that; what was wrong with the disk may have passed between the two.
    async fn twice<T, F>(&self, step: impl Fn() -> F) -> Result<Result<T, ObjectFault>, WorkError>
    where
        F: Future<Output = Result<T, WorkError>>,
    {
        let fault_of = |error: &WorkError| -> Option<fn(String) -> ObjectFault> {
            let WorkError::Disk { source, .. } = error else { return None };
            match nature(source) {
                DiskFault::Disk => None,
                DiskFault::Name => Some(ObjectFault::Refused),
                DiskFault::File => Some(ObjectFault::Unwritable),
            }
        };
        match step().await {
            Ok(done) => return Ok(Ok(done)),
            Err(error) if fault_of(&error).is_none() || !file::can_be_written(&self.root).await => return Err(error),
            Err(_) => {}
        }
        match step().await {
            Ok(done) => Ok(Ok(done)),
            Err(error) => match fault_of(&error) {
                Some(fault) => Ok(Err(fault(error.to_string()))),
                None => Err(error),
            },
        }
    }
}

/// What an error of the system may be a fault of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DiskFault {
    /// A full disk, one that may not be written, a mount that is gone: all need somebody, and nothing is wrong with the
    /// object.
    Disk,
    /// The name: it cannot be on this file system, or not beside what lies there.
    Name,
    /// The file, or the folder it is in.
    File,
}

fn nature(error: &io::Error) -> DiskFault {
    use io::ErrorKind as Kind;
    match error.kind() {
        Kind::InvalidFilename | Kind::NotADirectory | Kind::IsADirectory | Kind::InvalidInput | Kind::InvalidData => {
            DiskFault::Name
        }
        Kind::NotFound
        | Kind::StorageFull
        | Kind::QuotaExceeded
        | Kind::ReadOnlyFilesystem
        | Kind::FileTooLarge
        | Kind::StaleNetworkFileHandle
        | Kind::OutOfMemory
        | Kind::TimedOut => DiskFault::Disk,
        _ => match error.raw_os_error() {
            // Too many levels of symbolic links, an invalid or incomplete character.
            Some(40 | 84) => DiskFault::Name,
            // Out of file descriptors, of the system's or of this process's; a device or a share that is gone.
            Some(6 | 19 | 23 | 24 | 107 | 112 | 113) => DiskFault::Disk,
            _ => DiskFault::File,
        },
    }
}

/// Whether the file is there with exactly these bytes.
pub(crate) async fn holds(path: &Path, object: &Object) -> Result<bool, WorkError> {
    let failed = |source| WorkError::Disk { path: path.to_owned(), source };
    match tokio::fs::metadata(path).await {
        Ok(metadata) if metadata.len() == object.size => {
            let bytes = tokio::fs::read(path).await.map_err(failed)?;
            Ok(Sha256Sum::of(&bytes) == object.sha256)
        }
        Ok(_) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use store::{End, ObjectStore};

    use super::*;

    fn mirror(root: &Path) -> Mirror {
        let yaml = format!("storage: {{type: fs, fs: {{path: {}}}}}", root.join("store").display());
        let file = root.join("config.yaml");
        std::fs::write(&file, yaml).expect("written");
        let config = common::config::Config::load(Some(&file), &[]).expect("reads");
        let store = ObjectStore::new(&config.storage, End::Puller);
        Mirror {
            root: root.to_owned(),
            fetcher: Fetcher::new(store, config.storage.prefix.clone(), 1),
            memory: MemoryBudget::new(16 << 20),
        }
    }

    #[tokio::test]
    async fn what_has_passed_when_another_file_could_be_written_is_no_fault_of_the_file() {
        let dir = tempfile::tempdir().expect("a folder");
        let mirror = mirror(dir.path());
        // Fails so many times, with this error.
        let failing = async |mirror: &Mirror, times: u32, number: i32| {
            let left = std::cell::Cell::new(times);
            mirror
                .twice(|| {
                    let fails = left.get() > 0;
                    left.set(left.get().saturating_sub(1));
                    let source = io::Error::from_raw_os_error(number);
                    let error = WorkError::Disk { path: "/x".into(), source };
                    std::future::ready(if fails { Err(error) } else { Ok(()) })
                })
                .await
        };
        assert!(matches!(failing(&mirror, 0, 5).await, Ok(Ok(()))));
        assert!(matches!(failing(&mirror, 1, 5).await, Ok(Ok(()))), "it has passed");
        assert!(matches!(failing(&mirror, 2, 5).await, Ok(Err(ObjectFault::Unwritable(_)))));
        assert!(matches!(failing(&mirror, 2, 36).await, Ok(Err(ObjectFault::Refused(_)))));
        assert!(failing(&mirror, 1, 28).await.is_err(), "a full disk is waited for");
        let gone = Mirror { root: dir.path().join("nowhere"), ..mirror };
        assert!(failing(&gone, 1, 5).await.is_err(), "no file can be written");
    }

    #[test]
    fn errors_of_the_system_are_told_apart() {
        let check = |number: i32, expected| {
            let error = io::Error::from_raw_os_error(number);
            assert_eq!(nature(&error), expected, "{error}");
        };
        // A name too long, a file where a folder belongs and the other way round, characters that are refused, links in a
        // circle.
        [36, 20, 21, 22, 84, 40].into_iter().for_each(|number| check(number, DiskFault::Name));
        // A full disk, a quota, a read-only file system, a limit on sizes, no such folder, a stale handle, no descriptors.
        [28, 122, 30, 27, 2, 116, 23, 24, 12, 110, 6, 19].into_iter().for_each(|number| check(number, DiskFault::Disk));
        // An error of the device, no permission, busy.
        [5, 13, 1, 16].into_iter().for_each(|number| check(number, DiskFault::File));
    }
}
