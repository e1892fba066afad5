//! What is known of archives from earlier runs, so that one that has not changed is not read again.
//!
//! A cache and nothing more: without it, or with a damaged one, archives are read again. What is published is what the
//! bucket and the stream say, never what is said here. One file a unit: a unit is in memory only while it is worked on,
//! and damage costs that unit's archives one more reading.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use common::checksum::Sha256Sum;
use common::unit::Unit;
use jiff::Timestamp;
use nats::Stamp;
use serde::{Deserialize, Serialize};

use crate::local::check::Checked;
use crate::local::scan::{Fingerprint, LocalUnit, SetDigest};
use crate::state::file::replace;

/// Longest first line of a file.
const HEAD_BYTES_MAX: u64 = 4096;
/// Largest file that is read: one of a unit of the most archives there may be has 8 MB.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// A unit that takes long keeps its hashes now and then, so that being killed costs little.
const SAVE_EVERY: Duration = Duration::from_secs(30);

pub(crate) struct Cache {
    /// `None`: nowhere to keep it.
    root: Option<PathBuf>,
    open: Mutex<HashMap<Unit, CachedArchive>>,
    /// Whether the last attempt to write failed, and that was said.
    failed: AtomicBool,
}

/// What is known of a unit as a whole.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// When this uploader saw the first archive of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) first_seen: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) processed: Option<ProcessedAs>,
    /// Whether an older publication of one of its archives was at hand when it was last processed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) older: bool,
}

/// A set of archives that a message of the stream was found to say all of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessedAs {
    pub(crate) archives: SetDigest,
    pub(crate) message: Stamp,
    /// Bucket and prefix, which are part of the answer.
    pub(crate) place: String,
    /// Objects of the revision, if known.
    pub(crate) objects: Option<usize>,
    /// When it was published, if known.
    #[serde(default)]
    pub(crate) published_at: Option<Timestamp>,
}

/// A unit that is being worked on.
struct CachedArchive {
    record: Record,
    archives: HashMap<String, CachedUnit>,
    changed: bool,
    saved: Instant,
}

#[derive(Clone, PartialEq, Serialize, Deserialize)]
struct CachedUnit {
    fingerprint: Fingerprint,
    checked: Checked,
}

/// The first line, after a checksum of its own.
#[derive(Serialize, Deserialize)]
struct Head {
    /// Another one is no version of ours.
    format: u32,
    /// Of all that follows.
    lines: Sha256Sum,
    #[serde(default)]
    record: Record,
}

const FORMAT: u32 = 3;

#[derive(Serialize, Deserialize)]
struct Line {
    symbol: String,
    known: CachedUnit,
}

impl Cache {
    /// What earlier runs left for this `data_dir`.
    pub(crate) fn open(state_dir: Option<&Path>, data_dir: &Path) -> Self {
        common::failpoint::hang_thread("uploader.disk");
        let root = folder(state_dir).map(|folder| folder.join(format!("archives-{}", which(data_dir))));
        Self { root, open: Mutex::default(), failed: AtomicBool::new(false) }
    }

    fn units(&self) -> MutexGuard<'_, HashMap<Unit, CachedArchive>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self, unit: &Unit) -> Option<PathBuf> {
        let Unit { exchange, market, dataset, interval, period } = unit;
        let folder = self.root.as_ref()?.join(exchange.as_str()).join(market.as_str()).join(dataset.as_str());
        Some(folder.join(interval.as_str()).join(period.to_string()))
    }

    /// What is known of a unit as a whole. Blocks.
    pub(crate) fn record(&self, unit: &Unit) -> Record {
        let head = self.file(unit).and_then(|file| read_head(&mut BufReader::new(File::open(file).ok()?)));
        head.map(|head| head.record).unwrap_or_default()
    }

    /// The units of which older publications were at hand when they were last processed. Blocks.
    pub(crate) fn with_older(&self) -> Vec<Unit> {
        let unit = |file: &Path| {
            let names: Vec<&str> =
                file.strip_prefix(self.root.as_ref()?).ok()?.iter().filter_map(|n| n.to_str()).collect();
            names.join("/").parse::<Unit>().ok()
        };
        let mut units: Vec<Unit> = self.files().iter().filter_map(|file| unit(file)).collect();
        units.retain(|unit| self.record(unit).older);
        units.sort_unstable_by_key(|unit| std::cmp::Reverse(unit.period.end()));
        units
    }

    /// The files of all units.
    fn files(&self) -> Vec<PathBuf> {
        // Exchange, market, dataset, interval; then the files.
        let mut folders: Vec<PathBuf> = self.root.iter().cloned().collect();
        for _ in 0..4 {
            folders = folders.iter().flat_map(|folder| entries(folder)).collect();
        }
        folders.iter().flat_map(|folder| entries(folder)).collect()
    }

    /// Notes when a unit was first seen; says whether that is kept. Blocks.
    pub(crate) fn record_first_seen(&self, unit: &Unit, at: Timestamp) -> bool {
        self.load(unit);
        let entry = self.units().remove(unit);
        entry.is_some_and(|mut entry| {
            entry.record.first_seen = Some(at);
            entry.changed = true;
            self.save(unit, &mut entry);
            !entry.changed
        })
    }

    /// Takes a unit into memory, until it is closed. Blocks.
    pub(crate) fn load(&self, unit: &Unit) {
        if self.units().contains_key(unit) {
            return;
        }
        let (record, archives) = self.file(unit).and_then(|file| read(&file)).unwrap_or_default();
        let entry = CachedArchive { record, archives, changed: false, saved: Instant::now() };
        self.units().insert(unit.clone(), entry);
    }

    /// What is known of an archive of a loaded unit, if it is still the same file.
    pub(crate) fn get(&self, unit: &Unit, symbol: &str, fingerprint: Fingerprint) -> Option<Checked> {
        let units = self.units();
        let known = units.get(unit)?.archives.get(symbol).filter(|known| known.fingerprint == fingerprint)?;
        Some(known.checked.clone())
    }

    /// Remembers an archive of a loaded unit.
    pub(crate) fn insert(&self, unit: &Unit, symbol: &str, fingerprint: Fingerprint, checked: Checked) {
        if !fingerprint.is_stable() {
            return;
        }
        let mut units = self.units();
        let Some(entry) = units.get_mut(unit) else { return };
        entry.archives.insert(symbol.to_owned(), CachedUnit { fingerprint, checked });
        entry.changed = true;
        if entry.saved.elapsed() > SAVE_EVERY {
            self.save(unit, entry);
        }
    }

    /// Notes which message of the stream says all of a loaded unit, and whether `older` publications are at hand, where that is
    /// known, and forgets archives it no longer has. Whether the note holds: not while an archive was written to so lately that another change could not be told.
    pub(crate) fn record_processed(
        &self,
        local: &LocalUnit,
        processed: Option<ProcessedAs>,
        older: Option<bool>,
    ) -> bool {
        let mut units = self.units();
        let Some(entry) = units.get_mut(&local.unit) else { return false };
        let here: HashMap<&str, Fingerprint> =
            local.archives.iter().map(|archive| (archive.symbol.as_str(), archive.fingerprint)).collect();
        let known = |symbol: &str, known: &CachedUnit| here.get(symbol) == Some(&known.fingerprint);
        let all = entry.archives.iter().filter(|(symbol, archive)| known(symbol, archive)).count() == here.len();
        let before = entry.archives.len();
        entry.archives.retain(|symbol, _| here.contains_key(symbol.as_str()));
        let older = older.unwrap_or(entry.record.older);
        entry.changed |= entry.archives.len() != before || entry.record.older != older;
        entry.record.older = older;
        if all && processed.is_some() && entry.record.processed != processed {
            entry.record.processed = processed;
            entry.changed = true;
        }
        all
    }

    /// Lets go of a unit, and keeps what is new of it. Blocks.
    pub(crate) fn close(&self, unit: &Unit) {
        let entry = self.units().remove(unit);
        if let Some(mut entry) = entry {
            self.save(unit, &mut entry);
        }
    }

    /// Lets go of a unit and keeps nothing.
    pub(crate) fn abandon(&self, unit: &Unit) {
        self.units().remove(unit);
    }

    /// Forgets the units that are not among these. Blocks.
    pub(crate) fn retain(&self, units: &HashSet<Unit>) {
        let retained: HashSet<PathBuf> = units.iter().filter_map(|unit| self.file(unit)).collect();
        for file in self.files().into_iter().filter(|file| !retained.contains(file)) {
            if let Err(error) = fs::remove_file(&file) {
                tracing::debug!(path = %file.display(), %error, "what is no longer needed stays");
            }
        }
    }

    fn save(&self, unit: &Unit, entry: &mut CachedArchive) {
        let Some(file) = self.file(unit).filter(|_| entry.changed) else { return };
        entry.saved = Instant::now();
        match write(&file, entry) {
            Ok(()) => {
                entry.changed = false;
                self.failed.store(false, Ordering::Relaxed);
            }
            Err(error) if !self.failed.swap(true, Ordering::Relaxed) => {
                let path = file.display();
                tracing::warn!(%path, %error, "cannot keep the hashes (local.state_dir); the next run reads archives again");
            }
            Err(error) => tracing::debug!(path = %file.display(), %error, "cannot keep the hashes"),
        }
    }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// Where what is remembered of a `data_dir` is kept in one file, e.g. `downloads-<which data_dir>.jsonl`.
pub(crate) fn state_file(what: &str, state_dir: Option<&Path>, data_dir: &Path) -> Option<PathBuf> {
    folder(state_dir).map(|folder| folder.join(format!("{what}-{}.jsonl", which(data_dir))))
}

/// `local.state_dir`, else the user's cache folder.
pub(crate) fn folder(state_dir: Option<&Path>) -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let user = || {
        let cache = variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache")));
        cache.map(|cache| cache.join("marketferry"))
    };
    state_dir.map(Path::to_owned).or_else(user)
}

/// Several `data_dir`s may share one folder of caches.
fn which(data_dir: &Path) -> String {
    let whole = fs::canonicalize(data_dir).unwrap_or_else(|_| data_dir.to_owned());
    Sha256Sum::of(whole.as_os_str().as_encoded_bytes()).to_string()[..16].to_owned()
}

/// The first line, if it is whole.
fn read_head(reader: &mut impl BufRead) -> Option<Head> {
    let mut line = String::new();
    reader.take(HEAD_BYTES_MAX).read_line(&mut line).ok()?;
    let (sum, json) = line.trim_end_matches('\n').split_once(' ')?;
    let whole = line.ends_with('\n') && sum == Sha256Sum::of(json.as_bytes()).to_string();
    serde_json::from_str(json).ok().filter(|head: &Head| whole && head.format == FORMAT)
}

/// A file, if it is there and whole.
fn read(file: &Path) -> Option<(Record, HashMap<String, CachedUnit>)> {
    let mut reader = BufReader::new(File::open(file).ok()?);
    let head = read_head(&mut reader)?;
    let mut lines = Vec::new();
    reader.take(FILE_BYTES_MAX).read_to_end(&mut lines).ok()?;
    if Sha256Sum::of(&lines) != head.lines {
        return None;
    }
    let parse = |line: &[u8]| serde_json::from_slice::<Line>(line).ok();
    let archives = lines.split(|byte| *byte == b'\n').filter_map(parse).map(|line| (line.symbol, line.known));
    Some((head.record, archives.collect()))
}

fn write(file: &Path, entry: &CachedArchive) -> io::Result<()> {
    let mut lines = Vec::new();
    for (symbol, known) in &entry.archives {
        serde_json::to_writer(&mut lines, &Line { symbol: symbol.clone(), known: known.clone() })?;
        lines.push(b'\n');
    }
    let head = Head { format: FORMAT, lines: Sha256Sum::of(&lines), record: entry.record.clone() };
    let head = serde_json::to_string(&head)?;
    replace(file, |writer| {
        writeln!(writer, "{} {head}", Sha256Sum::of(head.as_bytes()))?;
        writer.write_all(&lines)
    })
}

#[cfg(test)]
mod tests {
    use crate::local::scan::LocalArchive;

    use super::*;

    fn known(text: &str) -> Checked {
        Checked {
            sha256: Sha256Sum::of(text.as_bytes()),
            md5: common::checksum::md5_hex(text.as_bytes()),
            parts_etag: None,
            stamped: true,
            generated_at: "2026-02-15T00:44:06Z".parse().expect("a time"),
        }
    }

    const FINGERPRINT: Fingerprint = Fingerprint { size: 3, mtime_ns: 1, ctime_ns: 2, inode: 4 };

    fn unit() -> Unit {
        "binance/um/klines/1h/2026-02-14".parse().expect("a unit")
    }

    fn local(symbols: &[&str]) -> LocalUnit {
        let archive = |symbol: &&str| LocalArchive { symbol: (*symbol).to_owned(), fingerprint: FINGERPRINT };
        let archives = symbols.iter().map(archive).collect();
        LocalUnit { unit: unit(), marked: true, archives, unreadable: vec![] }
    }

    fn processed() -> ProcessedAs {
        ProcessedAs {
            archives: local(&["A", "B"]).digest(),
            message: Stamp { sequence: 7, revision: Sha256Sum::of(b"x") },
            place: "bucket/download".into(),
            objects: Some(2),
            published_at: None,
        }
    }

    /// A cache in `dir` that knows two archives, closed.
    fn filled(dir: &Path) -> Cache {
        let cache = Cache::open(Some(&dir.join("state")), dir);
        cache.load(&unit());
        cache.insert(&unit(), "A", FINGERPRINT, known("a"));
        cache.insert(&unit(), "B", FINGERPRINT, known("b"));
        assert!(cache.record_processed(&local(&["A", "B"]), Some(processed()), Some(false)));
        cache.close(&unit());
        cache
    }

    #[test]
    fn the_next_run_knows_what_this_one_found() {
        let dir = tempfile::tempdir().expect("a folder");
        filled(dir.path());
        let cache = Cache::open(Some(&dir.path().join("state")), dir.path());
        assert_eq!(cache.record(&unit()).processed, Some(processed()));
        cache.load(&unit());
        assert_eq!(cache.get(&unit(), "A", FINGERPRINT), Some(known("a")));
        assert_eq!(cache.get(&unit(), "A", Fingerprint { ctime_ns: 3, ..FINGERPRINT }), None);
        assert_eq!(cache.with_older(), []);
        assert!(!cache.record_processed(&local(&["A", "C"]), None, Some(true)), "C was never checked");
        cache.close(&unit());
        assert_eq!(cache.with_older(), [unit()]);
        cache.load(&unit());
        assert_eq!(cache.get(&unit(), "B", FINGERPRINT), None, "it is no longer there");
        cache.close(&unit());
        cache.retain(&HashSet::new());
        assert_eq!(cache.record(&unit()), Record::default());
    }

    #[test]
    fn damage_is_noticed_wherever_it_is() {
        let dir = tempfile::tempdir().expect("a folder");
        let cache = filled(dir.path());
        let file = cache.file(&unit()).expect("a place");
        let bytes = fs::read(&file).expect("read");
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            fs::write(&file, damaged).expect("written");
            cache.load(&unit());
            assert_eq!(cache.get(&unit(), "A", FINGERPRINT), None, "byte {at}");
            cache.close(&unit());
        }
        fs::write(&file, &bytes[..bytes.len() - 10]).expect("written");
        assert_eq!(read(&file).map(drop), None);
    }

    #[test]
    fn a_file_written_just_now_is_not_remembered() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("a.zip");
        fs::write(&file, "abc").expect("written");
        let fingerprint = Fingerprint::of(&fs::metadata(&file).expect("is there"));
        let cache = Cache::open(Some(dir.path()), dir.path());
        cache.load(&unit());
        cache.insert(&unit(), "A", fingerprint, known("a"));
        assert_eq!(cache.get(&unit(), "A", fingerprint), None);
        let archives = vec![LocalArchive { symbol: "A".into(), fingerprint }];
        assert!(!cache.record_processed(&LocalUnit { archives, ..local(&[]) }, Some(processed()), None));
    }
}
