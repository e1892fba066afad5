//! What both sites must agree on: names of units, the marker, object keys, checksums, configuration.
//!
//! Refused here: anything only one binary needs, anything that knows what is inside an archive (crate `archive`), how
//! objects are kept (`store`), and the queue (`nats`).

pub mod catalogue;
pub mod layout;
pub mod unit;
pub mod unit_filter;

pub mod checksum;
pub mod marker;
pub mod object_key;

pub mod bwlimit;
pub mod open_files;

pub mod backoff;
pub mod bars;
pub mod chain;
pub mod clock;
pub mod config;
pub mod doctor;
pub mod exit;
pub mod failpoint;
pub mod healthcheck;
pub mod http;
pub mod output;
pub mod regular_file;
pub mod same_file;
pub mod shutdown;
pub mod telemetry;
