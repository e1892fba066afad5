//! What is wrong with a configuration.

use std::fmt;
use std::path::Path;

/// Everything that is wrong with a configuration, one line a problem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    problems: Vec<String>,
}

impl ConfigError {
    /// `None`: nothing is wrong.
    pub(super) fn of(problems: Vec<String>) -> Option<Self> {
        (!problems.is_empty()).then_some(Self { problems })
    }

    pub(super) fn one(key: &str, problem: &str) -> Self {
        Self { problems: vec![format!("{key}: {problem}")] }
    }

    pub(super) fn file(path: &Path, error: &impl fmt::Display) -> Self {
        Self::one(&path.display().to_string(), &error.to_string())
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the configuration is wrong")?;
        self.problems.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl std::error::Error for ConfigError {}
