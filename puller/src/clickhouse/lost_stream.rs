//! Whether the stream of markers was lost and made anew without what it had announced.
//!
//! The ledger remembers what was loaded from a former stream. Where it has more units from before the stream was made than
//! the stream has subjects, some of them are announced no more: corrections of theirs, and what they still lacked, would
//! never come.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use clickhouse::Row;
use common::config::{Config, Destination, DestinationKind};
use common::output::count;
use common::unit::Unit;
use nats::{Bus, BusErrorKind, StreamState};
use serde::Deserialize;
use store::{End, ObjectStore};

use crate::clickhouse::client::Warehouse;
use crate::error::clickhouse::WarehouseErrorKind;
use common::output::Failure;

pub(crate) const ADVICE: &str = "run `uploader reconcile --fix`, which announces again what is in the bucket";

/// How long the comparison may take: it asks three servers, and lists every unit of the stream.
const COMPARE_MAX: Duration = Duration::from_secs(300);
/// So many of the lost units, the newest, are looked for in the bucket, and so many at once.
const LOOKUPS_MAX: usize = 256;
const LOOKUPS_AT_ONCE: usize = 16;

/// Units that a destination has from a former stream and that the present one does not announce.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct LostUnits {
    pub units: u64,
    /// Whether the bucket has any of them: those can be announced again.
    pub in_bucket: bool,
    /// Whether there is no stream at all.
    pub no_stream: bool,
}

impl LostUnits {
    pub(crate) fn text(self, destination: &str) -> String {
        let Self { units, in_bucket, no_stream } = self;
        let bucket = if in_bucket { "" } else { ", nor is any of them in the bucket" };
        let units = count(units, "unit");
        let lost = if no_stream { "was lost" } else { "was lost and made anew" };
        format!("the stream MARKERS {lost}: {destination} has loaded {units} that it does not announce{bucket}")
    }

    /// Where it fails a command: nothing can be done about those that the bucket does not have either.
    pub(crate) fn failure(self, destination: &str) -> Option<Failure> {
        self.in_bucket.then(|| Failure::missing(self.text(destination)).advice(ADVICE))
    }

    /// Behind the sums of a destination; empty where none are lost.
    pub(crate) fn clause(self) -> String {
        let advice =
            if self.in_bucket { ": run `uploader reconcile --fix`" } else { ", nor does the bucket have them" };
        match self.units {
            0 => String::new(),
            units => {
                let units = count(units, "unit");
                format!("; the stream MARKERS no longer announces {units} that were loaded{advice}")
            }
        }
    }
}

#[derive(Debug, Row, Deserialize)]
struct LoadedUnit {
    unit: String,
}

/// A directory keeps no ledger, and says nothing of it.
pub(crate) async fn lost_units(bus: &Bus, config: &Config, destination: &Destination) -> Result<LostUnits, Failure> {
    let compared = async { compare(bus, config, destination, bus.stream_state().await?).await };
    bounded(compared).await
}

/// The same, where a stream that is not there announces nothing, as the one that a pull would make.
async fn lost_units_of_any(bus: &Bus, config: &Config, destination: &Destination) -> Result<LostUnits, Failure> {
    let compared = async {
        let (state, no_stream) = match bus.stream_state().await {
            Ok(state) => (state, false),
            Err(error) if error.kind == BusErrorKind::Missing => {
                (StreamState { created_at: common::clock::now(), subjects: 0 }, true)
            }
            Err(error) => return Err(error.into()),
        };
        let lost = compare(bus, config, destination, state).await?;
        Ok(LostUnits { no_stream, ..lost })
    };
    bounded(compared).await
}

async fn bounded(compared: impl Future<Output = Result<LostUnits, Failure>>) -> Result<LostUnits, Failure> {
    match tokio::time::timeout(COMPARE_MAX, compared).await {
        Ok(compared) => compared,
        Err(_) => {
            let seconds = COMPARE_MAX.as_secs();
            Err(Failure::unreachable(format!("comparing the ledger with the stream: no answer for {seconds} s")))
        }
    }
}

async fn compare(
    bus: &Bus,
    config: &Config,
    destination: &Destination,
    state: StreamState,
) -> Result<LostUnits, Failure> {
    let DestinationKind::ClickHouse(server) = &destination.kind else { return Ok(LostUnits::default()) };
    let loaded_before = format!(
        "FROM (SELECT DISTINCT exchange, market, dataset, interval, period FROM {{database}}.archives \
         WHERE loaded_at < fromUnixTimestamp64Milli({}, 'UTC'))",
        state.created_at.as_millisecond()
    );
    let warehouse = Warehouse::read_only(server).await?;
    let loaded_units = match warehouse.select_one::<u64>(&format!("SELECT count() {loaded_before}")).await {
        // The stream has at least as many subjects as units: names need not be compared.
        Ok(loaded) if loaded <= state.subjects => return Ok(LostUnits::default()),
        Ok(loaded) => loaded,
        // Nothing was ever loaded.
        Err(error) if error.kind == WarehouseErrorKind::MissingSchema => return Ok(LostUnits::default()),
        Err(error) => return Err(error.into()),
    };
    let announced = match state.subjects {
        0 => Ok(HashMap::new()),
        _ => bus.stamps(|| ()).await,
    };
    let announced: HashSet<String> = match announced {
        Ok(stamps) => stamps.into_keys().map(|unit| unit.to_string()).collect(),
        // A worker may have no right to read the stream by itself.
        Err(error) => {
            tracing::debug!(%error, "reading which units the stream announces");
            return Ok(LostUnits { units: loaded_units - state.subjects, in_bucket: true, no_stream: false });
        }
    };
    let names = format!(
        "SELECT concat(exchange, '/', market, '/', dataset, '/', interval, '/', period)::String AS unit {loaded_before} \
         ORDER BY period DESC"
    );
    let loaded: Vec<LoadedUnit> = warehouse.select(&names).await?;
    let lost: Vec<Unit> = loaded
        .into_iter()
        .filter(|loaded| !announced.contains(&loaded.unit))
        .filter_map(|loaded| loaded.unit.parse().ok())
        .collect();
    Ok(LostUnits { units: lost.len() as u64, in_bucket: is_any_in_bucket(config, &lost).await?, no_stream: false })
}

async fn is_any_in_bucket(config: &Config, lost: &[Unit]) -> Result<bool, Failure> {
    let store = ObjectStore::new(&config.storage, End::Puller);
    for units in lost[..lost.len().min(LOOKUPS_MAX)].chunks(LOOKUPS_AT_ONCE) {
        let asked = units.iter().map(|unit| store.current_bytes(&config.storage.prefix, unit));
        if futures::future::try_join_all(asked).await?.iter().any(Option::is_some) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The same. `None`: it cannot be known now.
pub(crate) async fn known(bus: &Bus, config: &Config, destination: &Destination) -> Option<LostUnits> {
    known_of(lost_units(bus, config, destination).await)
}

/// The same before a pull, which makes the stream where it is not there.
pub(crate) async fn known_before_pull(bus: &Bus, config: &Config, destination: &Destination) -> Option<LostUnits> {
    known_of(lost_units_of_any(bus, config, destination).await)
}

fn known_of(lost: Result<LostUnits, Failure>) -> Option<LostUnits> {
    lost.inspect_err(|failure| tracing::debug!("comparing the ledger with the stream: {}", failure.text)).ok()
}

/// The same, said in the log.
pub(crate) async fn say(bus: &Bus, config: &Config, destination: &Destination) -> Option<LostUnits> {
    let lost = known(bus, config, destination).await?;
    let text = lost.text(&destination.name);
    match lost {
        LostUnits { units: 0, .. } => {}
        LostUnits { in_bucket: true, .. } => tracing::error!("{text} ({ADVICE})"),
        LostUnits { in_bucket: false, .. } => tracing::warn!("{text}"),
    }
    Some(lost)
}
