//! `puller dead`: what a person does about dead letters.
//!
//! A retry is published, then recorded, then its letter is deleted; the publish has the letter's own message id. Whatever
//! dies in between, doing it again sends nothing twice and loses nothing.

mod actions;
pub(crate) mod letters;

use clap::Subcommand;
use common::config::Config;
use common::output::{LINES_MAX, ListArgs, Reply, ago, count, table};
use common::text::{printable, printable_json};
use nats::Bus;
use serde_json::Value;

use actions::{Act, LetterActions};
use letters::{ChosenLetters, LetterFilter, LetterSummary, not_there};

use crate::cli::context::worker_name;
use crate::clickhouse::audit_log::AuditLog;
use common::output::Failure;

#[derive(Debug, Subcommand)]
pub enum Dead {
    /// List dead letters, oldest first
    #[command(
        after_help = "Examples:\n  puller dead ls\n  puller dead ls --unit binance/um/klines/1h --class missing\n  \
                            puller dead ls --older-than 7d --json"
    )]
    Ls {
        #[command(flatten)]
        filter: LetterFilter,

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
        chosen: ChosenLetters,

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
        chosen: ChosenLetters,

        /// Why, for ingest_log and the log
        #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
        reason: String,
    },
}

impl Dead {
    fn filter(&self) -> Option<&LetterFilter> {
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
            LetterActions { bus: &bus, config, audit_log: AuditLog::new(config, &name), act, reason }.work(chosen).await
        }
        Dead::Discard { chosen, reason } => {
            let audit_log = AuditLog::new(config, &name);
            LetterActions { bus: &bus, config, audit_log, act: Act::Discard, reason }.work(chosen).await
        }
    };
    bus.close().await;
    reply
}

async fn ls(bus: &Bus, config: &Config, filter: &LetterFilter, all: bool) -> Result<Reply, Failure> {
    let letters = filter.list(bus, config).await?;
    let findings = letters.iter().map(LetterSummary::finding).collect();
    let text = if letters.is_empty() { "no dead letters".to_owned() } else { letters_table(&letters, all) };
    Ok(Reply::default().findings(findings).text(text))
}

/// A line a letter, the newest at the end, where one looks first; of many the newest.
fn letters_table(letters: &[LetterSummary], all: bool) -> String {
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
    let summary = LetterSummary::of(&letter);
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
