//! The queue: markers in, deliveries out, and nothing lost between them.
//!
//! `design.md` beside this crate's `Cargo.toml` is the delivery contract. Only this crate names `async-nats` types;
//! it knows nothing of what a unit's archives hold.

mod clock;
mod connection;
mod refusal;
mod stream_names;
mod subject;
mod topology;

mod publisher;

mod announced;
mod consumer;
mod delivery;
mod incarnation;
mod lease;
mod pull;

mod dead_letter;
mod delivery_record;
mod fleet;
mod letters;
mod progress;
mod reader;
mod replay;
mod roster;
mod survey;
mod sweeper;
mod task;

pub use connection::{Bus, BusError, BusErrorKind, public_urls, within};
pub use consumer::{Held, Intake};
pub use dead_letter::DeadLetter;
pub use delivery::{Delivery, SettleError};
pub use delivery_record::DeliveryRecord;
pub use fleet::{Sent, Standing};
pub use lease::{Activity, Lease};
pub use letters::Letter;
pub use progress::{DestinationProgress, PendingMarker, ReplaysState, StreamState};
pub use publisher::{Announcement, Latest, Newest, Published};
pub use replay::ReplayOptions;
pub use roster::{Roster, WorkerState};
pub use stream_names::STREAMS;
pub use subject::{Lane, MarkerSubject};
pub use survey::{Stamp, StreamMarker};
pub use sweeper::{Sweeper, Swept};
pub use task::{Task, TaskState, TaskUnit};
pub use topology::{ConsumerSettings, QueueFault, StaleConsumer, StreamUsage};
