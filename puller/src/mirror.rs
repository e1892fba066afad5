//! A directory destination: keeps the verified archives as files, in the tree they came from.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use common::checksum::Sha256Sum;
use common::marker::Object;
use common::object_key::Prefix;
use common::object_store::ObjectStore;
use futures::StreamExt;
use nats::Activity;
use tokio::io::AsyncWriteExt;
use tokio::sync::Semaphore;

use crate::destination::Work;
use crate::error::{FaultyObject, ObjectFault, WorkError};
use crate::fetch::{FetchError, fetch};
use crate::job::Job;
use crate::load::FETCHES_MAX;
use crate::memory::MemoryBudget;

pub(crate) struct Mirror {
    pub root: PathBuf,
    pub store: ObjectStore,
    pub prefix: Prefix,
    pub memory: MemoryBudget,
    /// Objects fetched at once, over all units.
    pub transfers: Arc<Semaphore>,
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
        let keepings: Vec<_> = job.objects.iter().map(|object| self.keep_one(object, activity)).collect();
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

    async fn keep_one(&self, object: &Object, activity: &Activity) -> Result<Kept, WorkError> {
        let path = match self.prefix.archive_path(&object.key) {
            Ok(path) => self.root.join(path),
            Err(error) => return Ok(Kept::Faulty(ObjectFault::Refused(error.to_string()))),
        };
        // Memory first, as the loader does: the other order could leave each waiting for what the other holds.
        let _memory = activity.while_waiting(self.memory.take(object.size)).await;
        let slot = activity.while_waiting(self.transfers.acquire()).await;
        let _slot = slot.expect("the semaphore is never closed");
        if tokio::fs::metadata(&path).await.is_ok_and(|there| there.is_dir()) {
            let why = format!("a folder lies where it belongs: {}", path.display());
            return Ok(Kept::Faulty(ObjectFault::Refused(why)));
        }
        if holds(&path, object).await? {
            activity.bump();
            return Ok(Kept::Already);
        }
        match fetch(&self.store, object, activity).await {
            Ok(bytes) => {
                write(&path, &bytes).await?;
                activity.bump();
                Ok(Kept::Fetched { bytes: object.size })
            }
            Err(FetchError::Object(fault)) => Ok(Kept::Faulty(fault)),
            Err(FetchError::Store(error)) => Err(error.into()),
        }
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
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
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
fn make_readable(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644))
}
