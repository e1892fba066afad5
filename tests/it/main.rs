//! Scenarios on real servers, a module a promise.

mod handmade;

mod bad_input;
mod corrections;
mod operations;
mod pipeline;
mod recovery;
mod servers;
