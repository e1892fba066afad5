//! Retrying and discarding: one letter after the other, each so that a run cut short can be repeated.

use common::config::Config;
use common::output::{FailureClass, Finding, LINES_MAX, Reply, count, exit};
use common::text::{printable, shorten};
use common::unit::Unit;
use nats::{Bus, Letter, ReplayOptions};
use serde::Serialize;

use super::letters::{ChosenLetters, not_there, unit_name};
use crate::clickhouse::audit_log::{AuditEntry, AuditLog};
use common::output::Failure;

#[derive(Debug, Clone, Copy)]
pub(super) enum Act {
    Retry { accept_shrink: bool, force: bool },
    Discard,
}

impl Act {
    fn outcome(self) -> &'static str {
        match self {
            Self::Retry { .. } => "dead_retried",
            Self::Discard => "dead_discarded",
        }
    }

    fn done(self) -> &'static str {
        match self {
            Self::Retry { .. } => "sent again",
            Self::Discard => "discarded",
        }
    }
}

/// What became of one letter.
#[derive(Debug, Serialize)]
struct Handled {
    sequence: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    destination: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unit: Option<String>,
    done: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Failure>,
}

impl Handled {
    fn finding(&self) -> Finding {
        let text = self.error.as_ref().map(ToString::to_string).unwrap_or_default();
        let finding = Finding::new("failed", text).field("sequence", &self.sequence);
        Finding { unit: self.unit.clone(), destination: self.destination.clone(), ..finding }
    }

    fn to_line(&self, act: Act) -> String {
        let what =
            self.error.as_ref().map_or_else(|| act.done().to_owned(), |why| format!("not {}: {why}", act.done()));
        let names = [&self.destination, &self.unit].into_iter().flatten().map(|name| printable(name));
        let names = names.collect::<Vec<_>>().join("  ");
        format!("{}  {names}  {}", self.sequence, printable(&what))
    }
}

/// Works through the chosen letters one by one.
pub(super) struct LetterActions<'a> {
    pub(super) bus: &'a Bus,
    pub(super) config: &'a Config,
    pub(super) audit_log: AuditLog<'a>,
    pub(super) act: Act,
    pub(super) reason: &'a str,
}

impl LetterActions<'_> {
    pub(super) async fn work(mut self, chosen: &ChosenLetters) -> Result<Reply, Failure> {
        let sequences = self.choose(chosen).await?;
        // Without it none of them can be read.
        self.bus.expect_letters().await?;
        // The answer's own reason, which is printed with it, and there only. One condition has one code, also where it is
        // the only letter's.
        let is_answer = |failure: &Failure| {
            failure.class == FailureClass::Unreachable
                || sequences.len() == 1 && failure.exit_code() == exit::DIFFERENCES
        };
        let mut letters = Vec::with_capacity(sequences.len());
        let mut ended: Option<Failure> = None;
        for sequence in &sequences {
            let mut handled = Handled { sequence: *sequence, destination: None, unit: None, done: false, error: None };
            match self.handle(*sequence, &mut handled).await {
                Ok(()) => handled.done = true,
                Err(failure) => {
                    if !is_answer(&failure) {
                        tracing::error!(sequence, "not {}: {failure}", self.act.done());
                    }
                    handled.error = Some(failure);
                }
            }
            // The others would only wait for the same server.
            ended = handled.error.clone().filter(|failure| failure.class == FailureClass::Unreachable);
            letters.push(handled);
            if ended.is_some() {
                break;
            }
        }
        let done = letters.iter().filter(|handled| handled.done).count();
        let failed = letters.iter().filter(|handled| handled.error.is_some());
        let findings: Vec<Finding> = failed.clone().map(Handled::finding).collect();
        let first = failed.clone().find_map(|handled| handled.error.clone());
        let is_recorded = |handled: &Handled| handled.error.as_ref().is_some_and(is_answer);
        let letters_of = |number: usize| count(number as u64, "dead letter");
        let failure = ended.or_else(|| match first {
            Some(first) if is_answer(&first) => Some(first),
            Some(_) => Some(Failure::failed(format!("{} not {}", letters_of(findings.len()), self.act.done()))),
            None => None,
        });
        // Of many only those that failed: the others are as they were asked for.
        let is_shown =
            |handled: &&Handled| !is_recorded(handled) && (letters.len() <= LINES_MAX || handled.error.is_some());
        let mut lines: Vec<String> = letters.iter().filter(is_shown).map(|one| one.to_line(self.act)).collect();
        if !letters.iter().all(is_recorded) || letters.is_empty() {
            lines.push(format!("{done} of {} {}", letters_of(sequences.len()), self.act.done()));
        }
        Ok(Reply::default()
            .field("chosen", &sequences.len())
            .field("done", &done)
            .field("letters", &letters)
            .findings(findings)
            .text(lines.join("\n"))
            .failed(failure))
    }

    async fn choose(&self, chosen: &ChosenLetters) -> Result<Vec<u64>, Failure> {
        if chosen.all {
            let letters = chosen.filter.list(self.bus, self.config).await?;
            return Ok(letters.into_iter().map(|letter| letter.sequence).collect());
        }
        if !chosen.filter.is_empty() {
            return Err(Failure::usage("filters go with --all; give either sequences or --all"));
        }
        let mut sequences = chosen.sequences.clone();
        sequences.sort_unstable();
        sequences.dedup();
        Ok(sequences)
    }

    async fn handle(&mut self, sequence: u64, handled: &mut Handled) -> Result<(), Failure> {
        let letter = self.bus.letter(sequence).await?.ok_or_else(|| not_there(sequence))?;
        handled.destination = Some(letter.destination.clone());
        handled.unit = Some(unit_name(&letter));
        // Before anything is sent, so that what is done can also be recorded.
        self.audit_log.open(&letter.destination).await?;
        if let Act::Retry { accept_shrink, force } = self.act {
            self.send_again(&letter, accept_shrink, force).await?;
        }
        let entry = AuditEntry {
            destination: &letter.destination,
            unit: Unit::from_subject_tokens(&letter.unit_tokens).ok(),
            payload: &letter.payload,
            stream_sequence: letter.marker_sequence,
            attempt: letter.attempt,
            outcome: self.act.outcome(),
            class: &letter.class,
            text: self.reason,
        };
        self.audit_log.record(&entry).await?;
        self.bus.delete_letter(sequence).await?;
        tracing::info!(
            sequence,
            destination = letter.destination,
            unit = handled.unit,
            class = letter.class,
            reason = self.reason,
            "dead letter {}",
            self.act.done()
        );
        Ok(())
    }

    async fn send_again(&self, letter: &Letter, accept_shrink: bool, force: bool) -> Result<(), Failure> {
        let failed = |message: String| Failure::failed(message);
        let destination = letter.destination.as_str();
        if let Err(error) = Unit::from_subject_tokens(&letter.unit_tokens) {
            let subject = shorten(&letter.marker_subject);
            return Err(failed(format!(
                "the subject {subject} names no unit ({error}), so no worker can load it; find its publisher, then discard \
                 the letter"
            )));
        }
        if !self.bus.is_served(destination).await? {
            let advice = if self.config.destination(destination).is_some() {
                "run `puller migrate`"
            } else {
                "it is not configured; configure it and run `puller migrate`, or discard the letter"
            };
            return Err(failed(format!("destination {destination} has no consumers, nobody would get it ({advice})")));
        }
        let options = ReplayOptions {
            force: force || letter.options.force,
            accept_shrink: accept_shrink || letter.options.accept_shrink,
            symbols: letter.options.symbols.clone(),
            // A retry is somebody's own decision and not part of a replay, which may have been cancelled since.
            task: None,
            failures: letter.count,
        };
        let id = message_id(letter, &options);
        self.bus.publish_replay(destination, &letter.unit_tokens, letter.payload.to_vec(), &options, &id).await?;
        Ok(())
    }
}

/// The same for the same letter, sent the same way. The time is in it, as sequences start anew with a new stream.
fn message_id(letter: &Letter, options: &ReplayOptions) -> String {
    let flag = |set: bool, name: &'static str| if set { name } else { "" };
    format!(
        "dead-{}-{}{}{}",
        letter.sequence,
        letter.at.as_nanosecond(),
        flag(options.force, "-force"),
        flag(options.accept_shrink, "-accept-shrink"),
    )
}
