//! What a pass did, for people and as JSON.

use std::fmt;
use std::time::Duration;

use common::marker::Incomplete;
use common::output::{self, Failure, FailureClass, Finding, Reply, exit, list};
use common::text::shorten;
use common::unit::Unit;
use serde::{Serialize, Serializer};

use crate::contents::unit_plan::OlderArchive;
use crate::local::strays::Strays;
use crate::local::{marks, strays};
use crate::unit::process::{Outcome, Processed};

/// What a pass did, or would do.
#[derive(Debug, Default, Serialize)]
pub(crate) struct PassReport {
    pub(crate) dry_run: bool,
    pub(crate) units: Units,
    pub(crate) archives: Archives,
    pub(crate) bytes_uploaded: u64,
    pub(crate) seconds: f64,
    pub(crate) published: Vec<PublishedUnit>,
    /// Units that are held back, stored and not announced, not complete yet, or published without some symbols.
    #[serde(skip)]
    pub(crate) findings: Vec<Finding>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) planned: Vec<PlannedUnit>,
    /// Names in `data_dir` that begin like a mark and are none.
    pub(crate) bad_marks: Vec<String>,
    /// Units of which `data_dir` has archives that are older than the announced ones.
    pub(crate) older: Vec<OlderUnit>,
    /// Files that look like archives or marks and are not taken.
    pub(crate) ignored: Vec<Strays>,
    /// Whether no archive lies where it belongs.
    #[serde(skip)]
    nothing_in_place: bool,
    /// What in `data_dir` was left out and belongs to no unit.
    pub(crate) problems: Vec<String>,
    /// Folders that could not be read, and may hold archives of units that nothing else tells of.
    pub(crate) unreadable: Vec<String>,
    /// Why the pass ended early.
    #[serde(skip)]
    pub(crate) error: Option<Failure>,
    /// Why nothing could be announced when the pass began.
    #[serde(skip)]
    pub(crate) queue: Option<Failure>,
    /// Whether no other pass would fare better before the configuration is changed.
    #[serde(skip)]
    pub(crate) misconfigured: bool,
    /// Whether units are found by their archives, and not only by their marks.
    #[serde(skip)]
    by_archives: bool,
    #[serde(skip)]
    exit_code: u8,
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

/// A unit of which archives at hand are older publications than the announced ones.
#[derive(Debug, Serialize)]
pub(crate) struct OlderUnit {
    #[serde(serialize_with = "as_text")]
    unit: Unit,
    archives: Vec<OlderArchive>,
}

fn as_text<S: Serializer>(unit: &Unit, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(unit)
}

impl OlderUnit {
    pub(crate) fn of(unit: &Unit, archives: &[OlderArchive]) -> Self {
        Self { unit: unit.clone(), archives: archives.to_vec() }
    }

    /// The same for the answer of a command; it is no failure.
    pub(crate) fn finding(&self) -> Finding {
        Finding::of_unit(&self.unit, "older", self.text()).sign("<").field("archives", &self.archives)
    }

    fn text(&self) -> String {
        let Self { unit, archives } = self;
        let Some(first) = archives.first() else { return String::new() };
        let more = if archives.len() > 1 { format!(" and {} more", archives.len() - 1) } else { String::new() };
        format!(
            "{} in data_dir{more} was generated at {}, before the announced archive of {}: what is announced stays; \
             `uploader upload --accept-rollback {unit}` publishes the older one",
            shorten(&first.symbol),
            first.generated_at,
            first.announced_generated_at
        )
    }
}

impl fmt::Display for OlderUnit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.unit, self.text())
    }
}

impl PassReport {
    pub(crate) fn new(dry_run: bool, by_archives: bool) -> Self {
        Self { dry_run, by_archives, ..Self::default() }
    }

    pub(crate) fn add(&mut self, processed: Processed) {
        self.archives.uploaded += processed.transferred.uploaded;
        self.archives.already_there += processed.transferred.present;
        self.bytes_uploaded += processed.transferred.bytes;
        self.archives.removed += processed.removed.archives;
        self.archives.not_removed.extend(processed.removed.problems);
        if !processed.older.is_empty() {
            let older = OlderUnit::of(&processed.unit, &processed.older);
            self.findings.push(older.finding());
            self.older.push(older);
        }
        let finding = |state, text: String| Finding::of_unit(&processed.unit, state, text);
        let unit = processed.unit.to_string();
        match processed.outcome {
            Outcome::Published { subject, revision, objects } => {
                self.units.published += 1;
                self.units.incomplete += usize::from(processed.incomplete.is_some());
                self.archives.published += objects;
                let incomplete = processed.incomplete;
                if let (Some(missing), false) = (&incomplete, processed.incomplete_before) {
                    self.findings.push(finding("incomplete", format!("published without {missing}")).sign("*"));
                }
                self.published.push(PublishedUnit { unit, subject, revision, objects, incomplete });
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
                let text = reasons.join("\n");
                self.findings.push(finding("held_back", text).field("reasons", &reasons));
            }
            Outcome::Unannounced { why } => {
                self.units.unannounced += 1;
                let text = why_unannounced(why, self.queue.as_ref());
                self.findings.push(finding("unannounced", text).sign("+"));
            }
            Outcome::Waiting { wait, missing } => {
                self.units.waiting += 1;
                // More archives may end the wait before.
                let until = format!("{}, until {:.0}", wait.reason, wait.until);
                let names =
                    if missing.is_empty() { String::new() } else { format!(": {}", shorten(&missing.join(", "))) };
                let finding = finding("waiting", format!("{until}{names}")).sign(" ");
                self.findings.push(finding.field("until", &wait.until).field("missing", &missing));
            }
            Outcome::Planned { archives, missing } => self.planned.push(PlannedUnit {
                unit,
                archives,
                archives_to_upload: missing.archives,
                bytes_to_upload: missing.bytes,
                incomplete: processed.incomplete,
            }),
        }
    }

    /// The answer of the command.
    pub(crate) fn into_reply(mut self, all: bool) -> Reply {
        let text = self.to_text(all);
        let findings = std::mem::take(&mut self.findings);
        Reply::of_report(self.exit_code, &self).findings(findings).text(text).failed(self.failure())
    }

    /// Why it did not do all of its work.
    fn failure(&self) -> Option<Failure> {
        let (units, archives) = (&self.units, &self.archives);
        if self.error.is_some() || self.exit_code == exit::DONE {
            return self.error.clone();
        }
        if units.unannounced > 0 {
            return Some(unannounced(units.unannounced, self.queue.as_ref()));
        }
        let parts = [
            (units.held_back, count(units.held_back, "unit") + " held back"),
            (usize::from(self.archives_are_misplaced()), "no archive lies where it belongs".to_owned()),
            (usize::from(self.marks_are_misplaced()), "no completion mark lies where it belongs".to_owned()),
            (self.unreadable.len(), self.unreadable.join("; ")),
            (self.bad_marks.len(), bad_marks(&self.bad_marks)),
            (archives.not_removed.len(), format!("not removed from disk: {}", archives.not_removed.join(", "))),
        ];
        let text: Vec<String> = parts.into_iter().filter(|(number, _)| *number > 0).map(|(_, text)| text).collect();
        Some(Failure::failed(text.join("; ")))
    }

    pub(crate) fn add_strays(&mut self, found: strays::Found) {
        self.nothing_in_place = found.in_place == 0;
        self.findings.extend(
            found.strays.iter().map(|strays| Finding::new("ignored", strays.to_string()).class(strays.class())),
        );
        self.ignored = found.strays;
    }

    pub(crate) fn add_unreadable(&mut self, unreadable: Vec<String>) {
        self.findings.extend(unreadable.iter().map(|why| Finding::new("unreadable", why)));
        self.unreadable = unreadable;
    }

    /// Why no other pass would fare better before the configuration is changed.
    pub(crate) fn misconfigured(&self) -> Option<Failure> {
        self.error.clone().filter(|_| self.misconfigured)
    }

    /// A tree of archives none of which is where it belongs is a mistake, and not a tree with nothing to do.
    fn archives_are_misplaced(&self) -> bool {
        let mut archives = self.ignored.iter().filter(|strays| !strays.is_remark() && !strays.are_marks());
        self.units.total == 0 && self.nothing_in_place && archives.next().is_some()
    }

    /// The same of completion marks.
    fn marks_are_misplaced(&self) -> bool {
        self.units.total == 0 && self.ignored.iter().any(|strays| strays.are_marks() && !strays.is_remark())
    }

    /// The pass ended early.
    pub(crate) fn fail(&mut self, failure: Failure) {
        self.error = Some(failure);
    }

    pub(crate) fn end(&mut self, elapsed: Duration) {
        self.seconds = elapsed.as_millis() as f64 / 1000.0;
        let units = &self.units;
        let ended = units.published + units.unchanged + units.held_back + units.unannounced + units.waiting;
        self.units.left = units.total.saturating_sub(ended + self.planned.len());
        let some_failed = self.archives_are_misplaced()
            || self.marks_are_misplaced()
            || self.units.held_back > 0
            || !self.unreadable.is_empty()
            || !self.bad_marks.is_empty()
            || !self.archives.not_removed.is_empty();
        self.exit_code = match &self.error {
            Some(failure) => failure.exit_code(),
            None if self.units.unannounced > 0 => unannounced(self.units.unannounced, self.queue.as_ref()).exit_code(),
            None if some_failed => exit::SOME_FAILED,
            None => exit::DONE,
        };
    }

    /// What needs a look, then the sums.
    fn to_text(&self, all: bool) -> String {
        let planned: Vec<Finding> = self.planned.iter().map(PlannedUnit::finding).collect();
        let mut lines = list(&planned, all);
        lines.extend(list(&self.findings, all));
        let (units, archives) = (&self.units, &self.archives);
        let idle =
            self.exit_code == exit::DONE && units.published == 0 && self.planned.is_empty() && archives.removed == 0;
        if idle {
            let nothing = if units.total == 0 {
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
            };
            let ignored = match self.ignored.iter().map(Strays::count).sum::<usize>() {
                0 => String::new(),
                1 => "; 1 file is not taken, see above".to_owned(),
                files => format!("; {files} files are not taken, see above"),
            };
            lines.push(nothing + &ignored);
            return lines.join("\n");
        }
        if self.error.is_some() && units.total == units.left {
            // Nothing was looked at, so there is nothing to sum up.
            if units.left > 0 {
                lines.push(format!("{} not looked at", count(units.left, "unit")));
            }
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
    fn finding(&self) -> Finding {
        let without = self.incomplete.as_ref().map(|missing| format!(" without {missing}")).unwrap_or_default();
        let text = format!(
            "would upload {} of {} ({}) and publish{without}",
            self.archives_to_upload,
            count(self.archives, "archive"),
            bytes(self.bytes_to_upload),
        );
        Finding::named(&self.unit, "planned", text).sign(" ")
    }
}

/// That units are in the bucket and not on the stream; the server was away, or there is no stream.
pub(crate) fn unannounced(units: usize, queue: Option<&Failure>) -> Failure {
    let why = queue.map(|failure| format!(": {}", failure.text)).unwrap_or_default();
    let text = format!("{} stored but not announced{why}", count(units, "unit"));
    let class = queue.map_or(FailureClass::Unreachable, |failure| failure.class);
    let then = "the next run announces them without sending them again";
    let first =
        queue.and_then(|failure| failure.advice.as_ref()).map(|advice| format!("{advice}; ")).unwrap_or_default();
    Failure::new(class, text).advice(format!("{first}{then}"))
}

/// Marks that cannot be understood, and what the first would be called.
fn bad_marks(names: &[String]) -> String {
    let example = names.first().map(|name| format!("; {name} would be called {}", marks::right_name(name)));
    format!("marks not understood: {}{}", names.join(", "), example.unwrap_or_default())
}

/// Why one of these units is not announced: what the command says of all of them is not repeated.
pub(crate) fn why_unannounced(why: String, queue: Option<&Failure>) -> String {
    if queue.is_some_and(|failure| failure.text == why) { "stored, not announced".to_owned() } else { why }
}

fn waits(units: usize) -> String {
    if units == 1 { "1 unit waits".to_owned() } else { format!("{units} units wait") }
}

/// `1 unit`, `2 units`.
fn count(number: impl TryInto<u64>, noun: &str) -> String {
    output::count(number.try_into().unwrap_or(u64::MAX), noun)
}

fn bytes(number: u64) -> String {
    indicatif::BinaryBytes(number).to_string()
}
