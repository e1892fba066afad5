//! What units ask of ClickHouse, several at once: see [`crate::clickhouse::batch`].

use std::collections::BTreeSet;
use std::sync::Arc;

use common::config::Group;
use common::unit::Unit;
use nats::Activity;

use crate::clickhouse::batch::{Batcher, InFlightCount, InFlightGuard, Limits};
use crate::clickhouse::client::Warehouse;
use crate::clickhouse::insert;
use crate::clickhouse::ledger::{ARCHIVES, LOG, Ledger};
use crate::clickhouse::native::{ROW_BYTES_ON_WIRE, Rows, Slice};
use crate::clickhouse::part::InsertPart;
use crate::clickhouse::read_back::{Depth, ReadBack, Sought};
use crate::clickhouse::unproven::{Recorded, unproven_symbols};
use crate::error::clickhouse::{WarehouseError, WarehouseErrorKind};

/// Units one query asks for: their names, and those of their symbols, must fit into a query's text.
const UNITS_MAX: usize = 256;
/// Symbols one query names, times their units.
const SYMBOLS_MAX: u64 = 4_000;
/// Inserts at once: one alone leaves a processor of the server idle while it sorts and writes what it was sent.
const INSERTS: usize = 2;
/// Partitions, that is months, that one insert may touch are limited by the server to 100.
const MONTHS_MAX: usize = 50;
/// Bytes of rows for `archives` or `ingest_log` in one insert.
const LINES_BYTES_MAX: u64 = 4 << 20;

pub(crate) struct Statements {
    ledgers: Batcher<Unit, Ledger>,
    inserts: Batcher<Arc<InsertPart>, ()>,
    read_backs: Batcher<(Arc<InsertPart>, Depth), ReadBack>,
    archives: Batcher<Vec<u8>, i64>,
    unproven: Batcher<Arc<Recorded>, BTreeSet<String>>,
    attempts: Batcher<Vec<u8>, ()>,
    in_flight: InFlightCount,
}

impl Statements {
    pub(crate) fn new(warehouse: &Warehouse, group: &Group) -> Self {
        let in_flight = InFlightCount::default();
        let limits =
            |what, weight, statements| Limits { what, requests: UNITS_MAX, weight, statements, linger: group.linger };
        let rows = group.rows.min(group.bytes / ROW_BYTES_ON_WIRE);
        Self {
            ledgers: Batcher::start(limits("look up", u64::MAX, 1), in_flight.clone(), {
                let warehouse = warehouse.clone();
                move |units: Vec<Unit>| {
                    let warehouse = warehouse.clone();
                    async move { warehouse.ledgers(&units).await }
                }
            }),
            inserts: Batcher::start(limits("insert", rows, INSERTS), in_flight.clone(), {
                let warehouse = warehouse.clone();
                move |parts: Vec<Arc<InsertPart>>| {
                    let warehouse = warehouse.clone();
                    async move { insert(&warehouse, &parts).await }
                }
            }),
            read_backs: Batcher::start(limits("read back", rows, INSERTS), in_flight.clone(), {
                let warehouse = warehouse.clone();
                move |parts: Vec<(Arc<InsertPart>, Depth)>| {
                    let warehouse = warehouse.clone();
                    async move { read_back(&warehouse, &parts).await }
                }
            }),
            archives: Batcher::start(limits("record archives", LINES_BYTES_MAX, 1), in_flight.clone(), {
                let warehouse = warehouse.clone();
                move |texts: Vec<Vec<u8>>| {
                    let warehouse = warehouse.clone();
                    async move {
                        warehouse.insert_lines(ARCHIVES, &texts).await?;
                        Ok(vec![warehouse.clock().await?; texts.len()])
                    }
                }
            }),
            unproven: Batcher::start(limits("look for rows to prove", SYMBOLS_MAX, 1), in_flight.clone(), {
                let warehouse = warehouse.clone();
                move |units: Vec<Arc<Recorded>>| {
                    let warehouse = warehouse.clone();
                    async move { unproven_symbols(&warehouse, &units).await }
                }
            }),
            attempts: lines(warehouse, LOG, limits("record attempts", LINES_BYTES_MAX, 1), &in_flight),
            in_flight,
        }
    }

    /// To be held while a unit is worked on: others may wait for what it asks.
    pub(crate) fn enter(&self) -> InFlightGuard {
        self.in_flight.enter()
    }

    /// See [`Warehouse::ledger`].
    pub(crate) async fn ledger(&self, unit: &Unit, activity: &Activity) -> Result<Ledger, WarehouseError> {
        self.ledgers.ask(unit.clone(), 1, activity).await
    }

    pub(crate) async fn insert(&self, part: &Arc<InsertPart>) -> Result<(), WarehouseError> {
        self.inserts.ask(Arc::clone(part), part.rows(), &part.activity).await
    }

    /// With one answer for each of the part's archives.
    pub(crate) async fn read_back(&self, part: &Arc<InsertPart>, depth: Depth) -> Result<ReadBack, WarehouseError> {
        self.read_backs.ask((Arc::clone(part), depth), part.rows(), &part.activity).await
    }

    /// Rows of `archives`, from [`crate::clickhouse::ledger::json_lines`]; returns the server's clock after it has them, in ms.
    pub(crate) async fn record_archives(&self, lines: Vec<u8>, activity: &Activity) -> Result<i64, WarehouseError> {
        let weight = lines.len() as u64;
        self.archives.ask(lines, weight, activity).await
    }

    /// See [`unproven_symbols`].
    pub(crate) async fn unproven_symbols(
        &self,
        recorded: Recorded,
        activity: &Activity,
    ) -> Result<BTreeSet<String>, WarehouseError> {
        let weight = recorded.versions.len() as u64;
        self.unproven.ask(Arc::new(recorded), weight, activity).await
    }

    /// Rows of `ingest_log`, from [`crate::clickhouse::ledger::json_lines`].
    pub(crate) async fn record_attempts(&self, lines: Vec<u8>, activity: &Activity) -> Result<(), WarehouseError> {
        let weight = lines.len() as u64;
        self.attempts.ask(lines, weight, activity).await
    }
}

fn lines(
    warehouse: &Warehouse,
    table: &'static str,
    limits: Limits,
    in_flight: &InFlightCount,
) -> Batcher<Vec<u8>, ()> {
    let warehouse = warehouse.clone();
    Batcher::start(limits, in_flight.clone(), move |texts: Vec<Vec<u8>>| {
        let warehouse = warehouse.clone();
        async move {
            warehouse.insert_lines(table, &texts).await?;
            Ok(vec![(); texts.len()])
        }
    })
}

/// Inserts the rows of several parts, at once unless they are of too many months.
async fn insert(warehouse: &Warehouse, parts: &[Arc<InsertPart>]) -> Result<Vec<()>, WarehouseError> {
    let month = |part: &Arc<InsertPart>| part.job.unit.period.first_day().first_of_month();
    let mut months: Vec<_> = parts.iter().map(month).collect();
    months.sort_unstable();
    months.dedup();
    for months in months.chunks(MONTHS_MAX) {
        let parts: Vec<&Arc<InsertPart>> = parts.iter().filter(|part| months.contains(&month(part))).collect();
        insert_at_once(warehouse, &parts).await?;
    }
    Ok(vec![(); parts.len()])
}

/// An archive's rows, and the part that they are of.
type PartSlice<'p> = (&'p InsertPart, Slice<'p>);

/// In the order of the table's key, as far as archives are not of the same time: the server sorts what is in order sooner.
async fn insert_at_once(warehouse: &Warehouse, parts: &[&Arc<InsertPart>]) -> Result<(), WarehouseError> {
    let mut slices: Vec<(i64, PartSlice<'_>)> = Vec::new();
    for part in parts {
        let unit = insert::columns(&part.job.unit);
        for archive in &part.archives {
            let klines = &archive.decoded.klines;
            let rows = Rows::Klines { klines, range: 0..klines.len() };
            let slice = Slice { unit, symbol: &archive.object.symbol, version: archive.version, rows };
            slices.push((klines.first_open_time().unwrap_or_default(), (part.as_ref(), slice)));
        }
    }
    slices
        .sort_by(|(a_first, (_, a)), (b_first, (_, b))| (a.unit, a.symbol, a_first).cmp(&(b.unit, b.symbol, b_first)));
    let slices: Vec<PartSlice<'_>> = slices.into_iter().map(|(_, slice)| slice).collect();
    insert_in_halves(warehouse, &slices, &|| parts.iter().for_each(|part| part.activity.bump())).await
}

/// Inserts slices at once, or, where that is too much for the server, one half after the other. What nobody waits for any
/// more when its insert begins is left out: see [`crate::job::writes::WRITES_LAND_WITHIN`].
async fn insert_in_halves(
    warehouse: &Warehouse,
    slices: &[PartSlice<'_>],
    progress: &(impl Fn() + Send + Sync),
) -> Result<(), WarehouseError> {
    let awaited = slices.iter().filter(|(part, _)| part.is_awaited());
    let awaited: Vec<Slice<'_>> = awaited.map(|(_, slice)| slice.clone()).collect();
    if awaited.is_empty() {
        return Ok(());
    }
    match insert::insert(warehouse, &awaited, progress).await {
        Err(error) if is_too_much(&error) && slices.len() > 1 => {
            tracing::debug!(%error, archives = slices.len(), "inserting one half after the other");
            let (first, second) = slices.split_at(slices.len() / 2);
            Box::pin(insert_in_halves(warehouse, first, progress)).await?;
            Box::pin(insert_in_halves(warehouse, second, progress)).await
        }
        done => done,
    }
}

/// Whether less at once may do. A server that was silent may be at work still, and would be silent again.
fn is_too_much(error: &WarehouseError) -> bool {
    error.kind == WarehouseErrorKind::TooHeavy && !error.unanswered
}

async fn read_back(warehouse: &Warehouse, parts: &[(Arc<InsertPart>, Depth)]) -> Result<Vec<ReadBack>, WarehouseError> {
    let sought: Vec<Sought<'_>> = parts
        .iter()
        .map(|(part, depth)| Sought {
            unit: &part.job.unit,
            archives: part.archives.iter().map(|archive| archive.expected()).collect(),
            depth: *depth,
        })
        .collect();
    let progress = || parts.iter().for_each(|(part, _)| part.activity.bump());
    let mut found = Vec::with_capacity(sought.len());
    match warehouse.read_back(&sought, &progress).await {
        // Several are asked for one by one by whoever put them together.
        Err(error) if is_too_much(&error) && sought.len() == 1 => {
            tracing::debug!(%error, "reading back one half after the other");
            for sought in &sought {
                found.push(read_back_in_halves(warehouse, sought, error.clone(), &progress).await?);
            }
        }
        answered => found = answered?,
    }
    Ok(found)
}

/// Reads a unit's archives back, the first half and then the second, because all at once was too much for the server.
async fn read_back_in_halves(
    warehouse: &Warehouse,
    whole: &Sought<'_>,
    too_much: WarehouseError,
    progress: &(impl Fn() + Send + Sync),
) -> Result<ReadBack, WarehouseError> {
    if whole.archives.len() < 2 {
        return Err(too_much);
    }
    let (first, second) = whole.archives.split_at(whole.archives.len() / 2);
    let Sought { unit, depth, .. } = *whole;
    let mut whole = ReadBack::default();
    for half in [first, second] {
        let sought = Sought { unit, archives: half.to_vec(), depth };
        let found = match warehouse.read_back(std::slice::from_ref(&sought), progress).await {
            Ok(mut found) => found.pop().unwrap_or_default(),
            Err(error) if is_too_much(&error) => {
                Box::pin(read_back_in_halves(warehouse, &sought, error, progress)).await?
            }
            Err(error) => return Err(error),
        };
        whole.answers.extend(found.answers);
        whole.other_versions |= found.other_versions;
        // The earlier look is the one that may have missed something.
        whole.at = if whole.at == 0 { found.at } else { whole.at.min(found.at) };
    }
    Ok(whole)
}
