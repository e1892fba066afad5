//! `puller explain`: everything that is known of one unit.

use clap::Args;
use common::config::{Config, Destination, DestinationKind};
use common::marker::{Content, Incomplete, Marker, Object};
use common::output::{Finding, ListArgs, Reply, count, exit, list, wrap};
use common::text::printable;
use common::unit::Unit;
use common::unit_filter::UnitPrefix;
use indicatif::HumanBytes;
use jiff::Timestamp;
use nats::{Bus, Sent, Standing};
use serde::Serialize;
use store::{End, ObjectStore};

use crate::cli::context::{PRESENCE_WAIT, connect_to_stream, served};
use crate::clickhouse::attempts::PastAttempt;
use crate::clickhouse::client::Warehouse;
use crate::clickhouse::ledger::unit_condition;
use crate::commands::dead::letters::LetterSummary;
use crate::directory::mirror::holds;
use crate::job::beginning::Beginning;
use common::output::Failure;
use store::ManifestFile;

/// How many of the last attempts are shown.
const ATTEMPTS_MAX: u32 = 10;

#[derive(Debug, Args)]
pub struct Explain {
    /// Exchange, market, dataset, interval and period, e.g. binance/um/klines/1h/2026-02-14
    #[arg(value_name = "UNIT")]
    unit: Unit,

    #[command(flatten)]
    list: ListArgs,
}

/// How a unit stands at a destination; the first that applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum UnitState {
    /// All that the newest marker names is there: as files with these bytes, or in the ledger, which names what was read back.
    Loaded,
    InFlight,
    Pending,
    /// Delivered and not acknowledged: it waits for a retry, or for the lease of a worker that died.
    RetryScheduled,
    Dead,
    /// Not there, and rightly: older than the destination wanted when it was made. See [`crate::job::beginning`].
    TooOld,
    /// Not there, and nobody is going to bring it there.
    NotLoaded,
    /// Never announced, or what was announced cannot be read.
    Unknown,
}

#[derive(Debug, Serialize)]
struct MarkerFacts {
    revision: String,
    published_at: Timestamp,
    uploader: String,
    /// What it was published without.
    incomplete: Option<Incomplete>,
    archives: usize,
    bytes: u64,
    /// False: only the manifest in the bucket says so.
    on_stream: bool,
}

#[derive(Debug, Serialize)]
struct AtDestination {
    destination: String,
    state: UnitState,
    /// Archives of the newest marker.
    #[serde(skip)]
    archives: usize,
    /// `None`: the destination cannot be asked.
    loaded: Option<usize>,
    missing: Vec<MissingArchive>,
    /// Loaded from bytes that were generated later than the announced ones, which is right.
    stored: Vec<MissingArchive>,
    #[serde(flatten)]
    queue: Queue,
    /// Newest first.
    attempts: Vec<Finding>,
    /// Why not all of this is known.
    error: Option<Failure>,
    /// What is wrong with its tables.
    warnings: Vec<String>,
    #[serde(skip)]
    tried: Vec<PastAttempt>,
    /// In what way that which is there was verified.
    #[serde(skip)]
    verified: &'static str,
}

/// What NATS knows of the unit at a destination.
#[derive(Debug, Default, Serialize)]
struct Queue {
    paused: bool,
    messages: Vec<Sent>,
    in_flight_of: Vec<String>,
    dead_letters: Vec<LetterSummary>,
    #[serde(skip)]
    is_accepted: bool,
}

/// An archive that is not there as it is announced.
#[derive(Debug, Serialize)]
struct MissingArchive {
    symbol: String,
    object_key: String,
    why: String,
}

pub(crate) async fn run(args: &Explain, config: &Config) -> Result<Reply, Failure> {
    let bus = connect_to_stream(config).await?;
    let store = ObjectStore::new(&config.storage, End::Puller);
    let newest = newest(&bus, &store, config, &args.unit).await?;
    let mut destinations = Vec::new();
    for destination in served(config) {
        destinations.push(at(&bus, config, &destination, &args.unit, newest.as_ref()).await);
    }
    bus.close().await;
    let failures =
        destinations.iter().filter_map(|at| Some(at.error.clone()?.of_destination(&at.destination))).collect();
    let (failure, others) = Failure::gravest(failures);
    if failure.is_none() && newest.is_none() && destinations.iter().all(|at| at.state == UnitState::Unknown) {
        // Nobody knows it: is it a unit at all?
        UnitPrefix::from(&args.unit).check_words().map_err(Failure::usage)?;
    }
    let sentence = sentence(newest.as_ref(), &destinations);
    let marker = newest.map(Newest::facts);
    let mut text = to_text(&args.unit, &sentence, marker.as_ref(), &destinations, args.list.all);
    others.iter().for_each(|other| text.push_str(&format!("\n{other}")));
    let right = destinations.iter().all(|at| matches!(at.state, UnitState::Loaded | UnitState::TooOld));
    let findings = destinations.iter().flat_map(|at| at.findings(&args.unit)).collect();
    Ok(Reply::new(if right { exit::DONE } else { exit::DIFFERENCES })
        .field("unit", &args.unit.to_string())
        .field("sentence", &sentence)
        .field("marker", &marker)
        .destinations(&destinations)
        .findings(findings)
        .text(text)
        .failed(failure))
}

/// The newest revision that is known, with its list of objects.
struct Newest {
    marker: Marker,
    objects: Vec<Object>,
    on_stream: bool,
}

impl Newest {
    fn facts(self) -> MarkerFacts {
        MarkerFacts {
            revision: self.marker.revision.to_string(),
            published_at: self.marker.published_at,
            uploader: self.marker.uploader,
            incomplete: self.marker.incomplete,
            archives: self.objects.len(),
            bytes: self.objects.iter().map(|object| object.size).sum(),
            on_stream: self.on_stream,
        }
    }
}

/// From the stream, or where that has none, from the bucket.
async fn newest(bus: &Bus, store: &ObjectStore, config: &Config, unit: &Unit) -> Result<Option<Newest>, Failure> {
    let prefix = &config.storage.prefix;
    let on_stream = bus.latest_marker(unit).await?.marker;
    let (found, revision, dates) = match on_stream {
        Some(marker) => {
            let dates = match &marker.content {
                Content::Objects(objects) => {
                    let objects = objects.clone();
                    return Ok(Some(Newest { marker, objects, on_stream: true }));
                }
                Content::Manifest(reference) => reference.dates.clone(),
            };
            let revision = marker.revision;
            (Some(marker), revision, dates)
        }
        None => {
            let Some(current) = store.current(prefix, unit).await?.readable() else { return Ok(None) };
            (None, current.revision, current.dates)
        }
    };
    let ManifestFile::Read { marker: manifest, .. } = store.manifest(prefix, unit, &revision).await? else {
        let key = prefix.manifest_key(unit, &revision);
        let message = format!("{key}: the manifest is not in the bucket, or is not one");
        return Err(Failure::failed(message).advice("upload the unit again"));
    };
    let mut objects = match &manifest.content {
        Content::Objects(objects) => objects.clone(),
        Content::Manifest(_) => Vec::new(),
    };
    dates.apply(&mut objects);
    let on_stream = found.is_some();
    Ok(Some(Newest { marker: found.unwrap_or(*manifest), objects, on_stream }))
}

/// How the unit stands at a destination. Where the destination or its part of the queue cannot be asked, the rest is told
/// all the same.
async fn at(
    bus: &Bus,
    config: &Config,
    destination: &Destination,
    unit: &Unit,
    newest: Option<&Newest>,
) -> AtDestination {
    let objects = newest.map(|newest| newest.objects.as_slice()).unwrap_or_default();
    let (lacks, stored, mut failures) = match stored(config, destination, unit, objects).await {
        Ok((lacks, stored)) => (Some(lacks), stored, Vec::new()),
        Err(failure) => (None, Stored::default(), vec![failure]),
    };
    let Stored { tried, tables_since, warnings } = stored;
    let queue = Queue::of(bus, destination, unit, (&tried, tables_since)).await;
    let queue = queue.unwrap_or_else(|failure| {
        failures.push(failure);
        Queue { is_accepted: true, ..Queue::default() }
    });
    let any = |standing| queue.messages.iter().any(|message| message.standing == standing);
    let state = match (newest, &lacks) {
        (None, _) if queue.dead_letters.is_empty() => UnitState::Unknown,
        (Some(_), Some(lacks)) if lacks.missing.is_empty() => UnitState::Loaded,
        _ if !queue.in_flight_of.is_empty() => UnitState::InFlight,
        _ if any(Standing::Pending) => UnitState::Pending,
        _ if any(Standing::Delivered) => UnitState::RetryScheduled,
        _ if !queue.dead_letters.is_empty() => UnitState::Dead,
        _ if !failures.is_empty() => UnitState::Unknown,
        _ if !queue.is_accepted => UnitState::TooOld,
        _ => UnitState::NotLoaded,
    };
    let loaded = lacks.as_ref().map(|lacks| objects.len() - lacks.missing.len());
    let Lacks { missing, stored } = lacks.unwrap_or_default();
    AtDestination {
        destination: destination.name.clone(),
        state,
        archives: objects.len(),
        loaded,
        missing,
        stored,
        queue,
        attempts: tried.iter().map(PastAttempt::finding).collect(),
        error: Failure::gravest(failures).0,
        warnings,
        tried,
        verified: match destination.kind {
            DestinationKind::ClickHouse(_) => "verified when loaded",
            DestinationKind::Directory { .. } => "verified",
        },
    }
}

/// What a database says of the unit beside what it lacks.
#[derive(Default)]
struct Stored {
    tried: Vec<PastAttempt>,
    tables_since: Option<Timestamp>,
    warnings: Vec<String>,
}

/// What the destination itself lacks and has. Without its rows the ledger proves nothing: that is an error.
async fn stored(
    config: &Config,
    destination: &Destination,
    unit: &Unit,
    objects: &[Object],
) -> Result<(Lacks, Stored), Failure> {
    match &destination.kind {
        DestinationKind::ClickHouse(server) => {
            let warehouse = Warehouse::read_only(server).await?;
            let warnings = warehouse.warnings().await?;
            let tried = warehouse.attempts(&destination.name, &unit_condition(unit, true), ATTEMPTS_MAX).await?;
            let stored = Stored { tried, tables_since: warehouse.served_since().await?, warnings };
            Ok((lacking_rows(&warehouse, unit, objects).await?, stored))
        }
        DestinationKind::Directory { path } => {
            let missing = missing_files(config, path, objects).await?;
            Ok((Lacks { missing, ..Lacks::default() }, Stored::default()))
        }
    }
}

impl Queue {
    async fn of(
        bus: &Bus,
        destination: &Destination,
        unit: &Unit,
        (attempts, tables_since): (&[PastAttempt], Option<Timestamp>),
    ) -> Result<Self, Failure> {
        let name = destination.name.as_str();
        let mut dead_letters = Vec::new();
        let filter = UnitPrefix::from(unit);
        let collect = |letter: nats::Letter| {
            if filter.matches(&letter.unit_tokens) {
                dead_letters.push(LetterSummary::of(&letter));
            }
        };
        bus.each_letter(Some(name), &filter.exact(), collect).await?;
        // A month's name begins that of its days.
        dead_letters.retain(|letter| letter.unit == unit.to_string());
        let presence = bus.presence(name, PRESENCE_WAIT).await?;
        let holds = |worker: &nats::WorkerState| worker.in_flight.contains(&unit.to_string());
        let in_flight_of: Vec<String> =
            presence.workers.iter().filter(|worker| holds(worker)).map(|worker| worker.worker.clone()).collect();
        let mut messages = bus.sent(name, unit).await?;
        for message in &mut messages {
            // Every attempt is recorded before it is acknowledged, and only a retry is followed by another delivery.
            let last = attempts.iter().find(|tried| tried.stream_sequence == message.sequence && tried.attempt > 0);
            if message.standing == Standing::Delivered && last.is_some_and(|tried| tried.outcome != "retry") {
                message.standing = Standing::Acknowledged;
            }
        }
        let is_accepted = match bus.current_marker(unit).await? {
            Some(marker) => Beginning::of(bus, destination, tables_since).await?.needs_delivery(&marker),
            None => true,
        };
        let paused = bus.destination_progress(name).await?.paused;
        Ok(Self { paused, messages, in_flight_of, dead_letters, is_accepted })
    }
}

/// What of a unit is not there as it is announced.
#[derive(Default)]
struct Lacks {
    missing: Vec<MissingArchive>,
    stored: Vec<MissingArchive>,
}

async fn lacking_rows(warehouse: &Warehouse, unit: &Unit, objects: &[Object]) -> Result<Lacks, Failure> {
    let ledger = warehouse.ledger(unit).await?;
    let mut lacks = Lacks::default();
    for object in objects {
        let (list, why) = match ledger.get(&object.key) {
            Some(entry) if entry.covers(object, unit.period) => continue,
            // The archive generated last decides: loading the announced one would change nothing.
            Some(entry) if entry.outranks(object, unit.period) => (&mut lacks.stored, entry.stays(object, unit)),
            Some(_) => (&mut lacks.missing, "another revision of it is loaded".to_owned()),
            None => (&mut lacks.missing, "it is not loaded".to_owned()),
        };
        list.push(MissingArchive { symbol: object.symbol.clone(), object_key: object.key.clone(), why });
    }
    Ok(lacks)
}

async fn missing_files(
    config: &Config,
    root: &std::path::Path,
    objects: &[Object],
) -> Result<Vec<MissingArchive>, Failure> {
    let mut missing = Vec::new();
    for object in objects {
        let why = match config.storage.prefix.archive_path(&object.key) {
            Ok(path) => match holds(&root.join(path), object).await {
                Ok(true) => continue,
                Ok(false) => "no file with these bytes".to_owned(),
                Err(error) => error.to_string(),
            },
            Err(error) => error.to_string(),
        };
        missing.push(MissingArchive { symbol: object.symbol.clone(), object_key: object.key.clone(), why });
    }
    Ok(missing)
}

/// The state in plain words.
fn sentence(newest: Option<&Newest>, destinations: &[AtDestination]) -> String {
    let Some(newest) = newest else {
        return match destinations.iter().find(|at| at.state != UnitState::Unknown) {
            Some(at) => format!("What was announced of it is no marker: {}.", at.clause()),
            None => "It was never announced: neither the stream nor the bucket knows it.".to_owned(),
        };
    };
    let clauses: Vec<String> = destinations.iter().map(AtDestination::clause).collect();
    let source = if newest.on_stream { "" } else { " It is in the bucket but not on the stream." };
    format!("{}.{source}", clauses.join("; "))
}

impl AtDestination {
    fn clause(&self) -> String {
        let name = &self.destination;
        let has = match self.loaded {
            Some(loaded) => format!("{name} has {loaded} of {}", count(self.archives as u64, "archive")),
            None => format!("{name} cannot be asked what it has"),
        };
        let paused = if self.queue.paused { format!(", and {name} is paused") } else { String::new() };
        match self.state {
            UnitState::Loaded if self.archives == 1 => format!("{name} has its only archive, {}", self.verified),
            UnitState::Loaded => format!("{name} has all {} archives, {}", self.archives, self.verified),
            UnitState::InFlight => format!("{} is loading it into {name}", self.queue.in_flight_of.join(" and ")),
            UnitState::Pending => format!("{has} and the marker waits to be delivered{paused}"),
            UnitState::RetryScheduled => {
                format!(
                    "{has} and the marker waits for another delivery, after a failure or a worker that died{paused}"
                )
            }
            UnitState::Dead => {
                let last = self.queue.dead_letters.last();
                let (sequence, class) = last.map_or((0, ""), |letter| (letter.sequence, letter.class.as_str()));
                format!("{has} and the rest was given up: see `puller dead show {sequence}` ({class})")
            }
            UnitState::TooOld => format!(
                "{has} and does not want the rest: the unit is older than initial_days allowed when {name} was made \
                 (`puller replay --destination {name} --unit` and its name loads it)"
            ),
            UnitState::NotLoaded => format!("{has} and nobody is going to load the rest: its marker was acknowledged"),
            UnitState::Unknown if self.error.is_some() => format!("{name} cannot be asked"),
            UnitState::Unknown => format!("{name} knows nothing of it"),
        }
    }
}

impl AtDestination {
    /// One for each archive that is not there, or not as it is announced.
    fn findings(&self, unit: &Unit) -> Vec<Finding> {
        let finding = |state, sign, archive: &MissingArchive| {
            Finding::of_unit(unit, state, &archive.why)
                .sign(sign)
                .symbol(&archive.symbol)
                .destination(&self.destination)
                .field("object_key", &archive.object_key)
        };
        let missing = self.missing.iter().map(|archive| finding("not_loaded", " ", archive));
        missing.chain(self.stored.iter().map(|archive| finding("older", "=", archive))).collect()
    }

    fn lines(&self, unit: &Unit, all: bool) -> Vec<String> {
        let paused = if self.queue.paused { " (paused)" } else { "" };
        let loaded = match self.loaded {
            Some(loaded) => format!("{loaded} loaded, {} missing", self.missing.len()),
            None => "what is loaded is not known".into(),
        };
        let mut lines = vec![format!("\n{}{paused}: {loaded}", self.destination)];
        lines.extend(self.warnings.iter().flat_map(|warning| wrap(&printable(warning), 0)));
        lines.extend(list(&self.findings(unit), all));
        let mut add = |label: &str, text: String| {
            let below = wrap(&text, 11);
            lines.extend(
                below.iter().enumerate().map(|(at, line)| format!("  {:<9}{line}", if at == 0 { label } else { "" })),
            );
        };
        self.queue.in_flight_of.iter().for_each(|worker| add("in flight", printable(worker)));
        for message in &self.queue.messages {
            let standing = match message.standing {
                Standing::Pending => "not delivered yet",
                Standing::Delivered => "delivered, not acknowledged",
                Standing::Acknowledged => "acknowledged",
            };
            add("message", format!("{} on {}: {standing}", message.sequence, printable(&message.subject)));
        }
        for letter in &self.queue.dead_letters {
            add(
                "dead",
                format!("{}  {:.0}  {}: {}", letter.sequence, letter.at, printable(&letter.class), letter.first_line()),
            );
        }
        for tried in &self.tried {
            add("tried", format!("{:.0}  attempt {}  {}  {}", tried.at(), tried.attempt, tried.outcome, tried.why()));
        }
        lines
    }
}

fn to_text(
    unit: &Unit,
    sentence: &str,
    marker: Option<&MarkerFacts>,
    destinations: &[AtDestination],
    all: bool,
) -> String {
    let mut lines = wrap(&format!("{unit}: {}", printable(sentence)), 0);
    if let Some(marker) = marker {
        lines.push(format!("\nrevision {}", marker.revision));
        lines.push(format!("published {:.0} by {}", marker.published_at, printable(&marker.uploader)));
        lines.push(format!("{}, {}", count(marker.archives as u64, "archive"), HumanBytes(marker.bytes)));
        if let Some(incomplete) = &marker.incomplete {
            lines.extend(wrap(&printable(&format!("published without {incomplete}")), 0));
        }
    }
    lines.extend(destinations.iter().flat_map(|at| at.lines(unit, all)));
    lines.join("\n")
}
