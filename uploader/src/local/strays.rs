//! Files in `data_dir` that look like archives or completion marks and are not taken, because they lie elsewhere or are
//! spelt otherwise: counted by kind of mistake, with examples and the place where each would belong.
//!
//! Not reported, because they are no loss: names that begin with `.` or `_` (rsync's temporary files, folders such as
//! `_ingested`), `.CHECKSUM` files, archives that a cleanup has renamed, and downloads that may still go on.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, DirEntry};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use std::{fmt, io};

use common::text::printable;
use serde::{Serialize, Serializer};
use tokio_util::sync::CancellationToken;

use crate::local::complete::CompletenessRule;
use crate::local::scan::is_absent;
use crate::local::spelling::{Date, Format, Interval, Name};
use crate::local::{layout, marks, signs};

/// Folders above an archive, with some to spare: a loop of links ends here.
const DEPTH_MAX: usize = 12;
/// Most lines that are kept of folders that cannot be read.
const UNREADABLE_MAX: usize = 20;
/// Most files that are named of one kind of mistake.
const FILES_MAX: usize = 20;
/// A download that nobody has written to for so long has broken off.
const BROKEN_OFF: Duration = Duration::from_secs(3600);
/// The folders of the exchange's tree. In them every zip file is meant to be an archive; elsewhere its name has to say so.
const TREE: [&str; 3] = ["data/spot/", "data/futures/", "data/option/"];

/// A kind of mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Why {
    /// The name is right, the folder is not.
    Folder,
    /// The name is spelt otherwise than the exchange spells it.
    Name,
    /// By its name it is a second copy.
    Copy,
    /// Its date does not exist.
    Date,
    /// Its interval does not exist.
    Interval,
    /// Another container, or unpacked data.
    Format,
    /// A download that broke off.
    Partial,
    /// A completion mark that does not lie in the root of `data_dir`.
    MarkFolder,
    /// A completion mark that is spelt otherwise.
    MarkName,
    /// Its market, dataset or interval is not among those that are collected.
    NotCollected,
    /// No unit is known that it could belong to.
    Unknown,
}

/// All files that are not taken for one reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Strays {
    why: Why,
    count: usize,
    /// The first of them by their paths below `data_dir`, each with the place where it would belong, if that can be told.
    files: BTreeMap<String, Option<String>>,
}

impl Strays {
    /// The kind of mistake as JSON has it.
    pub(crate) fn class(&self) -> &'static str {
        match self.why {
            Why::Folder => "folder",
            Why::Name => "name",
            Why::Copy => "copy",
            Why::Date => "date",
            Why::Interval => "interval",
            Why::Format => "format",
            Why::Partial => "partial",
            Why::MarkFolder => "mark_folder",
            Why::MarkName => "mark_name",
            Why::NotCollected => "not_collected",
            Why::Unknown => "unknown",
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Warns of the first, and names more of them for who wants to read that.
    pub(crate) fn log(&self) {
        tracing::warn!("{self}");
        let more: Vec<String> = self.files.keys().skip(1).map(|path| printable(path)).collect();
        if !more.is_empty() {
            tracing::info!("not taken for the same reason: {}", more.join(", "));
        }
    }

    /// The paths that are kept.
    pub(crate) fn paths(&self) -> Vec<&str> {
        self.files.keys().map(String::as_str).collect()
    }

    /// Whether these are completion marks.
    pub(crate) fn are_marks(&self) -> bool {
        matches!(self.why, Why::MarkFolder | Why::MarkName)
    }

    /// Whether this may need no correction: somebody has said that these are not to be collected, the download may be begun
    /// anew, or they were left when the archives went: unpacked data, second copies, marks that somebody has put away.
    pub(crate) fn is_remark(&self) -> bool {
        match self.why {
            Why::NotCollected | Why::Partial | Why::Format | Why::Copy => true,
            Why::MarkFolder => !self.files.keys().any(|path| path.starts_with("data/")),
            Why::Folder | Why::Name | Why::Date | Why::Interval | Why::MarkName | Why::Unknown => false,
        }
    }

    fn example(&self) -> (&str, Option<&str>) {
        self.files.first_key_value().map(|(path, place)| (path.as_str(), place.as_deref())).unwrap_or_default()
    }

    fn add(&mut self, path: &str, place: Option<String>) {
        self.count += 1;
        self.files.insert(path.to_owned(), place);
        // The same ones each time, in whatever order folders are read.
        if self.files.len() > FILES_MAX {
            self.files.pop_last();
        }
    }
}

impl fmt::Display for Strays {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (example, place) = self.example();
        let (count, example) = (self.count, printable(example));
        let kind = if self.are_marks() { "a completion mark" } else { "an archive" };
        let (look, are) = if count == 1 { ("file looks", "is") } else { ("files look", "are") };
        write!(f, "{count} {look} like {kind} and {are} not taken, e.g. {example}: ")?;
        f.write_str(match self.why {
            Why::Folder => "it lies in another folder",
            Why::Name => "its name is spelt otherwise",
            Why::Copy => "by its name it is a second copy, to be removed if the archive is in its place",
            Why::Date => "its date does not exist",
            Why::Interval => "the exchange has no such interval",
            Why::Format => "only zip archives are taken, as the exchange publishes them",
            Why::Partial => "a download that broke off, nobody has written to it for an hour",
            Why::MarkFolder => "marks count in the root of local.data_dir only",
            Why::MarkName => "its name is spelt otherwise",
            Why::NotCollected => {
                "its market, dataset or interval is not collected (download.market, download.datasets, download.intervals)"
            }
            Why::Unknown => "no unit is known that it could belong to",
        })?;
        match (self.why, place) {
            // Another name would not make an archive of these.
            (Why::Format | Why::Partial, Some(place)) => write!(f, "; its archive would be {}", printable(place)),
            (_, Some(place)) => write!(f, "; it belongs to {}", printable(place)),
            (Why::MarkFolder | Why::MarkName, None) => write!(f, "; a mark is called {}", marks::SHAPE),
            (Why::Unknown, None) => f.write_str(
                "; archives belong to data/<market>/<daily|monthly>/<dataset>/SYMBOL/INTERVAL/SYMBOL-INTERVAL-PERIOD.zip",
            ),
            _ => Ok(()),
        }
    }
}

impl Serialize for Strays {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct File<'a> {
            path: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            place: Option<&'a str>,
        }
        #[derive(Serialize)]
        struct Fields<'a> {
            why: &'static str,
            count: usize,
            example: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            place: Option<&'a str>,
            files: Vec<File<'a>>,
        }
        let (example, place) = self.example();
        let files = self.files.iter().map(|(path, place)| File { path, place: place.as_deref() }).collect();
        Fields { why: self.class(), count: self.count, example, place, files }.serialize(serializer)
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
pub(crate) fn find(data_dir: &Path, rule: &CompletenessRule, stop: &CancellationToken) -> io::Result<Found> {
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
            if name.starts_with('.') {
                continue;
            }
            if is_folder(&entry, &mut linked) {
                if depth < DEPTH_MAX && !name.starts_with('_') {
                    folders.push((path, depth + 1));
                }
            } else if let Some(path) = path.to_str() {
                match judge(path, rule) {
                    Verdict::InPlace => found.in_place += 1,
                    Verdict::Ignored(Why::Partial, _) if may_go_on(&entry.path()) => {}
                    // Unpacked, or fetched again since: the archive itself is there.
                    Verdict::Ignored(Why::Format | Why::Partial, Some(place)) if data_dir.join(&place).is_file() => {}
                    // The unit has its mark in the right place, too.
                    Verdict::Ignored(Why::MarkFolder | Why::MarkName, _)
                        if marks::meant(&name).is_some_and(|unit| marks::is_marked(data_dir, &unit)) => {}
                    Verdict::Ignored(why, place) => found.add(why, path, place),
                    Verdict::Other => {}
                }
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
    fn add(&mut self, why: Why, path: &str, place: Option<String>) {
        let at = self.strays.iter().position(|strays| strays.why == why).unwrap_or_else(|| {
            self.strays.push(Strays { why, count: 0, files: BTreeMap::new() });
            self.strays.len() - 1
        });
        self.strays[at].add(path, place);
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// An archive where it belongs.
    InPlace,
    /// The kind of mistake, and where the file would belong.
    Ignored(Why, Option<String>),
    /// Neither an archive nor a mark, by its name and folder.
    Other,
}

/// Decides by the path of a file alone, below `data_dir`.
fn judge(path: &str, rule: &CompletenessRule) -> Verdict {
    let name = file_name(path);
    if rule.marks()
        && let Some(verdict) = judge_mark(path)
    {
        return verdict;
    }
    if name.starts_with('_') {
        return Verdict::Other;
    }
    if let Some((unit, _)) = layout::parse(path) {
        return if rule.by_archives() && !rule.marks() && !rule.allows(&unit) {
            Verdict::Ignored(Why::NotCollected, None)
        } else if layout::is_no_series(&unit).is_some() {
            Verdict::Ignored(Why::Interval, None)
        } else {
            Verdict::InPlace
        };
    }
    let spelt = Name::of(name);
    let place = spelt.place(path);
    let in_tree = TREE.iter().any(|folder| path.starts_with(folder));
    let resembles_archive = match spelt.format {
        Format::Zip if in_tree => true,
        // Elsewhere a date in a name means nothing.
        Format::Zip => {
            spelt.date.is_some() && (path.starts_with("data/") || matches!(spelt.interval, Interval::Known(_)))
        }
        Format::Other => in_tree,
        // The uploader's own downloads have parts of a .CHECKSUM, too.
        Format::Partial => in_tree && !name.contains(".CHECKSUM"),
        Format::Unknown => in_tree && place.is_some(),
    };
    if !resembles_archive {
        return Verdict::Other;
    }
    let why = match (spelt.format, &place) {
        (Format::Partial, _) => Why::Partial,
        (Format::Other, _) => Why::Format,
        (_, Some(_)) if spelt.is_copy => Why::Copy,
        (_, Some(place)) if file_name(place) == name => Why::Folder,
        (_, Some(_)) => Why::Name,
        (_, None) if spelt.date == Some(Date::DoesNotExist) => Why::Date,
        (_, None) if spelt.interval == Interval::DoesNotExist => Why::Interval,
        (_, None) => Why::Unknown,
    };
    Verdict::Ignored(why, place)
}

/// `None`: the file is not meant to be a completion mark.
fn judge_mark(path: &str) -> Option<Verdict> {
    let name = file_name(path);
    if name == path && name.starts_with(marks::MARK) {
        // A mark, or a name that `marks::read` reports.
        return Some(Verdict::Other);
    }
    let unit = marks::meant(name);
    if unit.is_none() && !marks::begins_like_a_mark(name) {
        return None;
    }
    let why = if marks::parse(name).is_some() { Why::MarkFolder } else { Why::MarkName };
    Some(Verdict::Ignored(why, unit.and_then(|unit| marks::name_of(&unit))))
}

/// Whether somebody may still be writing a part of a download, or the uploader's next download goes on with it: that one
/// has a `.part.of` beside it.
fn may_go_on(part: &Path) -> bool {
    let mut origin = part.as_os_str().to_owned();
    origin.push(".of");
    // Not the change time, which a new owner or a link changes too. A time in the future says nothing.
    let modified = fs::metadata(part).and_then(|metadata| metadata.modified()).ok();
    let age = modified.and_then(|modified| SystemTime::now().duration_since(modified).ok());
    age.is_none_or(|age| age < BROKEN_OFF) || Path::new(&origin).exists()
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

#[cfg(test)]
mod tests;
