//! Decoded archives on their way into ClickHouse.

use std::sync::{Arc, Weak};

use archive::Decoded;
use common::marker::Object;
use nats::Activity;
use tokio::sync::OwnedSemaphorePermit;

use crate::clickhouse::read_back::{Expected, ExpectedRows};
use crate::clickhouse::shrink_limit::Candidate;
use crate::job::resolve::Job;

/// Decoded archives of one unit that are loaded together.
pub(crate) struct InsertPart {
    pub job: Arc<Job>,
    pub archives: Vec<DecodedArchive>,
    pub activity: Activity,
    /// Lives as long as somebody waits for what is done with the part.
    awaited: Weak<()>,
    /// Of its archives' bytes and rows. A statement may have the part for longer than the unit that asked is worked on.
    _memory: OwnedSemaphorePermit,
}

/// An archive that is decoded and not loaded yet.
pub(crate) struct DecodedArchive {
    pub object: Object,
    pub version: u64,
    pub decoded: Decoded,
    pub rows_hash: u64,
}

impl InsertPart {
    /// `awaited`: dropped by whoever waits for the part.
    pub(crate) fn new(
        job: Arc<Job>,
        archives: Vec<DecodedArchive>,
        activity: Activity,
        awaited: &Arc<()>,
        memory: OwnedSemaphorePermit,
    ) -> Self {
        Self { job, archives, activity, awaited: Arc::downgrade(awaited), _memory: memory }
    }

    /// Whether the unit that it is of is still worked on: it may have lost its lease, and rows that come long after would
    /// find nobody who looks after them.
    pub(crate) fn is_awaited(&self) -> bool {
        self.awaited.strong_count() > 0
    }

    pub(crate) fn rows(&self) -> u64 {
        self.archives.iter().map(|archive| archive.decoded.klines.len() as u64).sum()
    }
}

impl DecodedArchive {
    pub(crate) fn candidate(&self) -> Candidate<'_> {
        Candidate { object: &self.object, open_times: &self.decoded.klines.open_time }
    }

    pub(crate) fn expected(&self) -> Expected<'_> {
        Expected {
            symbol: &self.object.symbol,
            version: self.version,
            rows: ExpectedRows::Klines(&self.decoded.klines),
            rows_hash: self.rows_hash,
        }
    }
}
