//! A directory destination: keeps the verified archives as files, in the tree they came from.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use common::checksum::Sha256Sum;
use common::marker::Object;
use futures::StreamExt;
use nats::Activity;
use tokio::io::AsyncWriteExt;

use crate::destination::Work;
use crate::error::{FaultyObject, ObjectFault, WorkError};
use crate::fetch::Fetcher;
use crate::job::Job;
use crate::load::{FETCHES_MAX, acceptable};
use crate::memory::MemoryBudget;

pub(crate) struct Mirror {
    pub root: PathBuf,
    pub fetcher: Fetcher,
    pub memory: MemoryBudget,
}

enum Kept {
    Already,
    Fetched { bytes: u64 },
    Faulty(ObjectFault),
}

impl Mirror {
    pub(crate) async fn keep(&self, job: &Job, activity: &Activity) -> Result<Work, WorkError> {
        let started = Instant::now();
        let mut work = Work::default();
        let keepings: Vec<_> = job.objects.iter().map(|object| self.keep_one(job, object, activity)).collect();
        let mut keeping = futures::stream::iter(keepings).buffered(FETCHES_MAX);
        let mut objects = job.objects.iter();
        while let (Some(outcome), Some(object)) = (keeping.next().await, objects.next()) {
            match outcome? {
                Kept::Already => work.skipped += 1,
                Kept::Fetched { bytes } => {
                    work.loaded += 1;
                    work.bytes += bytes;
                }
                Kept::Faulty(fault) => work.faults.push(FaultyObject { key: object.key.clone(), fault }),
            }
        }
        drop(keeping);
        work.times.fetch = started.elapsed();
        Ok(work)
    }

    async fn keep_one(&self, job: &Job, object: &Object, activity: &Activity) -> Result<Kept, WorkError> {
        let path = match self.fetcher.prefix.archive_path(&object.key) {
            Ok(path) => self.root.join(path),
            Err(error) => return Ok(Kept::Faulty(ObjectFault::Refused(error.to_string()))),
        };
        if let Err(fault) = acceptable(job, object, &self.fetcher.prefix, &self.memory) {
            return Ok(Kept::Faulty(fault));
        }
        // Memory first, as the loader does: the other order could leave each waiting for what the other holds.
        let _memory = activity.while_waiting(self.memory.take(object.size)).await;
        if tokio::fs::metadata(&path).await.is_ok_and(|there| there.is_dir()) {
            let why = format!("a folder lies where it belongs: {}", path.display());
            return Ok(Kept::Faulty(ObjectFault::Refused(why)));
        }
        match holds(&path, object).await {
            Ok(true) => {
                activity.bump();
                return Ok(Kept::Already);
            }
            Ok(false) => {}
            Err(error) => return self.blame(error).await.map(Kept::Faulty),
        }
        let bytes = match self.fetcher.fetch(&job.unit, object, activity).await? {
            Ok(bytes) => bytes,
            Err(fault) => return Ok(Kept::Faulty(fault)),
        };
        match write(&path, &bytes).await {
            Ok(()) => {
                activity.bump();
                Ok(Kept::Fetched { bytes: object.size })
            }
            Err(error) => self.blame(error).await.map(Kept::Faulty),
        }
    }

    /// The object's fault, where it is not the whole folder's.
    async fn blame(&self, error: WorkError) -> Result<ObjectFault, WorkError> {
        let WorkError::Disk { source, .. } = &error else { return Err(error) };
        let fault: fn(String) -> ObjectFault = match nature(source) {
            DiskFault::Disk => return Err(error),
            DiskFault::Name => ObjectFault::Refused,
            DiskFault::File => ObjectFault::Unwritable,
        };
        if self.can_be_written().await { Ok(fault(error.to_string())) } else { Err(error) }
    }

    /// A real file that is written and read: then nothing is wrong with the disk, or with this user's rights to the folder.
    async fn can_be_written(&self) -> bool {
        let root = self.root.clone();
        let tried = tokio::task::spawn_blocking(move || {
            use std::io::{Read, Seek, Write};
            let mut file = tempfile::Builder::new().prefix(".ferry-").suffix(".tmp").tempfile_in(root)?;
            file.write_all(b"probe")?;
            file.as_file().sync_all()?;
            file.rewind()?;
            let mut text = String::new();
            file.read_to_string(&mut text)?;
            Ok::<_, io::Error>(text == "probe")
        });
        // No time-out: a disk that hangs holds up the write before this as well, and the lease ends with it.
        matches!(tried.await, Ok(Ok(true)))
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

/// Writes beside the final name, makes it durable and renames: a reader sees the old file or the new one.
async fn write(path: &Path, bytes: &[u8]) -> Result<(), WorkError> {
    let failed = |source| WorkError::Disk { path: path.to_owned(), source };
    let folder = path.parent().unwrap_or(path);
    let made = folder.ancestors().take_while(|ancestor| !is_here(ancestor) && !ancestor.exists()).count();
    tokio::fs::create_dir_all(folder).await.map_err(failed)?;
    // Removed when dropped, so a full disk leaves nothing behind.
    let temporary = tempfile::Builder::new().prefix(".ferry-").suffix(".tmp").tempfile_in(folder).map_err(failed)?;
    let (file, temporary) = temporary.into_parts();
    let mut file = tokio::fs::File::from_std(file);
    file.write_all(bytes).await.map_err(failed)?;
    file.flush().await.map_err(failed)?;
    file.sync_all().await.map_err(failed)?;
    make_readable(&temporary).map_err(failed)?;
    temporary.persist(path).map_err(|error| failed(error.error))?;
    // The name too, and those of the folders that were made for it.
    for folder in folder.ancestors().take(made + 1) {
        let folder = if is_here(folder) { Path::new(".") } else { folder };
        tokio::fs::File::open(folder).await.map_err(failed)?.sync_all().await.map_err(failed)?;
    }
    Ok(())
}

/// The last ancestor of a relative path.
fn is_here(folder: &Path) -> bool {
    folder.as_os_str().is_empty()
}

/// Temporary files are private; archives are for everyone who may enter the folder.
fn make_readable(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644))
}

#[cfg(test)]
mod tests {
    use super::*;

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
