//! What is known of archives from earlier runs, so that one that has not changed is not read again.
//!
//! A cache and nothing more: without it, or with a damaged one, archives are read again. What is published is what the
//! bucket and the stream say, never what this file says.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use common::checksum::Sha256Sum;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::check::Checked;
use crate::scan::Fingerprint;

/// Longest line that is read: a path below `data_dir` and five short fields.
const LINE_BYTES_MAX: usize = 4096;

/// Archives by their path below `data_dir`.
pub(crate) struct Cache {
    /// `None`: nowhere to keep it.
    file: Option<PathBuf>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    archives: HashMap<String, Known>,
    changed: bool,
}

struct Known {
    fingerprint: Fingerprint,
    checked: Checked,
    /// Asked for or added in this pass.
    used: bool,
}

/// One line of the file.
#[derive(Serialize, Deserialize)]
struct Line {
    path: String,
    #[serde(flatten)]
    fingerprint: Fingerprint,
    sha256: Sha256Sum,
    md5: String,
    generated_at: Timestamp,
}

impl Cache {
    /// Reads what earlier runs left for this `data_dir`.
    pub(crate) fn open(state_dir: Option<&Path>, data_dir: &Path) -> Self {
        let file = folder(state_dir).map(|folder| folder.join(file_name(data_dir)));
        let archives = file.as_deref().map(load).unwrap_or_default();
        Self { file, state: Mutex::new(State { archives, changed: false }) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of the archive, if it is still the same file.
    pub(crate) fn get(&self, path: &str, fingerprint: Fingerprint) -> Option<Checked> {
        let mut state = self.state();
        let known = state.archives.get_mut(path).filter(|known| known.fingerprint == fingerprint)?;
        known.used = true;
        Some(known.checked.clone())
    }

    pub(crate) fn insert(&self, path: String, fingerprint: Fingerprint, checked: Checked) {
        if fingerprint.has_settled() {
            let mut state = self.state();
            state.archives.insert(path, Known { fingerprint, checked, used: true });
            state.changed = true;
        }
    }

    /// Writes the file, if there is anything new. With `forget_unused`, archives that nobody came across since the last
    /// such call are left out.
    pub(crate) fn save(&self, forget_unused: bool) {
        let Some(file) = &self.file else { return };
        let mut state = self.state();
        if forget_unused {
            let before = state.archives.len();
            state.archives.retain(|_, known| known.used);
            state.changed |= state.archives.len() != before;
            state.archives.values_mut().for_each(|known| known.used = false);
        }
        if !state.changed {
            return;
        }
        match write(file, &state.archives) {
            Ok(()) => state.changed = false,
            Err(error) => {
                let path = file.display();
                tracing::warn!(%path, %error, "cannot keep the hashes; the next run will read the archives again");
            }
        }
    }
}

/// `local.state_dir`, else the user's cache folder.
fn folder(state_dir: Option<&Path>) -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let user = || {
        let cache = variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache")));
        cache.map(|cache| cache.join("marketferry"))
    };
    state_dir.map(Path::to_owned).or_else(user)
}

/// Several `data_dir`s may share one folder of caches.
fn file_name(data_dir: &Path) -> String {
    let whole = fs::canonicalize(data_dir).unwrap_or_else(|_| data_dir.to_owned());
    let sum = Sha256Sum::of(whole.as_os_str().as_encoded_bytes()).to_string();
    format!("archives-{}.jsonl", &sum[..16])
}

fn load(file: &Path) -> HashMap<String, Known> {
    let mut archives = HashMap::new();
    let reader = match File::open(file) {
        Ok(reader) => BufReader::new(reader),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return archives,
        Err(error) => {
            let path = file.display();
            tracing::warn!(%path, %error, "cannot read the hashes of earlier runs; archives are read again");
            return archives;
        }
    };
    for line in reader.split(b'\n') {
        let parsed = match line {
            Ok(line) if line.len() <= LINE_BYTES_MAX => serde_json::from_slice(&line).ok(),
            Ok(_) => None,
            Err(_) => break,
        };
        // A line that cannot be read costs the reading of one archive.
        let Some(Line { path, fingerprint, sha256, md5, generated_at }) = parsed else { continue };
        let checked = Checked { sha256, md5, generated_at };
        archives.insert(path, Known { fingerprint, checked, used: false });
    }
    archives
}

fn write(file: &Path, archives: &HashMap<String, Known>) -> io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut temporary = tempfile::NamedTempFile::new_in(folder)?;
    let mut writer = BufWriter::new(temporary.as_file_mut());
    for (path, Known { fingerprint, checked, .. }) in archives {
        let line = Line {
            path: path.clone(),
            fingerprint: *fingerprint,
            sha256: checked.sha256,
            md5: checked.md5.clone(),
            generated_at: checked.generated_at,
        };
        serde_json::to_writer(&mut writer, &line)?;
        writer.write_all(b"\n")?;
    }
    writer.flush()?;
    drop(writer);
    temporary.persist(file)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(text: &str) -> Checked {
        Checked {
            sha256: Sha256Sum::of(text.as_bytes()),
            md5: common::checksum::md5_hex(text.as_bytes()),
            generated_at: "2026-02-15T00:44:06Z".parse().expect("a time"),
        }
    }

    const FINGERPRINT: Fingerprint = Fingerprint { size: 3, mtime_ns: 1, ctime_ns: 2, inode: 4 };

    #[test]
    fn the_next_run_knows_what_this_one_found() {
        let dir = tempfile::tempdir().expect("a folder");
        let open = || Cache::open(Some(&dir.path().join("state")), dir.path());
        let cache = open();
        cache.insert("data/a.zip".into(), FINGERPRINT, known("a"));
        cache.insert("data/b.zip".into(), FINGERPRINT, known("b"));
        cache.save(false);

        let cache = open();
        assert_eq!(cache.get("data/a.zip", FINGERPRINT), Some(known("a")));
        assert_eq!(cache.get("data/a.zip", Fingerprint { ctime_ns: 3, ..FINGERPRINT }), None);
        cache.save(true);
        assert_eq!(open().get("data/b.zip", FINGERPRINT), None);
        assert_eq!(open().get("data/a.zip", FINGERPRINT), Some(known("a")));
    }

    #[test]
    fn damage_costs_only_what_is_damaged() {
        let dir = tempfile::tempdir().expect("a folder");
        let cache = Cache::open(Some(dir.path()), dir.path());
        cache.insert("data/a.zip".into(), FINGERPRINT, known("a"));
        cache.save(false);
        let file = dir.path().join(file_name(dir.path()));
        let mut bytes = fs::read(&file).expect("read");
        bytes.splice(0..0, *b"{\"path\":\xff\n\n[]\n");
        bytes.extend_from_slice(b"{\"path\":\"data/b.zip\",\"si");
        fs::write(&file, bytes).expect("written");
        let cache = Cache::open(Some(dir.path()), dir.path());
        assert_eq!(cache.get("data/a.zip", FINGERPRINT), Some(known("a")));
    }

    #[test]
    fn a_file_written_just_now_is_not_remembered() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("a.zip");
        fs::write(&file, "abc").expect("written");
        let fingerprint = Fingerprint::of(&fs::metadata(&file).expect("is there"));
        let cache = Cache::open(Some(dir.path()), dir.path());
        cache.insert("a.zip".into(), fingerprint, known("a"));
        assert_eq!(cache.get("a.zip", fingerprint), None);
    }
}
