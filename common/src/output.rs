//! What a command says: one answer, for people or as JSON, and its exit code.
//!
//! A command returns a [`Reply`] or a [`Failure`]; [`Output::finish`] prints it, once, at the end. Whatever is printed
//! passes [`printable`](crate::text::printable), so that no text from a server, a bucket or a file can write to the terminal as itself.

mod arguments;
pub mod bars;
pub mod exit;
mod failure;
mod finding;
mod json;
mod list;
mod table;
mod terminal;

use std::io::{self, Write};

use jiff::{Timestamp, Unit as TimeUnit};
use serde::Serialize;
use serde_json::{Map, Value, json};

pub use arguments::{ListArgs, OutputArgs, command_name, is_json, parse};
pub use failure::{Failure, FailureClass};
pub use finding::Finding;
pub use list::{LINES_MAX, list};
pub use table::table;
pub use terminal::{fit_stderr, width, wrap};

use crate::text::{printable_json, printable_lines};
use json::to_value;
use terminal::fitted;

/// What a command found or did.
#[derive(Debug, Default)]
pub struct Reply {
    pub code: u8,
    /// Why it ended early, where it has something to show all the same.
    pub error: Option<Failure>,
    /// What there is to say of each destination.
    pub destinations: Vec<Value>,
    pub findings: Vec<Finding>,
    /// The command's own fields.
    pub fields: Map<String, Value>,
    /// The same for people.
    pub text: String,
}

impl Reply {
    pub fn new(code: u8) -> Self {
        Self { code, ..Self::default() }
    }

    /// With the fields of a report beside those of the envelope.
    pub fn of_report(code: u8, report: &impl Serialize) -> Self {
        let fields = match to_value(report) {
            Value::Object(fields) => fields,
            other => Map::from_iter([("result".to_owned(), other)]),
        };
        Self { code, fields, ..Self::default() }
    }

    #[must_use]
    pub fn field(mut self, name: &str, value: &impl Serialize) -> Self {
        self.fields.insert(name.to_owned(), to_value(value));
        self
    }

    #[must_use]
    pub fn destinations<T: Serialize>(mut self, destinations: &[T]) -> Self {
        self.destinations = destinations.iter().map(to_value).collect();
        self
    }

    #[must_use]
    pub fn findings(mut self, findings: Vec<Finding>) -> Self {
        self.findings = findings;
        self
    }

    #[must_use]
    pub fn text(mut self, text: impl Into<String>) -> Self {
        self.text = text.into();
        self
    }

    /// It ended early: the exit code is the failure's.
    #[must_use]
    pub fn failed(mut self, failure: Option<Failure>) -> Self {
        if let Some(failure) = failure {
            self.code = failure.exit_code();
            self.error = Some(failure);
        }
        self
    }
}

/// Where a command's answer goes, and as what.
#[derive(Debug, Clone)]
pub struct Output {
    /// Binary and subcommand, e.g. `puller dead ls`.
    pub command: String,
    pub json: bool,
}

impl Output {
    /// Prints the answer; returns the exit code.
    pub fn finish(&self, result: Result<Reply, Failure>) -> u8 {
        let reply = result.unwrap_or_else(|failure| Reply::default().failed(Some(failure)));
        if let Some(failure) = &reply.error {
            failure.report(&self.command);
        }
        let text =
            if self.json { printable_json(&self.envelope(&reply)) } else { fitted(&printable_lines(&reply.text)) };
        if text.trim_end().is_empty() {
            return reply.code;
        }
        after_printing(writeln!(io::stdout(), "{}", text.trim_end()), reply.code, &self.command)
    }

    fn envelope(&self, reply: &Reply) -> Value {
        let mut envelope = json!({
            "command": self.command,
            "at": now(),
            "ok": reply.code == exit::DONE,
            "exit_code": reply.code,
            "error": reply.error,
            "destinations": reply.destinations,
            "findings": reply.findings,
        });
        let fields = envelope.as_object_mut().expect("it was made as an object");
        for (name, value) in &reply.fields {
            // A command's own field never stands in for one of the envelope's.
            fields.entry(name).or_insert_with(|| value.clone());
        }
        envelope
    }
}

/// The exit code of a command that has printed its answer. Whoever reads it may have seen enough.
fn after_printing(printed: io::Result<()>, code: u8, command: &str) -> u8 {
    match printed {
        Ok(()) => code,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => exit::CLOSED_PIPE,
        Err(error) => {
            Failure::failed(format!("cannot write to stdout: {error}")).report(command);
            exit::SOME_FAILED
        }
    }
}

/// Now, to the millisecond.
fn now() -> Timestamp {
    let now = crate::clock::now();
    now.round(TimeUnit::Millisecond).unwrap_or(now)
}

/// How long ago, in the two largest units: `3d 4h`.
pub fn ago(at: Timestamp) -> String {
    let seconds = u64::try_from(crate::clock::now().duration_since(at).as_secs()).unwrap_or_default();
    short_duration(seconds)
}

/// `3d 4h`, `2h 5m`, `4m 10s`, `8s`.
pub fn short_duration(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, _, _) => format!("{hours}h {}m", minutes % 60),
        (_, _, _) => format!("{days}d {}h", hours % 24),
    }
}

/// `1 unit`, `2 units`.
pub fn count(number: u64, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

/// The same for what may be a large number: `2,000 rows`.
pub fn grouped(number: u64, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{} {noun}s", indicatif::HumanCount(number)) }
}

#[cfg(test)]
mod tests {
    use super::terminal::wrap_to;
    use super::*;

    #[test]
    fn an_envelope_has_its_fields_and_the_commands_beside() {
        let output = Output { command: "puller status".into(), json: true };
        let reply = Reply::new(exit::DIFFERENCES).field("units", &3).field("ok", &true);
        let envelope = output.envelope(&reply);
        assert_eq!((&envelope["command"], &envelope["ok"]), (&json!("puller status"), &json!(false)));
        assert_eq!((&envelope["error"], &envelope["units"]), (&Value::Null, &json!(3)));
        assert_eq!((&envelope["destinations"], &envelope["findings"]), (&json!([]), &json!([])));
        let at = envelope["at"].as_str().unwrap_or_default();
        assert!(at.ends_with('Z') && at.parse::<Timestamp>().is_ok(), "{at}");

        let failed = Reply::default().failed(Some(Failure::unreachable("no server").advice("start it")));
        let envelope = output.envelope(&failed);
        assert_eq!(envelope["error"], json!({"class": "unreachable", "text": "no server", "advice": "start it"}));
        assert_eq!(envelope["exit_code"], exit::UNREACHABLE);
    }

    #[test]
    fn one_is_singular() {
        assert_eq!(
            (count(1, "unit"), count(0, "unit"), count(2000, "unit")),
            ("1 unit".into(), "0 units".into(), "2000 units".into())
        );
        assert_eq!(
            (grouped(1, "row"), grouped(0, "row"), grouped(2000, "row")),
            ("1 row".into(), "0 rows".into(), "2,000 rows".into())
        );
    }

    #[test]
    fn durations_and_lines_are_short() {
        let check = |seconds, expected: &str| assert_eq!(short_duration(seconds), expected);
        check(8, "8s");
        check(250, "4m 10s");
        check(7500, "2h 5m");
        check(3 * 86_400 + 4 * 3600, "3d 4h");
        let lines = wrap_to(&"word ".repeat(40), 76);
        assert!(lines.len() > 2 && lines.iter().all(|line| line.len() <= 76), "{lines:?}");
    }
}
