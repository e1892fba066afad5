//! What a service remembers of units from one pass to the next, so that what has not changed costs nothing.
//!
//! A unit takes a few hundred bytes, its archives none. All of it may be lost: the next pass asks disk, stream and
//! bucket again.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use common::backoff::{Backoff, Growth};
use common::unit::Unit;
use jiff::Timestamp;

use crate::local::complete::{Reason, Wait};
use crate::local::scan::SetDigest;
use crate::local::seen::Seen;
use crate::site::metrics::UnitCounts;
use crate::unit::process::Outcome;

/// A stream that lost its messages is noticed after this time at the latest.
const ASK_EVERY: Duration = Duration::from_secs(3600);
/// A unit that is held back is tried again by itself, less and less often; a change of its files comes first.
const HELD_BACK: Backoff = Backoff {
    initial: Duration::from_secs(30),
    growth: Growth::Exponential { factor: 2.0 },
    max: Duration::from_secs(3600),
};
/// Messages that are said once; beyond, they are said again.
const SAID_MAX: usize = 1000;

#[derive(Default)]
pub(crate) struct UnitMemory {
    units: HashMap<Unit, KnownUnit>,
    /// When all units were last compared with the stream, and how often the queue had been connected to by then.
    asked: Option<(Instant, u64)>,
    said: HashSet<String>,
    /// Whether files that look like archives and are not taken were reported.
    pub(crate) strays_reported: bool,
}

pub(crate) struct KnownUnit {
    /// Of the archives that `state` is about; `None`: not to be relied on.
    pub(crate) archives: Option<SetDigest>,
    /// Since when they are these, as far as was seen here.
    pub(crate) since: Timestamp,
    pub(crate) marked: bool,
    /// Whether some revision is known to be announced.
    pub(crate) published: bool,
    pub(crate) state: UnitState,
}

pub(crate) enum UnitState {
    /// `removable_at`: when its archives may leave the disk, if they are to.
    Processed {
        objects: Option<usize>,
        removable_at: Option<Timestamp>,
    },
    HeldBack {
        reasons: Vec<String>,
        tries: u32,
        again: Instant,
    },
    Unannounced {
        why: String,
    },
    Waiting {
        wait: Wait,
    },
}

impl UnitMemory {
    pub(crate) fn get(&self, unit: &Unit) -> Option<&KnownUnit> {
        self.units.get(unit)
    }

    /// What came of the unit when it was looked at last, if looking again would show the same.
    ///
    /// `asking`: the stream is to be asked of every unit. `away`: there is no stream to announce to.
    pub(crate) fn unchanged(
        &self,
        unit: &Unit,
        marked: bool,
        seen: &Seen,
        asking: bool,
        away: bool,
    ) -> Option<Outcome> {
        let known = self.units.get(unit)?;
        if known.archives != Some(seen.digest) || known.marked != marked {
            return None;
        }
        match &known.state {
            UnitState::Processed { objects, removable_at }
                if !asking && seen.unreadable.is_empty() && !is_past(*removable_at, common::clock::now()) =>
            {
                Some(Outcome::Unchanged { objects: *objects })
            }
            UnitState::HeldBack { reasons, again, .. } if Instant::now() < *again => {
                Some(Outcome::HeldBack(reasons.clone()))
            }
            UnitState::Unannounced { why } if away => Some(Outcome::Unannounced { why: why.clone() }),
            UnitState::Processed { .. }
            | UnitState::HeldBack { .. }
            | UnitState::Unannounced { .. }
            | UnitState::Waiting { .. } => None,
        }
    }

    /// Notes what came of a unit; says whether that is new and worth a line in the log.
    pub(crate) fn record(
        &mut self,
        unit: &Unit,
        marked: bool,
        archives: Option<SetDigest>,
        outcome: &Outcome,
        removable_at: Option<Timestamp>,
    ) -> bool {
        let before = self.units.get(unit);
        let was_published = before.is_some_and(|known| known.published);
        let (state, published, news) = match outcome {
            Outcome::Published { objects, .. } => {
                (UnitState::Processed { objects: Some(*objects), removable_at }, true, true)
            }
            Outcome::Unchanged { objects } => (UnitState::Processed { objects: *objects, removable_at }, true, false),
            Outcome::HeldBack(reasons) => {
                let (tries, unchanged) = match before.map(|known| &known.state) {
                    Some(UnitState::HeldBack { reasons: before, tries, .. }) => (*tries, before == reasons),
                    _ => (0, false),
                };
                let tries = if unchanged { tries + 1 } else { 1 };
                let again = Instant::now() + HELD_BACK.delay(tries);
                (UnitState::HeldBack { reasons: reasons.clone(), tries, again }, was_published, !unchanged)
            }
            Outcome::Unannounced { why } => {
                let unchanged = matches!(before.map(|known| &known.state), Some(UnitState::Unannounced { .. }));
                (UnitState::Unannounced { why: why.clone() }, was_published, !unchanged)
            }
            Outcome::Waiting { wait, .. } => {
                let open = |wait: &Wait| matches!(wait.reason, Reason::Open(_));
                let unchanged = match before.map(|known| &known.state) {
                    Some(UnitState::Waiting { wait: before }) => open(before) || !open(wait),
                    _ => false,
                };
                (UnitState::Waiting { wait: wait.clone() }, was_published, !unchanged)
            }
            Outcome::Planned { .. } => return true,
        };
        let unchanged = before.filter(|known| known.archives.is_some() && known.archives == archives);
        let since = unchanged.map_or_else(common::clock::now, |known| known.since);
        self.units.insert(unit.clone(), KnownUnit { archives, since, marked, published, state });
        news
    }

    /// Whether a message was not said before.
    pub(crate) fn is_news(&mut self, message: &str) -> bool {
        if self.said.len() >= SAID_MAX {
            self.said.clear();
        }
        self.said.insert(message.to_owned())
    }

    /// Whether all units are to be compared with the stream, and not only those that changed.
    pub(crate) fn is_to_ask(&self, connects: u64) -> bool {
        self.asked.is_none_or(|(at, before)| at.elapsed() > ASK_EVERY || connects != before)
    }

    /// All units were compared with the stream.
    pub(crate) fn asked(&mut self, connects: u64) {
        self.asked = Some((Instant::now(), connects));
    }

    /// Forgets units that are gone.
    pub(crate) fn retain(&mut self, units: &HashSet<Unit>) {
        self.units.retain(|unit, _| units.contains(unit));
    }

    /// Something happened to a unit: if it is held back, it is tried again at the next opportunity.
    pub(crate) fn doubt(&mut self, unit: &Unit) {
        if let Some(known) = self.units.get_mut(unit)
            && matches!(known.state, UnitState::HeldBack { .. })
        {
            known.archives = None;
        }
    }

    /// Forgets a unit that is gone.
    pub(crate) fn forget(&mut self, unit: &Unit) {
        self.units.remove(unit);
    }

    /// The units whose time has come.
    pub(crate) fn due(&self, now: Instant, clock: Timestamp) -> Vec<Unit> {
        let due = |known: &KnownUnit| match &known.state {
            UnitState::Waiting { wait } => wait.until <= clock,
            UnitState::HeldBack { again, .. } => *again <= now,
            UnitState::Processed { removable_at, .. } => is_past(*removable_at, clock),
            UnitState::Unannounced { .. } => false,
        };
        self.units.iter().filter(|(_, known)| due(known)).map(|(unit, _)| unit.clone()).collect()
    }

    /// How long until the next unit's time has come.
    pub(crate) fn next_due(&self, now: Instant, clock: Timestamp) -> Option<Duration> {
        let until = |at: Timestamp| Duration::try_from(at.duration_since(clock)).unwrap_or_default();
        let left = |known: &KnownUnit| match &known.state {
            UnitState::Waiting { wait } => Some(until(wait.until)),
            UnitState::HeldBack { again, .. } => Some(again.saturating_duration_since(now)),
            UnitState::Processed { removable_at, .. } => removable_at.map(until),
            UnitState::Unannounced { .. } => None,
        };
        self.units.values().filter_map(left).min()
    }

    pub(crate) fn unannounced(&self) -> Vec<Unit> {
        let waits = |known: &KnownUnit| matches!(known.state, UnitState::Unannounced { .. });
        self.units.iter().filter(|(_, known)| waits(known)).map(|(unit, _)| unit.clone()).collect()
    }

    pub(crate) fn counts(&self) -> UnitCounts {
        let mut counts = UnitCounts::default();
        for known in self.units.values() {
            match known.state {
                UnitState::Processed { .. } => {}
                UnitState::HeldBack { .. } => counts.held_back += 1,
                UnitState::Unannounced { .. } => counts.unannounced += 1,
                UnitState::Waiting { .. } => counts.waiting += 1,
            }
        }
        counts
    }
}

fn is_past(at: Option<Timestamp>, clock: Timestamp) -> bool {
    at.is_some_and(|at| at <= clock)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_back_is_said_once_and_tried_later() {
        let unit: Unit = "binance/um/klines/1h/2026-02-14".parse().expect("a unit");
        let (mut memory, seen) = (UnitMemory::default(), Seen::default());
        let unchanged = |memory: &UnitMemory, asking| memory.unchanged(&unit, true, &seen, asking, false);
        let held_back = Outcome::HeldBack(vec!["damaged".into()]);
        assert!(memory.record(&unit, true, Some(seen.digest), &held_back, None));
        assert!(!memory.record(&unit, true, Some(seen.digest), &held_back, None));
        assert!(matches!(unchanged(&memory, true), Some(Outcome::HeldBack(_))));
        assert!(memory.next_due(Instant::now(), Timestamp::now()).is_some_and(|left| left > Duration::from_secs(20)));
        memory.doubt(&unit);
        assert!(unchanged(&memory, false).is_none());
        memory.record(&unit, true, Some(seen.digest), &Outcome::Unchanged { objects: Some(1) }, None);
        assert!(unchanged(&memory, false).is_some() && unchanged(&memory, true).is_none());
        assert!(memory.unchanged(&unit, false, &seen, false, false).is_none(), "its mark was taken away");
        assert_eq!(memory.counts().held_back, 0);
    }
}
