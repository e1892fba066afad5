//! A folder that both sites can open: an NFS share, or a disk of the one machine.
//!
//! A key is a path below it. Everything is opened beneath the folder (`openat2` where the system has it), so that neither
//! a key nor a symbolic link leads out. There is no metadata beside a file: what is asked of an object is read from its
//! bytes. All that blocks runs on threads for it; a share that hangs holds such a thread, and nothing else.

mod listing;
mod pace;

use std::io::{self, ErrorKind, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use cap_std::ambient_authority;
use cap_std::fs::{Dir, OpenOptions};
use jiff::Timestamp;
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;
use tokio::runtime::Handle;

use crate::bandwidth::{Bandwidth, Direction};
use crate::error::{StoreError, StoreErrorKind, StoreType};
use crate::interface::{Over, Page, Put, Stored};
use crate::path::{self, TEMPORARY};
use common::checksum::Sha256Sum;
use common::files::same_file::is_same_file;
use pace::Pace;

const CHUNK_BYTES: usize = 1 << 20;
/// Longest silence of a share between two chunks of a file, and before it has opened one.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Clone)]
pub(crate) struct Folder {
    root: Arc<Path>,
    store: StoreType,
    /// What is read for what is said of an object comes over the same line as what is fetched.
    bandwidth: Bandwidth,
}

/// Why something blocking did not work, before it is known as what it was asked.
pub(crate) struct Fault {
    kind: StoreErrorKind,
    message: String,
}

impl Folder {
    pub(crate) fn new(root: &Path, bandwidth: Bandwidth) -> Self {
        Self::of(root, StoreType::Folder, bandwidth)
    }

    pub(crate) fn of(root: &Path, store: StoreType, bandwidth: Bandwidth) -> Self {
        Self { root: root.into(), store, bandwidth }
    }

    /// What is stored under a key; `None` when nothing is. Reads the whole file.
    pub(crate) async fn head(&self, key: &str) -> Result<Option<Stored>, StoreError> {
        let path = key.to_owned();
        let pace = self.pace(Direction::Down);
        let found = move |root: Dir| Ok(stored(pace.of(open_file(&root, &path)?))?);
        absent_is_none(self.run("HEAD", key, found).await)
    }

    pub(crate) async fn exists(&self, key: &str) -> Result<bool, StoreError> {
        let path = key.to_owned();
        let found = self.run("HEAD", key, move |root| Ok(root.metadata(&path)?.is_file()));
        Ok(absent_is_none(answered(self.store, "HEAD", key, found).await)?.unwrap_or(false))
    }

    pub(crate) async fn is_this_file(&self, key: &str, file: &Path) -> Result<bool, StoreError> {
        let (path, file) = (key.to_owned(), file.to_owned());
        let compared = move |root: Dir| {
            let stored = open_file(&root, &path)?.metadata()?;
            Ok(is_same_file(&stored, &std::fs::metadata(&file)?))
        };
        let compared = answered(self.store, "HEAD", key, self.run("HEAD", key, compared));
        Ok(absent_is_none(compared.await)?.unwrap_or(false))
    }

    /// The modification time of a file written now: a file server's own.
    pub(crate) async fn server_time(&self) -> Result<Timestamp, StoreError> {
        let shown = self.root.to_string_lossy();
        let written = self.blocking("PUT", &shown, |root| {
            let mut temporary = Temporary::new(&root)?;
            temporary.file.write_all(b"time")?;
            temporary.file.sync_all()?;
            let modified = temporary.file.metadata()?.modified()?.into_std();
            Timestamp::try_from(modified).map_err(|error| Fault::unavailable(error.to_string()))
        });
        answered(self.store, "PUT", &shown, written).await
    }

    /// Writes beside the final name, makes it durable and renames: a reader sees the old object or the new one.
    pub(crate) async fn put_over(&self, key: &str, body: Bytes, over: Over<'_>) -> Result<Put, StoreError> {
        let (path, pace, target) = (key.to_owned(), self.pace(Direction::Up), self.target(over));
        let written = move |root: Dir| {
            pace.wait(body.len());
            write(&root, &path, target, |file| Ok(file.write_all(&body).map(|()| true)?))
        };
        self.run("PUT", key, written).await
    }

    /// The same with the bytes of a file, if they are these.
    pub(crate) async fn put_file(
        &self,
        key: &str,
        file: &Path,
        sha256: Sha256Sum,
        over: Over<'_>,
    ) -> Result<Put, StoreError> {
        let (path, file, pace) = (key.to_owned(), file.to_owned(), self.pace(Direction::Up));
        let target = self.target(over);
        let copied = move |root: Dir| {
            let mut paced = pace.of(std::fs::File::open(&file)?);
            write(&root, &path, target, |written| Ok(copy(&mut paced, written)? == sha256))
        };
        self.run("PUT", key, copied).await
    }

    fn target(&self, over: Over<'_>) -> Target {
        match over {
            Over::Anything => Target::Anything,
            Over::Nothing => Target::Nothing,
            Over::This(stored) => Target::This(stored.clone(), self.pace(Direction::Down)),
        }
    }

    fn pace(&self, direction: Direction) -> Pace {
        Pace { direction, bandwidth: self.bandwidth.clone(), runtime: Handle::current() }
    }

    /// Begins to read an object.
    pub(crate) async fn get(&self, key: &str) -> Result<FileDownload, StoreError> {
        let path = key.to_owned();
        let opened = self.run("GET", key, move |root| open_file(&root, &path));
        let file = answered(self.store, "GET", key, opened).await?;
        Ok(FileDownload::new(self.store, key, file))
    }

    /// One page of the keys below a prefix, in their order. Links are passed over.
    pub(crate) async fn list(&self, prefix: &str, after: Option<String>) -> Result<Page, StoreError> {
        let requested = prefix.to_owned();
        let listed = move |root: Dir| Ok(listing::page(&root, &requested, after.as_deref().unwrap_or_default())?);
        self.blocking("LIST", prefix, listed).await
    }

    /// Looks whether the folder is there and can be read.
    pub(crate) async fn probe(&self, prefix: &str) -> Result<(), StoreError> {
        let found = self.blocking("LIST", prefix, |root| Ok(root.read_dir(".")?.next().transpose().map(drop)?));
        answered(self.store, "LIST", prefix, found).await
    }

    /// A real write: mode bits do not tell of a read-only mount or of another user's folder.
    pub(crate) async fn probe_writing(&self) -> Result<(), StoreError> {
        let shown = self.root.to_string_lossy();
        let written = self.blocking("PUT", &shown, |root| {
            let temporary = Temporary::new(&root)?;
            temporary.file.sync_all()?;
            Ok(())
        });
        answered(self.store, "PUT", &shown, written).await
    }

    /// Runs what blocks beneath the folder, for a key that may come from anybody.
    async fn run<T: Send + 'static>(
        &self,
        operation: &'static str,
        key: &str,
        work: impl FnOnce(Dir) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, StoreError> {
        match path::check(key) {
            Ok(()) => self.blocking(operation, key, work).await,
            Err(why) => Err(StoreError::new(self.store, StoreErrorKind::BadKey, operation, key, why)),
        }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        operation: &'static str,
        key: &str,
        work: impl FnOnce(Dir) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, StoreError> {
        let root = Arc::clone(&self.root);
        // Opened each time: a share that was mounted again is another folder under the same name.
        let outcome = unblocked(move || work(open_root(&root)?)).await;
        outcome.map_err(|fault| StoreError::new(self.store, fault.kind, operation, key, fault.message))
    }
}

/// Runs what blocks on a thread for it.
///
/// No time-out: what reads, writes or lists takes as long as the file or the folder is large. Who waits for it has a bound:
/// a worker its lease, a pass of the service its signs of progress, a command SIGTERM. See [`answered`] for the rest.
pub(crate) async fn unblocked<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Fault> + Send + 'static,
) -> Result<T, Fault> {
    let ended = tokio::task::spawn_blocking(work).await;
    ended.unwrap_or_else(|error| Err(Fault { kind: StoreErrorKind::Other, message: error.to_string() }))
}

/// Waits for what takes no time on a disk that answers: opening a file, asking for its metadata, writing a few bytes.
pub(crate) async fn answered<T>(
    store: StoreType,
    operation: &'static str,
    key: &str,
    asked: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    tokio::time::timeout(READ_TIMEOUT, asked).await.unwrap_or_else(|_| {
        let message = format!("no answer for {} s", READ_TIMEOUT.as_secs());
        Err(StoreError::new(store, StoreErrorKind::Unavailable, operation, key, message))
    })
}

pub(crate) fn absent_is_none<T>(outcome: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
    match outcome {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind == StoreErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// A folder that is missing is a share that is not mounted, most often: that is no object's fault.
pub(crate) fn open_root(root: &Path) -> Result<Dir, Fault> {
    Dir::open_ambient_dir(root, ambient_authority()).map_err(|error| {
        let shown = root.display();
        match error.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => {
                Fault { kind: StoreErrorKind::NoSuchBucket, message: format!("there is no folder '{shown}'") }
            }
            _ => Fault { message: format!("{shown}: {error}"), ..Fault::from(error) },
        }
    })
}

fn open_file(root: &Dir, path: &str) -> Result<std::fs::File, Fault> {
    // Asked first: opening a pipe that somebody left there would wait for ever.
    if !root.metadata(path)?.is_file() {
        return Err(Fault::no_file());
    }
    Ok(root.open(path)?.into_std())
}

/// Reads a file to its end for what is said of an object.
pub(crate) fn stored(mut file: impl Read) -> io::Result<Stored> {
    let mut digest = Sha256::new();
    let (mut chunk, mut size) = (vec![0; CHUNK_BYTES], 0);
    loop {
        match file.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => {
                digest.update(&chunk[..count]);
                size += count as u64;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Stored { size, etag: String::new(), encrypted: false, sha256: Some(Sha256Sum::from_digest(digest)) })
}

/// What may be replaced; see [`Over`].
enum Target {
    Anything,
    Nothing,
    /// With the pace to read it at.
    This(Stored, Pace),
}

impl Target {
    fn matches(self, folder: &Dir, name: &str) -> Result<bool, Fault> {
        let (expected, pace) = match self {
            Self::Anything => return Ok(true),
            Self::Nothing => return Ok(!folder.try_exists(name)?),
            Self::This(expected, pace) => (expected, pace),
        };
        match open_file(folder, name) {
            Ok(file) => Ok(stored(pace.of(file))? == expected),
            Err(fault) if fault.kind == StoreErrorKind::NotFound => Ok(false),
            Err(fault) => Err(fault),
        }
    }
}

/// Writes what `fill` writes, unless it says that it is not to be kept.
fn write(
    root: &Dir,
    path: &str,
    target: Target,
    fill: impl FnOnce(&mut cap_std::fs::File) -> Result<bool, Fault>,
) -> Result<Put, Fault> {
    let (folder, name) = path.rsplit_once('/').unwrap_or((".", path));
    let folder = open_or_make(root, folder)?;
    let mut temporary = Temporary::new(&folder)?;
    if !fill(&mut temporary.file)? {
        return Ok(Put::OtherBytes);
    }
    temporary.file.sync_all()?;
    // After all that takes time: no file server renames on a condition.
    if !target.matches(&folder, name)? {
        return Ok(Put::Changed);
    }
    folder.rename(&temporary.name, &folder, name)?;
    temporary.renamed = true;
    sync(&folder)?;
    Ok(Put::Done)
}

/// Copies to the end; returns the hash of what was copied.
fn copy(source: &mut impl Read, target: &mut impl Write) -> io::Result<Sha256Sum> {
    let mut digest = Sha256::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match source.read(&mut chunk) {
            Ok(0) => return Ok(Sha256Sum::from_digest(digest)),
            Ok(count) => {
                digest.update(&chunk[..count]);
                target.write_all(&chunk[..count])?;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// The folder, with those above it where they are not there yet; each is durable before something is put into it.
fn open_or_make(root: &Dir, path: &str) -> io::Result<Dir> {
    match root.open_dir(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        opened => return opened,
    }
    let mut folder = root.try_clone()?;
    for segment in path.split('/') {
        match folder.create_dir(segment) {
            Ok(()) => sync(&folder)?,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        folder = folder.open_dir(segment)?;
    }
    Ok(folder)
}

fn sync(folder: &Dir) -> io::Result<()> {
    // Opened anew: the handle of a `Dir` is for paths only, and cannot be synchronised.
    folder.open(".")?.sync_all()
}

/// A file under a name of its own, which goes unless it was renamed.
struct Temporary<'d> {
    folder: &'d Dir,
    name: String,
    file: cap_std::fs::File,
    renamed: bool,
}

impl<'d> Temporary<'d> {
    fn new(folder: &'d Dir) -> io::Result<Self> {
        let name = format!("{TEMPORARY}{}-{:016x}", std::process::id(), rand::random::<u64>());
        let file = folder.open_with(&name, OpenOptions::new().write(true).create_new(true))?;
        Ok(Self { folder, name, file, renamed: false })
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        if !self.renamed
            && let Err(error) = self.folder.remove_file(&self.name)
        {
            tracing::warn!(name = self.name, %error, "a temporary file stays behind");
        }
    }
}

impl Fault {
    /// What is there is a folder or a device, and nothing by the name of an object.
    pub(crate) fn no_file() -> Self {
        Self { kind: StoreErrorKind::NotFound, message: "there is no file of that name".into() }
    }

    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self { kind: StoreErrorKind::Unavailable, message: message.into() }
    }

    pub(crate) fn into_error(self, store: StoreType, operation: &'static str, key: &str) -> StoreError {
        StoreError::new(store, self.kind, operation, key, self.message)
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        /// "Input/output error", and a process or a system out of file descriptors.
        const PASSING: [i32; 3] = [5, 23, 24];
        /// "Invalid argument", "file name too long", "too many levels of symbolic links", "invalid or incomplete
        /// character".
        const OF_THE_NAME: [i32; 4] = [22, 36, 40, 84];
        use StoreErrorKind::{BadKey, Denied, NotFound, Other, Unavailable};
        let kind = match error.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => NotFound,
            // What leads out of the folder is refused by us, and so has no number of the system's.
            ErrorKind::PermissionDenied if error.raw_os_error().is_none() => BadKey,
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => Denied,
            ErrorKind::StorageFull
            | ErrorKind::QuotaExceeded
            | ErrorKind::StaleNetworkFileHandle
            | ErrorKind::TimedOut
            | ErrorKind::HostUnreachable
            | ErrorKind::NetworkUnreachable
            | ErrorKind::NetworkDown
            | ErrorKind::ResourceBusy
            | ErrorKind::Interrupted => Unavailable,
            _ if error.raw_os_error().is_some_and(|number| PASSING.contains(&number)) => Unavailable,
            _ if error.raw_os_error().is_some_and(|number| OF_THE_NAME.contains(&number)) => BadKey,
            _ => Other,
        };
        Self { kind, message: error.to_string() }
    }
}

/// A file, chunk by chunk.
pub(crate) struct FileDownload {
    store: StoreType,
    key: String,
    file: tokio::fs::File,
}

impl FileDownload {
    pub(crate) fn new(store: StoreType, key: &str, file: std::fs::File) -> Self {
        Self { store, key: key.to_owned(), file: tokio::fs::File::from_std(file) }
    }

    /// The next bytes; `None` at the end.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, StoreError> {
        let mut chunk = BytesMut::with_capacity(CHUNK_BYTES);
        match tokio::time::timeout(READ_TIMEOUT, self.file.read_buf(&mut chunk)).await {
            Ok(Ok(0)) => Ok(None),
            Ok(Ok(_)) => Ok(Some(chunk.freeze())),
            Ok(Err(error)) => Err(Fault::from(error).into_error(self.store, "GET", &self.key)),
            Err(_) => {
                let message = format!("nothing was read for {} s", READ_TIMEOUT.as_secs());
                Err(StoreError::new(self.store, StoreErrorKind::Unavailable, "GET", &self.key, message))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_system_are_told_apart() {
        use StoreErrorKind::{BadKey, Denied, NotFound, Other, Unavailable};
        let check = |number, kind| {
            let error = io::Error::from_raw_os_error(number);
            assert_eq!(Fault::from(error).kind, kind, "{}", io::Error::from_raw_os_error(number));
        };
        // Absent; not permitted, a read-only file system.
        [(2, NotFound), (20, NotFound), (13, Denied), (1, Denied), (30, Denied)]
            .into_iter()
            .for_each(|(number, kind)| check(number, kind));
        // A full disk, a quota, a share that is away or was made anew, a disk that fails, too many open files.
        [28, 122, 110, 113, 116, 5, 24].into_iter().for_each(|number| check(number, Unavailable));
        // A name too long, or of characters that the file system does not take.
        [36, 84, 22].into_iter().for_each(|number| check(number, BadKey));
        // A folder of that name.
        check(21, Other);
        assert_eq!(Fault::from(io::Error::new(ErrorKind::PermissionDenied, "a path led outside")).kind, BadKey);
    }
}
