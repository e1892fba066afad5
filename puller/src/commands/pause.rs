//! `puller pause` and `puller resume`: a destination stops and goes on for every worker at once.

use clap::Args;
use common::config::Config;
use common::output::Reply;
use jiff::Timestamp;
use nats::Bus;
use serde::Serialize;

use crate::cli::context::{named_or_configured, worker_name};
use crate::cli::moment;
use common::output::Failure;

#[derive(Debug, Args)]
pub struct Pause {
    /// Only this destination [default: all that are configured]
    #[arg(long, value_name = "NAME")]
    destination: Option<String>,

    /// Until this time (2026-02-14T08:00:00Z) or for this long (2h) [default: until resumed]
    #[arg(long, value_name = "TIME", value_parser = moment::future)]
    until: Option<Timestamp>,
}

#[derive(Debug, Args)]
pub struct Resume {
    /// Only this destination [default: all that are configured]
    #[arg(long, value_name = "NAME")]
    destination: Option<String>,
}

#[derive(Debug, Serialize)]
struct State {
    destination: String,
    paused: bool,
    /// `null`: until resumed.
    until: Option<Timestamp>,
}

pub(crate) async fn pause(args: &Pause, config: &Config) -> Result<Reply, Failure> {
    let names = named_or_configured(config, args.destination.as_deref())?;
    let bus = Bus::connect(&config.nats, &worker_name()).await?;
    let (mut states, mut failures) = (Vec::new(), Vec::new());
    for destination in names {
        if let Err(error) = bus.pause(&destination, args.until).await {
            failures.push(Failure::from(error).of_destination(&destination));
            continue;
        }
        tracing::info!(destination, until = args.until.map(tracing::field::display), "paused");
        states.push(State { destination, paused: true, until: args.until });
    }
    bus.close().await;
    Ok(reply(&states, failures))
}

pub(crate) async fn resume(args: &Resume, config: &Config) -> Result<Reply, Failure> {
    let names = named_or_configured(config, args.destination.as_deref())?;
    let bus = Bus::connect(&config.nats, &worker_name()).await?;
    let (mut states, mut failures) = (Vec::new(), Vec::new());
    for destination in names {
        if let Err(error) = bus.resume(&destination).await {
            failures.push(Failure::from(error).of_destination(&destination));
            continue;
        }
        tracing::info!(destination, "resumed");
        states.push(State { destination, paused: false, until: None });
    }
    bus.close().await;
    Ok(reply(&states, failures))
}

fn reply(states: &[State], failures: Vec<Failure>) -> Reply {
    let (failure, others) = Failure::gravest(failures);
    let lines = states.iter().map(|State { destination, paused, until }| match (paused, until) {
        (false, _) => format!("{destination} takes markers again"),
        (true, Some(until)) => format!("{destination} is paused until {until:.0}; what is in flight is finished"),
        (true, None) => format!(
            "{destination} is paused until `puller resume --destination {destination}`; what is in flight is finished"
        ),
    });
    let text = lines.chain(others.iter().map(ToString::to_string)).collect::<Vec<_>>().join("\n");
    Reply::default().destinations(states).text(text).failed(failure)
}
