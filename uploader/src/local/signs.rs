//! Signs that a pass gets on: folders walked, bytes read, answers of the bucket and the queue.
//!
//! One counter for the process, because a process has one pass at a time, and because what blocks on a disk knows of nothing
//! else.

use std::sync::atomic::{AtomicU64, Ordering};

static SIGNS: AtomicU64 = AtomicU64::new(0);

pub(crate) fn bump() {
    SIGNS.fetch_add(1, Ordering::Relaxed);
}

pub(crate) fn count() -> u64 {
    SIGNS.load(Ordering::Relaxed)
}
