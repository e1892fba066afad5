//! Scenarios on real servers, a module a promise.

mod handmade;

mod bad_input;
mod corrections;
mod dead_letters;
mod fleet;
mod operations;
mod pipeline;
mod servers;
