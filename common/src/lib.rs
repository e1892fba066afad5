//! What both sites agree on: names of units, the marker, object keys, checksums, configuration; and what every service
//! and command has: logs, health, output, exit codes.
//!
//! Refused here: anything only one binary needs, anything that knows what is inside an archive (crate `archive`), how
//! objects are kept (`store`), and the queue (`nats`).

pub mod service;

pub mod config;
pub mod unit_filter;

pub mod output;

pub mod marker;
pub mod object_key;

pub mod checksum;

pub mod layout;

pub mod catalogue;
pub mod unit;

pub mod backoff;
pub mod bwlimit;
pub mod clock;
pub mod failpoint;
pub mod files;

pub mod text;
