//! The worker: takes markers, fetches and verifies what they name, and brings it to a destination exactly once.
//!
//! In the order of the flow: [`job`] (a marker becomes work), [`fetch`], `archive::decode`, then by the destination's type
//! [`load`] into ClickHouse (insert, [`read_back`], [`ledger`], [`superseded_rows`]) or [`mirror`] into a directory; [`outcome`] decides
//! what the queue is told, [`worker`] tells it. [`runner`] keeps the slots filled.

mod error;
mod outcome;

mod job;

mod fetch;

pub mod native;

mod account;
mod batch;
mod corrections;
mod ledger;
mod load;
mod memory;
mod mirror;
mod read_back;
mod schema;
mod series;
mod sql;
mod statements;
mod superseded_rows;
mod warehouse;

mod board;
mod circuit;
mod destination;
mod metrics;
mod runner;
mod suspects;
mod task_report;
mod wanted;
mod worker;
mod writes;

mod adopt;
mod attendance;
mod cli;
mod dead;
mod doctor;
mod explain;
mod gaps;
mod history;
mod journal;
mod lost_stream;
mod migrate;
mod moment;
mod pace;
mod pause;
mod place;
mod pull;
mod replay;
mod service;
mod status;
mod stream_metrics;
mod sweep;
mod tasks;
mod verify;

pub use cli::{Cli, Command};
pub use service::run;
