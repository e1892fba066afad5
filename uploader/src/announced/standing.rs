//! Whether this uploader stands where the stream's units are announced from, and in their time.
//!
//! A wrong `storage.r2.prefix` or bucket finds nothing stored, and so looks like a site that begins: every unit would be
//! stored again and announced from a place that no worker reads. And a clock that is behind finds every correction
//! generated in the future. Both show in what was announced last.

use std::fmt;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use common::marker::Marker;
use common::object_key::Prefix;
use common::text::shorten;
use nats::Newest;
use store::ObjectStore;

use crate::error::PassError;
use crate::local::check::is_ahead;
use crate::site::context::{Site, Standing};
use crate::site::queue::QueueError;

/// How long what was found holds for one connection.
const HOLDS_FOR: Duration = Duration::from_secs(3600);

/// A bucket and a prefix in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    bucket: String,
    prefix: Prefix,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bucket '{}' and prefix '{}'", shorten(&self.bucket), shorten(&self.prefix.to_string()))
    }
}

impl Place {
    pub(crate) fn new(store: &ObjectStore, prefix: &Prefix) -> Self {
        Self { bucket: store.bucket().to_owned(), prefix: prefix.clone() }
    }

    pub(crate) fn of_site(site: &Site) -> Self {
        Self::new(&site.store, &site.prefix)
    }

    /// Where the objects of a marker are; `None`: its keys tell of no prefix.
    fn of_marker(marker: &Marker) -> Option<Self> {
        Some(Self { bucket: marker.bucket.clone(), prefix: marker.prefix()? })
    }
}

impl Standing {
    /// Compares with the stream, once for each connection and then once in [`HOLDS_FOR`]. Returns how often the queue was
    /// connected to.
    ///
    /// A pass may begin while the queue is away and connect later, so every unit asks this before its archives are stored
    /// by what the stream says, and again before it is announced. A stream that cannot be asked counts as a queue that is
    /// away: nothing is announced.
    pub(crate) async fn confirm(&self, site: &Site) -> Result<Result<u64, QueueError>, PassError> {
        let connects = match site.queue.bus().await {
            Ok(bus) => bus.connects(),
            Err(error) => return Ok(Err(error)),
        };
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lock().is_some_and(|(at, of)| of == connects && at.elapsed() < HOLDS_FOR) {
            return Ok(Ok(connects));
        }
        match site.queue.newest().await {
            Ok(newest) => newest.map_or(Ok(()), |newest| compare(site, &newest))?,
            Err(error) => return Ok(Err(error)),
        }
        *lock() = Some((Instant::now(), connects));
        Ok(Ok(connects))
    }
}

/// Whether this site is that of the newest announcement.
pub(crate) fn compare(site: &Site, newest: &Newest) -> Result<(), PassError> {
    check(&Place::of_site(site), newest, site.accepted.move_here)
}

/// Whether the newest announcement is of this place, unless the archives have moved, and not of the future.
pub(crate) fn check(here: &Place, newest: &Newest, moved: bool) -> Result<(), PassError> {
    let now = common::clock::now();
    if is_ahead(newest.stored_at, now) {
        return Err(PassError::ClockBehind { stored_at: newest.stored_at, now });
    }
    match newest.marker.as_ref().and_then(Place::of_marker) {
        Some(announced) if announced != *here && !moved => {
            Err(PassError::Elsewhere { announced: announced.to_string(), configured: here.to_string() })
        }
        _ => Ok(()),
    }
}

/// Why a unit is left as it is: it is announced from another place, and nobody said that the archives have moved.
pub(crate) fn left_there(site: &Site, marker: &Marker) -> Option<String> {
    let here = Place::of_site(site);
    let announced = Place::of_marker(marker).filter(|place| *place != here && !site.accepted.move_here)?;
    Some(format!(
        "it is announced from {announced}, and this uploader is configured with {here}; if the archives have moved, \
         `uploader upload --accept-move` announces it from here"
    ))
}
