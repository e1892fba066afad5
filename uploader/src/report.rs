//! What a pass did, for people and as JSON.

use std::time::Duration;

use common::exit;
use serde::Serialize;

use crate::settle::{Outcome, Settled};

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
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) planned: Vec<PlannedUnit>,
    /// Names in `data_dir` that begin like a mark and are none.
    pub(crate) bad_marks: Vec<String>,
    /// Why the pass ended early.
    pub(crate) error: Option<String>,
    #[serde(skip)]
    error_code: Option<u8>,
    pub(crate) exit_code: u8,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct Units {
    pub(crate) marked: usize,
    pub(crate) published: usize,
    pub(crate) unchanged: usize,
    pub(crate) held_back: usize,
    pub(crate) unannounced: usize,
    /// Not looked at, because the pass ended early.
    pub(crate) left: usize,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct Archives {
    /// Named by the markers of the units that are published, now or earlier.
    pub(crate) published: usize,
    /// Units whose archives are not in `published`: only the bucket knows how many they are.
    pub(crate) units_not_counted: usize,
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
}

impl Report {
    pub(crate) fn new(dry_run: bool) -> Self {
        Self { dry_run, ..Self::default() }
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
                self.archives.published += objects;
                self.published.push(PublishedUnit { unit, subject, revision, objects });
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
            Outcome::Planned { archives, missing } => self.planned.push(PlannedUnit {
                unit,
                archives,
                archives_to_upload: missing.archives,
                bytes_to_upload: missing.bytes,
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
        let seen = units.published + units.unchanged + units.held_back + units.unannounced + self.planned.len();
        self.units.left = units.marked.saturating_sub(seen);
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
        let (units, archives) = (&self.units, &self.archives);
        let idle =
            self.exit_code == exit::DONE && units.published == 0 && self.planned.is_empty() && archives.removed == 0;
        if idle {
            lines.push(if units.marked == 0 {
                "nothing to do: no unit is marked complete".to_owned()
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
                "dry run: would publish {} and upload {} ({}); {} unchanged, {} held back",
                count(self.planned.len(), "unit"),
                count(sum(|unit| unit.archives_to_upload), "archive"),
                bytes(sum(|unit| unit.bytes_to_upload)),
                units.unchanged,
                units.held_back,
            ));
            return lines.join("\n");
        }
        lines.push(format!(
            "units:    {} published, {} unchanged, {} held back, {} stored but not announced",
            units.published, units.unchanged, units.held_back, units.unannounced
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
        format!(
            "{}: would upload {} of {} ({}) and publish",
            self.unit,
            self.archives_to_upload,
            count(self.archives, "archive"),
            bytes(self.bytes_to_upload),
        )
    }
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
