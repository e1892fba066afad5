//! Where things lie in the bucket.
//!
//! An archive's key is `<prefix>/<path below data_dir>`. Beside them, under `<prefix>/_markers/`, one folder a
//! unit holds its manifests: `<revision>.json`, never rewritten, and `current.json`, which names the newest.

use crate::text::{is_seen, shorten};
use crate::unit::Unit;

const MARKERS: &str = "_markers";
const DOCTOR: &str = "_doctor";

/// Longest key S3 and R2 accept, in bytes.
pub const KEY_BYTES_MAX: usize = 1024;

/// The prefix all our keys share; empty means the bucket's root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prefix(String);

impl Prefix {
    /// Takes the prefix as people write it, with or without slashes around it.
    pub fn new(text: &str) -> Self {
        Self(text.trim_matches('/').to_owned())
    }

    /// The prefix of an archive's key: what stands before the tree's own `data/`. `None`: it is no such key.
    pub fn of_archive_key(key: &str) -> Option<Self> {
        match key.rfind("/data/") {
            Some(at) => Some(Self::new(&key[..at])),
            None => key.starts_with("data/").then(|| Self::new("")),
        }
    }

    /// The prefix of a manifest's key.
    pub fn of_manifest_key(key: &str) -> Option<Self> {
        match key.rfind("/_markers/") {
            Some(at) => Some(Self::new(&key[..at])),
            None => key.starts_with("_markers/").then(|| Self::new("")),
        }
    }

    /// The key of the archive with this path below `data_dir`.
    pub fn archive_key(&self, path: &str) -> String {
        self.join(path)
    }

    pub fn manifest_key(&self, unit: &Unit, revision: &impl std::fmt::Display) -> String {
        self.join(&format!("{MARKERS}/{unit}/{revision}.json"))
    }

    pub fn current_key(&self, unit: &Unit) -> String {
        self.join(&format!("{MARKERS}/{unit}/current.json"))
    }

    /// What the keys of all manifests begin with.
    pub fn manifests(&self) -> String {
        self.join(&format!("{MARKERS}/"))
    }

    /// The object that `doctor` writes and reads.
    pub fn probe_key(&self) -> String {
        self.join(&format!("{DOCTOR}/probe"))
    }

    /// Whether a key is that of something `doctor` wrote.
    pub fn is_probe(&self, key: &str) -> bool {
        self.strip(key).is_some_and(|path| path.split('/').next() == Some(DOCTOR))
    }

    /// The unit that a key below [`Prefix::manifests`] belongs to, and the file's name.
    pub fn manifest_parts<'k>(&self, key: &'k str) -> Option<(Unit, &'k str)> {
        let (unit, name) = key.strip_prefix(&self.manifests())?.rsplit_once('/')?;
        Some((unit.parse().ok()?, name))
    }

    /// What of a key is below the prefix; `None` for a key outside.
    pub fn strip<'k>(&self, key: &'k str) -> Option<&'k str> {
        if self.0.is_empty() { Some(key) } else { key.strip_prefix(&self.0)?.strip_prefix('/') }
    }

    /// Whether a key lies below the prefix.
    pub fn holds(&self, key: &str) -> bool {
        self.strip(key).is_some()
    }

    /// Whether a path below the prefix is one of the manifests.
    pub fn is_manifest(path: &str) -> bool {
        path.split('/').next() == Some(MARKERS)
    }

    fn join(&self, path: &str) -> String {
        if self.0.is_empty() { path.to_owned() } else { format!("{}/{path}", self.0) }
    }

    /// The path below `data_dir` of an archive's key, from an untrusted marker.
    ///
    /// # Errors
    /// The key lies outside the prefix, among the manifests, or would not be a plain relative path.
    pub fn archive_path<'k>(&self, key: &'k str) -> Result<&'k str, KeyError> {
        let refuse = |why| Err(KeyError { key: shorten(key), why });
        if key.len() > KEY_BYTES_MAX {
            return refuse("it is longer than 1,024 bytes");
        }
        let Some(path) = self.strip(key) else {
            return refuse("it is outside storage.r2.prefix");
        };
        if path.chars().any(|c| !is_seen(c) || c == '\\') {
            return refuse("it has a character that is not seen as itself, or a backslash");
        }
        if path.split('/').any(|segment| matches!(segment, "" | "." | "..")) {
            return refuse("it has an empty, '.' or '..' segment");
        }
        if Self::is_manifest(path) {
            return refuse("it is among the manifests");
        }
        Ok(path)
    }
}

impl std::fmt::Display for Prefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("object key '{key}' is refused: {why}")]
pub struct KeyError {
    key: String,
    why: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_lie_under_the_prefix() {
        let unit: Unit = "binance/um/klines/1h/2026-02-14".parse().expect("a unit");
        let prefix = Prefix::new("/download/");
        assert_eq!(prefix.archive_key("data/a.zip"), "download/data/a.zip");
        assert_eq!(prefix.current_key(&unit), "download/_markers/binance/um/klines/1h/2026-02-14/current.json");
        assert_eq!(Prefix::new("").archive_key("data/a.zip"), "data/a.zip");
        assert_eq!(prefix.manifest_parts(&prefix.current_key(&unit)), Some((unit.clone(), "current.json")));
        assert_eq!(prefix.manifest_parts("download/_markers/binance/um/current.json"), None);
        for prefix in ["download", "a/data/b", ""].map(Prefix::new) {
            let archive = prefix.archive_key("data/spot/daily/klines/A/1h/A-1h-2026-02-14.zip");
            assert_eq!(Prefix::of_archive_key(&archive).as_ref(), Some(&prefix));
            assert_eq!(Prefix::of_manifest_key(&prefix.current_key(&unit)).as_ref(), Some(&prefix));
        }
        assert_eq!(Prefix::of_archive_key("elsewhere/a.zip"), None);
    }

    #[test]
    fn only_archive_paths_come_back() {
        let prefix = Prefix::new("download");
        assert_eq!(prefix.archive_path("download/data/币安人生USDT/a.zip"), Ok("data/币安人生USDT/a.zip"));
        for key in [
            "other/data/a.zip",
            "downloads/a.zip",
            "download",
            "download/",
            "download/../a.zip",
            "download/data//a.zip",
            "download//etc/passwd",
            "download/data/./a.zip",
            "download/da\nta/a.zip",
            "download/data\\a.zip",
            "download/_markers/x.json",
            &format!("download/{}", "a".repeat(1024)),
        ] {
            assert!(prefix.archive_path(key).is_err(), "{key}");
        }
    }
}
