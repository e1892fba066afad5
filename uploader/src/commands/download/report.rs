//! What a run did, for people and as JSON.

use std::time::Duration;

use common::output::{Failure, Finding, Reply, count, exit, list};
use common::unit::Unit;
use serde::Serialize;

use super::fault::{DownloadFault, RunFault};
use super::outcome::DownloadOutcome;

/// Failures that are told of one unit; the rest are counted.
const FAILURES_MAX: usize = 100;

/// What a run did, or would do.
#[derive(Debug, Default, Serialize)]
pub(crate) struct DownloadReport {
    dry_run: bool,
    pub(crate) archives: Archives,
    bytes_downloaded: u64,
    seconds: f64,
    pub(crate) units: Vec<UnitReport>,
    /// Why the run ended early.
    #[serde(skip)]
    pub(crate) error: Option<Failure>,
    #[serde(skip)]
    exit_code: u8,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct Archives {
    pub(crate) downloaded: usize,
    unchanged: usize,
    not_published: usize,
    pub(crate) failed: usize,
    /// Of a dry run: the exchange would be asked for them.
    would_ask: usize,
    /// Not looked at, because the run ended early.
    pub(crate) left: usize,
}

/// What came of the archives of one unit.
#[derive(Debug, Serialize)]
pub(crate) struct UnitReport {
    unit: String,
    archives: usize,
    downloaded: usize,
    unchanged: usize,
    not_published: usize,
    failed: usize,
    would_ask: usize,
    bytes: u64,
    failures: Vec<String>,
    #[serde(skip)]
    left: usize,
}

impl UnitReport {
    pub(crate) fn new(unit: &Unit, archives: usize) -> Self {
        Self {
            unit: unit.to_string(),
            archives,
            downloaded: 0,
            unchanged: 0,
            not_published: 0,
            failed: 0,
            would_ask: 0,
            bytes: 0,
            failures: Vec::new(),
            left: archives,
        }
    }

    /// Counts an archive; logs the unit when that was its last.
    pub(crate) fn add(&mut self, path: &str, outcome: &Result<DownloadOutcome, DownloadFault>) {
        match outcome {
            Ok(DownloadOutcome::Downloaded { bytes }) => {
                self.downloaded += 1;
                self.bytes += bytes;
            }
            Ok(DownloadOutcome::Unchanged) => self.unchanged += 1,
            Ok(DownloadOutcome::NotPublished) => self.not_published += 1,
            Err(fault) => {
                tracing::error!(archive = path, %fault, "not fetched");
                self.failed += 1;
                if self.failures.len() < FAILURES_MAX {
                    self.failures.push(format!("{path} {fault}"));
                }
            }
        }
        self.left -= 1;
        if self.left == 0 {
            self.log();
        }
    }

    pub(crate) fn add_planned(&mut self, would_ask: bool) {
        self.left -= 1;
        if would_ask {
            self.would_ask += 1;
        } else {
            self.unchanged += 1;
        }
    }

    fn log(&self) {
        let Self { unit, downloaded, unchanged, not_published, failed, bytes, .. } = self;
        if self.downloaded + self.failed > 0 {
            tracing::info!(unit, downloaded, unchanged, not_published, failed, bytes, "unit fetched");
        } else {
            tracing::debug!(unit, unchanged, not_published, "nothing new of the unit");
        }
    }
}

impl DownloadReport {
    pub(crate) fn new(dry_run: bool) -> Self {
        Self { dry_run, ..Self::default() }
    }

    /// Sums up. A server that is away counts more than what it kept from being fetched.
    pub(crate) fn end(&mut self, outcome: Result<(), RunFault>, elapsed: Duration) {
        self.seconds = elapsed.as_millis() as f64 / 1000.0;
        let sum = |part: fn(&UnitReport) -> usize| self.units.iter().map(part).sum();
        self.archives = Archives {
            downloaded: sum(|unit| unit.downloaded),
            unchanged: sum(|unit| unit.unchanged),
            not_published: sum(|unit| unit.not_published),
            failed: sum(|unit| unit.failed),
            would_ask: sum(|unit| unit.would_ask),
            left: sum(|unit| unit.left),
        };
        self.bytes_downloaded = self.units.iter().map(|unit| unit.bytes).sum();
        self.error = outcome.err().map(Failure::from);
        self.exit_code = match &self.error {
            Some(failure) => failure.exit_code(),
            None if self.archives.failed > 0 => exit::SOME_FAILED,
            None => exit::DONE,
        };
    }

    /// The answer of the command: a finding for each archive that could not be fetched.
    pub(crate) fn into_reply(self, all: bool) -> Reply {
        let findings: Vec<Finding> = self.units.iter().flat_map(UnitReport::findings).collect();
        let text = self.to_text(&findings, all);
        let partly = || Failure::failed(format!("{} not fetched", count(self.archives.failed as u64, "archive")));
        let failure = self.error.clone().or_else(|| (self.archives.failed > 0).then(partly));
        Reply::of_report(self.exit_code, &self).findings(findings).text(text).failed(failure)
    }

    fn to_text(&self, findings: &[Finding], all: bool) -> String {
        let Archives { downloaded, unchanged, not_published, failed, would_ask, left } = self.archives;
        if self.dry_run {
            let planned: Vec<Finding> = self.units.iter().map(UnitReport::planned).collect();
            let mut lines = list(&planned, all);
            lines.push(format!(
                "dry run: would ask for {} of {}",
                count(would_ask as u64, "archive"),
                count(self.units.len() as u64, "unit")
            ));
            return lines.join("\n");
        }
        let bytes = indicatif::BinaryBytes(self.bytes_downloaded);
        let mut lines = list(findings, all);
        lines.push(format!(
            "archives: {downloaded} downloaded ({bytes}), {unchanged} unchanged, {not_published} not published, \
             {failed} failed"
        ));
        if left > 0 {
            lines.push(format!("          {left} not looked at"));
        }
        lines.push(format!("units:    {}", self.units.len()));
        lines.push(format!("time:     {:.1} s", self.seconds));
        lines.join("\n")
    }
}

impl UnitReport {
    fn planned(&self) -> Finding {
        let text = format!("would ask for {} of {}", self.would_ask, count(self.archives as u64, "archive"));
        Finding::named(&self.unit, "planned", text).sign(" ")
    }

    fn findings(&self) -> impl Iterator<Item = Finding> {
        self.failures.iter().map(|failure| Finding::named(&self.unit, "failed", failure))
    }
}

impl From<RunFault> for Failure {
    fn from(fault: RunFault) -> Self {
        let text = fault.to_string();
        match fault {
            RunFault::DataDir { .. } => Self::config(text),
            RunFault::Exchange { .. } | RunFault::List { .. } => Self::unreachable(text),
            RunFault::Stopped => Self::stopped(text),
        }
    }
}
