//! What verifying found and did.

use common::output::{Failure, Finding, count, exit};
use common::unit::Unit;
use serde::Serialize;

use super::check::Verdict;
use crate::clickhouse::lost_stream::{ADVICE, LostUnits};

#[derive(Debug, Default, Serialize)]
struct Archives {
    verified: u64,
    not_loaded: u64,
    /// Not loaded, and older than `initial_days` when the destination was made.
    too_old: u64,
    wrong: u64,
    /// With rows of a former revision.
    former_revision: u64,
    not_checked: u64,
}

const FORMER_REVISION: &str = "former_revision";

/// What was found at one destination.
#[derive(Debug, Serialize)]
pub(super) struct DestinationReport {
    destination: String,
    units: u64,
    archives: Archives,
    /// In the answer they stand together, whatever the destination.
    #[serde(skip)]
    findings: Vec<Finding>,
    /// Markers sent again.
    replays_sent: u64,
    /// Archives that were sent again.
    archives_sent: u64,
    /// Markers of this destination that are not finished yet: they may explain what is not loaded.
    pub(super) unfinished: Option<u64>,
    /// Units that could not be checked as a whole.
    units_not_checked: u64,
    /// Loaded units that the stream no longer announces, so that they were not looked at, and that the bucket can have.
    pub(super) units_lost: u64,
    /// Why not all was checked, or sent.
    pub(super) error: Option<Failure>,
}

/// Symbols to deliver again: those without a ledger entry or with rows of a former revision, and by force those whose rows
/// are wrong.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Bad {
    pub(super) not_loaded: Vec<String>,
    pub(super) wrong: Vec<String>,
}

impl DestinationReport {
    pub(super) fn new(destination: &str) -> Self {
        Self {
            destination: destination.to_owned(),
            units: 0,
            archives: Archives::default(),
            findings: Vec::new(),
            replays_sent: 0,
            archives_sent: 0,
            unfinished: None,
            units_not_checked: 0,
            units_lost: 0,
            error: None,
        }
    }

    /// Adds what was found of a unit; returns what is to be loaded again.
    pub(super) fn add(&mut self, unit: &Unit, verdicts: Vec<(String, Verdict)>, verbose: bool) -> Bad {
        self.units += 1;
        let (before, archives) = (self.findings.len(), verdicts.len());
        let (mut bad, mut too_old) = (Bad::default(), 0);
        let none_loaded = archives > 1 && verdicts.iter().all(|(_, verdict)| *verdict == Verdict::NotLoaded);
        if none_loaded {
            self.find("-", unit, None, format!("none of its {archives} archives is loaded"));
        }
        for (symbol, verdict) in verdicts {
            match verdict {
                Verdict::Right => self.archives.verified += 1,
                Verdict::NotLoaded => {
                    self.archives.not_loaded += 1;
                    if !none_loaded {
                        self.find("-", unit, Some(&symbol), "not loaded".into());
                    }
                    bad.not_loaded.push(symbol);
                }
                Verdict::TooOld => {
                    self.archives.too_old += 1;
                    too_old += 1;
                }
                Verdict::RolledBack(what) => {
                    self.archives.verified += 1;
                    self.find("=", unit, Some(&symbol), what);
                }
                Verdict::FormerRevision { superseded, hidden, first } => {
                    self.archives.former_revision += 1;
                    let what = format!("{superseded} rows of a former revision shown, {hidden} rows hidden: {first}");
                    let finding = self.finding("*", unit, Some(&symbol), what);
                    self.findings.push(Finding { state: FORMER_REVISION.into(), ..finding });
                    bad.not_loaded.push(symbol);
                }
                Verdict::Wrong { missing, differing, first } => {
                    self.archives.wrong += 1;
                    let what = format!("{missing} rows missing, {differing} with other values: {first}");
                    let finding = self.finding("*", unit, Some(&symbol), what);
                    self.findings.push(finding.field("missing_rows", &missing).field("differing_rows", &differing));
                    bad.wrong.push(symbol);
                }
                Verdict::Unchecked(why) => {
                    self.archives.not_checked += 1;
                    self.find("!", unit, Some(&symbol), why);
                }
            }
        }
        if verbose && self.findings.len() == before {
            let what = count(archives as u64, "archive");
            match too_old {
                0 => self.find("=", unit, None, what),
                _ => self.find(".", unit, None, format!("{too_old} of {what} not wanted (initial_days)")),
            }
        }
        bad
    }

    /// A unit that could not be checked at all.
    pub(super) fn unchecked(&mut self, unit: &Unit, why: String) {
        self.units += 1;
        self.units_not_checked += 1;
        self.find("!", unit, None, why);
    }

    pub(super) fn sent(&mut self, archives: usize) {
        self.replays_sent += 1;
        self.archives_sent += archives as u64;
    }

    fn find(&mut self, sign: &'static str, unit: &Unit, symbol: Option<&str>, what: String) {
        let finding = self.finding(sign, unit, symbol, what);
        self.findings.push(finding);
    }

    fn finding(&self, sign: &'static str, unit: &Unit, symbol: Option<&str>, what: String) -> Finding {
        let state = match sign {
            "=" => "verified",
            "-" => "not_loaded",
            "*" => "wrong",
            "." => "too_old",
            _ => "not_checked",
        };
        let symbol = symbol.map(str::to_owned);
        Finding { symbol, ..Finding::of_unit(unit, state, what).sign(sign).destination(&self.destination) }
    }

    /// What was found, for the answer.
    pub(super) fn drain_findings(&mut self) -> Vec<Finding> {
        std::mem::take(&mut self.findings)
    }

    pub(super) fn to_repair(&self) -> u64 {
        self.archives.not_loaded + self.archives.wrong + self.archives.former_revision
    }

    fn beyond_repair(&self) -> u64 {
        self.archives.not_checked + self.units_not_checked
    }

    /// The exit code, where nothing ended the run early.
    pub(super) fn exit_code(&self, fix: bool) -> u8 {
        match (fix, self.to_repair(), self.beyond_repair()) {
            // Only the uploader can announce them again.
            (_, 0, 0) if self.units_lost > 0 => exit::DIFFERENCES,
            (_, 0, 0) => exit::DONE,
            (false, _, _) => exit::DIFFERENCES,
            (true, _, 0) => exit::DONE,
            (true, _, _) => exit::SOME_FAILED,
        }
    }

    /// The sums.
    pub(super) fn lines(&self, lines: &mut Vec<String>) {
        let name = &self.destination;
        if self.error.is_some() && self.units == 0 {
            // Nothing was looked at, so there is nothing to sum up.
            return;
        }
        let Archives { verified, not_loaded, too_old, wrong, former_revision, not_checked } = self.archives;
        let too_old = match too_old {
            0 => String::new(),
            archives => format!(", {archives} not wanted (initial_days)"),
        };
        lines.push(format!(
            "{name}: {}, {} verified, {not_loaded} not loaded, {wrong} with wrong rows, {former_revision} with rows of a \
             former revision, {not_checked} not checked{too_old}",
            count(self.units, "unit"),
            count(verified, "archive")
        ));
        if self.units_not_checked > 0 {
            let units = count(self.units_not_checked, "unit");
            lines.push(format!("{name}: not checked, as their lists of archives cannot be used: {units}"));
        }
        if self.units_lost > 0 {
            let lost = LostUnits { units: self.units_lost, in_bucket: true, no_stream: false };
            lines.push(format!("{} ({ADVICE})", lost.text(name)));
        }
        if let Some(unfinished) = self.unfinished.filter(|unfinished| *unfinished > 0 && not_loaded > 0) {
            let markers = count(unfinished, "marker");
            lines.push(format!("{name}: not finished yet: {markers}; `puller pull` or running workers load them"));
        }
        if self.replays_sent > 0 {
            lines.push(format!(
                "{name}: {} sent again in {}; `puller pull` or running workers load them",
                count(self.archives_sent, "archive"),
                count(self.replays_sent, "marker")
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_listed_and_counted() {
        let unit: Unit = "binance/um/klines/1h/2026-02-14".parse().expect("a unit");
        let mut report = DestinationReport::new("primary");
        let wrong = Verdict::Wrong { missing: 3, differing: 1, first: "B: the row".into() };
        let bad = report.add(
            &unit,
            vec![("A".into(), Verdict::Right), ("B".into(), wrong), ("C".into(), Verdict::NotLoaded)],
            false,
        );
        assert_eq!(bad, Bad { not_loaded: vec!["C".into()], wrong: vec!["B".into()] });
        assert_eq!((report.exit_code(false), report.exit_code(true)), (exit::DIFFERENCES, exit::DONE));
        let found: Vec<(&str, &str)> =
            report.findings.iter().map(|finding| (finding.state.as_str(), finding.text.as_str())).collect();
        assert_eq!(found, [("wrong", "3 rows missing, 1 with other values: B: the row"), ("not_loaded", "not loaded")]);
        let former = Verdict::FormerRevision { superseded: 2, hidden: 0, first: "D: the row".into() };
        report.add(&unit, vec![("D".into(), former), ("E".into(), Verdict::TooOld)], false);
        assert_eq!(report.findings.last().map(|finding| finding.state.as_str()), Some(FORMER_REVISION));
        assert_eq!((report.archives.too_old, report.to_repair()), (1, 3));
        report.unchecked(&unit, "gone".into());
        assert_eq!(report.exit_code(true), exit::SOME_FAILED);
    }
}
