//! Streams and durable consumers as this version needs them.

mod apply;
mod check;
mod compare;
mod definitions;
mod lookup;
mod sizes;

pub use apply::StaleConsumer;
pub use check::{QueueFault, StreamUsage};
pub use definitions::ConsumerSettings;
pub(crate) use definitions::{
    LaneConsumer, READERS, created_at, destination_of, is_gone, is_missing, lanes, replay_lane, served_since,
};
