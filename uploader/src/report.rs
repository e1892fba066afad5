//! What a pass did, for people and as JSON.

use std::time::Duration;

use common::exit;
use common::marker::Incomplete;
use common::unit::shorten;
use jiff::Timestamp;
use serde::Serialize;

use crate::settle::{Outcome, Settled};

/// Most waiting units that are named on a terminal.
const LINES_MAX: usize = 50;

/// What a pass did, or would do.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    pub(crate) dry_run: bool,
    pub(crate) units: Units,
    pub(crate) archives: Archives,
    pub(crate) bytes_uploaded: u64,
    pub(crate) seconds: f64,
    pub(crate) published: Vec<PublishedUnit>,
    pub(crate) held_back: Vec<HeldBackUnit>,
    pub(crate) unannounced: Vec<UnannouncedUnit>,
    /// Not complete yet.
    pub(crate) waiting: Vec<WaitingUnit>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) planned: Vec<PlannedUnit>,
    /// Names in `data_dir` that begin like a mark and are none.
    pub(crate) bad_marks: Vec<String>,
    /// What in `data_dir` was left out or could not be read, and belongs to no unit.
    pub(crate) problems: Vec<String>,
    /// Why the pass ended early.
    pub(crate) error: Option<String>,
    #[serde(skip)]
    error_code: Option<u8>,
    /// Whether units are found by their archives, and not only by their marks.
    #[serde(skip)]
    by_archives: bool,
    pub(crate) exit_code: u8,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct Units {
    /// Marked, or found by their archives.
    pub(crate) total: usize,
    pub(crate) marked: usize,
    pub(crate) published: usize,
    pub(crate) unchanged: usize,
    pub(crate) held_back: usize,
    pub(crate) unannounced: usize,
    pub(crate) waiting: usize,
    /// Of the published, those without some of the configured symbols.
    pub(crate) incomplete: usize,
    /// Not looked at, because the pass ended early.
    pub(crate) left: usize,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct Archives {
    /// Named by the markers of the units that are published, now or earlier.
    pub(crate) published: usize,
    /// Units whose archives are not in `published`: only the bucket knows how many they are.
    pub(crate) units_not_counted: usize,
    /// Opened, checked and hashed; of the others that is known from an earlier run.
    pub(crate) read: u64,
    pub(crate) uploaded: u64,
    pub(crate) already_there: u64,
    /// Removed from disk.
    pub(crate) removed: u64,
    /// What could not be removed.
    pub(crate) not_removed: Vec<String>,
}

#[derive(Debug, Serialize)]
pub(crate) struct PublishedUnit {
    unit: String,
    subject: String,
    revision: String,
    objects: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    incomplete: Option<Incomplete>,
    #[serde(skip)]
    incomplete_before: bool,
}

#[derive(Debug, Serialize)]
pub(crate) struct WaitingUnit {
    unit: String,
    why: String,
    /// More archives may end the wait before.
    until: Timestamp,
    /// The symbols it waits for, or the first of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    missing: Vec<String>,
}

#[derive(Debug, Serialize)]
pub(crate) struct HeldBackUnit {
    unit: String,
    reasons: Vec<String>,
}

#[derive(Debug, Serialize)]
pub(crate) struct UnannouncedUnit {
    unit: String,
    why: String,
}

#[derive(Debug, Serialize)]
pub(crate) struct PlannedUnit {
    unit: String,
    archives: usize,
    archives_to_upload: u64,
    bytes_to_upload: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    incomplete: Option<Incomplete>,
}

impl Report {
    pub(crate) fn new(dry_run: bool, by_archives: bool) -> Self {
        Self { dry_run, by_archives, ..Self::default() }
    }

    pub(crate) fn add(&mut self, settled: Settled) {
        let unit = settled.unit.to_string();
        self.archives.uploaded += settled.transferred.uploaded;
        self.archives.already_there += settled.transferred.present;
        self.bytes_uploaded += settled.transferred.bytes;
        self.archives.removed += settled.removed.archives;
        self.archives.not_removed.extend(settled.removed.problems);
        match settled.outcome {
            Outcome::Published { subject, revision, objects } => {
                self.units.published += 1;
                self.units.incomplete += usize::from(settled.incomplete.is_some());
                self.archives.published += objects;
                let Settled { incomplete, incomplete_before, .. } = settled;
                self.published.push(PublishedUnit { unit, subject, revision, objects, incomplete, incomplete_before });
            }
            Outcome::Unchanged { objects } => {
                self.units.unchanged += 1;
                match objects {
                    Some(objects) => self.archives.published += objects,
                    None => self.archives.units_not_counted += 1,
                }
            }
            Outcome::HeldBack(reasons) => {
                self.units.held_back += 1;
                self.held_back.push(HeldBackUnit { unit, reasons });
            }
            Outcome::Unannounced { why } => {
                self.units.unannounced += 1;
                self.unannounced.push(UnannouncedUnit { unit, why });
            }
            Outcome::Waiting { wait, missing } => {
                self.units.waiting += 1;
                self.waiting.push(WaitingUnit { unit, why: wait.reason.to_string(), until: wait.until, missing });
            }
            Outcome::Planned { archives, missing } => self.planned.push(PlannedUnit {
                unit,
                archives,
                archives_to_upload: missing.archives,
                bytes_to_upload: missing.bytes,
                incomplete: settled.incomplete,
            }),
        }
    }

    /// The pass ended early.
    pub(crate) fn fail(&mut self, message: String, exit_code: u8) {
        self.error = Some(message);
        self.error_code = Some(exit_code);
    }

    pub(crate) fn end(&mut self, took: Duration) {
        self.seconds = took.as_millis() as f64 / 1000.0;
        let units = &self.units;
        let ended = units.published + units.unchanged + units.held_back + units.unannounced + units.waiting;
        self.units.left = units.total.saturating_sub(ended + self.planned.len());
        let some_failed =
            self.units.held_back > 0 || !self.bad_marks.is_empty() || !self.archives.not_removed.is_empty();
        self.exit_code = match self.error_code {
            Some(code) => code,
            None if self.units.unannounced > 0 => exit::UNREACHABLE,
            None if some_failed => exit::SOME_FAILED,
            None => exit::DONE,
        };
    }

    pub(crate) fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("texts and numbers always serialise")
    }

    /// The summary on stdout.
    pub(crate) fn to_text(&self) -> String {
        let mut lines: Vec<String> = self.planned.iter().map(PlannedUnit::to_line).collect();
        lines.extend(self.waiting.iter().take(LINES_MAX).map(WaitingUnit::to_line));
        if self.waiting.len() > LINES_MAX {
            lines.push(format!("{} more wait (--json lists them)", count(self.waiting.len() - LINES_MAX, "unit")));
        }
        for unit in self.published.iter().filter(|unit| !unit.incomplete_before) {
            lines.extend(unit.incomplete.as_ref().map(|missing| format!("{}: published without {missing}", unit.unit)));
        }
        let (units, archives) = (&self.units, &self.archives);
        let idle =
            self.exit_code == exit::DONE && units.published == 0 && self.planned.is_empty() && archives.removed == 0;
        if idle {
            lines.push(if units.total == 0 {
                let found =
                    if self.by_archives { "there is no archive to publish" } else { "no unit is marked complete" };
                format!("nothing to do: {found}")
            } else if units.waiting > 0 {
                format!("nothing to do yet: {}, {} published", waits(units.waiting), count(units.unchanged, "unit"))
            } else {
                let more = if archives.units_not_counted > 0 { "over " } else { "" };
                format!(
                    "nothing to do: {}, {more}{} are published",
                    count(units.unchanged, "unit"),
                    count(archives.published, "archive")
                )
            });
            return lines.join("\n");
        }
        if self.dry_run {
            let sum = |part: fn(&PlannedUnit) -> u64| self.planned.iter().map(part).sum::<u64>();
            lines.push(format!(
                "dry run: would publish {} and upload {} ({}); {} unchanged, {} held back{}",
                count(self.planned.len(), "unit"),
                count(sum(|unit| unit.archives_to_upload), "archive"),
                bytes(sum(|unit| unit.bytes_to_upload)),
                units.unchanged,
                units.held_back,
                if units.waiting > 0 { format!(", {}", waits(units.waiting)) } else { String::new() },
            ));
            return lines.join("\n");
        }
        lines.push(format!(
            "units:    {} published, {} unchanged, {} held back, {} stored but not announced{}",
            units.published,
            units.unchanged,
            units.held_back,
            units.unannounced,
            if units.waiting > 0 { format!(", {} waiting", units.waiting) } else { String::new() },
        ));
        if units.left > 0 {
            lines.push(format!("          {} not looked at", units.left));
        }
        let removed =
            if archives.removed > 0 { format!(", {} removed from disk", archives.removed) } else { String::new() };
        lines.push(format!(
            "archives: {} uploaded ({}), {} already there{removed}",
            archives.uploaded,
            bytes(self.bytes_uploaded),
            archives.already_there
        ));
        lines.push(format!("time:     {:.1} s", self.seconds));
        lines.join("\n")
    }
}

impl PlannedUnit {
    fn to_line(&self) -> String {
        let without = self.incomplete.as_ref().map(|missing| format!(" without {missing}")).unwrap_or_default();
        format!(
            "{}: would upload {} of {} ({}) and publish{without}",
            self.unit,
            self.archives_to_upload,
            count(self.archives, "archive"),
            bytes(self.bytes_to_upload),
        )
    }
}

impl WaitingUnit {
    fn to_line(&self) -> String {
        let missing =
            if self.missing.is_empty() { String::new() } else { format!(": {}", shorten(&self.missing.join(", "))) };
        format!("{}: {}, until {:.0}{missing}", self.unit, self.why, self.until)
    }
}

fn waits(units: usize) -> String {
    if units == 1 { "1 unit waits".to_owned() } else { format!("{units} units wait") }
}

/// `1 unit`, `2 units`.
fn count(number: impl Into<CountOf>, what: &str) -> String {
    let CountOf(number) = number.into();
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

struct CountOf(u64);

impl From<u64> for CountOf {
    fn from(number: u64) -> Self {
        Self(number)
    }
}

impl From<usize> for CountOf {
    fn from(number: usize) -> Self {
        Self(number as u64)
    }
}

fn bytes(number: u64) -> String {
    indicatif::BinaryBytes(number).to_string()
}
