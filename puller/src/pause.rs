//! `puller pause` and `puller resume`: a destination stops and goes on for every worker at once.

use clap::Args;
use common::config::Config;
use common::exit;
use common::unit::Token;
use jiff::Timestamp;
use nats::Bus;
use serde::Serialize;

use crate::moment;
use crate::service::{Failure, worker_name};
use crate::status::print;

#[derive(Debug, Args)]
pub struct Pause {
    /// Only this destination [default: all that are configured]
    #[arg(long, value_name = "NAME")]
    destination: Option<Token>,

    /// Until this time (2026-02-14T08:00:00Z) or for this long (2h) [default: until resumed]
    #[arg(long, value_name = "TIME", value_parser = moment::future)]
    until: Option<Timestamp>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct Resume {
    /// Only this destination [default: all that are configured]
    #[arg(long, value_name = "NAME")]
    destination: Option<Token>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct State {
    destination: String,
    paused: bool,
    /// `null`: until resumed.
    until: Option<Timestamp>,
}

pub(crate) async fn pause(args: &Pause, config: &Config) -> Result<u8, Failure> {
    let names = chosen(config, args.destination.as_ref())?;
    let bus = Bus::connect(&config.nats, &worker_name()).await?;
    let mut states = Vec::new();
    for destination in names {
        bus.pause(&destination, args.until).await?;
        tracing::info!(destination, until = args.until.map(tracing::field::display), "paused");
        states.push(State { destination, paused: true, until: args.until });
    }
    bus.close().await;
    show(&states, args.json);
    Ok(exit::DONE)
}

pub(crate) async fn resume(args: &Resume, config: &Config) -> Result<u8, Failure> {
    let names = chosen(config, args.destination.as_ref())?;
    let bus = Bus::connect(&config.nats, &worker_name()).await?;
    let mut states = Vec::new();
    for destination in names {
        bus.resume(&destination).await?;
        tracing::info!(destination, "resumed");
        states.push(State { destination, paused: false, until: None });
    }
    bus.close().await;
    show(&states, args.json);
    Ok(exit::DONE)
}

/// The configured destinations, or the one that was named.
pub(crate) fn chosen(config: &Config, name: Option<&Token>) -> Result<Vec<String>, Failure> {
    let names: Vec<String> = config.destinations.iter().map(|destination| destination.name.clone()).collect();
    match name {
        None => Ok(names),
        Some(name) if names.iter().any(|known| known == name.as_str()) => Ok(vec![name.to_string()]),
        Some(name) => Err(Failure {
            message: format!("--destination: {name} is not configured; there are: {}", names.join(", ")),
            code: exit::USAGE,
        }),
    }
}

fn show(states: &[State], json: bool) {
    if json {
        print(&serde_json::to_string_pretty(states).expect("strings and numbers always serialise"));
        return;
    }
    for State { destination, paused, until } in states {
        print(&match (paused, until) {
            (false, _) => format!("{destination} takes markers again"),
            (true, Some(until)) => {
                format!("{destination} is paused until {until:.0}; what is in hand is finished")
            }
            (true, None) => format!(
                "{destination} is paused until `puller resume --destination {destination}`; what is in hand is finished"
            ),
        });
    }
}
