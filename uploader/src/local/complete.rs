//! Whether a unit is complete, and what it waits for if it is not. Decided here and nowhere else.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use common::config::{Config, Symbols, When};
use common::marker::{Incomplete, Object};
use common::unit::Unit;
use jiff::Timestamp;

use crate::local::scan::LocalUnit;
use crate::local::seen::Seen;

/// Most names of missing symbols that are shown of a unit that waits.
const NAMES_MAX: usize = 20;

/// What is to be published when.
#[derive(Debug, Default)]
pub(crate) struct CompletenessRule {
    marks: bool,
    by_archives: bool,
    quiet_period: Duration,
    grace: Duration,
    /// Sorted; empty: all there are.
    symbols: Vec<String>,
    listed: HashSet<String>,
    /// What is collected; an empty list takes all.
    markets: Vec<String>,
    datasets: Vec<String>,
    intervals: Vec<String>,
}

/// A unit as it lies on disk, and what else is known of it.
pub(crate) struct Situation<'a> {
    pub(crate) seen: &'a Seen,
    pub(crate) marked: bool,
    /// Whether some revision of it was announced.
    pub(crate) published: bool,
    /// When this uploader saw its first archive.
    pub(crate) first_seen: Timestamp,
    pub(crate) now: Timestamp,
}

/// What a unit waits for. More archives may end the wait before its time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wait {
    pub(crate) reason: Reason,
    pub(crate) until: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reason {
    /// Somebody writes this archive and has not closed it.
    Open(Arc<str>),
    /// An archive was written to within `watch.min_age`.
    Written,
    /// `publish.settle`, after the last archive that came.
    Quiet,
    /// So many configured symbols, for `publish.grace` after the first archive.
    Symbols(usize),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open(path) => write!(f, "waits until {path} is closed by who writes it"),
            Self::Written => f.write_str("waits until an archive has not been written to for watch.min_age"),
            Self::Quiet => f.write_str("waits until no archive has come for publish.settle"),
            Self::Symbols(1) => f.write_str("waits for 1 symbol, at most publish.grace"),
            Self::Symbols(many) => write!(f, "waits for {many} symbols, at most publish.grace"),
        }
    }
}

impl CompletenessRule {
    pub(crate) fn new(config: &Config) -> Self {
        let (when, download) = (config.publish.when, &config.download);
        let symbols = match &download.symbols {
            Symbols::All => Vec::new(),
            Symbols::Listed(symbols) => symbols.clone(),
        };
        Self {
            marks: when != When::Complete,
            by_archives: when != When::Marked,
            quiet_period: config.publish.quiet_period,
            grace: config.publish.grace,
            listed: symbols.iter().cloned().collect(),
            symbols,
            markets: download.markets.clone(),
            datasets: download.datasets.clone(),
            intervals: download.intervals.clone(),
        }
    }

    /// Marks alone count.
    #[cfg(test)]
    pub(crate) fn marked() -> Self {
        Self { marks: true, ..Self::default() }
    }

    /// Whether marks count.
    pub(crate) fn marks(&self) -> bool {
        self.marks
    }

    /// Whether units are found by their archives.
    pub(crate) fn by_archives(&self) -> bool {
        self.by_archives
    }

    pub(crate) fn allows_market(&self, market: &str) -> bool {
        allows(&self.markets, market)
    }

    pub(crate) fn allows_dataset(&self, dataset: &str) -> bool {
        allows(&self.datasets, dataset)
    }

    pub(crate) fn allows_interval(&self, interval: &str) -> bool {
        allows(&self.intervals, interval)
    }

    pub(crate) fn lists(&self, symbol: &str) -> bool {
        self.listed.contains(symbol)
    }

    /// Whether a market, dataset and interval are among those collected.
    pub(crate) fn allows(&self, unit: &Unit) -> bool {
        self.allows_market(unit.market.as_str())
            && self.allows_dataset(unit.dataset.as_str())
            && self.allows_interval(unit.interval.as_str())
    }

    /// Whether a unit may have to wait for symbols, so that it matters when it was first seen.
    pub(crate) fn misses_symbols(&self, seen: &Seen, marked: bool, published: bool) -> bool {
        !(published || marked && self.marks) && seen.listed < self.symbols.len()
    }

    /// What the unit has to wait for; `None`: it is to be published as it is.
    ///
    /// A unit that is out already says at once what is new about it, unless nobody knows how much more is to come.
    pub(crate) fn judge(&self, situation: &Situation<'_>) -> Option<Wait> {
        let Situation { seen, marked, published, first_seen, now } = *situation;
        if marked && self.marks {
            return None;
        }
        let wait = if self.symbols.is_empty() {
            // A clock that was set back must not hold a unit for ever: what came in the future came long ago.
            let arrived = Timestamp::from_nanosecond(seen.arrived_ns.into()).ok().filter(|arrived| *arrived <= now);
            Wait { reason: Reason::Quiet, until: after(arrived?, self.quiet_period) }
        } else {
            let missing = self.symbols.len().saturating_sub(seen.listed);
            if !self.misses_symbols(seen, marked, published) {
                return None;
            }
            Wait { reason: Reason::Symbols(missing), until: after(first_seen, self.grace) }
        };
        (wait.until > now).then_some(wait)
    }

    /// The configured symbols of which a unit has no archive here, and how many they are.
    pub(crate) fn missing_here(&self, local: &LocalUnit) -> Vec<String> {
        let here =
            |symbol: &str| local.archives.binary_search_by(|archive| archive.symbol.as_str().cmp(symbol)).is_ok();
        self.symbols.iter().filter(|symbol| !here(symbol)).take(NAMES_MAX).cloned().collect()
    }

    /// What a marker of these objects has to say it lacks. A mark is somebody's word that nothing is missing.
    pub(crate) fn incomplete(&self, marked: bool, objects: &[Object]) -> Option<Incomplete> {
        if marked || self.symbols.is_empty() {
            return None;
        }
        let here: HashSet<&str> = objects.iter().map(|object| object.symbol.as_str()).collect();
        Incomplete::of(self.symbols.iter().filter(|symbol| !here.contains(symbol.as_str())).cloned().collect())
    }
}

fn allows(names: &[String], name: &str) -> bool {
    names.is_empty() || names.iter().any(|rule| rule == name)
}

fn after(time: Timestamp, wait: Duration) -> Timestamp {
    time.saturating_add(jiff::SignedDuration::try_from(wait).unwrap_or(jiff::SignedDuration::MAX))
        .unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn rule(symbols: &[&str]) -> CompletenessRule {
        let symbols: Vec<String> = symbols.iter().map(ToString::to_string).collect();
        CompletenessRule {
            marks: true,
            by_archives: true,
            quiet_period: HOUR,
            grace: 2 * HOUR,
            listed: symbols.iter().cloned().collect(),
            symbols,
            ..CompletenessRule::default()
        }
    }

    fn seen(listed: usize, arrived: Timestamp) -> Seen {
        let arrived_ns = i64::try_from(arrived.as_nanosecond()).expect("within our time");
        Seen { archives: listed, listed, arrived_ns, ..Seen::default() }
    }

    #[test]
    fn what_a_unit_waits_for() {
        let now: Timestamp = "2026-02-15T12:00:00Z".parse().expect("a time");
        let ago = |hours: i64| now - jiff::SignedDuration::from_hours(hours);
        let check = |symbols: &[&str], listed, came: Timestamp, marked, published, expected: Option<Reason>| {
            let (rule, seen) = (rule(symbols), seen(listed, came));
            let situation = Situation { seen: &seen, marked, published, first_seen: came, now };
            assert_eq!(rule.judge(&situation).map(|wait| wait.reason), expected, "{symbols:?} {listed} {came}");
        };
        let two = ["A", "B"];
        check(&two, 2, now, false, false, None);
        check(&two, 1, now, false, false, Some(Reason::Symbols(1)));
        check(&two, 1, ago(1), false, false, Some(Reason::Symbols(1)));
        check(&two, 1, ago(2), false, false, None);
        check(&two, 1, now, true, false, None);
        check(&two, 1, now, false, true, None);
        check(&[], 9, now, false, false, Some(Reason::Quiet));
        check(&[], 9, now, false, true, Some(Reason::Quiet));
        check(&[], 9, now, true, false, None);
        check(&[], 9, ago(1), false, false, None);
        check(&[], 9, ago(-5), false, false, None);
    }
}
