//! Folders that must not be one: where a site's archives lie, where their stored copies lie, and where destinations keep
//! theirs.
//!
//! An archive that is its own stored copy would be found "stored" wherever it is looked for, and removing one would
//! remove the other. A destination that keeps its archives where an uploader has its own could replace what the uploader
//! has not announced yet. (Only the destination `mirror` is `local.data_dir` itself, and puts there what is missing.)

use std::fs::{self, Metadata};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::sections::{Destination, DestinationKind, Local, MIRROR};
use super::storage::{Place, Storage};
use crate::files::same_file::is_same_file;

/// How long the disks are waited for: a share that hangs must not keep a command from saying so.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is wrong with the folders of a configuration: the key, and why. `listed` are those of `destinations`.
pub(super) fn problems(local: &Local, storage: &Storage, listed: &[Destination]) -> Vec<(String, String)> {
    let store = match &storage.place {
        Place::Folder { path } if !path.as_os_str().is_empty() => Some(path.join(storage.prefix.to_string())),
        Place::Folder { .. } | Place::S3(_) | Place::Rsync(_) => None,
    };
    let mut problems = Vec::new();
    if let (Some(objects), Some(data_dir)) = (&store, &local.data_dir)
        && overlap(objects, data_dir)
    {
        let why = format!(
            "with storage.r2.prefix '{}' keeps objects in {}, which is where local.data_dir {} keeps its archives: each \
             would be its own copy, and a cleanup would remove the only one; choose another folder or prefix",
            storage.prefix,
            objects.display(),
            data_dir.display()
        );
        problems.push(("storage.fs.path".to_owned(), why));
    }
    for (index, destination) in listed.iter().enumerate() {
        let DestinationKind::Directory { path } = &destination.kind else { continue };
        let mut problem = |why: &str| {
            let why = format!("'{}' keeps its archives in {}, {why}", destination.name, path.display());
            problems.push((format!("destinations.{index}.path"), why));
        };
        if store.as_ref().is_some_and(|objects| overlap(objects, path)) {
            problem(
                "which is where storage.fs.path keeps the objects: each would be written over itself; choose another folder",
            );
        }
        if destination.name != MIRROR && local.data_dir.as_ref().is_some_and(|data_dir| overlap(data_dir, path)) {
            problem(
                "which is where local.data_dir has those of this site: what is there and not announced yet could be \
                 replaced; choose another folder",
            );
        }
    }
    problems
}

/// Whether the trees of archives below two folders are one, or one lies in the other.
fn overlap(one: &Path, other: &Path) -> bool {
    let [one, other] = [one, other].map(|folder| folder.join("data"));
    let (sender, answer) = mpsc::channel();
    thread::spawn(move || sender.send(is_within(&one, &other) || is_within(&other, &one)).ok());
    // Nothing is known of a disk that does not answer; before an archive is removed it is asked again.
    answer.recv_timeout(PATIENCE).unwrap_or(false)
}

/// Whether a folder is another one, or lies in it. Either may not be there yet.
fn is_within(inner: &Path, outer: &Path) -> bool {
    let (Some(inner), Some(outer)) = (located(inner), located(outer)) else { return false };
    let Some((outer, outer_rest)) = outer.last() else { return false };
    inner.iter().any(|(folder, rest)| is_same_file(folder, outer) && rest.starts_with(outer_rest))
}

/// The folders on the way of a path that are there, from the root to the deepest; each with what of the path is not there
/// yet, which is empty for all but the deepest. `None`: a folder cannot be looked at.
fn located(path: &Path) -> Option<Vec<(Metadata, PathBuf)>> {
    let path = std::path::absolute(path).ok()?;
    let (there, real) = path.ancestors().find_map(|folder| Some((folder, fs::canonicalize(folder).ok()?)))?;
    let mut chain = Vec::new();
    for folder in real.ancestors() {
        chain.push((fs::metadata(folder).ok()?, PathBuf::new()));
    }
    chain.reverse();
    chain.last_mut()?.1 = path.strip_prefix(there).ok()?.to_owned();
    Some(chain)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn folders_that_share_their_archives_are_noticed() {
        let dir = tempfile::tempdir().expect("a folder");
        let at = |name: &str| dir.path().join(name);
        for folder in ["site/data/spot", "store/download", "empty"] {
            fs::create_dir_all(at(folder)).expect("made");
        }
        symlink(at("site"), at("link")).expect("linked");
        let check = |objects: &str, data_dir: &str, expected| {
            assert_eq!(overlap(&at(objects), &at(data_dir)), expected, "{objects} {data_dir}");
        };
        check("site", "site", true);
        check("link", "site", true);
        check("site/../link/.", "site", true);
        // Neither is there yet.
        check("later/a", "later/a", true);
        check("later/a", "later/b", false);
        check("empty", "empty", true);
        check("site/data/store", "site", true);
        // Beside the archives, or above them, nothing is shared.
        check("site/store", "site", false);
        check("store/download", "site", false);
        check("store/download", "store", false);
        check("store", "store/download", false);
    }
}
