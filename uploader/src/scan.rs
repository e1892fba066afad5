//! What lies in `data_dir`: the archives of the marked units, found by their names. Nothing is opened here.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use common::unit::{Period, Unit, shorten};
use jiff::civil::Date;
use serde::{Deserialize, Serialize};

use crate::layout;

/// Up to this many periods of a folder, each is asked for by name; beyond, listing the folder is cheaper.
const PERIODS_BY_NAME_MAX: usize = 32;

/// Which units a pass is about.
#[derive(Debug, Clone, Default)]
pub(crate) struct Filter {
    pub(crate) market: Option<String>,
    pub(crate) interval: Option<String>,
    /// Units whose period overlaps `from..=to`.
    pub(crate) from: Option<Date>,
    pub(crate) to: Option<Date>,
}

impl Filter {
    pub(crate) fn takes(&self, unit: &Unit) -> bool {
        let same = |want: &Option<String>, is: &str| want.as_deref().is_none_or(|want| want == is);
        same(&self.market, unit.market.as_str())
            && same(&self.interval, unit.interval.as_str())
            && self.from.is_none_or(|from| unit.period.last_day() >= from)
            && self.to.is_none_or(|to| unit.period.first_day() <= to)
    }

    pub(crate) fn takes_all(&self) -> bool {
        self.market.is_none() && self.interval.is_none() && self.from.is_none() && self.to.is_none()
    }
}

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
    pub(crate) fn has_settled(self) -> bool {
        const STEP: Duration = Duration::from_millis(100);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let changed = self.ctime_ns.max(self.mtime_ns);
        u64::try_from(changed).is_ok_and(|ns| Duration::from_nanos(ns) + STEP < now)
    }
}

/// An archive of a unit. Its path follows from the unit, so that a million of them fit into memory.
#[derive(Debug, Clone)]
pub(crate) struct LocalArchive {
    pub(crate) symbol: Arc<str>,
    pub(crate) fingerprint: Fingerprint,
}

/// A marked unit and what of it lies on disk.
#[derive(Debug, Clone)]
pub(crate) struct LocalUnit {
    pub(crate) unit: Unit,
    /// Sorted by symbol.
    pub(crate) archives: Vec<LocalArchive>,
    /// What could not be looked at, so that nobody knows whether the unit is complete.
    pub(crate) unreadable: Vec<String>,
}

/// Finds the archives of these units; keeps their order.
///
/// Links are followed. A loop of them does no harm: the tree is walked to a fixed depth.
pub(crate) fn scan(data_dir: &Path, units: Vec<Unit>) -> Vec<LocalUnit> {
    let mut folders: BTreeMap<(String, String), HashMap<Period, usize>> = BTreeMap::new();
    for (index, unit) in units.iter().enumerate() {
        let folder = (layout::symbols_folder(unit), unit.interval.to_string());
        folders.entry(folder).or_default().insert(unit.period, index);
    }
    let mut found: Vec<LocalUnit> =
        units.into_iter().map(|unit| LocalUnit { unit, archives: Vec::new(), unreadable: Vec::new() }).collect();
    for ((folder, interval), periods) in &folders {
        let mut walk = Walk { data_dir, interval, periods, found: &mut found };
        if let Err(unreadable) = walk.symbols(folder) {
            periods.values().for_each(|&index| found[index].unreadable.push(unreadable.clone()));
        }
    }
    for unit in &mut found {
        unit.archives.sort_unstable_by(|a, b| a.symbol.cmp(&b.symbol));
    }
    found
}

/// The walk of one folder of symbols, for the periods wanted of one interval.
struct Walk<'a> {
    data_dir: &'a Path,
    interval: &'a str,
    /// Each with its index in `found`.
    periods: &'a HashMap<Period, usize>,
    found: &'a mut Vec<LocalUnit>,
}

impl Walk<'_> {
    fn symbols(&mut self, folder: &str) -> Result<(), String> {
        let cannot = |path: &str, error: &io::Error| format!("{path} cannot be read: {error}");
        let Some(entries) = list(&self.data_dir.join(folder)).map_err(|error| cannot(folder, &error))? else {
            return Ok(());
        };
        for entry in entries {
            let name = entry.map_err(|error| cannot(folder, &error))?.file_name();
            let Some(symbol) = name.to_str() else { continue };
            let path = format!("{folder}/{symbol}/{}", self.interval);
            let outcome = if !layout::is_symbol(symbol) {
                if self.data_dir.join(&path).is_dir() {
                    tracing::warn!(folder = shorten(&path), "no symbol has such a name, the folder is left out");
                }
                Ok(())
            } else if self.periods.len() <= PERIODS_BY_NAME_MAX {
                self.by_name(&path, symbol)
            } else {
                self.by_listing(&path, symbol)
            };
            outcome.map_err(|error| cannot(&path, &error))?;
        }
        Ok(())
    }

    fn by_name(&mut self, path: &str, symbol: &str) -> io::Result<()> {
        let shared: Arc<str> = symbol.into();
        for (period, &index) in self.periods {
            let name = format!("{symbol}-{}-{period}.zip", self.interval);
            let file = self.data_dir.join(path).join(&name);
            match fs::metadata(&file) {
                Ok(metadata) => self.take(index, &shared, &metadata),
                Err(error) if is_absent(&error) => self.note_broken_link(index, &file, &format!("{path}/{name}")),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn by_listing(&mut self, path: &str, symbol: &str) -> io::Result<()> {
        let shared: Arc<str> = symbol.into();
        let Some(entries) = list(&self.data_dir.join(path))? else { return Ok(()) };
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let period = name.to_str().and_then(|name| layout::period_of(name, symbol, self.interval));
            let Some(&index) = period.and_then(|period| self.periods.get(&period)) else { continue };
            match fs::metadata(entry.path()) {
                Ok(metadata) => self.take(index, &shared, &metadata),
                Err(error) if is_absent(&error) => {
                    self.note_broken_link(index, &entry.path(), &format!("{path}/{}", name.display()));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn take(&mut self, index: usize, symbol: &Arc<str>, metadata: &Metadata) {
        if metadata.is_file() {
            let archive = LocalArchive { symbol: Arc::clone(symbol), fingerprint: Fingerprint::of(metadata) };
            self.found[index].archives.push(archive);
        }
    }

    /// An archive that is a link to nowhere was meant to be there: the unit is not complete.
    fn note_broken_link(&mut self, index: usize, file: &Path, path: &str) {
        if fs::symlink_metadata(file).is_ok_and(|metadata| metadata.is_symlink()) {
            self.found[index].unreadable.push(format!("{path} is a link that leads nowhere"));
        }
    }
}

/// The entries of a folder; `None` when there is no such folder, or the name is that of something else.
fn list(folder: &Path) -> io::Result<Option<fs::ReadDir>> {
    match fs::read_dir(folder) {
        Ok(entries) => Ok(Some(entries)),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_absent(error: &io::Error) -> bool {
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

    fn write(data_dir: &Path, path: &str) {
        let path = data_dir.join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs::write(path, "x").expect("written");
    }

    fn symbols(unit: &LocalUnit) -> Vec<&str> {
        unit.archives.iter().map(|archive| archive.symbol.as_ref()).collect()
    }

    #[test]
    fn archives_are_found_whether_asked_by_name_or_listed() {
        let dir = tempfile::tempdir().expect("a folder");
        for symbol in ["ETHUSDT", "BTCUSDT", "币安人生USDT"] {
            for day in 1..=40 {
                let date = jiff::civil::date(2026, 1, 1).saturating_add(jiff::Span::new().days(day - 1));
                write(dir.path(), &format!("data/spot/daily/klines/{symbol}/1h/{symbol}-1h-{date}.zip"));
            }
        }
        let folder = "data/spot/daily/klines/BTCUSDT/1h";
        for other in ["BTCUSDT-1h-2026-01-01.zip.CHECKSUM", "BTCUSDT-1h-2026-01-01.zip.tmp", "readme.txt"] {
            write(dir.path(), &format!("{folder}/{other}"));
        }
        fs::create_dir(dir.path().join(folder).join("BTCUSDT-1h-2026-06-01.zip")).expect("made");
        std::os::unix::fs::symlink("loop", dir.path().join("data/spot/daily/klines/loop")).expect("linked");
        std::os::unix::fs::symlink("..", dir.path().join("data/spot/daily/klines/UP")).expect("linked");

        let days = |n: i64| -> Vec<Unit> {
            let day = |d| jiff::civil::date(2026, 1, 1).saturating_add(jiff::Span::new().days(d));
            (0..n).map(|d| unit(&format!("binance/spot/klines/1h/{}", day(d)))).collect()
        };
        for n in [2, 40] {
            let found = scan(dir.path(), days(n));
            for unit in &found {
                assert_eq!(symbols(unit), ["BTCUSDT", "ETHUSDT", "币安人生USDT"], "{}", unit.unit);
                assert!(unit.unreadable.is_empty(), "{:?}", unit.unreadable);
            }
        }
        let found =
            scan(dir.path(), vec![unit("binance/spot/klines/1h/2026-06-01"), unit("binance/um/klines/1h/2026-01-01")]);
        assert!(found.iter().all(|unit| unit.archives.is_empty() && unit.unreadable.is_empty()), "{found:?}");
    }

    #[test]
    fn a_link_to_nowhere_is_told() {
        let dir = tempfile::tempdir().expect("a folder");
        let folder = dir.path().join("data/spot/daily/klines/BTCUSDT/1h");
        fs::create_dir_all(&folder).expect("made");
        std::os::unix::fs::symlink("gone", folder.join("BTCUSDT-1h-2026-01-01.zip")).expect("linked");
        let found = scan(dir.path(), vec![unit("binance/spot/klines/1h/2026-01-01")]);
        assert_eq!(found[0].unreadable.len(), 1, "{found:?}");
    }

    #[test]
    fn a_filter_takes_what_overlaps() {
        let date = |text: &str| Some(text.parse().expect(text));
        let filter =
            Filter { market: Some("um".into()), from: date("2026-02-10"), to: date("2026-02-20"), ..Filter::default() };
        let check = |text: &str, takes| assert_eq!(filter.takes(&unit(text)), takes, "{text}");
        check("binance/um/klines/1h/2026-02-10", true);
        check("binance/um/klines/1h/2026-02-20", true);
        check("binance/um/klines/1h/2026-02", true);
        check("binance/um/klines/1h/2026-02-09", false);
        check("binance/um/klines/1h/2026-02-21", false);
        check("binance/spot/klines/1h/2026-02-14", false);
    }
}
