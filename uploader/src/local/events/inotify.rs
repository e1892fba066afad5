//! Events by Linux's inotify, one watch a folder. Folders are told by the walk, not found here: the tree has a fixed
//! depth, and whatever links there are lead nowhere else.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::StreamExt;
use inotify::{Event, EventMask, EventStream, Inotify, WatchDescriptor, WatchMask, Watches};

use super::{Change, Hint, hint};

/// Room for a burst of events; what does not fit stays with the kernel, which keeps 16,384 unless told otherwise.
const BUFFER_BYTES: usize = 64 * 1024;
/// Names by which one folder may be reached, through links.
const NAMES_MAX: usize = 8;

pub(crate) struct Events {
    stream: EventStream<Vec<u8>>,
    folders: Arc<Folders>,
    hints: VecDeque<Hint>,
}

/// The folders that are watched.
pub(crate) struct Folders {
    watches: Mutex<Watches>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Below `data_dir`.
    names: HashMap<WatchDescriptor, Vec<String>>,
    /// Whether it was said that not all folders can be watched.
    complained: bool,
}

impl Events {
    /// `None`, and a warning, where the kernel gives no events.
    pub(crate) fn open() -> Option<(Self, Arc<Folders>)> {
        let open = || -> io::Result<_> {
            let inotify = Inotify::init()?;
            let watches = inotify.watches();
            Ok((inotify.into_event_stream(vec![0; BUFFER_BYTES])?, watches))
        };
        match open() {
            Ok((stream, watches)) => {
                let state = Mutex::default();
                let folders = Arc::new(Folders { watches: Mutex::new(watches), state });
                Some((Self { stream, folders: Arc::clone(&folders), hints: VecDeque::new() }, folders))
            }
            Err(error) => {
                tracing::warn!(
                    %error,
                    "no file-system events (see fs.inotify.max_user_instances); what is new is found by the rescan only"
                );
                None
            }
        }
    }

    /// Waits for the next hint. No time-out: there may be none, and everything is looked at every `watch.rescan` anyway.
    pub(crate) async fn next(&mut self) -> Hint {
        loop {
            if let Some(hint) = self.hints.pop_front() {
                return hint;
            }
            match self.stream.next().await {
                Some(Ok(event)) => self.hints.extend(self.folders.hints(&event)),
                Some(Err(error)) => {
                    tracing::warn!(%error, "file-system events cannot be read; what is new is found by the rescan only");
                    return std::future::pending().await;
                }
                None => return std::future::pending().await,
            }
        }
    }
}

impl Folders {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Watches a folder, if it is there. Asking again is cheap and finds a folder that was put in another's place.
    pub(crate) fn watch(&self, data_dir: &Path, folder: &str) {
        let mask =
            WatchMask::CREATE | WatchMask::MODIFY | WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO | WatchMask::ONLYDIR;
        let added = self.watches.lock().unwrap_or_else(PoisonError::into_inner).add(data_dir.join(folder), mask);
        let mut state = self.state();
        match added {
            Ok(watch) => {
                let names = state.names.entry(watch).or_default();
                if names.len() < NAMES_MAX && !names.iter().any(|name| name == folder) {
                    names.push(folder.to_owned());
                }
            }
            // Whether it can be read is said by who reads it.
            Err(error) if error.kind() != io::ErrorKind::StorageFull || state.complained => {}
            Err(_) => {
                state.complained = true;
                tracing::warn!(
                    watched = state.names.len(),
                    "no more folders can be watched (fs.inotify.max_user_watches); what is new in the others is found \
                     by the rescan (watch.rescan)"
                );
            }
        }
    }

    /// How many folders are watched.
    pub(crate) fn count(&self) -> usize {
        self.state().names.len()
    }

    fn hints(&self, event: &Event<std::ffi::OsString>) -> Vec<Hint> {
        if event.mask.contains(EventMask::Q_OVERFLOW) {
            tracing::warn!("file-system events were lost (fs.inotify.max_queued_events); looking at everything");
            return vec![Hint::Lost];
        }
        let mut state = self.state();
        if event.mask.contains(EventMask::IGNORED) {
            state.names.remove(&event.wd);
            return Vec::new();
        }
        let Some(name) = event.name.as_deref().and_then(|name| name.to_str()) else { return Vec::new() };
        let change = if event.mask.contains(EventMask::ISDIR) {
            Change::Folder
        } else if event.mask.contains(EventMask::MOVED_TO) {
            Change::Moved
        } else if event.mask.contains(EventMask::MODIFY) {
            Change::Written
        } else {
            Change::File
        };
        let folders = state.names.get(&event.wd).into_iter().flatten();
        folders.filter_map(|folder| hint(folder, name, change)).collect()
    }
}
