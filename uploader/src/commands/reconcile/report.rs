//! What a comparison found, for people and as JSON.

use common::output::{self, Failure, Reply, exit};
use common::unit::Unit;
use serde::Serialize;

use super::bucket::Lost;
use crate::contents::unit_plan::OlderArchive;
use crate::pass::report::OlderUnit;

/// How a unit compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sign {
    Same,
    BucketOnly,
    StreamOnly,
    Differ,
    Faulty,
}

impl Sign {
    fn state(self) -> &'static str {
        match self {
            Self::Same => "same",
            Self::BucketOnly => "bucket_only",
            Self::StreamOnly => "stream_only",
            Self::Differ => "differs",
            Self::Faulty => "faulty",
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Same => "=",
            Self::BucketOnly => "+",
            Self::StreamOnly => "-",
            Self::Differ => "*",
            Self::Faulty => "!",
        }
    }
}

/// One unit.
#[derive(Debug)]
pub(super) struct UnitFinding {
    unit: Unit,
    pub(super) sign: Sign,
    what: String,
    /// Objects that are not in the bucket as they must be, and other reasons; one line each.
    pub(super) details: Vec<String>,
    /// Archives at hand that are older than what is announced; that is no difference.
    pub(super) older: Vec<OlderArchive>,
    /// What `--fix` did, or why it could not.
    repairs: Vec<String>,
    /// `None`: nothing was tried.
    pub(super) fixed: Option<bool>,
}

impl UnitFinding {
    pub(super) fn new(unit: &Unit, sign: Sign, what: &str) -> Self {
        let (unit, what) = (unit.clone(), what.to_owned());
        Self { unit, sign, what, details: Vec::new(), older: Vec::new(), repairs: Vec::new(), fixed: None }
    }

    /// Objects of the manifest are not in the bucket as it says.
    pub(super) fn lose(&mut self, lost: &[Lost]) {
        if lost.is_empty() {
            return;
        }
        let before = if self.sign == Sign::Same { String::new() } else { format!("; {}", self.what) };
        let (count, plural) = (lost.len(), if lost.len() == 1 { "" } else { "s" });
        self.what = format!("the bucket does not have {count} object{plural} as the manifest names{before}");
        self.sign = Sign::Faulty;
        self.details.extend(lost.iter().map(|lost| format!("{}: {}", lost.object.key, lost.why)));
    }

    pub(super) fn mended(&mut self, what: String) {
        self.fixed = Some(self.fixed.unwrap_or(true));
        self.repairs.push(what);
    }

    pub(super) fn not_mended(&mut self, why: String) {
        self.fixed = Some(false);
        self.repairs.push(format!("NOT FIXED: {why}"));
    }

    fn answer(&self) -> output::Finding {
        let mut lines = vec![self.what.clone()];
        lines.extend(self.details.iter().cloned());
        lines.extend(self.repairs.iter().map(|repair| format!("→ {repair}")));
        output::Finding::of_unit(&self.unit, self.sign.state(), lines.join("\n"))
            .sign(self.sign.as_str())
            .field("details", &self.details)
            .field("repairs", &self.repairs)
            .field("fixed", &self.fixed)
    }
}

#[derive(Debug, Default, Serialize)]
struct Counts {
    same: usize,
    bucket_only: usize,
    stream_only: usize,
    differ: usize,
    faulty: usize,
    fixed: usize,
    not_fixed: usize,
}

impl Counts {
    fn differences(&self) -> usize {
        self.bucket_only + self.stream_only + self.differ + self.faulty
    }

    fn checked_units(&self) -> usize {
        self.same + self.differences()
    }
}

/// What a run found and did.
#[derive(Debug, Serialize)]
pub(crate) struct ReconcileReport {
    fix: bool,
    /// Whether the objects were read.
    #[serde(skip)]
    content: bool,
    pub(super) stream_was_missing: bool,
    units: Counts,
    /// Units that differ; with `--verbose` all.
    #[serde(skip)]
    findings: Vec<UnitFinding>,
    /// Units of which `data_dir` has archives that are older than the announced ones, as far as they were read before.
    older: Vec<OlderUnit>,
    /// Why the run ended early.
    #[serde(skip)]
    error: Option<Failure>,
    #[serde(skip)]
    exit_code: u8,
}

impl ReconcileReport {
    pub(super) fn new(fix: bool, content: bool) -> Self {
        let (units, findings, older) = (Counts::default(), Vec::new(), Vec::new());
        Self { fix, content, stream_was_missing: false, units, findings, older, error: None, exit_code: exit::DONE }
    }

    pub(super) fn add(&mut self, finding: UnitFinding, verbose: bool) {
        if !finding.older.is_empty() {
            self.older.push(OlderUnit::of(&finding.unit, &finding.older));
        }
        let units = &mut self.units;
        *match finding.sign {
            Sign::Same => &mut units.same,
            Sign::BucketOnly => &mut units.bucket_only,
            Sign::StreamOnly => &mut units.stream_only,
            Sign::Differ => &mut units.differ,
            Sign::Faulty => &mut units.faulty,
        } += 1;
        match finding.fixed {
            Some(true) => units.fixed += 1,
            Some(false) => units.not_fixed += 1,
            None if self.fix && finding.sign != Sign::Same => units.not_fixed += 1,
            None => {}
        }
        if verbose || finding.sign != Sign::Same {
            self.findings.push(finding);
        }
    }

    pub(super) fn fail(&mut self, failure: Failure) {
        self.error = Some(failure);
    }

    pub(super) fn end(&mut self) {
        let units = &self.units;
        let differences = units.differences();
        self.exit_code = match &self.error {
            Some(failure) => failure.exit_code(),
            None if self.fix && units.not_fixed > 0 => exit::SOME_FAILED,
            None if !self.fix && (differences > 0 || self.stream_was_missing) => exit::DIFFERENCES,
            None => exit::DONE,
        };
    }

    /// The answer of the command.
    pub(crate) fn into_reply(self, all: bool) -> Reply {
        let older = self.older.iter().map(OlderUnit::finding);
        let findings: Vec<output::Finding> = self.findings.iter().map(UnitFinding::answer).chain(older).collect();
        let text = self.to_text(&findings, all);
        Reply::of_report(self.exit_code, &self).findings(findings).text(text).failed(self.failure())
    }

    /// Why it did not do all of its work; a difference is none.
    fn failure(&self) -> Option<Failure> {
        let not_fixed = self.units.not_fixed;
        let partly = || Failure::failed(format!("{} not fixed", output::count(not_fixed as u64, "unit")));
        self.error.clone().or_else(|| (self.fix && not_fixed > 0).then(partly))
    }

    fn to_text(&self, findings: &[output::Finding], all: bool) -> String {
        let mut lines = output::list(findings, all);
        let units = &self.units;
        if self.error.is_some() && units.checked_units() == 0 {
            // There is nothing to sum up.
            return lines.join("\n");
        }
        lines.push(format!(
            "{} the same, {} only in the bucket, {} only on the stream, {} differ, {} faulty",
            units.same, units.bucket_only, units.stream_only, units.differ, units.faulty
        ));
        if self.stream_was_missing {
            let made = if self.fix && self.error.is_none() { "; it is made" } else { "" };
            lines.push(format!("there was no stream MARKERS: it was deleted, or NATS has lost its store{made}"));
        }
        if self.fix {
            lines.push(format!("{} fixed, {} not fixed", units.fixed, units.not_fixed));
        } else if self.exit_code == exit::DIFFERENCES {
            let content = if self.content { " --content" } else { "" };
            lines.push(format!("`uploader reconcile{content} --fix` repairs what can be repaired"));
        }
        lines.join("\n")
    }
}
