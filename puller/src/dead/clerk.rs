//! Retrying and discarding: one letter after the other, each so that a run cut short can be repeated.

use common::config::Config;
use common::exit;
use common::unit::{Unit, shorten};
use nats::{Bus, Letter, ReplayOptions};
use serde::Serialize;

use super::{Chosen, not_there, unit_name};
use crate::journal::{Journal, Note};
use crate::service::Failure;
use crate::status::print;

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

    fn doing(self) -> &'static str {
        match self {
            Self::Retry { .. } => "retrying",
            Self::Discard => "discarding",
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
    error: Option<String>,
}

#[derive(Debug, Serialize)]
struct Report {
    chosen: usize,
    done: usize,
    letters: Vec<Handled>,
}

/// Works through the chosen letters one by one.
pub(super) struct Clerk<'a> {
    pub(super) bus: &'a Bus,
    pub(super) config: &'a Config,
    pub(super) journal: Journal<'a>,
    pub(super) act: Act,
    pub(super) reason: &'a str,
}

impl Clerk<'_> {
    pub(super) async fn work(mut self, chosen: &Chosen, json: bool) -> Result<u8, Failure> {
        let sequences = self.choose(chosen).await?;
        if !json && chosen.all {
            print(&format!("{} {} dead letters", self.act.doing(), sequences.len()));
        }
        let mut letters = Vec::with_capacity(sequences.len());
        let mut code = exit::DONE;
        for sequence in &sequences {
            let mut handled = Handled { sequence: *sequence, destination: None, unit: None, done: false, error: None };
            match self.handle(*sequence, &mut handled).await {
                Ok(()) => handled.done = true,
                Err(failure) => {
                    tracing::error!(sequence, "not {}: {}", self.act.done(), failure.message);
                    code = code.max(if failure.code == exit::UNREACHABLE { failure.code } else { exit::SOME_FAILED });
                    handled.error = Some(failure.message);
                }
            }
            if !json && let (true, Some(destination), Some(unit)) = (handled.done, &handled.destination, &handled.unit)
            {
                print(&format!("{sequence}  {destination}  {unit}  {}", self.act.done()));
            }
            letters.push(handled);
            // The others would only wait for the same server.
            if code == exit::UNREACHABLE {
                break;
            }
        }
        let done = letters.iter().filter(|handled| handled.done).count();
        if json {
            let report = Report { chosen: sequences.len(), done, letters };
            print(&serde_json::to_string_pretty(&report).expect("strings and numbers always serialise"));
        } else {
            print(&format!("{done} of {} dead letters {}", sequences.len(), self.act.done()));
        }
        Ok(code)
    }

    async fn choose(&self, chosen: &Chosen) -> Result<Vec<u64>, Failure> {
        if chosen.all {
            let letters = chosen.filter.list(self.bus).await?;
            return Ok(letters.into_iter().map(|letter| letter.sequence).collect());
        }
        if !chosen.filter.is_empty() {
            let message = "filters go with --all; give either sequences or --all".to_owned();
            return Err(Failure { message, code: exit::USAGE });
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
        self.journal.open(&letter.destination).await?;
        if let Act::Retry { accept_shrink, force } = self.act {
            self.send_again(&letter, accept_shrink, force).await?;
        }
        let note = Note {
            destination: &letter.destination,
            unit: Unit::from_subject_tokens(&letter.unit_tokens).ok(),
            payload: &letter.payload,
            stream_sequence: letter.marker_sequence,
            attempt: letter.attempt,
            outcome: self.act.outcome(),
            class: &letter.class,
            text: self.reason,
        };
        self.journal.record(&note).await?;
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
        let failed = |message: String| Failure { message, code: exit::SOME_FAILED };
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
