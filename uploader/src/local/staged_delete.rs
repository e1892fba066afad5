//! How an archive leaves the disk when a downloader may put another one in its place at any moment.
//!
//! Removing goes by name, and whatever came to that name after the last look would be gone, unsent. So the file gets a
//! name of its own first, which no scan takes for an archive and nobody replaces; then it is looked at, and goes or gets
//! its name back. A process that dies in between leaves it there, and the next walk gives it its name back (`put_back`).

use std::ffi::OsString;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use common::checksum::Sha256Sum;
use common::failpoint::failpoint;
use tempfile::{PathPersistError, TempPath};

use crate::local::check;
use crate::local::scan::Fingerprint;

/// What follows the name of an archive that is about to go.
pub(crate) const ENDING: &str = ".leaving";

/// Gives an archive the name of one that is about to go, if it is the file that was hashed.
pub(crate) fn stage(file: &Path, fingerprint: Fingerprint) -> io::Result<()> {
    let changed = || io::Error::other("it has changed since it was announced");
    if Fingerprint::of(&fs::metadata(file)?) != fingerprint {
        return Err(changed());
    }
    let staged_path = staged_path(file);
    fs::rename(file, &staged_path)?;
    failpoint("uploader.archive_staged");
    let found = fs::metadata(&staged_path).map(|metadata| Fingerprint::of(&metadata));
    // A new name is a change of the file, as its change time counts.
    let same = found.is_ok_and(|found| Fingerprint { ctime_ns: fingerprint.ctime_ns, ..found } == fingerprint);
    if !same {
        put_back(file)?;
        return Err(changed());
    }
    Ok(())
}

/// Removes an archive that was set aside, and its `.CHECKSUM`.
pub(crate) fn remove(file: &Path, sha256: Sha256Sum) -> io::Result<()> {
    if let Err(error) = fs::remove_file(staged_path(file)) {
        put_back(file)?;
        return Err(error);
    }
    // By now one of another archive may lie there.
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    match check::read_checksum(file) {
        Ok(Some(line)) if check::stated_checksum(&line, &name).is_ok_and(|stated| stated == sha256) => {
            fs::remove_file(with_ending(file, ".CHECKSUM"))
        }
        Ok(_) => Ok(()),
        Err(fault) => Err(io::Error::other(fault.to_string())),
    }
}

/// Gives an archive its name back that was about to go; one that has come to lie there since is newer, and stays instead.
pub(crate) fn put_back(file: &Path) -> io::Result<()> {
    match TempPath::try_from_path(staged_path(file))?.persist_noclobber(file) {
        Ok(()) => Ok(()),
        Err(PathPersistError { error, path }) if error.kind() == ErrorKind::AlreadyExists => path.close(),
        Err(PathPersistError { error, path }) => {
            // Or else it would be removed here and now.
            path.keep()?;
            Err(error)
        }
    }
}

/// Whether an archive lies aside that was about to go.
pub(crate) fn is_staged(file: &Path) -> bool {
    fs::symlink_metadata(staged_path(file)).is_ok()
}

fn staged_path(file: &Path) -> PathBuf {
    with_ending(file, ENDING)
}

fn with_ending(file: &Path, ending: &str) -> PathBuf {
    let mut name: OsString = file.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An archive with its `.CHECKSUM`, and what is known of it.
    fn write(file: &Path, content: &str) -> (Fingerprint, Sha256Sum) {
        let sha256 = Sha256Sum::of(content.as_bytes());
        fs::write(file, content).expect("written");
        fs::write(with_ending(file, ".CHECKSUM"), format!("{sha256}  a.zip\n")).expect("written");
        (Fingerprint::of(&fs::metadata(file).expect("is there")), sha256)
    }

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).expect("a folder");
        let mut names: Vec<_> =
            entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn only_the_file_that_was_hashed_goes() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("a.zip");
        let (fingerprint, sha256) = write(&file, "abc");
        let other = Fingerprint { mtime_ns: fingerprint.mtime_ns - 1, ..fingerprint };
        assert!(stage(&file, other).is_err());
        assert_eq!(names(dir.path()), ["a.zip", "a.zip.CHECKSUM"]);
        stage(&file, fingerprint).expect("set aside");
        assert_eq!(names(dir.path()), ["a.zip.CHECKSUM", "a.zip.leaving"]);
        remove(&file, sha256).expect("removed");
        assert_eq!(names(dir.path()), [""; 0]);
    }

    #[test]
    fn the_checksum_of_another_archive_stays() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("a.zip");
        let (fingerprint, _) = write(&file, "abc");
        stage(&file, fingerprint).expect("set aside");
        remove(&file, Sha256Sum::of(b"before")).expect("removed");
        assert_eq!(names(dir.path()), ["a.zip.CHECKSUM"]);
    }

    #[test]
    fn what_lies_aside_gets_its_name_back_unless_something_newer_has_it() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("a.zip");
        fs::write(staged_path(&file), "older").expect("written");
        put_back(&file).expect("put back");
        assert_eq!(fs::read(&file).expect("read"), b"older");
        fs::write(staged_path(&file), "oldest").expect("written");
        put_back(&file).expect("put back");
        assert_eq!(fs::read(&file).expect("read"), b"older");
        assert_eq!(names(dir.path()), ["a.zip"]);
        assert!(put_back(&file).is_err() && !is_staged(&file));
    }

    /// A downloader renames over the archive again and again while it is removed: nothing it brought is ever gone.
    #[test]
    fn a_correction_that_lands_meanwhile_is_never_removed() {
        const ROUNDS: usize = 300;
        let dir = tempfile::tempdir().expect("a folder");
        let (file, part) = (dir.path().join("a.zip"), dir.path().join("a.zip.part"));
        for round in 0..ROUNDS {
            fs::write(&file, "former").expect("written");
            fs::write(&part, "correction").expect("written");
            let fingerprint = Fingerprint::of(&fs::metadata(&file).expect("is there"));
            std::thread::scope(|scope| {
                scope.spawn(|| fs::rename(&part, &file).expect("landed"));
                scope.spawn(|| {
                    let gone = stage(&file, fingerprint).and_then(|()| remove(&file, Sha256Sum::of(b"former")));
                    drop(gone);
                });
            });
            assert_eq!(fs::read(&file).ok().as_deref(), Some(&b"correction"[..]), "round {round}");
        }
    }
}
