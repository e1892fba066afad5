//! The uploader: archives in `data_dir` that are marked complete → checked → in the bucket, read back → announced.
//!
//! It keeps no ledger: what is published is what the stream and the bucket say, and every decision is made from them
//! and the disk. It can be killed at any instant and run again. It knows nothing of what the rows mean.

//!
//! The rooms, in the order of the flow: [`commands`] and what they share in [`cli`]; a [`pass`] over all units; one [`unit`](mod@unit) at
//! a time; the [`bucket`]; [`contents`] of a unit and what is [`announced`] of it; what all of this shares is the [`site`], with
//! [`state`] on disk, the [`local`] tree, and [`error`].

mod announced;
mod bucket;
mod cli;
mod commands;
mod contents;
mod error;
mod local;
mod pass;
mod site;
mod state;
mod unit;

pub use commands::{Cli, Command, hangs, run};
pub use site::progress::Progress;
