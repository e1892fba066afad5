//! What the file system told of single archives: which came whole, and which somebody is writing.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

/// How long either is remembered. By then an archive that came by a rename is older than any sensible `watch.min_age`; and
/// a handle that is never closed, or that a forked process keeps, must not keep a unit for ever.
const EVENT_LIFETIME: Duration = Duration::from_secs(600);
/// After events were lost, age alone tells for so long: what is told of a write may be older than the loss, and that the
/// file was closed among what was lost.
const DEAF_FOR: Duration = Duration::from_secs(60);
/// Most archives that either is remembered of; of those beyond, age alone tells.
const NAMES_MAX: usize = 100_000;

/// Archives by their paths below `data_dir`, and when that was told.
#[derive(Debug, Default)]
pub(crate) struct Arrivals {
    whole: HashMap<String, Instant>,
    written: HashMap<String, Instant>,
    lost: Option<Instant>,
}

/// The same at one time.
#[derive(Debug, Clone, Default)]
pub(crate) struct FileEvents {
    /// Came by a rename: whole, whatever their age.
    pub(crate) whole: HashSet<String>,
    /// Written to and not closed since.
    pub(crate) written: HashSet<String>,
}

impl FileEvents {
    pub(crate) fn is_empty(&self) -> bool {
        self.whole.is_empty() && self.written.is_empty()
    }
}

impl Arrivals {
    /// Came by a rename.
    pub(crate) fn moved(&mut self, path: String) {
        self.written.remove(&path);
        remember(&mut self.whole, path);
    }

    /// Somebody writes to it.
    pub(crate) fn written(&mut self, path: String) {
        self.whole.remove(&path);
        if self.lost.is_none_or(|lost| lost.elapsed() > DEAF_FOR) {
            remember(&mut self.written, path);
        }
    }

    /// Made, or closed by who wrote to it.
    pub(crate) fn closed(&mut self, path: &str) {
        self.whole.remove(path);
        self.written.remove(path);
    }

    /// Events were lost, and among them may be that a file was written to, or closed.
    pub(crate) fn lost(&mut self) {
        *self = Self { lost: Some(Instant::now()), ..Self::default() };
    }

    pub(crate) fn events(&mut self) -> FileEvents {
        for paths in [&mut self.whole, &mut self.written] {
            paths.retain(|_, since| since.elapsed() < EVENT_LIFETIME);
        }
        FileEvents { whole: self.whole.keys().cloned().collect(), written: self.written.keys().cloned().collect() }
    }
}

fn remember(paths: &mut HashMap<String, Instant>, path: String) {
    if paths.len() >= NAMES_MAX {
        paths.clear();
    }
    paths.insert(path, Instant::now());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rename_brings_a_whole_archive_until_it_is_written_to() {
        let mut arrivals = Arrivals::default();
        arrivals.moved("a".into());
        assert!(arrivals.events().whole.contains("a"));
        arrivals.written("a".into());
        let events = arrivals.events();
        assert!(events.whole.is_empty() && events.written.contains("a"), "{events:?}");
        arrivals.closed("a");
        assert!(arrivals.events().is_empty());
    }

    #[test]
    fn who_never_closes_is_not_waited_for_for_ever() {
        let mut arrivals = Arrivals::default();
        arrivals.written("a".into());
        arrivals.written("b".into());
        arrivals.written.insert("a".into(), Instant::now().checked_sub(EVENT_LIFETIME).expect("a time"));
        assert_eq!(arrivals.events().written, HashSet::from(["b".into()]));
        arrivals.moved("c".into());
        arrivals.lost();
        arrivals.written("b".into());
        assert!(arrivals.events().is_empty(), "it may have been closed");
    }
}
