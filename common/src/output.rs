//! What a command says: one answer, for people or as JSON, and its exit code.
//!
//! A command returns a [`Reply`] or a [`Failure`]; [`Output::finish`] prints it, once, at the end. Whatever is printed
//! passes [`printable`], so that no text from a server, a bucket or a file can write to the terminal as itself.

mod arguments;
mod failure;
mod finding;
mod list;
mod printable;
mod table;

use std::io::{self, IsTerminal, Write};

use jiff::{Timestamp, Unit as TimeUnit};
use serde::Serialize;
use serde_json::{Map, Value, json};

pub use arguments::{ListArgs, OutputArgs, command_name, parse, wants_json};
pub use failure::{Failure, FailureClass};
pub use finding::Finding;
pub use list::{LINES_MAX, list};
pub use printable::{is_seen, printable, printable_json, printable_lines};
pub use table::table;

use crate::exit;

/// Where a terminal does not tell its width.
const COLUMNS: usize = 80;

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

fn to_value(content: &impl Serialize) -> Value {
    serde_json::to_value(content).expect("texts, numbers and maps with text keys always serialise")
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

/// Sentences that are wider than the terminal, broken at spaces.
fn fitted(text: &str) -> String {
    fit(text, width())
}

/// The same for what goes to stderr, which may be a terminal where stdout is none.
pub fn fit_stderr(text: &str) -> String {
    fit(text, columns(&io::stderr(), &console::Term::stderr()).unwrap_or(usize::MAX))
}

fn fit(text: &str, width: usize) -> String {
    let mut lines = Vec::new();
    for line in text.lines() {
        if console::measure_text_width(line) <= width {
            lines.push(line.to_owned());
            continue;
        }
        let parts = wrap_to(line, width.saturating_sub(2));
        lines.extend(parts.into_iter().enumerate().map(|(at, part)| if at == 0 { part } else { format!("  {part}") }));
    }
    lines.join("\n")
}

/// Now, to the millisecond.
fn now() -> Timestamp {
    let now = crate::clock::now();
    now.round(TimeUnit::Millisecond).unwrap_or(now)
}

/// How wide a line may be. Where stdout is no terminal nothing is cut or broken, so that a text can be searched for,
/// unless $COLUMNS asks for it.
pub fn width() -> usize {
    if let Some(columns) = columns(&io::stdout(), &console::Term::stdout()) {
        return columns;
    }
    std::env::var("COLUMNS")
        .ok()
        .and_then(|columns| columns.parse().ok())
        .map_or(usize::MAX, |columns: usize| columns.max(40))
}

/// The width of a terminal; `None` where there is none.
fn columns(stream: &impl IsTerminal, terminal: &console::Term) -> Option<usize> {
    let size = || terminal.size_checked().map_or(COLUMNS, |(_, columns)| usize::from(columns).max(40));
    stream.is_terminal().then(size)
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

/// Breaks text at spaces so that each line, behind `indent` spaces, fits the width.
pub fn wrap(text: &str, indent: usize) -> Vec<String> {
    wrap_to(text, width().saturating_sub(indent).max(20))
}

fn wrap_to(text: &str, room: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for line in text.lines() {
        let mut current = String::new();
        for word in line.split(' ') {
            if !current.is_empty()
                && console::measure_text_width(&current) + 1 + console::measure_text_width(word) > room
            {
                lines.push(std::mem::take(&mut current));
            }
            if !current.is_empty() {
                current.push(' ');
            }
            current.push_str(word);
        }
        lines.push(current);
    }
    lines
}

#[cfg(test)]
mod tests {
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
