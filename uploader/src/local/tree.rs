//! The walk over `data_dir`: which units there are, and of each what tells whether anything of it has changed.
//!
//! Archives are counted and not kept: what is held grows with the units, of which there are hundreds where there are
//! a hundred thousand archives. Nothing is opened here.

use std::collections::{BTreeMap, HashMap};
use std::fs::{DirEntry, ReadDir};
use std::path::Path;
use std::sync::Arc;

use common::text::shorten;
use common::unit::{Period, Token, Unit};
use common::unit_filter::UnitFilter;
use tokio_util::sync::CancellationToken;

use crate::local::arrivals::FileEvents;
use crate::local::complete::CompletenessRule;
use crate::local::events::Folders;
use crate::local::scan::{Fingerprint, fingerprint, list_folder};
use crate::local::seen::Seen;
use crate::local::{layout, signs, staged_delete};

/// Up to this many periods of a folder, each is asked for by name; beyond, listing the folder is cheaper.
const PERIODS_BY_NAME_MAX: usize = 32;
/// Most lines that are kept of what is wrong with one folder, or with all that belongs to no unit.
const PROBLEMS_MAX: usize = 20;

/// What a walk found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// The newest periods first.
    pub(crate) units: Vec<(Unit, Seen)>,
    /// What was left out and belongs to no unit.
    pub(crate) problems: Vec<String>,
    /// Folders that could not be read and of which no unit tells: archives may lie there.
    pub(crate) unreadable: Vec<String>,
}

/// How to walk.
pub(crate) struct Walk<'a> {
    pub(crate) data_dir: &'a Path,
    pub(crate) rule: &'a CompletenessRule,
    /// What events told of single archives.
    pub(crate) events: &'a FileEvents,
    /// Told of every folder before that is read, so that nothing new is missed.
    pub(crate) folders: Option<&'a Folders>,
    /// Whether archives that a cleanup was about to remove when it died get their names back.
    pub(crate) puts_back: bool,
    pub(crate) stop: &'a CancellationToken,
}

impl Walk<'_> {
    /// Looks at these units. Blocks.
    pub(crate) fn units(&self, units: Vec<Unit>) -> Found {
        self.branches(branches_of(units), &UnitFilter::default())
    }

    /// Looks at these units, and finds those of configured markets, datasets and intervals. Blocks.
    pub(crate) fn everything(&self, units: Vec<Unit>, filter: &UnitFilter) -> Found {
        let mut branches = branches_of(units);
        let mut unreadable = Vec::new();
        for (market, folder) in layout::MARKET_FOLDERS {
            if !self.rule.allows_market(market) || !filter.allows_market(market) {
                continue;
            }
            for monthly in [false, true] {
                let folder = format!("data/{folder}/{}", layout::span(monthly));
                self.chain(&folder);
                let datasets = match list_folder(&self.data_dir.join(&folder)) {
                    Ok(entries) => names(&folder, entries, |why| push_bounded(&mut unreadable, why)),
                    Err(error) => {
                        push_bounded(&mut unreadable, format!("{folder} cannot be read: {error}"));
                        continue;
                    }
                };
                for dataset in datasets.iter().filter_map(|name| name.parse::<Token>().ok()) {
                    if self.rule.allows_dataset(dataset.as_str()) && filter.allows_dataset(dataset.as_str()) {
                        let folder = format!("{folder}/{dataset}");
                        let branch = branches.entry(folder).or_insert_with(|| Branch::new(market, dataset, monthly));
                        branch.any = true;
                    }
                }
            }
        }
        let mut found = self.branches(branches, filter);
        found.unreadable.extend(unreadable);
        found
    }

    fn branches(&self, branches: BTreeMap<String, Branch>, filter: &UnitFilter) -> Found {
        let mut found = Found::default();
        for (folder, mut branch) in branches {
            self.chain(&folder);
            self.symbols(&folder, &mut branch, filter, &mut found.problems);
            branch.finish(&mut found);
        }
        found.units.sort_by_cached_key(|(unit, _)| std::cmp::Reverse(unit.period.end()));
        found
    }

    /// One folder of symbols.
    fn symbols(&self, folder: &str, branch: &mut Branch, filter: &UnitFilter, problems: &mut Vec<String>) {
        let entries = match list_folder(&self.data_dir.join(folder)) {
            Ok(entries) => entries.into_iter().flatten(),
            Err(error) => return record(&mut branch.unreadable, format!("{folder} cannot be read: {error}")),
        };
        for entry in entries {
            if self.stop.is_cancelled() {
                return;
            }
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    return record(&mut branch.unreadable, format!("{folder} cannot be read to its end: {error}"));
                }
            };
            let name = entry.file_name();
            let path = format!("{folder}/{}", name.to_string_lossy());
            match name.to_str().filter(|name| layout::is_symbol(name)) {
                Some(symbol) => self.symbol(&path, symbol, &entry, branch, filter, problems),
                None if !path.contains("/.") && entry.path().is_dir() => {
                    push_bounded(problems, format!("{} is left out: no symbol has such a name", shorten(&path)));
                }
                None => {}
            }
        }
    }

    fn symbol(
        &self,
        path: &str,
        symbol: &str,
        entry: &DirEntry,
        branch: &mut Branch,
        filter: &UnitFilter,
        problems: &mut Vec<String>,
    ) {
        signs::bump();
        self.watch(path);
        if branch.any {
            match list_folder(&self.data_dir.join(path)) {
                Ok(Some(entries)) => {
                    let names = names(path, Some(entries), |why| record(&mut branch.unreadable, why));
                    for interval in names.iter().filter_map(|name| name.parse::<Token>().ok()) {
                        if self.rule.allows_interval(interval.as_str()) && filter.allows_interval(interval.as_str()) {
                            branch.intervals.entry(interval).or_default().any = true;
                        }
                    }
                }
                Ok(None) if entry.file_type().is_ok_and(|kind| kind.is_symlink()) => {
                    push_bounded(problems, format!("{} is a link that leads nowhere", shorten(path)));
                }
                Ok(None) => {}
                Err(error) => record(&mut branch.unreadable, format!("{path} cannot be read: {error}")),
            }
        }
        for (interval, leaf) in &mut branch.intervals {
            let path = format!("{path}/{interval}");
            self.watch(&path);
            let (monthly, listed) = (branch.monthly, self.rule.lists(symbol));
            let at = Leaf { path: &path, symbol, interval: interval.as_str(), monthly, listed };
            if leaf.any || leaf.periods.len() > PERIODS_BY_NAME_MAX {
                self.by_listing(&at, leaf, filter);
            } else {
                self.by_name(&at, leaf);
            }
        }
    }

    fn by_name(&self, at: &Leaf<'_>, interval: &mut Interval) {
        let folder = self.data_dir.join(at.path);
        for (period, seen) in &mut interval.periods {
            let name = format!("{}-{}-{period}.zip", at.symbol, at.interval);
            let file = folder.join(&name);
            let mut found = fingerprint(&file);
            if matches!(found, Ok(None)) && self.puts_back && staged_delete::is_staged(&file) {
                put_back(&file);
                found = fingerprint(&file);
            }
            match found {
                Ok(Some(fingerprint)) => self.add(at, &name, fingerprint, seen),
                Ok(None) => {}
                Err(why) => record(&mut seen.unreadable, format!("{}/{name} {why}", at.path)),
            }
        }
    }

    fn by_listing(&self, at: &Leaf<'_>, interval: &mut Interval, filter: &UnitFilter) {
        let entries = match list_folder(&self.data_dir.join(at.path)) {
            Ok(entries) => entries.into_iter().flatten(),
            Err(error) => return record(&mut interval.unreadable, format!("{} cannot be read: {error}", at.path)),
        };
        let mut left_staged = Vec::new();
        for entry in entries {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    let why = format!("{} cannot be read to its end: {error}", at.path);
                    return record(&mut interval.unreadable, why);
                }
            };
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            if let Some(name) = name.strip_suffix(staged_delete::ENDING)
                && layout::period_of(name, at.symbol, at.interval).is_some()
            {
                left_staged.push(entry.path().with_file_name(name));
            }
            let Some(period) = layout::period_of(name, at.symbol, at.interval) else { continue };
            if period.is_month() != at.monthly {
                continue;
            }
            let searched = interval.any && filter.allows_period(period);
            if !searched && !interval.periods.contains_key(&period) {
                continue;
            }
            // Only a link needs a second look, to where it leads.
            let fingerprint = match entry.file_type() {
                Ok(kind) if kind.is_file() => match entry.metadata() {
                    Ok(metadata) => Ok(Some(Fingerprint::of(&metadata))),
                    // It went away in between.
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
                    Err(error) => Err(format!("cannot be read: {error}")),
                },
                _ => fingerprint(&entry.path()),
            };
            match fingerprint {
                Ok(Some(fingerprint)) => {
                    self.add(at, name, fingerprint, interval.periods.entry(period).or_default());
                }
                Ok(None) => {}
                Err(why) => {
                    let seen = interval.periods.entry(period).or_default();
                    record(&mut seen.unreadable, format!("{}/{name} {why}", at.path));
                }
            }
        }
        // Not before the end: a name that comes while a folder is listed may be among those listed, or not. The next walk
        // has it.
        if self.puts_back {
            left_staged.iter().for_each(|file| put_back(file));
        }
    }

    fn add(&self, at: &Leaf<'_>, name: &str, fingerprint: Fingerprint, seen: &mut Seen) {
        signs::bump();
        seen.archives += 1;
        seen.bytes += fingerprint.size;
        seen.listed += usize::from(at.listed);
        seen.digest.add(at.symbol, fingerprint);
        let first = if seen.archives == 1 { i64::MAX } else { seen.first_arrived_ns };
        seen.first_arrived_ns = first.min(fingerprint.ctime_ns);
        seen.arrived_ns = seen.arrived_ns.max(fingerprint.ctime_ns);
        let events = self.events;
        let path = if events.is_empty() { None } else { Some(format!("{}/{name}", at.path)) };
        if path.as_ref().is_none_or(|path| !events.whole.contains(path)) {
            seen.written_ns = seen.written_ns.max(fingerprint.mtime_ns);
        }
        if let Some(path) = path.filter(|path| events.written.contains(path)) {
            seen.open = Some(path.into());
        }
    }

    /// Watches a folder and those above it.
    fn chain(&self, folder: &str) {
        if self.folders.is_some() {
            folder.match_indices('/').for_each(|(at, _)| self.watch(&folder[..at]));
            self.watch(folder);
        }
    }

    fn watch(&self, folder: &str) {
        if let Some(folders) = self.folders {
            folders.watch(self.data_dir, folder);
        }
    }
}

/// A folder that holds one folder a symbol.
struct Branch {
    market: &'static str,
    dataset: Token,
    monthly: bool,
    /// Whether intervals are looked for, or only those that are here already looked at.
    any: bool,
    intervals: BTreeMap<Token, Interval>,
    unreadable: Vec<Arc<str>>,
}

#[derive(Default)]
struct Interval {
    /// Whether periods are looked for, or only those that are here already looked at.
    any: bool,
    periods: HashMap<Period, Seen>,
    unreadable: Vec<Arc<str>>,
}

/// The folder of a symbol's interval, which holds the archives.
struct Leaf<'a> {
    path: &'a str,
    symbol: &'a str,
    interval: &'a str,
    monthly: bool,
    listed: bool,
}

impl Branch {
    fn new(market: &'static str, dataset: Token, monthly: bool) -> Self {
        Self { market, dataset, monthly, any: false, intervals: BTreeMap::new(), unreadable: Vec::new() }
    }

    /// A folder that cannot be read counts for every unit it may hold archives of. One that may hold archives of no unit
    /// that was found is reported by itself.
    fn finish(self, found: &mut Found) {
        let token = |text: &str| text.parse::<Token>().expect("names of our own");
        let (exchange, market) = (token(layout::EXCHANGE), token(self.market));
        let text = |why: &Arc<str>| why.to_string();
        if self.intervals.values().all(|interval| interval.periods.is_empty()) {
            found.unreadable.extend(self.unreadable.iter().map(text));
        }
        for (interval, Interval { periods, unreadable, .. }) in self.intervals {
            if periods.is_empty() {
                found.unreadable.extend(unreadable.iter().map(text));
            }
            for (period, mut seen) in periods {
                seen.unreadable.extend(self.unreadable.iter().chain(&unreadable).cloned());
                let (exchange, market, dataset) = (exchange.clone(), market.clone(), self.dataset.clone());
                found.units.push((Unit { exchange, market, dataset, interval: interval.clone(), period }, seen));
            }
        }
    }
}

fn branches_of(units: Vec<Unit>) -> BTreeMap<String, Branch> {
    let mut branches = BTreeMap::new();
    for unit in units {
        let market = layout::MARKET_FOLDERS.into_iter().find(|(market, _)| *market == unit.market.as_str());
        let Some((market, _)) = market.filter(|_| unit.exchange.as_str() == layout::EXCHANGE) else { continue };
        let folder = layout::symbols_folder(&unit);
        let branch =
            branches.entry(folder).or_insert_with(|| Branch::new(market, unit.dataset, unit.period.is_month()));
        branch.intervals.entry(unit.interval).or_default().periods.entry(unit.period).or_default();
    }
    branches
}

/// The names in a folder; `problem` gets why they may not be all.
fn names(folder: &str, entries: Option<ReadDir>, mut problem: impl FnMut(String)) -> Vec<String> {
    let mut names = Vec::new();
    for entry in entries.into_iter().flatten() {
        match entry {
            Ok(entry) => names.extend(entry.file_name().into_string().ok()),
            Err(error) => {
                problem(format!("{folder} cannot be read to its end: {error}"));
                break;
            }
        }
    }
    names
}

/// Nothing is lost where that does not work: the archive was announced, or stays for the next walk.
fn put_back(file: &Path) {
    if let Err(error) = staged_delete::put_back(file) {
        let (path, ending) = (file.display(), staged_delete::ENDING);
        tracing::warn!(%error, "{path}{ending} was left by a cleanup that was cut short, and cannot be put back");
    }
}

fn record(unreadable: &mut Vec<Arc<str>>, why: String) {
    if unreadable.len() < PROBLEMS_MAX {
        unreadable.push(why.into());
    }
}

fn push_bounded(problems: &mut Vec<String>, problem: String) {
    if problems.len() < PROBLEMS_MAX {
        problems.push(problem);
    }
}

#[cfg(test)]
mod tests;
