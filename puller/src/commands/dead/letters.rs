//! Dead letters: which ones are asked for, and what is said of one.

use clap::Args;
use common::config::Config;
use common::output::{Failure, Finding};
use common::unit::Unit;
use common::unit_filter::{UnitFilter, UnitPrefix};
use jiff::Timestamp;
use nats::{Bus, Letter};
use serde::Serialize;

use crate::cli::context::check_name;
use crate::cli::moment;
use crate::error::work::ErrorClass;
use common::text::printable;

/// Which dead letters.
#[derive(Debug, Args)]
pub struct LetterFilter {
    /// Only of this destination
    #[arg(long, value_name = "NAME")]
    pub(super) destination: Option<String>,

    #[command(flatten)]
    pub(super) units: UnitFilter,

    /// Only of this error class, e.g. missing, damaged, shrunk
    #[arg(long, value_parser = ErrorClass::parse)]
    pub(super) class: Option<ErrorClass>,

    /// Only those stored before a time (2026-02-14T08:00:00Z), a day (2026-02-14) or this long ago (3d)
    #[arg(long, value_name = "TIME", value_parser = moment::past)]
    pub(super) older_than: Option<Timestamp>,

    /// Only those stored after it
    #[arg(long, value_name = "TIME", value_parser = moment::past)]
    pub(super) newer_than: Option<Timestamp>,
}

#[derive(Debug, Args)]
pub struct ChosenLetters {
    /// Sequences, as `puller dead ls` lists them
    #[arg(value_name = "SEQ", required_unless_present = "all", conflicts_with = "all")]
    pub(crate) sequences: Vec<u64>,

    /// All of them, or all that the filters leave
    #[arg(long)]
    pub(super) all: bool,

    #[command(flatten)]
    pub(super) filter: LetterFilter,
}

impl LetterFilter {
    pub(super) fn is_empty(&self) -> bool {
        let Self { destination, units, class, older_than, newer_than } = self;
        destination.is_none() && units.is_empty() && class.is_none() && older_than.is_none() && newer_than.is_none()
    }

    pub(super) fn matches(&self, letter: &Letter) -> bool {
        self.matches_unit(&letter.unit_tokens)
            && self.class.is_none_or(|class| class.as_str() == letter.class)
            && self.older_than.is_none_or(|time| letter.at < time)
            && self.newer_than.is_none_or(|time| letter.at > time)
    }

    /// A letter whose subject names no unit has a prefix all the same.
    pub(super) fn matches_unit(&self, tokens: &str) -> bool {
        match Unit::from_subject_tokens(tokens) {
            Ok(unit) => self.units.matches(&unit),
            Err(_) => {
                let only_prefix = UnitFilter { unit: self.units.unit.clone(), ..UnitFilter::default() };
                self.units == only_prefix && self.units.unit.as_ref().is_none_or(|prefix| prefix.matches(tokens))
            }
        }
    }

    /// The letters as they are now. Those that a retry brings back are not among them.
    pub(super) async fn list(&self, bus: &Bus, config: &Config) -> Result<Vec<LetterSummary>, Failure> {
        let mut found = Vec::new();
        let tokens = self.units.unit.as_ref().map(UnitPrefix::exact).unwrap_or_default();
        let collect = |letter: Letter| {
            if self.matches(&letter) {
                found.push(LetterSummary::of(&letter));
            }
        };
        bus.each_letter(self.destination.as_deref(), &tokens, collect).await?;
        if found.is_empty() && !self.is_empty() {
            // One that is configured no more may have left letters.
            self.destination.as_deref().map_or(Ok(()), |name| check_name(config, name))?;
            let mut all = 0;
            bus.each_letter(None, &[], |_| all += 1).await?;
            return Err(self.units.none_of(Some(all), "dead letter", &self.other_filters()));
        }
        Ok(found)
    }

    /// Those that are not of units, as they were given.
    pub(super) fn other_filters(&self) -> Vec<String> {
        let filters = [
            self.destination.as_ref().map(|name| format!("destination {name}")),
            self.class.map(|class| format!("class {}", class.as_str())),
            self.older_than.map(|time| format!("older than {time:.0}")),
            self.newer_than.map(|time| format!("newer than {time:.0}")),
        ];
        filters.into_iter().flatten().collect()
    }
}

/// A dead letter without its marker.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct LetterSummary {
    pub(crate) sequence: u64,
    pub(crate) at: Timestamp,
    pub(crate) destination: String,
    pub(crate) unit: String,
    pub(crate) class: String,
    pub(crate) error: String,
    pub(crate) attempt: u32,
    pub(crate) worker: String,
    pub(crate) stream_sequence: u64,
    pub(crate) revision: String,
    /// How often this revision of the unit was given up.
    pub(crate) count: u32,
}

impl LetterSummary {
    pub(crate) fn of(letter: &Letter) -> Self {
        Self {
            sequence: letter.sequence,
            at: letter.at,
            destination: letter.destination.clone(),
            unit: unit_name(letter),
            class: letter.class.clone(),
            error: letter.error.clone(),
            attempt: letter.attempt,
            worker: letter.worker.clone(),
            stream_sequence: letter.marker_sequence,
            revision: letter.revision.clone(),
            count: letter.count,
        }
    }

    /// The first line of the error, with an ellipsis where there are more.
    pub(crate) fn first_line(&self) -> String {
        let mut lines = self.error.lines();
        let first = printable(lines.next().unwrap_or_default());
        if lines.next().is_some() { first + " …" } else { first }
    }

    pub(crate) fn finding(&self) -> Finding {
        Finding::named(&self.unit, "dead", &self.error)
            .class(&self.class)
            .in_state_since(self.at)
            .destination(&self.destination)
            .field("sequence", &self.sequence)
            .field("attempt", &self.attempt)
            .field("worker", &self.worker)
            .field("stream_sequence", &self.stream_sequence)
            .field("revision", &self.revision)
            .field("count", &self.count)
    }
}

/// As units are written on the command line, also what is none.
pub(super) fn unit_name(letter: &Letter) -> String {
    letter.unit_tokens.replace('.', "/")
}

pub(super) fn not_there(sequence: u64) -> Failure {
    Failure::no_match(format!("there is no dead letter {sequence}")).advice("`puller dead ls` lists those there are")
}
