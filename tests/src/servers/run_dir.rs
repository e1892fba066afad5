//! Scratch directories under `.servers/run`, removed on drop, or by the next run when nobody was left to drop them.

use std::{
    fs::{self, File, TryLockError},
    io::ErrorKind,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicUsize, Ordering},
};

use crate::{Context, Result, setup, times};

/// A directory of this process. A lock on the file beside it says that its owner lives.
pub struct RunDir {
    path: PathBuf,
    lock_path: PathBuf,
    _lock: File,
}

impl RunDir {
    pub fn new(label: &str) -> Result<RunDir> {
        RunDir::below(&setup::repository().join(".servers/run"), label)
    }

    /// In another place than `.servers/run`, which only such directories may share.
    pub fn below(runs: &Path, label: &str) -> Result<RunDir> {
        times::begin();
        static COUNTER: AtomicUsize = AtomicUsize::new(0);
        fs::create_dir_all(runs).context(format!("making {}", runs.display()))?;
        remove_orphans(runs);
        loop {
            let number = COUNTER.fetch_add(1, Ordering::Relaxed);
            let path = runs.join(format!("{}-{number}-{label}", process::id()));
            let lock_path = path.with_added_extension("lock");
            let doing = format!("making {}", path.display());
            let lock = File::create(&lock_path).context(&doing)?;
            // Locked by another: it takes the file for an orphan's and is about to remove it.
            if lock.try_lock().is_err() {
                continue;
            }
            fs::create_dir(&path).context(&doing)?;
            return Ok(RunDir { path, lock_path, _lock: lock });
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        remove(&self.path, &self.lock_path);
    }
}

/// What fails to go is left to the next run: a server that was killed a moment ago may still be at work in it.
fn remove(path: &Path, lock_path: &Path) {
    let gone = match fs::remove_dir_all(path) {
        Ok(()) => true,
        Err(error) => error.kind() == ErrorKind::NotFound,
    };
    if gone {
        drop(fs::remove_file(lock_path));
    }
}

fn remove_orphans(runs: &Path) {
    for entry in fs::read_dir(runs).into_iter().flatten().flatten() {
        let lock_path = entry.path();
        if lock_path.extension().is_none_or(|extension| extension != "lock") {
            continue;
        }
        let Ok(lock) = File::open(&lock_path) else { continue };
        if !matches!(lock.try_lock(), Err(TryLockError::WouldBlock)) {
            remove(&lock_path.with_extension(""), &lock_path);
        }
    }
}
