//! What was known of a unit when its next revision was planned, and whether that still holds when an object is replaced.
//!
//! Between the plan and the last object lie minutes. Another uploader may announce the unit in them, and may remove its
//! archives from disk, so that an object in the bucket is the only copy:
//!
//! | uploader A, older archive | uploader B, newer archive |
//! |---|---|
//! | plans the unit, of which nothing is published | |
//! | | stores the object, announces it, removes the file |
//! | comes to the object: it is neither A's nor one that was published when A planned | |
//! | asks again: the unit was announced since, so A plans anew and keeps the announced archive | |

use std::collections::HashMap;

use common::checksum::Sha256Sum;
use common::marker::Object;
use common::unit::Unit;
use nats::Latest;
use store::Stored;

use crate::error::UnitError;
use crate::site::context::Site;
use crate::site::queue::QueueError;

/// What a unit's plan was made from.
pub(crate) struct Basis<'s> {
    unit: &'s Unit,
    /// The last messages of the unit's subjects; `None` while the stream could not be asked.
    sequences: Option<(u64, u64)>,
    published: HashMap<&'s str, Sha256Sum>,
    /// `current.json`, as HEAD showed it.
    current: Option<&'s Stored>,
}

impl<'s> Basis<'s> {
    pub(crate) fn new(
        unit: &'s Unit,
        latest: &Result<Latest, QueueError>,
        published: &'s [Object],
        current: Option<&'s Stored>,
    ) -> Self {
        Self {
            unit,
            sequences: latest.as_ref().ok().map(sequences),
            published: published.iter().map(|object| (object.key.as_str(), object.sha256)).collect(),
            current,
        }
    }

    /// Whether what is stored may be replaced by the planned object.
    ///
    /// It may be what was published, or what another program stored without our metadata. Another archive with our metadata
    /// was stored by a run that was killed, or by another uploader: that one names it in `current.json` and on the stream,
    /// which are asked again.
    ///
    /// # Errors
    /// The stream or the bucket cannot be asked.
    pub(crate) async fn may_replace(&self, site: &Site, object: &Object, stored: &Stored) -> Result<bool, UnitError> {
        let Some(sha256) = stored.sha256 else { return Ok(true) };
        if sha256 == object.sha256 || self.published.get(object.key.as_str()) == Some(&sha256) {
            return Ok(true);
        }
        self.holds(site).await
    }

    /// Whether nobody has announced the unit since, or is about to: `current.json` is written before the marker.
    async fn holds(&self, site: &Site) -> Result<bool, UnitError> {
        if let Some(before) = self.sequences
            && let Ok(now) = site.queue.latest(self.unit).await
            && sequences(&now) != before
        {
            return Ok(false);
        }
        let current = site.store.head(&site.prefix.current_key(self.unit)).await?;
        Ok(current.as_ref() == self.current)
    }
}

fn sequences(latest: &Latest) -> (u64, u64) {
    (latest.ready_sequence, latest.backfill_sequence)
}
