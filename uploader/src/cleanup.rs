//! `--cleanup`: removes archives from disk that are announced and in the bucket. Nothing is ever removed there.

use std::fs;
use std::io;
use std::path::Path;

use common::marker::Object;
use common::unit::Unit;
use futures::{StreamExt, stream};

use crate::digest::Digested;
use crate::error::UnitError;
use crate::scan::Fingerprint;
use crate::site::{Site, blocking};
use crate::upload;

/// What was removed of one unit.
#[derive(Debug, Default)]
pub(crate) struct Removed {
    pub(crate) archives: u64,
    /// What could not be removed: one line each.
    pub(crate) problems: Vec<String>,
}

/// Removes the archives that an acknowledged marker names, with their `.CHECKSUM` files. Marks stay.
///
/// `announced` are the objects of the newest marker on the stream. An archive goes only if that marker names its very
/// content, the bucket still holds it, and the file is the one that was hashed.
pub(crate) async fn remove(
    site: &Site,
    unit: &Unit,
    announced: &[Object],
    local: &[Digested],
) -> Result<Removed, UnitError> {
    let mut removed = Removed::default();
    let named = local.iter().filter_map(|archive| {
        let here = archive.object(site);
        let object = announced.iter().find(|object| object.key == here.key)?;
        (object.size == here.size && object.sha256 == here.sha256).then_some((archive, object))
    });
    let mut results = stream::iter(named)
        .map(async |(archive, object)| {
            let held = {
                let _place = site.transfer().await?;
                upload::is_stored(site, object, &archive.checked.md5).await?
            };
            let path = &archive.path;
            if !held {
                return Ok(Err(format!("{path} stays: the bucket no longer holds it as announced")));
            }
            let (file, fingerprint) = (site.data_dir.join(&archive.path), archive.fingerprint);
            let outcome = blocking(move || remove_file(&file, fingerprint)).await;
            Ok::<_, UnitError>(outcome.map_err(|error| format!("{path} cannot be removed: {error}")))
        })
        .buffer_unordered(site.transfers_max);
    while let Some(result) = results.next().await {
        match result? {
            Ok(()) => removed.archives += 1,
            Err(problem) => removed.problems.push(problem),
        }
    }
    drop(results);
    if removed.archives > 0 {
        tracing::info!(%unit, archives = removed.archives, "removed from disk");
    }
    Ok(removed)
}

fn remove_file(file: &Path, fingerprint: Fingerprint) -> io::Result<()> {
    if Fingerprint::of(&fs::metadata(file)?) != fingerprint {
        return Err(io::Error::other("it has changed since it was announced"));
    }
    fs::remove_file(file)?;
    let mut checksum = file.as_os_str().to_owned();
    checksum.push(".CHECKSUM");
    match fs::remove_file(checksum) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_file_that_was_hashed_goes() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("a.zip");
        let checksum = dir.path().join("a.zip.CHECKSUM");
        fs::write(&file, "abc").expect("written");
        fs::write(&checksum, "abc").expect("written");
        let fingerprint = Fingerprint::of(&fs::metadata(&file).expect("is there"));
        let other = Fingerprint { mtime_ns: fingerprint.mtime_ns - 1, ..fingerprint };
        assert!(remove_file(&file, other).is_err());
        assert!(file.exists() && checksum.exists());
        remove_file(&file, fingerprint).expect("removed");
        assert!(!file.exists() && !checksum.exists());
    }
}
