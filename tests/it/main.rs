//! Scenarios on real servers, a module a promise.

mod handmade;

mod attacks;
mod bad_input;
mod bandwidth;
mod cleanup;
mod cluster;
mod commands;
mod corrections;
mod dead_letters;
mod destinations;
mod disks;
mod download;
mod faults;
mod fleet;
mod histories;
mod ingested;
mod kills;
mod many_symbols;
mod marking;
mod moving;
mod operations;
mod overlapping_archives;
mod permissions;
mod pipeline;
mod progress;
mod recovery;
mod replay;
mod servers;
mod settings;
mod storages;
mod streams;
mod transfer;
mod uploaders;
mod waits;
mod watching;
