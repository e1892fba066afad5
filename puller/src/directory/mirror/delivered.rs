//! Which bytes the stream has brought to a folder, so that nothing else is ever replaced there.
//!
//! One file a revision of a unit, with the lines of `sha256sum`: its name says what is in it, so it is written once and two
//! workers write the same. It is written before the first of the archives is: a crash leaves no file of ours unknown.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};

use common::checksum::Sha256Sum;
use common::marker::{Object, revision};
use common::object_key::Prefix;
use common::unit::Unit;

use super::file;

/// Below the destination's folder; one folder a unit is in it.
pub(super) const FOLDER: &str = ".ferry/delivered";

fn folder(root: &Path, unit: &Unit) -> PathBuf {
    root.join(FOLDER).join(unit.to_string())
}

fn line(path: &str, sha256: Sha256Sum) -> String {
    format!("{sha256}  {path}")
}

/// Records that these objects of a unit were delivered, unless that is recorded.
pub(super) async fn record_objects(root: &Path, unit: &Unit, objects: &[Object], prefix: &Prefix) -> io::Result<()> {
    let record = folder(root, unit).join(revision(objects).to_string());
    if tokio::fs::try_exists(&record).await? {
        return Ok(());
    }
    let path_of = |object: &Object| prefix.archive_path(&object.key).ok().map(|path| line(path, object.sha256));
    let lines: String = objects.iter().filter_map(path_of).map(|line| line + "\n").collect();
    file::replace(&record, lines.into_bytes()).await
}

/// What is noted of a unit.
pub(super) struct Delivered(HashSet<String>);

impl Delivered {
    pub(super) async fn read(root: &Path, unit: &Unit) -> io::Result<Self> {
        let mut lines = HashSet::new();
        let mut records = tokio::fs::read_dir(folder(root, unit)).await?;
        while let Some(record) = records.next_entry().await? {
            // The temporary files of others who write theirs come and go.
            if record.file_name().to_str().is_some_and(|name| name.parse::<Sha256Sum>().is_ok()) {
                lines.extend(tokio::fs::read_to_string(record.path()).await?.lines().map(str::to_owned));
            }
        }
        Ok(Self(lines))
    }

    /// Whether the archive of this path was ever delivered with these bytes.
    pub(super) fn has(&self, path: &str, sha256: Sha256Sum) -> bool {
        self.0.contains(&line(path, sha256))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_revision_is_remembered() {
        let dir = tempfile::tempdir().expect("a folder");
        let unit: Unit = "binance/spot/klines/1h/2025-03-01".parse().expect("a unit");
        let prefix = Prefix::new("download");
        let object = |key: &str, text: &str| Object {
            key: key.into(),
            symbol: "ABC".into(),
            size: 3,
            sha256: Sha256Sum::of(text.as_bytes()),
            generated_at: jiff::Timestamp::UNIX_EPOCH,
        };
        for text in ["one", "two", "two"] {
            let objects = [object("download/a", text), object("elsewhere/b", text)];
            record_objects(dir.path(), &unit, &objects, &prefix).await.expect("noted");
        }
        let delivered = Delivered::read(dir.path(), &unit).await.expect("read");
        let has = |path: &str, text: &str| delivered.has(path, Sha256Sum::of(text.as_bytes()));
        assert!(has("a", "one") && has("a", "two"));
        assert!(!has("a", "three") && !has("b", "one") && !has("elsewhere/b", "one"));
        assert_eq!(std::fs::read_dir(folder(dir.path(), &unit)).expect("a folder").count(), 2);
    }
}
