//! Files in `data_dir` that look like archives and lie, or are spelt, so that they are not taken: counted, with an example
//! and the place it would belong to. Whoever puts archives there by hand or by another program learns of it.

use std::collections::HashSet;
use std::fs::{self, DirEntry};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::{fmt, path::PathBuf};

use common::catalogue::{DATASETS, INTERVALS};
use common::unit::{Period, Unit, shorten};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::complete::Wanted;
use crate::scan::is_absent;
use crate::{layout, signs};

/// Folders above an archive, with some to spare: a loop of links ends here.
const DEPTH_MAX: usize = 12;
/// Most lines that are kept of folders that cannot be read.
const UNREADABLE_MAX: usize = 20;

/// Why files that look like archives are not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Why {
    /// The name is right, the folder is not.
    Folder,
    /// The name is spelt otherwise than the exchange spells it.
    Name,
    /// Its market, dataset or interval is not among those that are collected.
    NotCollected,
    /// No unit is known that it could belong to.
    Unknown,
}

/// All files that are not taken for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Strays {
    why: Why,
    count: usize,
    /// The first of them, below `data_dir`.
    example: String,
    /// Where that would belong, if it can be told.
    #[serde(skip_serializing_if = "Option::is_none")]
    place: Option<String>,
}

impl Strays {
    /// Whether they lie where they belong, and somebody has said that they are not to be collected.
    pub(crate) fn are_left_out(&self) -> bool {
        self.why == Why::NotCollected
    }
}

impl fmt::Display for Strays {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (example, files) = (shorten(&self.example), if self.count == 1 { "file looks" } else { "files look" });
        let are = if self.count == 1 { "is" } else { "are" };
        write!(f, "{} {files} like an archive and {are} not taken, e.g. {example}: ", self.count)?;
        match (self.why, &self.place) {
            (Why::NotCollected, _) => f.write_str(
                "its market, dataset or interval is not collected (download.market, download.datasets, download.intervals)",
            ),
            (_, Some(place)) => write!(f, "it belongs to {}", shorten(place)),
            (_, None) => f.write_str(
                "no unit is known that it could belong to; archives belong to \
                 data/<market>/<daily|monthly>/<dataset>/SYMBOL/INTERVAL/SYMBOL-INTERVAL-PERIOD.zip",
            ),
        }
    }
}

/// What a look through all of `data_dir` found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Archives where they belong, whether or not their unit is complete.
    pub(crate) in_place: usize,
    pub(crate) strays: Vec<Strays>,
    /// Folders of the exchange's tree that cannot be read.
    pub(crate) unreadable: Vec<String>,
}

/// Looks through all of `data_dir` by names. Blocks.
///
/// # Errors
/// The folder itself cannot be read.
pub(crate) fn find(data_dir: &Path, wanted: &Wanted, stop: &CancellationToken) -> io::Result<Found> {
    let mut found = Found::default();
    let mut linked = HashSet::new();
    let mut folders = vec![(PathBuf::new(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        // A slow disk answers one folder after another.
        signs::bump();
        let entries = match fs::read_dir(data_dir.join(&folder)) {
            Ok(entries) => entries,
            Err(error) if depth == 0 => return Err(error),
            Err(error) => {
                // Elsewhere it may be anything, such as the lost+found of a disk.
                if depth > 1 && folder.starts_with("data") && found.unreadable.len() < UNREADABLE_MAX {
                    found.unreadable.push(format!("{} cannot be read: {error}", folder.display()));
                }
                continue;
            }
        };
        for entry in entries.flatten() {
            if stop.is_cancelled() {
                return Ok(found);
            }
            let Ok(name) = entry.file_name().into_string() else { continue };
            let path = folder.join(&name);
            if name.starts_with(['.', '_']) {
                continue;
            }
            if is_folder(&entry, &mut linked) {
                if depth < DEPTH_MAX {
                    folders.push((path, depth + 1));
                }
            } else if has_ending(&name)
                && let Some(path) = path.to_str()
            {
                found.take(path, wanted);
            }
        }
    }
    found.strays.sort_by_key(|strays| strays.why);
    Ok(found)
}

/// Whether an entry is a folder to look into; one that a link leads to is looked into once.
fn is_folder(entry: &DirEntry, linked: &mut HashSet<(u64, u64)>) -> bool {
    match entry.file_type() {
        Ok(kind) if kind.is_symlink() => match fs::metadata(entry.path()) {
            Ok(metadata) => metadata.is_dir() && linked.insert((metadata.dev(), metadata.ino())),
            // Reading it gives the reason.
            Err(error) => !is_absent(&error),
        },
        Ok(kind) => kind.is_dir(),
        Err(_) => false,
    }
}

impl Found {
    fn take(&mut self, path: &str, wanted: &Wanted) {
        let why = match layout::parse(path) {
            Some((unit, _)) if wanted.by_archives() && !wanted.marks() && !wanted.takes(&unit) => Why::NotCollected,
            Some(_) => {
                self.in_place += 1;
                return;
            }
            None => Why::Unknown,
        };
        let Some(name) = Name::of(path) else { return };
        let place = name.place(path);
        let why = match &place {
            _ if why == Why::NotCollected => why,
            Some(place) if file_name(place) == file_name(path) => Why::Folder,
            Some(_) => Why::Name,
            None => Why::Unknown,
        };
        let place = place.filter(|_| why != Why::NotCollected);
        match self.strays.iter_mut().find(|strays| strays.why == why) {
            Some(strays) => {
                strays.count += 1;
                // The same one each time, in whatever order folders are read.
                if path < strays.example.as_str() {
                    (strays.example, strays.place) = (path.to_owned(), place);
                }
            }
            None => self.strays.push(Strays { why, count: 1, example: path.to_owned(), place }),
        }
    }
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn has_ending(name: &str) -> bool {
    name.len() > 4 && name.as_bytes()[name.len() - 4..].eq_ignore_ascii_case(b".zip")
}

/// What the name of a file says, however it is spelt.
struct Name {
    symbol: String,
    interval: Option<&'static str>,
    period: Period,
}

impl Name {
    /// `None`: it does not look like the name of an archive.
    fn of(path: &str) -> Option<Self> {
        let name = file_name(path);
        let mut parts: Vec<&str> = name.get(..name.len() - 4)?.split('-').collect();
        let is_number = |part: &&str| (1..=4).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit());
        let numbers = parts.iter().rev().take(3).take_while(|part| is_number(part)).count();
        let numbers = parts.split_off(parts.len() - numbers);
        let number = |part: &&str| part.parse::<u16>().ok();
        let period = match numbers.iter().map(number).collect::<Option<Vec<_>>>()?.as_slice() {
            [year, month, day] if *year >= 2000 => format!("{year}-{month:02}-{day:02}"),
            [year, month] | [_, year, month] if *year >= 2000 => format!("{year}-{month:02}"),
            _ => return None,
        };
        let interval = parts.pop().and_then(interval);
        // Elsewhere a date in a name means nothing.
        if interval.is_none() && !path.starts_with("data/") {
            return None;
        }
        Some(Self { symbol: parts.join("-").to_uppercase(), interval, period: period.parse().ok()? })
    }

    /// Where it belongs, by its name and the folders it lies in.
    fn place(&self, path: &str) -> Option<String> {
        let folders: Vec<String> = path.rsplit('/').skip(1).map(str::to_lowercase).collect();
        let has = |name: &str| folders.iter().any(|folder| folder == name);
        let market = ["um", "cm", "spot"].into_iter().find(|market| has(market))?;
        let dataset = DATASETS.into_iter().find(|dataset| has(&dataset.to_lowercase())).unwrap_or(layout::DATASET);
        let unit = Unit {
            exchange: layout::EXCHANGE.parse().ok()?,
            market: market.parse().ok()?,
            dataset: dataset.parse().ok()?,
            interval: self.interval?.parse().ok()?,
            period: self.period,
        };
        layout::is_symbol(&self.symbol).then(|| layout::archive_path(&unit, &self.symbol))
    }
}

/// An interval as the exchange spells it. A minute and a month differ in their case only.
fn interval(text: &str) -> Option<&'static str> {
    let exact = INTERVALS.into_iter().find(|interval| *interval == text);
    exact.or_else(|| INTERVALS.into_iter().find(|interval| *interval == text.to_lowercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_folder_that_is_read_shows_that_the_pass_gets_on() {
        let dir = tempfile::tempdir().expect("a folder");
        for symbol in 0..200 {
            fs::create_dir_all(dir.path().join(format!("data/spot/daily/klines/S{symbol}/1h"))).expect("made");
        }
        let before = signs::count();
        find(dir.path(), &Wanted::default(), &CancellationToken::new()).expect("read");
        // Other tests of the process may count too.
        assert!(signs::count() - before >= 400);
    }

    #[test]
    fn folders_of_the_tree_that_cannot_be_read_are_told() {
        let dir = tempfile::tempdir().expect("a folder");
        fs::create_dir_all(dir.path().join("data/spot/daily/klines/BTCUSDT")).expect("made");
        let unreadable = Path::new("data/spot/daily/klines/BTCUSDT/1h");
        // root may read every folder, and so may a test; nobody follows such a name.
        std::os::unix::fs::symlink("x".repeat(300), dir.path().join(unreadable)).expect("linked");
        let found = find(dir.path(), &Wanted::default(), &CancellationToken::new()).expect("read");
        assert_eq!(found.unreadable.len(), 1, "{found:?}");
    }

    #[test]
    fn the_place_of_a_file_is_told_by_its_name_and_folders() {
        let check = |path: &str, why: Option<Why>, place: Option<&str>| {
            let mut found = Found::default();
            found.take(path, &Wanted::default());
            let stray = found.strays.first();
            assert_eq!(stray.map(|stray| stray.why), why, "{path}");
            assert_eq!(stray.and_then(|stray| stray.place.as_deref()), place, "{path}");
        };
        let right = "data/spot/daily/klines/BTCUSDT/1h/BTCUSDT-1h-2026-02-14.zip";
        let month = "data/futures/um/monthly/klines/BTCUSDT/1h/BTCUSDT-1h-2020-08.zip";
        check(right, None, None);
        for path in [
            "data/spot/daily/klines/BTCUSDT/1h/2026-02-01_2026-03-01/BTCUSDT-1h-2026-02-14.zip",
            "data/spot/klines/BTCUSDT/1h/BTCUSDT-1h-2026-02-14.zip",
            "data/spot/daily/klines/BTCUSDT/1m/BTCUSDT-1h-2026-02-14.zip",
            "data/spot/monthly/klines/BTCUSDT/1h/BTCUSDT-1h-2026-02-14.zip",
            "spot/BTCUSDT-1h-2026-02-14.zip",
        ] {
            check(path, Some(Why::Folder), Some(right));
        }
        check("data/futures/um/monthly/klines/BTCUSDT/1h/BTCUSDT-1h-2020-8.zip", Some(Why::Name), Some(month));
        check("data/futures/um/monthly/klines/BTCUSDT/1h/btcusdt-1H-2020-08.ZIP", Some(Why::Name), Some(month));
        check("data/option/daily/klines/BTC/1h/BTC-1h-2026-02-14.zip", Some(Why::Unknown), None);
        check("data/spot/daily/trades/BTCUSDT/BTCUSDT-trades-2026-02-14.zip", Some(Why::Unknown), None);
        for path in ["backup.zip", "photos-2024-05.zip", "data/notes.zip"] {
            check(path, None, None);
        }
    }
}
