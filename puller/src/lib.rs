//! The worker: takes markers, fetches and verifies what they name, and brings it to a destination exactly once.
//!
//! The rooms, in the order of the flow: [`commands`] and what they share in [`cli`]; [`worker`] takes a delivery and tells
//! the queue how it ended; [`load`] brings a unit into ClickHouse by the statements of [`clickhouse`], [`directory`] brings it
//! into a folder; [`fetch`] reads the bucket; [`job`] is a marker that became work; [`error`] is what can go wrong.

mod cli;
mod clickhouse;
mod commands;
mod directory;
mod error;
mod fetch;
mod job;
mod load;
mod worker;

/// For the bench of the decoder.
pub use clickhouse::native;
pub use commands::{Cli, Command, run};
