//! Whether the bucket copies objects within itself.

use std::sync::atomic::{AtomicU32, Ordering};

/// After so many refusals one after another the bucket is taken to copy nothing, and is not asked any more.
const REFUSALS_MAX: u32 = 3;
/// How often in a row the bucket refused to copy.
#[derive(Debug, Default)]
pub(crate) struct Refusals(AtomicU32);

impl Refusals {
    pub(crate) fn is_refused(&self) -> bool {
        self.0.load(Ordering::Relaxed) >= REFUSALS_MAX
    }

    /// Tells of a refusal, unless enough was said.
    pub(crate) fn refused(&self, key: &str, why: &str) {
        let count = self.0.fetch_add(1, Ordering::Relaxed) + 1;
        if count <= REFUSALS_MAX {
            let rest = if count == REFUSALS_MAX { ", and so is everything like it from here on" } else { "" };
            tracing::warn!(object.key = key, why, "the bucket has the archive and does not copy it: it is sent{rest}");
        }
    }

    pub(crate) fn done(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}
