//! Where an archive comes to lie, what is there, and how a new one takes that place.
//!
//! Beside the archive and its `.CHECKSUM` there may be `….zip.part`, as far as it came, and `….zip.part.of`, what it is a
//! part of. No scan takes those for an archive.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use common::checksum::Sha256Sum;
use common::failpoint::failpoint;
use common::files::regular_file;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::exchange::Version;
use super::fault::DownloadFault;
use crate::local::check;
use crate::local::check::CHECKSUM_BYTES_MAX;
use crate::local::scan::Fingerprint;

/// The paths of one archive. All that is done with them blocks.
#[derive(Debug, Clone)]
pub(crate) struct ArchivePlace {
    folder: PathBuf,
    /// The archive's file name.
    name: String,
}

/// What lies there.
#[derive(Debug, Default)]
pub(crate) struct LocalArchive {
    pub(crate) archive: Option<Fingerprint>,
    /// What its `.CHECKSUM` says, if that can be read.
    pub(crate) stated: Option<Sha256Sum>,
}

/// What a part is a part of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Origin {
    #[serde(flatten)]
    pub(crate) version: Version,
    pub(crate) size: Option<u64>,
}

/// An archive as far as it came. No other process has it.
pub(crate) struct PartialArchive {
    pub(crate) file: File,
    pub(crate) bytes: u64,
    pub(crate) origin: Origin,
}

impl ArchivePlace {
    /// `path` is that of the archive below `data_dir`, with `/`.
    pub(crate) fn new(data_dir: &Path, path: &str) -> Self {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        Self { folder: data_dir.join(folder), name: name.to_owned() }
    }

    fn archive(&self) -> PathBuf {
        self.folder.join(&self.name)
    }

    fn beside(&self, ending: &str) -> PathBuf {
        self.folder.join(format!("{}{ending}", self.name))
    }

    fn checksum(&self) -> PathBuf {
        self.beside(".CHECKSUM")
    }

    fn part(&self) -> PathBuf {
        self.beside(".part")
    }

    fn origin(&self) -> PathBuf {
        self.beside(".part.of")
    }

    pub(crate) fn read(&self) -> io::Result<LocalArchive> {
        let archive = match fs::metadata(self.archive()) {
            Ok(metadata) if metadata.is_file() => Some(Fingerprint::of(&metadata)),
            Ok(_) => return Err(io::Error::other("something that is no file lies in its place")),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let stated = match archive {
            Some(_) => read_small(&self.checksum(), CHECKSUM_BYTES_MAX)?.and_then(|line| self.stated(&line).ok()),
            None => None,
        };
        Ok(LocalArchive { archive, stated })
    }

    /// What a `.CHECKSUM` says of this archive.
    pub(crate) fn stated(&self, line: &[u8]) -> Result<Sha256Sum, check::Fault> {
        check::stated_checksum(&String::from_utf8_lossy(line), &self.name)
    }

    /// The archive's sha256, and what tells whether it has changed since.
    pub(crate) fn hash(&self) -> io::Result<(Sha256Sum, Fingerprint)> {
        hash(&self.archive())
    }

    /// What came of the archive when it was last asked for; `None`: nothing that could be gone on with.
    pub(crate) fn resume(&self) -> Result<Option<PartialArchive>, DownloadFault> {
        let Some(file) = self.open_part(OpenOptions::new().read(true).append(true))? else { return Ok(None) };
        let origin = read_small(&self.origin(), CHECKSUM_BYTES_MAX)?;
        let origin = origin.and_then(|text| serde_json::from_slice::<Origin>(&text).ok());
        let bytes = file.metadata()?.len();
        let part = origin.map(|origin| PartialArchive { file, bytes, origin });
        let fits = |part: &PartialArchive| {
            part.bytes > 0 && part.origin.version.is_known() && part.origin.size.is_none_or(|size| part.bytes <= size)
        };
        Ok(part.filter(fits))
    }

    /// Begins anew.
    pub(crate) fn begin(&self, origin: Origin) -> Result<PartialArchive, DownloadFault> {
        fs::create_dir_all(&self.folder)?;
        let Some(file) = self.open_part(OpenOptions::new().read(true).append(true).create(true))? else {
            return Err(DownloadFault::Locked);
        };
        // Emptied before it is said what it is of: in between it is a part of nothing.
        file.set_len(0)?;
        fs::write(self.origin(), serde_json::to_vec(&origin).expect("texts and numbers always serialise"))?;
        Ok(PartialArchive { file, bytes: 0, origin })
    }

    fn open_part(&self, how: &OpenOptions) -> Result<Option<File>, DownloadFault> {
        let file = match how.open(self.part()) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(DownloadFault::Locked),
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        // Whoever had it may have given it the archive's name in between.
        let named = fs::metadata(self.part());
        if named.is_ok_and(|named| file.metadata().is_ok_and(|opened| named.ino() == opened.ino())) {
            Ok(Some(file))
        } else {
            Err(DownloadFault::Locked)
        }
    }

    pub(crate) fn hash_part(&self) -> io::Result<Sha256Sum> {
        hash(&self.part()).map(|(sha256, _)| sha256)
    }

    /// Removes what came; nothing there is fine too.
    pub(crate) fn discard_part(&self) -> io::Result<()> {
        remove(&self.part())?;
        remove(&self.origin())
    }

    /// Gives the part the archive's name, and `line` that of its `.CHECKSUM`.
    ///
    /// At no moment, and after no crash, does an archive lie beside a `.CHECKSUM` that is not its own: first the former
    /// one goes, then the archive changes, then the new one comes. An archive without one is what the next run looks for.
    pub(crate) fn land(&self, part: PartialArchive, line: &[u8]) -> Result<Fingerprint, DownloadFault> {
        part.file.sync_all()?;
        let checksum = self.beside(".CHECKSUM.part");
        write_synced(&checksum, line)?;
        if remove_if_there(&self.checksum())? {
            self.sync_folder()?;
            failpoint("uploader.download_checksum_removed");
        }
        fs::rename(self.part(), self.archive())?;
        self.sync_folder()?;
        failpoint("uploader.download_archive_landed");
        fs::rename(&checksum, self.checksum())?;
        remove(&self.origin())?;
        self.sync_folder()?;
        Ok(Fingerprint::of(&part.file.metadata()?))
    }

    /// Writes the `.CHECKSUM` of an archive that lies there already: a run may have died before it came to that.
    pub(crate) fn write_checksum(&self, line: &[u8]) -> io::Result<()> {
        let checksum = self.beside(".CHECKSUM.part");
        write_synced(&checksum, line)?;
        fs::rename(&checksum, self.checksum())?;
        remove(&self.origin())?;
        self.sync_folder()
    }

    fn sync_folder(&self) -> io::Result<()> {
        File::open(&self.folder)?.sync_all()
    }
}

/// Whether anything can be written into the folder.
pub(crate) fn check_writable(data_dir: &Path) -> io::Result<()> {
    tempfile::tempfile_in(data_dir).map(drop)
}

fn hash(path: &Path) -> io::Result<(Sha256Sum, Fingerprint)> {
    let mut file = regular_file::open(path)?;
    let fingerprint = Fingerprint::of(&file.metadata()?);
    let (mut digest, mut buffer) = (Sha256::new(), vec![0; 256 << 10]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((Sha256Sum::from_digest(digest), fingerprint)),
            bytes => digest.update(&buffer[..bytes]),
        }
    }
}

fn read_small(path: &Path, bytes_max: u64) -> io::Result<Option<Vec<u8>>> {
    let file = match regular_file::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(bytes_max).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    fs::write(path, bytes)?;
    File::open(path)?.sync_all()
}

fn remove(path: &Path) -> io::Result<()> {
    remove_if_there(path).map(drop)
}

fn remove_if_there(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn place(dir: &Path) -> ArchivePlace {
        ArchivePlace::new(dir, "data/spot/daily/klines/A/1h/A-1h-2026-03-01.zip")
    }

    fn origin(size: u64) -> Origin {
        let version = serde_json::from_str(r#"{"etag": "\"a\""}"#).expect("a version");
        Origin { version, size: Some(size) }
    }

    #[test]
    fn a_part_is_gone_on_with_by_one_at_a_time() {
        let dir = tempfile::tempdir().expect("a folder");
        let place = place(dir.path());
        assert!(place.resume().expect("looks").is_none());
        let mut part = place.begin(origin(3)).expect("begins");
        part.file.write_all(b"ab").expect("written");
        assert!(matches!(place.resume(), Err(DownloadFault::Locked)));
        drop(part);
        let part = place.resume().expect("looks").expect("a part");
        assert_eq!((part.bytes, &part.origin), (2, &origin(3)));
        drop(part);
        // More than there is, or of nobody knows what: nothing to go on with.
        fs::write(place.part(), "abcd").expect("written");
        assert!(place.resume().expect("looks").is_none());
        fs::write(place.part(), "ab").expect("written");
        fs::write(place.origin(), "{\"etag").expect("written");
        assert!(place.resume().expect("looks").is_none());
    }

    #[test]
    fn an_archive_takes_its_place_with_its_checksum() {
        let dir = tempfile::tempdir().expect("a folder");
        let place = place(dir.path());
        for content in ["first", "second"] {
            let mut part = place.begin(origin(6)).expect("begins");
            part.file.write_all(content.as_bytes()).expect("written");
            let line = format!("{}  A-1h-2026-03-01.zip", Sha256Sum::of(content.as_bytes()));
            place.land(part, line.as_bytes()).expect("lands");
            let here = place.read().expect("looks");
            assert_eq!(here.stated, Some(Sha256Sum::of(content.as_bytes())));
            let (sha256, fingerprint) = place.hash().expect("reads");
            assert_eq!((Some(sha256), Some(fingerprint)), (here.stated, here.archive));
            assert_eq!(fs::read_dir(&place.folder).expect("a folder").count(), 2);
        }
    }
}
