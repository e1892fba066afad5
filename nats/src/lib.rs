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
mod destination;
mod letters;
mod presence;
mod progress;
mod reader;
mod replay;
mod survey;
mod sweeper;
mod task;

pub use connection::{Bus, BusError, BusErrorKind, public_urls, within};
pub use consumer::{Intake, Leased};
pub use dead_letter::DeadLetter;
pub use delivery::{AckError, Delivery};
pub use delivery_record::DeliveryRecord;
pub use destination::{Sent, Standing};
pub use lease::{Activity, Lease};
pub use letters::Letter;
pub use presence::{Presence, WorkerState};
pub use progress::{DestinationProgress, PendingMarker, ReplaysState, StreamState};
pub use publisher::{Announcement, Latest, Newest, Published};
pub use replay::ReplayOptions;
pub use stream_names::STREAMS;
pub use subject::{Lane, MarkerSubject};
pub use survey::{Stamp, StreamMarker};
pub use sweeper::{Sweeper, Swept};
pub use task::{Task, TaskState, TaskUnit};
pub use topology::{ConsumerSettings, QueueFault, StaleConsumer, StreamUsage};
