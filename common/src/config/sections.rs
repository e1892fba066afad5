//! The sections as data: what a key means and in what unit, beside its field.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use super::secret::Secret;
use super::stream_limits::StreamLimits;
use crate::backoff::Backoff;

/// Name of the directory destination that `puller pull --no-ingest` fills.
pub const MIRROR: &str = "mirror";

#[derive(Debug, Clone)]
pub struct Local {
    pub data_dir: Option<PathBuf>,
    /// Holds caches only: deleting it costs time, never data.
    pub state_dir: Option<PathBuf>,
}

/// What makes a unit complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Its `_SUCCESS__` mark.
    Marked,
    /// Its archives.
    Complete,
    /// Whichever comes first.
    Both,
}

#[derive(Debug, Clone)]
pub struct Publish {
    pub when: When,
    /// With `download.symbols: all`: how long no archive of a unit may have come before it counts as complete.
    pub quiet_period: Duration,
    /// With symbols listed: how long those that do not come are waited for.
    pub grace: Duration,
    /// Units whose period ended longer ago go to the backfill subject.
    pub live_days: u32,
    /// How long announcing is tried when NATS is away.
    pub timeout: Duration,
    /// How long after its announcement an archive is removed from disk; none: never, unless the command line says so.
    pub cleanup_after: Option<Duration>,
    /// Archives of periods that ended less than so many days ago are not removed.
    pub keep_days: u32,
}

#[derive(Debug, Clone)]
pub struct Watch {
    /// Pause between two passes over all of `data_dir`; between them, events of the file system tell what to look at.
    pub rescan: Duration,
    /// An archive written to a shorter time ago is left for later.
    pub min_age: Duration,
}

#[derive(Debug, Clone)]
pub struct Nats {
    /// May hold a password.
    pub urls: Vec<Secret>,
    pub user: Option<String>,
    pub password: Option<Secret>,
    /// Which role this process has, where the permissions of its user name the inbox; see `nats/design.md`.
    pub role: Option<String>,
    pub nkey_file: Option<PathBuf>,
    pub credentials_file: Option<PathBuf>,
    pub ca_file: Option<PathBuf>,
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    pub replicas: usize,
    pub limits: StreamLimits,
    /// Whether this process may create streams and consumers it does not find.
    pub manage: bool,
}

#[derive(Debug, Clone)]
pub struct Destination {
    pub name: String,
    pub kind: DestinationKind,
    /// How far back the periods may lie that are loaded from what was on the stream before this destination was;
    /// `None`: everything.
    pub initial_days: Option<u32>,
}

#[derive(Debug, Clone)]
pub enum DestinationKind {
    ClickHouse(ClickHouse),
    Directory { path: PathBuf },
}

#[derive(Debug, Clone)]
pub struct ClickHouse {
    pub host: String,
    pub port: u16,
    pub database: String,
    pub user: String,
    pub password: Secret,
    pub secure: bool,
    pub compression: Compression,
}

/// How rows are compressed on their way to ClickHouse, and its answers on theirs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    None,
    Lz4,
}

#[derive(Debug, Clone)]
pub struct Puller {
    /// Names of the destinations this process serves; empty: all.
    pub destinations: Vec<String>,
    /// Units in flight at once, per destination.
    pub slots: usize,
    /// Bytes that archives and decoded rows may take together.
    pub memory: u64,
    /// The lease: how long the server waits for a sign of life before it gives a message to another worker.
    pub ack_wait: Duration,
    /// How long a unit may make no progress before its lease is no longer extended.
    pub stall_timeout: Duration,
    pub shutdown_grace: Duration,
    pub group: Group,
}

/// How far units that are loaded at the same time share an insert.
#[derive(Debug, Clone)]
pub struct Group {
    /// Rows of one insert at most. The server stores up to 1,048,449 as one block, whole or not at all.
    pub rows: u64,
    /// Bytes of one insert at most, as they are sent.
    pub bytes: u64,
    /// How long a unit waits at most for others that are in flight.
    pub linger: Duration,
}

#[derive(Debug, Clone)]
pub struct Retry {
    pub backoff: Backoff,
    /// Deliveries of one message before it becomes a dead letter.
    pub attempts: NonZeroU32,
    /// How long a missing object is waited for.
    pub missing_object: Duration,
}

#[derive(Debug, Clone)]
pub struct Corrections {
    /// Largest share of an archive's rows that a correction may remove by itself.
    pub shrink_limit: f64,
}
