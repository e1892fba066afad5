//! Files that rsync writes into, one an object, until they are read.
//!
//! Below `local.state_dir` what a broken connection left is found again by the next try, also by that of another process
//! or after a restart. Without one, the folder is this process's own and goes with it. It holds at most as many files in
//! use as there may be transfers; what nobody came back for goes after a day.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use common::checksum::Sha256Sum;

const RETENTION: Duration = Duration::from_secs(24 * 3600);
const SWEEP_EVERY: Duration = Duration::from_secs(3600);
const FOLDER: &str = "rsync";

pub(super) struct Staging {
    folder: PathBuf,
    /// Removes the folder when dropped.
    _own: Option<tempfile::TempDir>,
    swept: Mutex<Option<Instant>>,
}

impl Staging {
    pub(super) fn open(state_dir: Option<&Path>) -> io::Result<Self> {
        let (folder, own) = match state_dir {
            Some(state_dir) => (state_dir.join(FOLDER), None),
            None => {
                let own = tempfile::Builder::new().prefix("marketferry-rsync-").tempdir()?;
                (own.path().to_owned(), Some(own))
            }
        };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        Ok(Self { folder, _own: own, swept: Mutex::new(None) })
    }

    /// The file for an object, and what an earlier try left in it. A second one if the first is being written.
    pub(super) fn claim(&self, key: &str) -> io::Result<StagedPart> {
        self.sweep_sometimes();
        let name = Sha256Sum::of(key.as_bytes()).to_string();
        let shared = self.folder.join(&name);
        if let Some(file) = claim(&shared)? {
            return Ok(StagedPart { path: shared, file, is_retained: true });
        }
        let path = self.folder.join(format!("{name}-{:016x}", rand::random::<u64>()));
        let file = claim(&path)?.ok_or_else(|| io::Error::other("a file of a random name is locked"))?;
        // Nobody would look for it under this name.
        Ok(StagedPart { path, file, is_retained: false })
    }

    fn sweep_sometimes(&self) {
        let mut swept = self.swept.lock().unwrap_or_else(PoisonError::into_inner);
        if swept.is_none_or(|at| at.elapsed() > SWEEP_EVERY) {
            *swept = Some(Instant::now());
            if let Err(error) = sweep(&self.folder, SystemTime::now()) {
                tracing::warn!(folder = %self.folder.display(), %error, "old parts of fetched archives stay behind");
            }
        }
    }
}

/// Opens and locks a file; `None` when another process, or another fetch of this one, has it.
fn claim(path: &Path) -> io::Result<Option<File>> {
    loop {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        // It may have been removed between the two lines above; then the lock is on a file without a name.
        let (ours, named) = (file.metadata()?, fs::metadata(path));
        if named.is_ok_and(|named| named.ino() == ours.ino() && named.dev() == ours.dev()) {
            return Ok(Some(file));
        }
    }
}

/// Removes what nobody came back for.
fn sweep(folder: &Path, now: SystemTime) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let age = now.duration_since(entry.metadata()?.modified()?).unwrap_or_default();
        // Claimed for the moment, so that none goes that is being written.
        if age > RETENTION && claim(&entry.path())?.is_some() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// A file that is ours alone until it is dropped.
pub(super) struct StagedPart {
    path: PathBuf,
    file: File,
    is_retained: bool,
}

impl StagedPart {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn bytes(&self) -> u64 {
        self.file.metadata().map_or(0, |metadata| metadata.len())
    }

    /// The lock, to be held by a process too.
    pub(super) fn lock(&self) -> io::Result<Stdio> {
        Ok(self.file.try_clone()?.into())
    }

    /// The whole file from its start; it is removed with this part.
    pub(super) fn open(&mut self) -> io::Result<File> {
        self.is_retained = false;
        File::open(&self.path)
    }

    /// Nothing of it is of use to another try.
    pub(super) fn discard(&mut self) {
        self.is_retained = false;
    }
}

impl Drop for StagedPart {
    fn drop(&mut self) {
        if self.is_retained && self.bytes() > 0 {
            return;
        }
        if let Err(error) = fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), %error, "a fetched file stays behind");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn what_was_left_is_found_again_and_what_was_read_is_gone() {
        let dir = tempfile::tempdir().expect("a folder");
        let staging = Staging::open(Some(dir.path())).expect("opens");
        let mut part = staging.claim("a").expect("claimed");
        part.file.write_all(b"half").expect("written");
        // Somebody else at the same time gets a file of his own.
        let other = staging.claim("a").expect("claimed");
        assert_ne!(other.path(), part.path());
        drop((part, other));
        let mut part = Staging::open(Some(dir.path())).expect("opens").claim("a").expect("claimed");
        assert_eq!(part.bytes(), 4);
        part.discard();
        drop(part);
        assert_eq!(fs::read_dir(dir.path().join(FOLDER)).expect("reads").count(), 0);
    }

    #[test]
    fn what_nobody_came_back_for_goes() {
        let dir = tempfile::tempdir().expect("a folder");
        let staging = Staging::open(Some(dir.path())).expect("opens");
        let write = |key: &str| staging.claim(key).and_then(|mut part| part.file.write_all(b"half")).expect("written");
        ["a", "b"].into_iter().for_each(write);
        let locked = staging.claim("a").expect("claimed");
        let soon = SystemTime::now() + RETENTION / 2;
        sweep(&staging.folder, soon).expect("swept");
        assert_eq!(fs::read_dir(&staging.folder).expect("reads").count(), 2);
        sweep(&staging.folder, soon + RETENTION).expect("swept");
        let left: Vec<_> =
            fs::read_dir(&staging.folder).expect("reads").map(|entry| entry.expect("one").path()).collect();
        assert_eq!(left, [locked.path().to_owned()]);
    }
}
