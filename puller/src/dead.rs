//! `puller dead`: what a person does about dead letters.
//!
//! A retry is published, then recorded, then its letter is deleted; the publish has the letter's own message id. Whatever
//! dies in between, doing it again sends nothing twice and loses nothing.

use std::collections::{BTreeMap, HashMap};

use clap::{Args, Subcommand};
use comfy_table::{Table, presets};
use common::config::{Config, DestinationKind};
use common::exit;
use common::marker::Marker;
use common::unit::{Token, Unit, shorten};
use jiff::Timestamp;
use nats::{Bus, Letter, ReplayOptions};
use serde::Serialize;
use serde_json::Value;

use crate::ledger::Attempt;
use crate::moment;
use crate::service::{Failure, worker_name};
use crate::status::print;
use crate::unit_filter::UnitFilter;
use crate::warehouse::Warehouse;

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

#[derive(Debug, Clone, Copy)]
enum Act {
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
struct Clerk<'a> {
    bus: &'a Bus,
    config: &'a Config,
    journal: Journal<'a>,
    act: Act,
    reason: &'a str,
}

impl Clerk<'_> {
    async fn work(mut self, chosen: &Chosen, json: bool) -> Result<u8, Failure> {
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

/// What was decided about a marker outside of a worker's attempt.
pub(crate) struct Note<'a> {
    pub destination: &'a str,
    pub unit: Option<Unit>,
    /// The marker, or nothing.
    pub payload: &'a [u8],
    pub stream_sequence: u64,
    pub attempt: u32,
    pub outcome: &'a str,
    pub class: &'a str,
    pub text: &'a str,
}

/// Writes such decisions to the `ingest_log` of the destination, where it has one.
pub(crate) struct Journal<'a> {
    config: &'a Config,
    name: &'a str,
    warehouses: HashMap<String, Warehouse>,
}

impl<'a> Journal<'a> {
    pub(crate) fn new(config: &'a Config, name: &'a str) -> Self {
        Self { config, name, warehouses: HashMap::new() }
    }

    /// Connects to the destination's server, if it has one.
    pub(crate) async fn open(&mut self, destination: &str) -> Result<(), Failure> {
        let Some(DestinationKind::ClickHouse(server)) = self.config.destination(destination).map(|found| &found.kind)
        else {
            return Ok(());
        };
        if !self.warehouses.contains_key(destination) {
            let mut warehouse = Warehouse::new(server);
            warehouse.connect().await?;
            self.warehouses.insert(destination.to_owned(), warehouse);
        }
        Ok(())
    }

    /// A message that is no unit's is in the log only: the table's rows are of units.
    pub(crate) async fn record(&self, note: &Note<'_>) -> Result<(), Failure> {
        let (Some(warehouse), Some(unit)) = (self.warehouses.get(note.destination), &note.unit) else { return Ok(()) };
        let marker = Marker::parse(note.payload).ok();
        let now = Timestamp::now();
        let attempt = Attempt {
            finished_at: now,
            started_at: now,
            destination: note.destination,
            unit,
            revision: marker.as_ref().map(|marker| marker.revision.to_string()).unwrap_or_default(),
            marker_id: marker.as_ref().map(|marker| marker.id.as_str()).unwrap_or_default(),
            stream_sequence: note.stream_sequence,
            attempt: note.attempt,
            worker: self.name,
            outcome: note.outcome,
            error_class: note.class,
            error: note.text,
            archives: 0,
            archives_loaded: 0,
            archives_skipped: 0,
            archives_failed: 0,
            rows: 0,
            bytes: 0,
            fetch_ms: 0,
            decode_ms: 0,
            insert_ms: 0,
            read_back_ms: 0,
            trace_id: "",
        };
        Ok(warehouse.record_attempts(&[attempt]).await?)
    }
}
