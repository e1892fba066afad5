//! What came of the hints, for people and as JSON.

use common::output::{Failure, Finding, count, exit, list};
use common::unit::Unit;
use serde::Serialize;

use super::compare::Verdict;
use super::hints::Hints;

#[derive(Debug, Default, Serialize)]
struct Units {
    hinted: u64,
    /// All their archives are there.
    verified: u64,
    differ: u64,
    not_announced: u64,
    not_checked: u64,
}

#[derive(Debug, Default, Serialize)]
struct Archives {
    /// Found there, and recorded.
    adopted: u64,
    recorded_before: u64,
    differ: u64,
    not_checked: u64,
}

/// What was found at one destination.
#[derive(Debug, Serialize)]
pub(super) struct AdoptReport {
    destination: String,
    dry_run: bool,
    files: u64,
    units: Units,
    archives: Archives,
    #[serde(skip)]
    findings: Vec<Finding>,
    not_understood: Vec<String>,
    /// Why not all was compared.
    pub(super) error: Option<Failure>,
}

impl AdoptReport {
    pub(super) fn new(destination: &str, dry_run: bool, hints: &Hints) -> Self {
        Self {
            destination: destination.to_owned(),
            dry_run,
            files: hints.files,
            units: Units::default(),
            archives: Archives::default(),
            findings: Vec::new(),
            not_understood: hints.not_understood.clone(),
            error: None,
        }
    }

    /// A unit whose marker is known; `lacking` are hinted symbols that it does not name.
    pub(super) fn add(&mut self, unit: &Unit, verdicts: Vec<(String, Verdict)>, lacking: Vec<String>, verbose: bool) {
        self.units.hinted += 1;
        let (mut differ, mut unchecked) = (0, 0);
        let archives = verdicts.len();
        for (symbol, verdict) in verdicts {
            match verdict {
                Verdict::There => self.archives.adopted += 1,
                Verdict::Recorded => self.archives.recorded_before += 1,
                Verdict::Differs(what) => {
                    differ += 1;
                    self.find("*", &unit.to_string(), Some(symbol), what);
                }
                Verdict::Unchecked(why) => {
                    unchecked += 1;
                    self.find("!", &unit.to_string(), Some(symbol), why);
                }
            }
        }
        let announced = lacking.is_empty();
        for symbol in lacking {
            self.find("-", &unit.to_string(), Some(symbol), "its marker does not name this symbol".into());
        }
        self.archives.differ += differ;
        self.archives.not_checked += unchecked;
        let count_as = match (unchecked, differ, announced) {
            (0, 0, true) => &mut self.units.verified,
            (0, 0, false) => &mut self.units.not_announced,
            (0, _, _) => &mut self.units.differ,
            (_, _, _) => &mut self.units.not_checked,
        };
        *count_as += 1;
        if verbose && differ + unchecked == 0 && announced {
            self.find("=", &unit.to_string(), None, count(archives as u64, "archive"));
        }
    }

    /// Neither stream nor bucket know it.
    pub(super) fn not_announced(&mut self, name: &str) {
        self.units.hinted += 1;
        self.units.not_announced += 1;
        self.find("-", name, None, "not announced".into());
    }

    pub(super) fn unchecked(&mut self, unit: &Unit, why: String) {
        self.units.hinted += 1;
        self.units.not_checked += 1;
        self.find("!", &unit.to_string(), None, why);
    }

    fn find(&mut self, sign: &'static str, unit: &str, symbol: Option<String>, what: String) {
        let state = match sign {
            "=" => "verified",
            "*" => "differs",
            "-" => "not_announced",
            _ => "not_checked",
        };
        let finding = Finding::named(unit, state, what).sign(sign).destination(&self.destination);
        self.findings.push(Finding { symbol, ..finding });
    }

    /// What was found, for the answer.
    pub(super) fn drain_findings(&mut self) -> Vec<Finding> {
        std::mem::take(&mut self.findings)
    }

    pub(super) fn exit_code(&self) -> u8 {
        let units = &self.units;
        if units.not_checked > 0 {
            exit::SOME_FAILED
        } else if units.differ + units.not_announced > 0 || !self.not_understood.is_empty() {
            exit::DIFFERENCES
        } else {
            exit::DONE
        }
    }

    /// Names that are not understood, and the sums.
    pub(super) fn lines(&self, all: bool, lines: &mut Vec<String>) {
        let names = self.not_understood.iter();
        let names: Vec<Finding> = names.map(|name| Finding::named(name, "not_understood", "").sign("?")).collect();
        lines.extend(list(&names, all));
        let (name, units, archives) = (&self.destination, &self.units, &self.archives);
        if self.error.is_some() && units.hinted == 0 {
            // Nothing was compared, so there is nothing to sum up.
            return;
        }
        lines.push(format!(
            "{name}: {} for {}: {} verified, {} differ, {} not announced, {} not checked; {} not understood",
            count(self.files, "hint"),
            count(units.hinted, "unit"),
            units.verified,
            units.differ,
            units.not_announced,
            units.not_checked,
            count(self.not_understood.len() as u64, "name")
        ));
        let adopted = if self.dry_run { "to adopt" } else { "adopted" };
        lines.push(format!(
            "{name}: {} {adopted}, {} recorded before, {} left to the workers",
            count(archives.adopted, "archive"),
            archives.recorded_before,
            archives.differ + archives.not_checked
        ));
    }
}
