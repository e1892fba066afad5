//! Why a command ended early.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use super::exit;
use super::terminal::fit_stderr;
use crate::text::printable_lines;

/// What a caller can do about it; each belongs to one exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureClass {
    /// Wrong arguments.
    Usage,
    /// Wrong or missing settings.
    Config,
    /// Credentials that are not accepted, or may not do this.
    Denied,
    /// A server refuses the request for good.
    Refused,
    /// A server does not answer.
    Unreachable,
    /// A stream, consumer or table is not there.
    Missing,
    /// Filters match nothing.
    NoMatch,
    /// Some of the work failed.
    Failed,
    /// Ended by a signal or a time limit before everything was done.
    Stopped,
}

impl FailureClass {
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Usage | Self::Config | Self::Denied | Self::Refused => exit::USAGE,
            Self::Unreachable => exit::UNREACHABLE,
            Self::Missing | Self::NoMatch => exit::DIFFERENCES,
            Self::Failed | Self::Stopped => exit::SOME_FAILED,
        }
    }
}

/// Why a command ended early, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failure {
    pub class: FailureClass,
    pub text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Failure {
    pub fn new(class: FailureClass, text: impl Into<String>) -> Self {
        Self { class, text: text.into(), advice: None }
    }

    pub fn usage(text: impl Into<String>) -> Self {
        Self::new(FailureClass::Usage, text)
    }

    pub fn config(text: impl Into<String>) -> Self {
        Self::new(FailureClass::Config, text)
    }

    pub fn unreachable(text: impl Into<String>) -> Self {
        Self::new(FailureClass::Unreachable, text)
    }

    pub fn missing(text: impl Into<String>) -> Self {
        Self::new(FailureClass::Missing, text)
    }

    pub fn no_match(text: impl Into<String>) -> Self {
        Self::new(FailureClass::NoMatch, text)
    }

    pub fn failed(text: impl Into<String>) -> Self {
        Self::new(FailureClass::Failed, text)
    }

    pub fn stopped(text: impl Into<String>) -> Self {
        Self::new(FailureClass::Stopped, text)
    }

    #[must_use]
    pub fn advice(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }

    pub fn exit_code(&self) -> u8 {
        self.class.exit_code()
    }

    /// Of several, one for all that lead to the gravest exit code, a line each; and the others.
    pub fn gravest(failures: Vec<Self>) -> (Option<Self>, Vec<Self>) {
        let code = exit::worst(failures.iter().map(Self::exit_code));
        let (gravest, others): (Vec<_>, Vec<_>) = failures.into_iter().partition(|failure| failure.exit_code() == code);
        // The advice that is not the joined one's own stays with its line.
        let join = |first: Self, more: Self| match first.advice == more.advice {
            true => Self { text: format!("{}\n{}", first.text, more.text), ..first },
            false => Self { text: format!("{first}\n{more}"), advice: None, ..first },
        };
        (gravest.into_iter().reduce(join), others)
    }

    /// The same, said of a destination.
    #[must_use]
    pub fn of_destination(self, name: &str) -> Self {
        Self { text: format!("{name}: {}", self.text), ..self }
    }

    /// Says it on stderr: to a person, or before there is a log, as text, elsewhere as a line of the log.
    pub(super) fn report(&self, command: &str) {
        let class = self.class;
        if tracing::event_enabled!(tracing::Level::ERROR) && !io::stderr().is_terminal() {
            self.to_string().lines().for_each(|line| tracing::error!(?class, "{line}"));
            return;
        }
        let binary = command.split(' ').next().unwrap_or(command);
        let text = printable_lines(&format!("{binary}: {self}"));
        // Nothing is left to tell it to when stderr is closed.
        let _written = writeln!(io::stderr(), "{}", fit_stderr(&text));
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.advice {
            None => f.write_str(&self.text),
            Some(advice) => write!(f, "{} ({advice})", self.text),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::failed(error.to_string())
    }
}
