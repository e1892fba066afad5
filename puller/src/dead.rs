//! `puller dead`: what a person does about dead letters.
//!
//! A retry is published, then recorded, then its letter is deleted; the publish has the letter's own message id. Whatever
//! dies in between, doing it again sends nothing twice and loses nothing.

mod clerk;

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use comfy_table::{Table, presets};
use common::config::Config;
use common::exit;
use common::unit::Token;
use jiff::Timestamp;
use nats::{Bus, Letter};
use serde::Serialize;
use serde_json::Value;

use clerk::{Act, Clerk};

use crate::journal::Journal;
use crate::moment;
use crate::service::{Failure, worker_name};
use crate::status::print;
use crate::unit_filter::UnitFilter;

/// Longest error in a table, in characters; `show` has all of it.
const ERROR_CHARS_MAX: usize = 200;

#[derive(Debug, Subcommand)]
pub enum Dead {
    /// Lists dead letters, oldest first
    #[command(
        after_help = "Examples:\n  puller dead ls\n  puller dead ls --unit binance/um/klines/1h --class missing\n  \
                            puller dead ls --older-than 7d --json"
    )]
    Ls {
        #[command(flatten)]
        filter: Filter,

        /// Print JSON
        #[arg(long)]
        json: bool,
    },

    /// Shows all of one dead letter: its error, its headers and the marker
    #[command(after_help = "Examples:\n  puller dead show 12\n  puller dead show 12 --json")]
    Show {
        /// The letter's sequence, as `puller dead ls` lists it
        #[arg(value_name = "SEQ")]
        sequence: u64,

        /// Print JSON
        #[arg(long)]
        json: bool,
    },

    /// Sends the markers of dead letters to their destination again, and deletes the letters
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

        /// Print JSON
        #[arg(long)]
        json: bool,
    },

    /// Deletes dead letters without sending anything
    #[command(after_help = "Examples:\n  puller dead discard 12 --reason 'a test'\n  \
                            puller dead discard --all --unit binance/spot/klines/1s --reason 'not wanted'")]
    Discard {
        #[command(flatten)]
        chosen: Chosen,

        /// Why, for ingest_log and the log
        #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
        reason: String,

        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Which dead letters.
#[derive(Debug, Args)]
pub struct Filter {
    /// Only of this destination
    #[arg(long, value_name = "NAME")]
    destination: Option<Token>,

    /// Only of this unit, or of all units below a prefix such as binance/um/klines/1h
    #[arg(long, value_name = "UNIT")]
    unit: Option<UnitFilter>,

    /// Only of this error class, e.g. missing, damaged, shrunk
    #[arg(long)]
    class: Option<String>,

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
        let Self { destination, unit, class, older_than, newer_than } = self;
        destination.is_none() && unit.is_none() && class.is_none() && older_than.is_none() && newer_than.is_none()
    }

    fn matches(&self, letter: &Letter) -> bool {
        self.unit.as_ref().is_none_or(|unit| unit.matches(&letter.unit_tokens))
            && self.class.as_ref().is_none_or(|class| *class == letter.class)
            && self.older_than.is_none_or(|time| letter.at < time)
            && self.newer_than.is_none_or(|time| letter.at > time)
    }

    /// The letters as they are now. Those that a retry brings back are not among them.
    async fn list(&self, bus: &Bus) -> Result<Vec<Summary>, Failure> {
        let mut found = Vec::new();
        let tokens = self.unit.as_ref().map(UnitFilter::exact).unwrap_or_default();
        let destination = self.destination.as_ref().map(Token::as_str);
        let keep = |letter: Letter| {
            if self.matches(&letter) {
                found.push(Summary::of(&letter));
            }
        };
        bus.each_letter(destination, &tokens, keep).await?;
        Ok(found)
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
        }
    }

    /// The first line of the error, fit for a table.
    pub(crate) fn first_line(&self) -> String {
        let line = self.error.lines().next().unwrap_or_default();
        let mut short: String = line.chars().take(ERROR_CHARS_MAX).collect();
        if short.len() < line.len() || self.error.lines().nth(1).is_some() {
            short.push('…');
        }
        short
    }
}

/// As units are written on the command line, also what is none.
fn unit_name(letter: &Letter) -> String {
    letter.unit_tokens.replace('.', "/")
}

pub(crate) async fn run(command: &Dead, config: &Config) -> Result<u8, Failure> {
    let name = worker_name();
    let bus = Bus::connect(&config.nats, &name).await?;
    let code = match command {
        Dead::Ls { filter, json } => ls(&bus, filter, *json).await,
        Dead::Show { sequence, json } => show(&bus, *sequence, *json).await,
        Dead::Retry { chosen, reason, accept_shrink, force, json } => {
            let act = Act::Retry { accept_shrink: *accept_shrink, force: *force };
            Clerk { bus: &bus, config, journal: Journal::new(config, &name), act, reason }.work(chosen, *json).await
        }
        Dead::Discard { chosen, reason, json } => {
            let journal = Journal::new(config, &name);
            Clerk { bus: &bus, config, journal, act: Act::Discard, reason }.work(chosen, *json).await
        }
    };
    bus.close().await;
    code
}

async fn ls(bus: &Bus, filter: &Filter, json: bool) -> Result<u8, Failure> {
    let letters = filter.list(bus).await?;
    if json {
        print(&serde_json::to_string_pretty(&letters).expect("strings and numbers always serialise"));
    } else if letters.is_empty() {
        print(if filter.is_empty() { "no dead letters" } else { "no dead letter is like that" });
    } else {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(["SEQ", "STORED", "DESTINATION", "UNIT", "CLASS", "ERROR"]);
        for letter in &letters {
            table.add_row([
                letter.sequence.to_string(),
                format!("{:.0}", letter.at),
                letter.destination.clone(),
                letter.unit.clone(),
                letter.class.clone(),
                letter.first_line(),
            ]);
        }
        print(&table.to_string());
        print(&format!("{} dead letters; `puller dead show SEQ` has all of one", letters.len()));
    }
    Ok(exit::DONE)
}

async fn show(bus: &Bus, sequence: u64, json: bool) -> Result<u8, Failure> {
    #[derive(Serialize)]
    struct Shown<'a> {
        #[serde(flatten)]
        summary: Summary,
        subject: &'a str,
        headers: &'a BTreeMap<String, String>,
        /// `null` when the message is no JSON.
        marker: Option<Value>,
        /// The message as text, when it is no JSON.
        #[serde(skip_serializing_if = "Option::is_none")]
        payload: Option<String>,
    }
    let letter = bus.letter(sequence).await?.ok_or_else(|| not_there(sequence))?;
    let marker: Option<Value> = serde_json::from_slice(&letter.payload).ok();
    let payload = marker.is_none().then(|| String::from_utf8_lossy(&letter.payload).into_owned());
    let summary = Summary::of(&letter);
    if json {
        let shown = Shown { summary, subject: &letter.marker_subject, headers: &letter.headers, marker, payload };
        print(&serde_json::to_string_pretty(&shown).expect("strings and numbers always serialise"));
        return Ok(exit::DONE);
    }
    print(&format!("Dead letter {sequence} of {}, stored {:.0}", summary.destination, summary.at));
    print(&format!("unit    {}", summary.unit));
    print(&format!("class   {}", summary.class));
    print(&format!("error   {}", summary.error.replace('\n', "\n        ")));
    print("\nHeaders");
    letter.headers.iter().for_each(|(name, value)| print(&format!("  {name}: {value}")));
    print("\nMarker");
    print(&match (marker, payload) {
        (Some(marker), _) => serde_json::to_string_pretty(&marker).expect("it was read from JSON"),
        (None, payload) => payload.unwrap_or_default().escape_debug().to_string(),
    });
    Ok(exit::DONE)
}

fn not_there(sequence: u64) -> Failure {
    let message = format!("there is no dead letter {sequence}: `puller dead ls` lists those there are");
    Failure { message, code: exit::SOME_FAILED }
}
