//! The archives of a unit as they lie in `data_dir`, found by their names. Nothing is opened here.

use std::fs::{self, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use common::checksum::Sha256Sum;
use common::unit::Unit;
use serde::{Deserialize, Serialize};

use crate::local::{layout, signs};

/// What changes when a file does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fingerprint {
    pub(crate) size: u64,
    pub(crate) mtime_ns: i64,
    pub(crate) ctime_ns: i64,
    pub(crate) inode: u64,
}

impl Fingerprint {
    pub(crate) fn of(metadata: &Metadata) -> Self {
        let ns = |seconds: i64, rest: i64| seconds.saturating_mul(1_000_000_000).saturating_add(rest);
        Self {
            size: metadata.size(),
            mtime_ns: ns(metadata.mtime(), metadata.mtime_nsec()),
            ctime_ns: ns(metadata.ctime(), metadata.ctime_nsec()),
            inode: metadata.ino(),
        }
    }

    /// Whether the file was written so long ago that another write would be seen by its times: those of a file system
    /// have steps, and two writes within one look the same.
    pub(crate) fn is_stable(self) -> bool {
        const STEP: Duration = Duration::from_millis(100);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let changed = self.ctime_ns.max(self.mtime_ns);
        u64::try_from(changed).is_ok_and(|ns| Duration::from_nanos(ns) + STEP < now)
    }
}

/// A set of archives in sixteen bytes: the same in whatever order they are found, another one when any of them changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct SetDigest(u64, u64);

impl SetDigest {
    pub(crate) fn add(&mut self, symbol: &str, fingerprint: Fingerprint) {
        let Fingerprint { size, mtime_ns, ctime_ns, inode } = fingerprint;
        let sum = Sha256Sum::of(format!("{symbol}\0{size}\0{mtime_ns}\0{ctime_ns}\0{inode}").as_bytes());
        let part = |at: usize| {
            let bytes: [u8; 8] = sum.as_bytes()[at..at + 8].try_into().expect("eight of 32 bytes");
            u64::from_le_bytes(bytes)
        };
        self.0 = self.0.wrapping_add(part(0));
        self.1 = self.1.wrapping_add(part(8));
    }
}

/// An archive of a unit. Its path follows from the unit.
#[derive(Debug, Clone)]
pub(crate) struct LocalArchive {
    pub(crate) symbol: String,
    pub(crate) fingerprint: Fingerprint,
}

/// A unit and what of it lies on disk.
#[derive(Debug, Clone)]
pub(crate) struct LocalUnit {
    pub(crate) unit: Unit,
    pub(crate) marked: bool,
    /// Sorted by symbol.
    pub(crate) archives: Vec<LocalArchive>,
    /// What could not be looked at, so that nobody knows whether the unit is complete.
    pub(crate) unreadable: Vec<String>,
}

impl LocalUnit {
    pub(crate) fn digest(&self) -> SetDigest {
        let mut digest = SetDigest::default();
        self.archives.iter().for_each(|archive| digest.add(&archive.symbol, archive.fingerprint));
        digest
    }
}

/// Finds the archives of a unit, by name in the folder of each symbol. Blocks.
///
/// Links are followed. A loop of them does no harm: the tree has a fixed depth.
pub(crate) fn list(data_dir: &Path, unit: Unit, marked: bool) -> LocalUnit {
    let mut found = LocalUnit { unit, marked, archives: Vec::new(), unreadable: Vec::new() };
    let folder = layout::symbols_folder(&found.unit);
    let entries = match list_folder(&data_dir.join(&folder)) {
        Ok(entries) => entries.into_iter().flatten(),
        Err(error) => {
            found.unreadable.push(format!("{folder} cannot be read: {error}"));
            return found;
        }
    };
    for entry in entries {
        let name = match entry {
            Ok(entry) => entry.file_name(),
            Err(error) => {
                found.unreadable.push(format!("{folder} cannot be read to its end: {error}"));
                break;
            }
        };
        let Some(symbol) = name.to_str().filter(|name| layout::is_symbol(name)) else { continue };
        signs::bump();
        let path = layout::archive_path(&found.unit, symbol);
        match fingerprint(&data_dir.join(&path)) {
            Ok(Some(fingerprint)) => found.archives.push(LocalArchive { symbol: symbol.to_owned(), fingerprint }),
            Ok(None) => {}
            Err(why) => found.unreadable.push(format!("{path} {why}")),
        }
    }
    found.archives.sort_unstable_by(|a, b| a.symbol.cmp(&b.symbol));
    found
}

/// An archive's fingerprint; `None` when there is no such file.
///
/// # Errors
/// What is wrong with it. An archive that is a link to nowhere was meant to be there.
pub(crate) fn fingerprint(file: &Path) -> Result<Option<Fingerprint>, String> {
    match fs::metadata(file) {
        Ok(metadata) if metadata.is_file() => Ok(Some(Fingerprint::of(&metadata))),
        // A folder, a pipe, a socket: whoever put it there took an archive's place.
        Ok(_) => Err("is no regular file".into()),
        Err(error) if is_absent(&error) => {
            if fs::symlink_metadata(file).is_ok_and(|metadata| metadata.is_symlink()) {
                return Err("is a link that leads nowhere".into());
            }
            Ok(None)
        }
        Err(error) => Err(format!("cannot be read: {error}")),
    }
}

/// The entries of a folder; `None` when there is no such folder, or the name is that of something else.
pub(crate) fn list_folder(folder: &Path) -> io::Result<Option<fs::ReadDir>> {
    match fs::read_dir(folder) {
        Ok(entries) => Ok(Some(entries)),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

pub(crate) fn is_absent(error: &io::Error) -> bool {
    /// "Too many levels of symbolic links": a link that leads to itself is nothing that could be read.
    const ELOOP: i32 = 40;
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) || error.raw_os_error() == Some(ELOOP)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(text: &str) -> Unit {
        text.parse().expect(text)
    }

    #[test]
    fn a_set_is_told_by_its_members_not_by_their_order() {
        let [a, b] = [1, 2].map(|inode| Fingerprint { size: 3, mtime_ns: 4, ctime_ns: 5, inode });
        let of = |members: &[(&str, Fingerprint)]| {
            let mut digest = SetDigest::default();
            members.iter().for_each(|(symbol, fingerprint)| digest.add(symbol, *fingerprint));
            digest
        };
        assert_eq!(of(&[("A", a), ("B", b)]), of(&[("B", b), ("A", a)]));
        assert_ne!(of(&[("A", a), ("B", b)]), of(&[("A", b), ("B", a)]));
        assert_ne!(of(&[("A", a)]), of(&[("A", a), ("B", b)]));
    }

    #[test]
    fn what_takes_an_archives_place_is_told() {
        let dir = tempfile::tempdir().expect("a folder");
        let place = |symbol: &str| {
            let folder = dir.path().join(format!("data/spot/daily/klines/{symbol}/1h"));
            fs::create_dir_all(&folder).expect("made");
            folder.join(format!("{symbol}-1h-2026-01-01.zip"))
        };
        std::os::unix::fs::symlink("gone", place("ADAUSDT")).expect("a link to nowhere");
        fs::create_dir(place("BNBUSDT")).expect("a folder");
        std::os::unix::net::UnixListener::bind(place("BTCUSDT")).expect("a socket");
        let found = list(dir.path(), unit("binance/spot/klines/1h/2026-01-01"), true);
        assert_eq!(found.unreadable.len(), 3, "{found:?}");
    }
}
