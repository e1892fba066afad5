//! Scenarios on real servers, a module a promise.

mod handmade;

mod bad_input;
mod cluster;
mod corrections;
mod dead_letters;
mod destinations;
mod faults;
mod fleet;
mod operations;
mod pipeline;
mod recovery;
mod replay;
mod servers;
