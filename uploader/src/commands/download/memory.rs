//! What is remembered of archives that were fetched: which publication of them, so that the next run can ask whether there
//! is another.
//!
//! A cache and nothing more. Without it the exchange's `.CHECKSUM` is compared with the archive's own hash.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use common::checksum::Sha256Sum;
use common::unit::Period;
use jiff::ToSpan;
use jiff::civil::Date;
use serde::{Deserialize, Serialize};

use super::exchange::Version;
use crate::local::scan::Fingerprint;
use crate::state::cache::state_file;
use crate::state::file::replace;

const LINE_BYTES_MAX: usize = 4096;
/// About 200 MB of memory. What is more is compared by its hash each time.
const ARCHIVES_MAX: usize = 500_000;

/// What is known of an archive that lay here once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KnownVersion {
    #[serde(flatten)]
    pub(crate) fingerprint: Fingerprint,
    pub(crate) sha256: Sha256Sum,
    #[serde(flatten)]
    pub(crate) version: Version,
    pub(crate) period: Period,
}

/// Archives by their path below `data_dir`.
pub(crate) struct VersionMemory {
    /// `None`: nowhere to keep it.
    file: Option<PathBuf>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    archives: HashMap<String, KnownVersion>,
    changed: bool,
}

#[derive(Serialize, Deserialize)]
struct Line {
    path: String,
    #[serde(flatten)]
    known: KnownVersion,
}

impl VersionMemory {
    pub(crate) fn open(state_dir: Option<&Path>, data_dir: &Path) -> Self {
        let file = state_file("downloads", state_dir, data_dir);
        let archives = file.as_deref().map(load).unwrap_or_default();
        Self { file, state: Mutex::new(State { archives, changed: false }) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, path: &str) -> Option<KnownVersion> {
        self.state().archives.get(path).cloned()
    }

    pub(crate) fn insert(&self, path: String, known: KnownVersion) {
        let mut state = self.state();
        if state.archives.len() < ARCHIVES_MAX || state.archives.contains_key(&path) {
            state.archives.insert(path, known);
            state.changed = true;
        }
    }

    /// Whether no more can be remembered: then what the cleanup took away cannot be told from what never came.
    pub(crate) fn is_full(&self) -> bool {
        self.state().archives.len() >= ARCHIVES_MAX
    }

    /// Writes the file, if there is anything new. `first` is the first day that is looked at: what ended before is left
    /// out, but for the month before it, which is looked at with it.
    pub(crate) fn save(&self, first: Date) {
        let last_of_month = first.first_of_month().saturating_sub(1.day());
        let Some(file) = &self.file else { return };
        let mut state = self.state();
        let before = state.archives.len();
        state.archives.retain(|_, known| match known.period {
            Period::Day(day) => day >= first,
            Period::Month(_) => known.period.last_day() >= last_of_month,
        });
        if !state.changed && state.archives.len() == before {
            return;
        }
        match write(file, &state.archives) {
            Ok(()) => state.changed = false,
            Err(error) => {
                let path = file.display();
                tracing::warn!(%path, %error, "cannot keep what was fetched; the next run compares checksums");
            }
        }
    }
}

fn load(file: &Path) -> HashMap<String, KnownVersion> {
    let reader = match File::open(file) {
        Ok(reader) => BufReader::new(reader),
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                let path = file.display();
                tracing::warn!(%path, %error, "cannot read what earlier runs fetched; checksums are compared");
            }
            return HashMap::new();
        }
    };
    // A line that cannot be read costs the comparison of one checksum.
    let lines = reader.split(b'\n').map_while(Result::ok).filter(|line| line.len() <= LINE_BYTES_MAX);
    let lines = lines.filter_map(|line| serde_json::from_slice::<Line>(&line).ok());
    lines.take(ARCHIVES_MAX).map(|line| (line.path, line.known)).collect()
}

fn write(file: &Path, archives: &HashMap<String, KnownVersion>) -> io::Result<()> {
    replace(file, |writer| {
        for (path, known) in archives {
            serde_json::to_writer(&mut *writer, &Line { path: path.clone(), known: known.clone() })?;
            writer.write_all(b"\n")?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_run_knows_what_may_still_change() {
        let dir = tempfile::tempdir().expect("a folder");
        let known = |period: &str| KnownVersion {
            fingerprint: Fingerprint { size: 3, mtime_ns: 1, ctime_ns: 2, inode: 4 },
            sha256: Sha256Sum::of(b"abc"),
            version: serde_json::from_str(r#"{"etag": "\"a\"", "last_modified": "Mon"}"#).expect("a version"),
            period: period.parse().expect(period),
        };
        let open = || VersionMemory::open(Some(&dir.path().join("state")), dir.path());
        let memory = open();
        memory.insert("old.zip".into(), known("2026-02-26"));
        memory.insert("new.zip".into(), known("2026-02-27"));
        memory.insert("month.zip".into(), known("2026-01"));
        memory.insert("old-month.zip".into(), known("2025-12"));
        memory.save(jiff::civil::date(2026, 2, 27));
        let memory = open();
        assert_eq!(memory.get("new.zip"), Some(known("2026-02-27")));
        assert!(memory.get("month.zip").is_some());
        assert_eq!((memory.get("old.zip"), memory.get("old-month.zip")), (None, None));
    }
}
