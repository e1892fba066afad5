//! What adopting did, for people and as JSON.

use std::time::Duration;

use common::output::{Failure, Finding, Reply, count, exit, list};
use serde::Serialize;

use super::adopted::Adopted;
use super::list::Listed;
use crate::pass::report::{unannounced, why_unannounced};
use crate::unit::process::Outcome;

#[derive(Debug, Default, Serialize)]
pub(crate) struct AdoptReport {
    dry_run: bool,
    pub(super) units: Units,
    archives: Archives,
    /// Objects under the prefix that are neither archives nor manifests.
    others: Others,
    seconds: f64,
    published: Vec<String>,
    /// Units that are held back, or stored and not announced.
    #[serde(skip)]
    findings: Vec<Finding>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    planned: Vec<Planned>,
    /// Why it ended early.
    #[serde(skip)]
    error: Option<Failure>,
    /// Why nothing could be announced when it began.
    #[serde(skip)]
    pub(super) queue: Option<Failure>,
    #[serde(skip)]
    exit_code: u8,
    /// Whether the bucket has said what it holds.
    #[serde(skip)]
    is_listed: bool,
    /// Whether any unit was looked at.
    #[serde(skip)]
    is_begun: bool,
}

#[derive(Debug, Default, Serialize)]
pub(super) struct Units {
    found: usize,
    /// Left out by `--marked`.
    pub(super) not_marked: usize,
    published: usize,
    unchanged: usize,
    held_back: usize,
    unannounced: usize,
}

#[derive(Debug, Default, Serialize)]
struct Archives {
    found: usize,
    /// Named by no manifest: fetched and checked.
    new: usize,
    bytes: u64,
}

#[derive(Debug, Default, Serialize)]
struct Others {
    count: u64,
    checksums: u64,
    /// Some of their keys.
    examples: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Planned {
    unit: String,
    archives: usize,
    to_fetch: usize,
    bytes_to_fetch: u64,
}

impl AdoptReport {
    pub(super) fn new(dry_run: bool) -> Self {
        Self { dry_run, ..Self::default() }
    }

    pub(super) fn found(&mut self, listed: &Listed) {
        self.is_listed = true;
        self.units.found = listed.units.len();
        self.archives.found = listed.units.iter().map(|(_, found)| found.len()).sum();
        let others = &listed.others;
        self.others = Others { count: others.count, checksums: others.checksums, examples: others.examples.clone() };
    }

    pub(super) fn add(&mut self, adopted: Adopted) {
        self.is_begun = true;
        let unit = adopted.processed.unit.to_string();
        let finding = |state, text: String| Finding::of_unit(&adopted.processed.unit, state, text);
        self.archives.new += adopted.new;
        self.archives.bytes += adopted.bytes;
        match adopted.processed.outcome {
            Outcome::Published { .. } => {
                self.units.published += 1;
                self.published.push(unit);
            }
            Outcome::Unchanged { .. } => self.units.unchanged += 1,
            Outcome::HeldBack(reasons) => {
                self.units.held_back += 1;
                self.findings.push(finding("held_back", reasons.join("\n")).field("reasons", &reasons));
            }
            Outcome::Unannounced { why } => {
                self.units.unannounced += 1;
                let text = why_unannounced(why, self.queue.as_ref());
                self.findings.push(finding("unannounced", text).sign("+"));
            }
            Outcome::Planned { .. } => self.planned.push(Planned {
                unit,
                archives: adopted.archives,
                to_fetch: adopted.new,
                bytes_to_fetch: adopted.bytes,
            }),
            Outcome::Waiting { .. } => unreachable!("what lies in the bucket waits for nothing"),
        }
    }

    /// It ended early.
    pub(super) fn fail(&mut self, failure: Failure) {
        self.error = Some(failure);
    }

    pub(super) fn end(&mut self, elapsed: Duration) {
        self.seconds = elapsed.as_millis() as f64 / 1000.0;
        if self.dry_run && self.error.is_none() {
            // What is said then is what the bucket says.
            self.error = self.queue.clone();
        }
        self.exit_code = match &self.error {
            Some(failure) => failure.exit_code(),
            None if self.units.unannounced > 0 => unannounced(self.units.unannounced, self.queue.as_ref()).exit_code(),
            None if self.units.held_back > 0 => exit::SOME_FAILED,
            None => exit::DONE,
        };
    }

    /// The answer of the command.
    pub(crate) fn into_reply(mut self, all: bool) -> Reply {
        let text = self.to_text(all);
        let findings = std::mem::take(&mut self.findings);
        Reply::of_report(self.exit_code, &self).findings(findings).text(text).failed(self.failure())
    }

    /// Why it did not do all of its work.
    fn failure(&self) -> Option<Failure> {
        let units = |number: usize| count(number as u64, "unit");
        if self.error.is_some() || self.exit_code == exit::DONE {
            return self.error.clone();
        }
        Some(if self.units.unannounced > 0 {
            unannounced(self.units.unannounced, self.queue.as_ref())
        } else {
            Failure::failed(format!("{} held back", units(self.units.held_back)))
        })
    }

    fn to_text(&self, all: bool) -> String {
        let (units, archives, others) = (&self.units, &self.archives, &self.others);
        let size = |bytes: u64| indicatif::BinaryBytes(bytes).to_string();
        let planned = self.planned.iter().map(|Planned { unit, archives, to_fetch, bytes_to_fetch }| {
            let bytes = size(*bytes_to_fetch);
            let archives = count(*archives as u64, "archive");
            let text = format!("would fetch {to_fetch} of its {archives} ({bytes}) and publish");
            Finding::named(unit, "planned", text).sign(" ")
        });
        let mut lines = list(&planned.collect::<Vec<_>>(), all);
        lines.extend(list(&self.findings, all));
        if self.is_listed && (self.error.is_none() || units.found > 0) {
            lines.push(format!(
                "bucket:   {}, {}, {}",
                count(units.found as u64, "unit"),
                count(archives.found as u64, "archive"),
                count(others.count, "other object")
            ));
        }
        if others.count > 0 {
            let more = if others.count > others.examples.len() as u64 { ", …" } else { "" };
            lines.push(format!("          not archives: {}{more}", others.examples.join(", ")));
        }
        if units.not_marked > 0 {
            let more = count(units.not_marked as u64, "more unit");
            let have = if units.not_marked == 1 { "has" } else { "have" };
            lines.push(format!("          {more} {have} no mark in local.data_dir"));
        }
        if self.error.is_some() && !self.is_begun {
            // No unit was looked at, so there is nothing to sum up.
            return lines.join("\n");
        }
        let planned = if self.dry_run { format!("{} to publish, ", self.planned.len()) } else { String::new() };
        lines.push(format!(
            "units:    {planned}{} published, {} unchanged, {} held back, {} stored but not announced",
            units.published, units.unchanged, units.held_back, units.unannounced
        ));
        let fetched = if self.dry_run { "to fetch and check" } else { "fetched and checked" };
        lines.push(format!("archives: {} {fetched} ({})", archives.new, size(archives.bytes)));
        lines.join("\n")
    }
}
