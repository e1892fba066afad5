//! What `doctor` finds: a list of checks, for people and as JSON.

pub mod machine;

use std::net::SocketAddr;

use serde::Serialize;

use crate::output::{Finding, Reply, exit, wrap};
use crate::text::printable;

/// One thing that was looked at.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    pub name: String,
    pub ok: bool,
    /// What was found.
    pub found: String,
    /// Fine now, and not for long.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub warning: bool,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
    /// Some of the paths that it is about, for programs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
}

/// Checks in the order they were made.
#[derive(Debug, Default, Serialize)]
pub struct DoctorReport {
    pub checks: Vec<Check>,
}

impl DoctorReport {
    pub fn good(&mut self, name: &str, found: impl Into<String>) {
        let (name, found) = (name.to_owned(), found.into());
        self.checks.push(Check { name, ok: true, found, warning: false, advice: None, paths: Vec::new() });
    }

    /// What is worth knowing and no failure.
    pub fn warn(&mut self, name: &str, found: impl Into<String>) {
        let (name, found) = (name.to_owned(), found.into());
        self.checks.push(Check { name, ok: true, found, warning: true, advice: None, paths: Vec::new() });
    }

    pub fn bad(&mut self, name: &str, found: impl Into<String>, advice: impl Into<String>) {
        let (name, found) = (name.to_owned(), found.into());
        let advice = Some(advice.into()).filter(|advice| !advice.is_empty());
        self.checks.push(Check { name, ok: false, found, warning: false, advice, paths: Vec::new() });
    }

    /// Adds paths to the check that was made last.
    pub fn paths(&mut self, paths: impl IntoIterator<Item = impl Into<String>>) {
        if let Some(check) = self.checks.last_mut() {
            check.paths.extend(paths.into_iter().map(Into::into));
        }
    }

    pub fn exit_code(&self) -> u8 {
        if self.checks.iter().all(|check| check.ok) { exit::DONE } else { exit::DIFFERENCES }
    }

    /// The answer of the command: a finding for each check that failed, beside the list of all.
    pub fn into_reply(self) -> Reply {
        let failed = self.checks.iter().filter(|check| !check.ok);
        let findings = failed.map(|check| Finding::new("failed", &check.found).class(&check.name)).collect();
        Reply::of_report(self.exit_code(), &self).findings(findings).text(self.to_text())
    }

    /// One line a check, and the advice below what is wrong.
    fn to_text(&self) -> String {
        let mut lines = Vec::new();
        for check in &self.checks {
            let mark = match (check.ok, check.warning) {
                (false, _) => "FAIL",
                (true, true) => "WARN",
                (true, false) => "ok  ",
            };
            let found = printable(&format!("{}: {}", check.name, check.found));
            lines.extend(indented(mark, &found));
            lines.extend(check.advice.iter().flat_map(|advice| indented("    →", &printable(advice))));
        }
        lines.join("\n")
    }
}

fn indented(mark: &str, text: &str) -> Vec<String> {
    let first = |at: usize| if at == 0 { mark } else { "" };
    wrap(text, 6).iter().enumerate().map(|(at, line)| format!("{:<6}{line}", first(at))).collect()
}

/// What the configuration says of `http.listen`, for `doctor --config-only`.
pub fn describe_http(report: &mut DoctorReport, listen: Option<SocketAddr>) {
    report.good("http", listen.map_or_else(|| "not served".to_owned(), |listen| listen.to_string()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bad_check_makes_the_exit_code() {
        let mut report = DoctorReport::default();
        report.good("a", "fine");
        report.warn("c", "nearly full");
        assert_eq!(report.exit_code(), exit::DONE);
        report.bad("b", "broken", "mend it");
        assert_eq!(report.exit_code(), exit::DIFFERENCES);
        assert_eq!(report.to_text(), "ok    a: fine\nWARN  c: nearly full\nFAIL  b: broken\n    → mend it");
    }
}
