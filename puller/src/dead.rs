//! `puller dead`: what a person does about dead letters.
//!
//! A retry is published, then recorded, then its letter is deleted; the publish has the letter's own message id. Whatever
//! dies in between, doing it again sends nothing twice and loses nothing.

mod clerk;

use clap::{Args, Subcommand};
use common::config::Config;
use common::output::{Finding, LINES_MAX, ListArgs, Reply, ago, count, table};
use common::text::{printable, printable_json};
use common::unit::Unit;
use common::unit_filter::{UnitFilter, UnitPrefix};
use jiff::Timestamp;
use nats::{Bus, Letter};
use serde::Serialize;
use serde_json::Value;

use clerk::{Act, Clerk};

use crate::error::ErrorClass;
use crate::journal::Journal;
use crate::moment;
use crate::service::{Failure, check_name, worker_name};

#[derive(Debug, Subcommand)]
pub enum Dead {
    /// List dead letters, oldest first
    #[command(
        after_help = "Examples:\n  puller dead ls\n  puller dead ls --unit binance/um/klines/1h --class missing\n  \
                            puller dead ls --older-than 7d --json"
    )]
    Ls {
        #[command(flatten)]
        filter: Filter,

        #[command(flatten)]
        list: ListArgs,
    },

    /// Show all of one dead letter: its error, its headers and the marker
    #[command(after_help = "Examples:\n  puller dead show 12\n  puller dead show 12 --json")]
    Show {
        /// The letter's sequence, as `puller dead ls` lists it
        #[arg(value_name = "SEQ")]
        sequence: u64,
    },

    /// Send the markers of dead letters to their destination again, and delete the letters
    ///
    /// Archives that are loaded already are skipped. What fails again comes back as a new letter.
    #[command(after_help = "Examples:\n  puller dead retry 12 13 --reason 'uploaded again'\n  \
                            puller dead retry --all --class missing\n  \
                            puller dead retry 14 --accept-shrink --reason 'the exchange took these rows back'")]
    Retry {
        #[command(flatten)]
        chosen: Chosen,

        /// Why, for ingest_log and the log
        #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
        reason: String,

        /// Let a correction through that takes away more rows than corrections.shrink_limit
        #[arg(long)]
        accept_shrink: bool,

        /// Load also the archives that are loaded and verified already
        #[arg(long)]
        force: bool,
    },

    /// Delete dead letters without sending anything
    #[command(after_help = "Examples:\n  puller dead discard 12 --reason 'a test'\n  \
                            puller dead discard --all --unit binance/spot/klines/1s --reason 'not wanted'")]
    Discard {
        #[command(flatten)]
        chosen: Chosen,

        /// Why, for ingest_log and the log
        #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
        reason: String,
    },
}

/// Which dead letters.
#[derive(Debug, Args)]
pub struct Filter {
    /// Only of this destination
    #[arg(long, value_name = "NAME")]
    destination: Option<String>,

    #[command(flatten)]
    units: UnitFilter,

    /// Only of this error class, e.g. missing, damaged, shrunk
    #[arg(long, value_parser = ErrorClass::parse)]
    class: Option<ErrorClass>,

    /// Only those stored before a time (2026-02-14T08:00:00Z), a day (2026-02-14) or this long ago (3d)
    #[arg(long, value_name = "TIME", value_parser = moment::past)]
    older_than: Option<Timestamp>,

    /// Only those stored after it
    #[arg(long, value_name = "TIME", value_parser = moment::past)]
    newer_than: Option<Timestamp>,
}

#[derive(Debug, Args)]
pub struct Chosen {
    /// Sequences, as `puller dead ls` lists them
    #[arg(value_name = "SEQ", required_unless_present = "all", conflicts_with = "all")]
    sequences: Vec<u64>,

    /// All of them, or all that the filters leave
    #[arg(long)]
    all: bool,

    #[command(flatten)]
    filter: Filter,
}

impl Filter {
    fn is_empty(&self) -> bool {
        let Self { destination, units, class, older_than, newer_than } = self;
        destination.is_none() && units.is_empty() && class.is_none() && older_than.is_none() && newer_than.is_none()
    }

    fn matches(&self, letter: &Letter) -> bool {
        self.takes_unit(&letter.unit_tokens)
            && self.class.is_none_or(|class| class.as_str() == letter.class)
            && self.older_than.is_none_or(|time| letter.at < time)
            && self.newer_than.is_none_or(|time| letter.at > time)
    }

    /// A letter whose subject names no unit has a prefix all the same.
    fn takes_unit(&self, tokens: &str) -> bool {
        match Unit::from_subject_tokens(tokens) {
            Ok(unit) => self.units.matches(&unit),
            Err(_) => {
                let only_prefix = UnitFilter { unit: self.units.unit.clone(), ..UnitFilter::default() };
                self.units == only_prefix && self.units.unit.as_ref().is_none_or(|prefix| prefix.matches(tokens))
            }
        }
    }

    /// The letters as they are now. Those that a retry brings back are not among them.
    async fn list(&self, bus: &Bus, config: &Config) -> Result<Vec<Summary>, Failure> {
        let mut found = Vec::new();
        let tokens = self.units.unit.as_ref().map(UnitPrefix::exact).unwrap_or_default();
        let keep = |letter: Letter| {
            if self.matches(&letter) {
                found.push(Summary::of(&letter));
            }
        };
        bus.each_letter(self.destination.as_deref(), &tokens, keep).await?;
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
    fn other_filters(&self) -> Vec<String> {
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
pub(crate) struct Summary {
    pub sequence: u64,
    pub at: Timestamp,
    pub destination: String,
    pub unit: String,
    pub class: String,
    pub error: String,
    pub attempt: u32,
    pub worker: String,
    pub stream_sequence: u64,
    pub revision: String,
    /// How often this revision of the unit was given up.
    pub count: u32,
}

impl Summary {
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
            .since(self.at)
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
fn unit_name(letter: &Letter) -> String {
    letter.unit_tokens.replace('.', "/")
}

impl Dead {
    fn filter(&self) -> Option<&Filter> {
        match self {
            Self::Ls { filter, .. } => Some(filter),
            Self::Show { .. } => None,
            Self::Retry { chosen, .. } | Self::Discard { chosen, .. } => Some(&chosen.filter),
        }
    }
}

pub(crate) async fn run(command: &Dead, config: &Config) -> Result<Reply, Failure> {
    command.filter().map_or(Ok(()), |filter| filter.units.check())?;
    let name = worker_name();
    let bus = Bus::connect(&config.nats, &name).await?;
    let reply = match command {
        Dead::Ls { filter, list } => ls(&bus, config, filter, list.all).await,
        Dead::Show { sequence } => show(&bus, *sequence).await,
        Dead::Retry { chosen, reason, accept_shrink, force } => {
            let act = Act::Retry { accept_shrink: *accept_shrink, force: *force };
            Clerk { bus: &bus, config, journal: Journal::new(config, &name), act, reason }.work(chosen).await
        }
        Dead::Discard { chosen, reason } => {
            let journal = Journal::new(config, &name);
            Clerk { bus: &bus, config, journal, act: Act::Discard, reason }.work(chosen).await
        }
    };
    bus.close().await;
    reply
}

async fn ls(bus: &Bus, config: &Config, filter: &Filter, all: bool) -> Result<Reply, Failure> {
    let letters = filter.list(bus, config).await?;
    let findings = letters.iter().map(Summary::finding).collect();
    let text = if letters.is_empty() { "no dead letters".to_owned() } else { letters_table(&letters, all) };
    Ok(Reply::default().findings(findings).text(text))
}

/// A line a letter, the newest at the end, where one looks first; of many the newest.
fn letters_table(letters: &[Summary], all: bool) -> String {
    let left = if all { 0 } else { letters.len().saturating_sub(LINES_MAX) };
    let several = letters.iter().any(|letter| letter.destination != letters[0].destination);
    let rows = letters.iter().skip(left).map(|letter| {
        let destination = if several { format!("{}: ", letter.destination) } else { String::new() };
        vec![
            letter.sequence.to_string(),
            ago(letter.at),
            letter.unit.clone(),
            letter.class.clone(),
            format!("{destination}{}", letter.first_line()),
        ]
    });
    let mut lines = vec![table(&["SEQ", "AGE", "UNIT", "CLASS", "ERROR"], rows)];
    if left > 0 {
        lines.push(format!("… and {left} older ones; --all lists them"));
    }
    lines.push(format!("{}; `puller dead show SEQ` has all of one", count(letters.len() as u64, "dead letter")));
    lines.join("\n")
}

async fn show(bus: &Bus, sequence: u64) -> Result<Reply, Failure> {
    let letter = bus.letter(sequence).await?.ok_or_else(|| not_there(sequence))?;
    let marker: Option<Value> = serde_json::from_slice(&letter.payload).ok();
    // As text, when it is no JSON.
    let payload = marker.is_none().then(|| String::from_utf8_lossy(&letter.payload).into_owned());
    let summary = Summary::of(&letter);
    let mut lines = vec![
        printable(&format!("Dead letter {sequence} of {}, stored {:.0}", summary.destination, summary.at)),
        format!("unit    {}", printable(&summary.unit)),
        format!("class   {}", printable(&summary.class)),
        format!("times   {}", summary.count),
        format!("error   {}", summary.error.lines().map(printable).collect::<Vec<_>>().join("\n        ")),
        "\nHeaders".to_owned(),
    ];
    let headers = letter.headers.iter();
    lines.extend(headers.map(|(name, value)| format!("  {}: {}", printable(name), printable(value))));
    lines.push("\nMarker".to_owned());
    lines.push(match (&marker, &payload) {
        (Some(marker), _) => printable_json(marker),
        (None, payload) => printable(payload.as_deref().unwrap_or_default()),
    });
    Ok(Reply::default()
        .field("sequence", &sequence)
        .field("subject", &letter.marker_subject)
        .field("headers", &letter.headers)
        .field("marker", &marker)
        .field("payload", &payload)
        .findings(vec![summary.finding()])
        .text(lines.join("\n")))
}

fn not_there(sequence: u64) -> Failure {
    Failure::no_match(format!("there is no dead letter {sequence}")).advice("`puller dead ls` lists those there are")
}
