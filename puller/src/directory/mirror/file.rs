//! Files that are replaced as a whole, and only by those who know what they replace.

use std::fs::{File, Metadata};
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use common::checksum::Sha256Sum;
use common::files::same_file::is_same_file;
use sha2::{Digest, Sha256};
use tempfile::TempPath;

const CHUNK_BYTES: usize = 256 * 1024;

/// A file, or a link, as it was seen.
pub(super) struct Seen {
    metadata: Metadata,
    /// Of its bytes; none of a link that leads nowhere, or of what is no file.
    pub sha256: Option<Sha256Sum>,
}

/// Reads what lies at a path, whatever its size.
pub(super) async fn read_entry(path: &Path) -> io::Result<Option<Seen>> {
    let path = path.to_owned();
    unblocked(move || {
        let metadata = match std::fs::symlink_metadata(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            found => found?,
        };
        // Asked first: opening a pipe that somebody left there would wait for ever.
        let sha256 = match std::fs::metadata(&path) {
            Ok(followed) if followed.is_file() => Some(sha256_of(File::open(&path)?)?),
            Ok(_) => None,
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        Ok(Some(Seen { metadata, sha256 }))
    })
    .await
}

fn sha256_of(mut file: File) -> io::Result<Sha256Sum> {
    let (mut digest, mut chunk) = (Sha256::new(), vec![0; CHUNK_BYTES]);
    loop {
        match file.read(&mut chunk) {
            Ok(0) => return Ok(Sha256Sum::from_digest(digest)),
            Ok(count) => digest.update(&chunk[..count]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Makes a file of these bytes, in place of whatever is there: a reader sees the old file or the new one.
pub(super) async fn replace(path: &Path, bytes: Vec<u8>) -> io::Result<()> {
    let path = path.to_owned();
    unblocked(move || Staged::write(&path, &bytes)?.replace()).await
}

/// The same in place of what was seen. `false`: something else is there by now, and stays.
pub(super) async fn replace_seen(
    path: &Path,
    bytes: impl AsRef<[u8]> + Send + 'static,
    seen: Option<Seen>,
) -> io::Result<bool> {
    let path = path.to_owned();
    unblocked(move || Staged::write(&path, bytes.as_ref())?.replace_seen(seen.as_ref())).await
}

/// Bytes that are durable beside the path they are to have. They go unless they are put there.
struct Staged {
    path: PathBuf,
    temporary: TempPath,
    /// Folders that were made for it.
    made: usize,
}

impl Staged {
    fn write(path: &Path, bytes: &[u8]) -> io::Result<Self> {
        let folder = path.parent().unwrap_or(path);
        let made = folder.ancestors().take_while(|ancestor| !is_here(ancestor) && !ancestor.exists()).count();
        std::fs::create_dir_all(folder)?;
        // Removed when dropped, so a full disk leaves nothing behind.
        let mut temporary = tempfile::Builder::new().prefix(".ferry-").suffix(".tmp").tempfile_in(folder)?;
        temporary.write_all(bytes)?;
        temporary.as_file().sync_all()?;
        make_readable(temporary.path())?;
        Ok(Self { path: path.to_owned(), temporary: temporary.into_temp_path(), made })
    }

    fn replace(self) -> io::Result<()> {
        let Self { path, temporary, made } = self;
        temporary.persist(&path).map_err(|error| error.error)?;
        sync_folders(&path, made)
    }

    fn replace_seen(self, seen: Option<&Seen>) -> io::Result<bool> {
        let Some(seen) = seen else { return self.add() };
        // Nobody can compare and rename in one step. What is left is the time between these two calls.
        match std::fs::symlink_metadata(&self.path) {
            Ok(now) if is_unchanged(&seen.metadata, &now) => self.replace().map(|()| true),
            Ok(_) => Ok(false),
            Err(error) if error.kind() == ErrorKind::NotFound => self.add(),
            Err(error) => Err(error),
        }
    }

    fn add(self) -> io::Result<bool> {
        let Self { path, temporary, made } = self;
        let error = match temporary.persist_noclobber(&path) {
            Ok(()) => return sync_folders(&path, made).map(|()| true),
            Err(error) => error,
        };
        match error.error.kind() {
            ErrorKind::AlreadyExists => Ok(false),
            // File systems that know neither this kind of renaming nor hard links.
            ErrorKind::Unsupported | ErrorKind::InvalidInput | ErrorKind::PermissionDenied
                if std::fs::symlink_metadata(&path).is_err_and(|error| error.kind() == ErrorKind::NotFound) =>
            {
                Self { path, temporary: error.path, made }.replace().map(|()| true)
            }
            _ => Err(error.error),
        }
    }
}

fn is_unchanged(seen: &Metadata, now: &Metadata) -> bool {
    let of = |metadata: &Metadata| {
        (metadata.len(), metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec())
    };
    is_same_file(seen, now) && of(seen) == of(now)
}

/// Makes a name durable, and those of the folders that were made for it.
fn sync_folders(path: &Path, made: usize) -> io::Result<()> {
    let folder = path.parent().unwrap_or(path);
    for folder in folder.ancestors().take(made + 1) {
        let folder = if is_here(folder) { Path::new(".") } else { folder };
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

/// The last ancestor of a relative path.
fn is_here(folder: &Path) -> bool {
    folder.as_os_str().is_empty()
}

/// Temporary files are private; archives are for everyone who may enter the folder.
fn make_readable(path: &Path) -> io::Result<()> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644))
}

/// A real file that is written and read: then nothing is wrong with the disk, or with this user's rights to the folder.
pub(super) async fn can_be_written(folder: &Path) -> bool {
    let folder = folder.to_owned();
    let tried = unblocked(move || {
        let mut file = tempfile::Builder::new().prefix(".ferry-").suffix(".tmp").tempfile_in(folder)?;
        file.write_all(b"probe")?;
        file.as_file().sync_all()?;
        file.rewind()?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        Ok(text == "probe")
    });
    // No time-out: a disk that hangs holds up the write before this as well, and the lease ends with it.
    tried.await.unwrap_or(false)
}

/// On a thread for it, from the first question to what is dropped at the end: a share that hangs stops that thread, and not
/// one that other units need.
async fn unblocked<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_what_was_seen_is_replaced() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("data/spot/a.zip");
        let put = async |seen: Option<Seen>| replace_seen(&path, b"new", seen).await.expect("tried");
        let text = || std::fs::read_to_string(&path).unwrap_or_default();
        let nothing = read_entry(&path).await.expect("looked");
        assert!(nothing.is_none());
        assert!(put(None).await);
        assert_eq!(text(), "new");
        // It came since.
        std::fs::write(&path, "another").expect("written");
        assert!(!put(nothing).await);
        let seen = read_entry(&path).await.expect("looked");
        assert!(matches!(&seen, Some(seen) if seen.sha256 == Some(Sha256Sum::of(b"another"))));
        // Somebody's download took its place since.
        std::fs::write(dir.path().join("other"), "another").expect("written");
        std::fs::rename(dir.path().join("other"), &path).expect("renamed");
        assert!(!put(seen).await);
        assert_eq!(text(), "another");
        assert!(put(read_entry(&path).await.expect("looked")).await);
        assert_eq!(text(), "new");
        // It went since.
        let seen = read_entry(&path).await.expect("looked");
        std::fs::remove_file(&path).expect("removed");
        assert!(put(seen).await);
        // A link that leads nowhere is something, too.
        std::fs::remove_file(&path).expect("removed");
        std::os::unix::fs::symlink("nowhere", &path).expect("linked");
        let link = read_entry(&path).await.expect("looked");
        assert!(matches!(&link, Some(seen) if seen.sha256.is_none()));
        let left = std::fs::read_dir(path.parent().expect("a folder")).expect("read").count();
        assert_eq!(left, 1, "no temporary file stays");
    }
}
