//! What directory destinations are still to get.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use common::config::{Config, DestinationKind};
use common::marker::{Content, Marker};
use common::service::doctor::machine::on_disk;
use nats::{Bus, within};

/// So many markers of a backlog are read, and so long it may take.
const MARKERS_MAX: usize = 1_000;
const TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes of the archives that are announced to each directory destination and are not there, by its name; as far as the
/// oldest markers say, and those that have their list of archives with them.
pub(super) async fn bytes(bus: &Bus, config: &Config) -> HashMap<String, u64> {
    let mut bytes = HashMap::new();
    for destination in &config.destinations {
        let DestinationKind::Directory { path } = &destination.kind else { continue };
        let asked = within(TIMEOUT, "reading the backlog", bus.pending_markers(&destination.name, MARKERS_MAX)).await;
        let Ok(markers) = asked.inspect_err(|error| tracing::debug!(%error, "what is still to come")) else { continue };
        let objects = markers.iter().filter_map(|marker| match Marker::parse(&marker.payload).ok()?.content {
            Content::Objects(objects) => Some(objects),
            Content::Manifest(_) => None,
        });
        let archives: Vec<(PathBuf, u64)> = objects
            .flatten()
            .filter_map(|object| {
                let place = config.storage.prefix.archive_path(&object.key).ok()?;
                Some((path.join(place), object.size))
            })
            .collect();
        let missing = on_disk(move || {
            Ok(archives
                .iter()
                .filter(|(path, _)| !path.exists())
                .fold(0_u64, |sum, (_, size)| sum.saturating_add(*size)))
        });
        if let Ok(missing) = missing.await {
            bytes.insert(destination.name.clone(), missing);
        }
    }
    bytes
}
