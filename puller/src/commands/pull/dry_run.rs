//! `puller pull --dry-run`: what a pull would load, and what it would pass over.

use common::config::{Destination, DestinationKind};
use common::marker::{Content, Marker};
use common::output::{Finding, Reply, count, list};
use nats::{BusErrorKind, MarkerSubject, PendingMarker};
use serde::Serialize;

use crate::cli::context::Shared;
use crate::cli::place;
use crate::clickhouse::client::Warehouse;
use crate::clickhouse::lost_stream;
use crate::clickhouse::lost_stream::LostUnits;
use crate::error::clickhouse::WarehouseErrorKind;
use crate::job::beginning::Beginning;
use common::output::Failure;

/// Most pending markers that are listed.
const LISTED_MAX: usize = 100_000;

/// One marker that waits.
#[derive(Debug)]
struct Pending {
    destination: String,
    subject: String,
    unit: Option<String>,
    /// `None` where the list is in the manifest only, or the message is not a marker.
    archives: Option<usize>,
    bytes: Option<u64>,
    is_too_old: bool,
}

impl Pending {
    fn of(destination: &str, message: PendingMarker, beginning: Option<&Beginning>) -> Self {
        let PendingMarker { subject, stored_at, payload } = message;
        let marker = Marker::parse(&payload).ok();
        let objects = marker.as_ref().and_then(|marker| match &marker.content {
            Content::Objects(objects) => Some(objects),
            Content::Manifest(_) => None,
        });
        let is_accepted = match (beginning, MarkerSubject::parse(&subject)) {
            (Some(beginning), Ok(parsed)) => beginning.accepts_delivery(&parsed, stored_at, &payload),
            _ => true,
        };
        Self {
            destination: destination.to_owned(),
            subject,
            unit: marker.as_ref().map(|marker| marker.unit.to_string()),
            archives: objects.map(Vec::len),
            bytes: objects.map(|objects| objects.iter().map(|object| object.size).sum()),
            is_too_old: !is_accepted,
        }
    }

    fn finding(&self) -> Finding {
        let archives = self.archives.map_or_else(|| "? archives".into(), |number| count(number as u64, "archive"));
        let (state, sign, text) = match self.is_too_old {
            true => ("too_old", ".", format!("{archives}, passed over as older than initial_days")),
            false => ("queued", " ", archives),
        };
        // Without the bytes, so that days in a row are one line.
        Finding::named(self.unit.as_deref().unwrap_or(&self.subject), state, text)
            .sign(sign)
            .destination(&self.destination)
            .field("subject", &self.subject)
            .field("archives", &self.archives)
            .field("bytes", &self.bytes)
    }
}

/// What waits for a destination.
#[derive(Debug, Default, Serialize)]
struct Waiting {
    destination: String,
    pending: u64,
    /// Of the pending ones that are listed, those that a pull passes over, because they are older than `initial_days`;
    /// `None` where that is not known.
    too_old: Option<u64>,
    unacknowledged: u64,
    /// Whether its streams and consumers are there; `pull` makes them, where it may.
    is_made: bool,
    /// As in the answer of a pull.
    lost: u64,
    lost_in_bucket: bool,
    /// Why it is not known.
    error: Option<Failure>,
}

/// Only asks: nothing is made, and nothing is delivered.
pub(super) async fn run(shared: &Shared, destinations: &[Destination], all: bool) -> Reply {
    let (mut waiting, mut findings, mut failures) = (Vec::new(), Vec::new(), Vec::new());
    for destination in destinations {
        match waiting_for(shared, destination, &mut findings).await {
            Ok((found, lost)) => {
                failures.extend(found.error.clone().map(|failure| failure.of_destination(&destination.name)));
                failures.extend(lost.failure(&destination.name));
                waiting.push(found);
            }
            Err(failure) => {
                failures.push(failure.clone().of_destination(&destination.name));
                let (destination, error) = (destination.name.clone(), Some(failure));
                waiting.push(Waiting { destination, error, ..Waiting::default() });
            }
        }
    }
    let mut lines = list(&findings, all);
    lines.extend(waiting.iter().filter(|waiting| waiting.error.is_none()).map(Waiting::to_line));
    let (failure, others) = Failure::gravest(failures);
    lines.extend(others.iter().map(ToString::to_string));
    Reply::default().destinations(&waiting).findings(findings).text(lines.join("\n")).failed(failure)
}

async fn waiting_for(
    shared: &Shared,
    destination: &Destination,
    findings: &mut Vec<Finding>,
) -> Result<(Waiting, LostUnits), Failure> {
    let name = destination.name.as_str();
    let checked = shared.bus.check_destination(&shared.consumer_settings(name)).await;
    let is_made = match checked {
        // What differs without harm is told by whoever is to work here.
        Ok(_) => true,
        Err(error) if error.kind == BusErrorKind::Missing && shared.config.nats.manage => false,
        Err(error) => return Err(error.into()),
    };
    let markers = shared.bus.pending_markers(name, LISTED_MAX).await?;
    if !markers.is_empty() {
        place::check(shared).await?;
    }
    let (pending, unacknowledged) = match is_made {
        true => {
            let progress = shared.bus.destination_progress(name).await?;
            (progress.pending, progress.unacknowledged)
        }
        false => (markers.len() as u64, 0),
    };
    // Where nothing waits, no table is asked, as in a pull.
    let beginning = if markers.is_empty() { Ok(None) } else { beginning(shared, destination).await.map(Some) };
    // What waits is shown all the same.
    let (beginning, error) = match beginning {
        Ok(beginning) => (beginning, None),
        Err(failure) => (None, Some(failure)),
    };
    let found: Vec<Pending> = markers.into_iter().map(|marker| Pending::of(name, marker, beginning.as_ref())).collect();
    findings.extend(found.iter().map(Pending::finding));
    let too_old = found.iter().filter(|pending| pending.is_too_old).count() as u64;
    let too_old = error.is_none().then_some(too_old);
    let lost = lost_stream::known_before_pull(&shared.bus, &shared.config, destination).await.unwrap_or_default();
    let LostUnits { units, in_bucket, .. } = lost;
    let destination = name.to_owned();
    let found = Waiting {
        destination,
        pending,
        too_old,
        unacknowledged,
        is_made,
        lost: units,
        lost_in_bucket: in_bucket,
        error,
    };
    Ok((found, lost))
}

/// Since when the destination is served. Its tables are asked only where that decides anything.
async fn beginning(shared: &Shared, destination: &Destination) -> Result<Beginning, Failure> {
    let tables_since = match &destination.kind {
        DestinationKind::ClickHouse(server) if destination.initial_days.is_some() => {
            match Warehouse::read_only(server).await?.served_since().await {
                Ok(since) => since,
                // A pull makes them.
                Err(error) if error.kind == WarehouseErrorKind::MissingSchema => None,
                Err(error) => return Err(error.into()),
            }
        }
        DestinationKind::ClickHouse(_) | DestinationKind::Directory { .. } => None,
    };
    Ok(Beginning::of(&shared.bus, destination, tables_since).await?)
}

impl Waiting {
    fn to_line(&self) -> String {
        let Self { destination, pending, too_old, unacknowledged, is_made, lost, lost_in_bucket, .. } = self;
        let lost = LostUnits { units: *lost, in_bucket: *lost_in_bucket, no_stream: false }.clause();
        let made = if *is_made { "" } else { " (`pull` makes its consumers first)" };
        let too_old = match too_old {
            None | Some(0) => String::new(),
            Some(units) => format!(", {units} of them older than initial_days and passed over"),
        };
        format!(
            "{destination}: {} pending{too_old}, {unacknowledged} in flight or waiting for a retry{made}{lost}",
            count(*pending, "marker")
        )
    }
}
