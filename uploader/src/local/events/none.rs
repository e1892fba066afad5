//! Where there is no inotify, there are no hints.

use std::path::Path;
use std::sync::Arc;

use super::Hint;

/// No events.
pub(crate) struct Events;

/// Folders nobody watches.
pub(crate) struct Folders;

impl Events {
    pub(crate) fn open() -> Option<(Self, Arc<Folders>)> {
        tracing::warn!("no file-system events on this system; what is new is found by the rescan (watch.rescan)");
        None
    }

    pub(crate) async fn next(&mut self) -> Hint {
        std::future::pending().await
    }
}

impl Folders {
    pub(crate) fn watch(&self, _data_dir: &Path, _folder: &str) {}

    pub(crate) fn count(&self) -> usize {
        0
    }
}
