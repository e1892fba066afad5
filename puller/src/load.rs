//! Loading a unit into ClickHouse: fetch, decode, insert, read back, record; in parts that fit the memory.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use common::config::Corrections;
use common::failpoint::failpoint;
use common::marker::Object;
use common::object_store::ObjectStore;
use common::unit::shorten;
use futures::StreamExt;
use jiff::Timestamp;
use nats::Activity;
use tokio::sync::Semaphore;

use crate::corrections::{self, version};
use crate::decode::{self, Decoded, Interval, ROW_BYTES, Spec};
use crate::destination::Work;
use crate::error::{FaultyObject, ObjectFault, WorkError};
use crate::fetch::{FetchError, fetch};
use crate::job::Job;
use crate::ledger::{Entry, Loaded};
use crate::native::{Rows, Slice};
use crate::read_back::Expected;
use crate::warehouse::Warehouse;

/// Datasets whose archives are klines: the same twelve columns.
const KLINE_DATASETS: [&str; 4] = ["klines", "markPriceKlines", "indexPriceKlines", "premiumIndexKlines"];
/// One insert is whole or not at all only within one block of the server: 1,048,449 rows.
const PART_ROWS_MAX: u64 = 1_000_000;
/// Longest row accepted on average; genuine ones have 145 to 160 bytes.
const CSV_ROW_BYTES_MAX: u64 = 256;
/// Archives of one unit in flight at once; those beyond `storage.r2.transfers` wait for their turn.
pub(crate) const FETCHES_MAX: usize = 64;
/// Room for a header line, and for a few rows more than the interval implies, as early files have.
const CSV_SLACK_BYTES: u64 = 64 * 1024;

/// Bytes that archives in flight and decoded rows may take, shared by all destinations of a process.
#[derive(Clone)]
pub(crate) struct MemoryBudget {
    free_kib: Arc<Semaphore>,
    total_kib: u32,
}

impl MemoryBudget {
    pub(crate) fn new(bytes: u64) -> Self {
        let total_kib = u32::try_from(bytes / 1024).unwrap_or(u32::MAX).max(1);
        Self { free_kib: Arc::new(Semaphore::new(total_kib as usize)), total_kib }
    }

    fn total_bytes(&self) -> u64 {
        u64::from(self.total_kib) * 1024
    }

    /// Waits for this many bytes, or for all there are. Taken at once for a whole part: taking piece by piece could
    /// leave every worker waiting for the others' pieces.
    pub(crate) async fn take(&self, bytes: u64) -> tokio::sync::SemaphorePermit<'_> {
        let kib = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX).min(self.total_kib);
        self.free_kib.acquire_many(kib).await.expect("the semaphore is never closed")
    }
}

pub(crate) struct Loader {
    pub warehouse: Warehouse,
    pub store: ObjectStore,
    pub memory: MemoryBudget,
    /// Objects fetched at once, over all units.
    pub transfers: Arc<Semaphore>,
    pub corrections: Corrections,
    pub worker: String,
}

/// An archive that is decoded and not loaded yet.
struct Ready<'j> {
    object: &'j Object,
    decoded: Decoded,
    rows_hash: u64,
}

impl Loader {
    pub(crate) async fn load(&self, job: &Job, activity: &Activity) -> Result<Work, WorkError> {
        let spec = spec(job)?;
        let ledger = self.warehouse.ledger(&job.unit).await?;
        let mut work = Work::default();
        let mut open = Vec::new();
        for object in &job.objects {
            if !job.options.force && ledger.get(&object.key).is_some_and(|entry| entry.is(object)) {
                work.skipped += 1;
            } else if let Err(fault) = self.acceptable(job, object) {
                work.faults.push(FaultyObject { key: shorten(&object.key), fault });
            } else {
                open.push(object);
            }
        }
        for part in self.parts(&open, &spec) {
            self.load_part(job, &spec, part, &ledger, activity, &mut work).await?;
        }
        // Also when everything was skipped or failed: an earlier attempt may have died before this.
        corrections::settle(&self.warehouse, &job.unit, &job.objects).await?;
        Ok(work)
    }

    /// What can be said of an object before it is fetched.
    fn acceptable(&self, job: &Job, object: &Object) -> Result<(), ObjectFault> {
        let name = format!("{}-{}-{}.zip", object.symbol, job.unit.interval, job.unit.period);
        if object.key.rsplit('/').next() != Some(name.as_str()) {
            return Err(ObjectFault::Refused(format!("its file name is not {}", shorten(&name))));
        }
        let limit = self.memory.total_bytes() / 2;
        if object.size > limit {
            return Err(ObjectFault::Refused(format!(
                "it has {} bytes, more than half of puller.memory; raise puller.memory, then retry",
                object.size
            )));
        }
        Ok(())
    }

    /// Cuts the objects into parts of which several fit into memory.
    fn parts<'a, 'j>(&self, objects: &'a [&'j Object], spec: &Spec) -> Vec<&'a [&'j Object]> {
        let bytes_max = self.memory.total_bytes() / 3;
        let rows = expected_rows(spec);
        let mut parts = Vec::new();
        let (mut start, mut bytes) = (0, 0);
        for (index, object) in objects.iter().enumerate() {
            let next = footprint(object, rows);
            let count = (index - start) as u64;
            if count > 0 && (bytes + next > bytes_max || (count + 1) * rows > PART_ROWS_MAX) {
                parts.push(&objects[start..index]);
                (start, bytes) = (index, 0);
            }
            bytes += next;
        }
        if start < objects.len() {
            parts.push(&objects[start..]);
        }
        parts
    }

    async fn load_part(
        &self,
        job: &Job,
        spec: &Spec,
        part: &[&Object],
        ledger: &HashMap<String, Entry>,
        activity: &Activity,
        work: &mut Work,
    ) -> Result<(), WorkError> {
        let rows = expected_rows(spec);
        let _memory = self.memory.take(part.iter().map(|object| footprint(object, rows)).sum()).await;

        // In order, so that rows arrive sorted by the table's key.
        let decodings: Vec<_> = part.iter().map(|object| self.fetch_and_decode(object, spec, activity)).collect();
        let mut decoding = futures::stream::iter(decodings).buffered(FETCHES_MAX);
        let mut objects = part.iter().copied();
        let mut ready = Vec::with_capacity(part.len());
        while let (Some(outcome), Some(object)) = (decoding.next().await, objects.next()) {
            let (decoded, bytes, times) = match outcome? {
                Ok(done) => done,
                Err(fault) => {
                    work.faults.push(FaultyObject { key: object.key.clone(), fault });
                    continue;
                }
            };
            work.bytes += bytes;
            work.times.fetch += times.0;
            work.times.decode += times.1;
            let former = ledger.get(&object.key);
            let limit = if job.options.accept_shrink { 1.0 } else { self.corrections.shrink_limit };
            let klines = &decoded.klines;
            match corrections::check_shrink(&self.warehouse, &job.unit, object, klines, former, limit).await? {
                Ok(()) => ready.push(Ready { object, rows_hash: decoded.klines.hash(), decoded }),
                Err(fault) => work.faults.push(FaultyObject { key: object.key.clone(), fault }),
            }
        }
        drop(decoding);
        if ready.is_empty() {
            return Ok(());
        }
        self.insert_and_read_back(job, &ready, activity, work).await
    }

    /// One archive, verified and decoded. The outer error stops the unit, the inner one is the object's own.
    pub(crate) async fn fetch_and_decode(
        &self,
        object: &Object,
        spec: &Spec,
        activity: &Activity,
    ) -> Result<Result<(Decoded, u64, (std::time::Duration, std::time::Duration)), ObjectFault>, WorkError> {
        let started = Instant::now();
        let bytes = {
            let _slot = self.transfers.acquire().await.expect("the semaphore is never closed");
            match fetch(&self.store, object, activity).await {
                Ok(bytes) => bytes,
                Err(FetchError::Object(fault)) => return Ok(Err(fault)),
                Err(FetchError::Store(error)) => return Err(error.into()),
            }
        };
        let fetched = started.elapsed();
        let size = bytes.len() as u64;
        let name = object.key.rsplit('/').next().unwrap_or_default().to_owned();
        let spec = *spec;
        let decoding = tokio::task::spawn_blocking(move || decode::decode(&name, &bytes, &spec));
        let decoded = decoding.await.map_err(|error| WorkError::Panicked(error.to_string()))?;
        activity.bump();
        let times = (fetched, started.elapsed() - fetched);
        Ok(decoded.map(|decoded| (decoded, size, times)).map_err(ObjectFault::Damaged))
    }

    async fn insert_and_read_back(
        &self,
        job: &Job,
        ready: &[Ready<'_>],
        activity: &Activity,
        work: &mut Work,
    ) -> Result<(), WorkError> {
        let started = Instant::now();
        let version = |archive: &Ready<'_>| version(archive.object.generated_at, job.unit.period);
        let slices: Vec<Slice<'_>> = ready
            .iter()
            .map(|archive| {
                let klines = &archive.decoded.klines;
                let rows = Rows::Klines { klines, range: 0..klines.len() };
                Slice { symbol: &archive.object.symbol, version: version(archive), rows }
            })
            .collect();
        failpoint("puller.decoded");
        corrections::insert(&self.warehouse, &job.unit, &slices, || activity.bump()).await?;
        failpoint("puller.inserted");
        work.times.insert += started.elapsed();

        let started = Instant::now();
        let expected: Vec<Expected<'_>> = ready
            .iter()
            .map(|archive| Expected {
                symbol: &archive.object.symbol,
                version: version(archive),
                klines: &archive.decoded.klines,
                rows_hash: archive.rows_hash,
            })
            .collect();
        let answers = self.warehouse.read_back(&job.unit, &expected).await?;
        failpoint("puller.read_back");
        activity.bump();
        work.times.read_back += started.elapsed();

        let mut verified = Vec::with_capacity(ready.len());
        for (archive, answer) in ready.iter().zip(answers) {
            match answer {
                Ok(()) => verified.push(archive),
                Err(why) => {
                    let fault = ObjectFault::NotReadBack(why);
                    work.faults.push(FaultyObject { key: archive.object.key.clone(), fault });
                }
            }
        }
        let now = common::clock::now();
        let rows: Vec<Loaded<'_>> = verified.iter().map(|archive| self.ledger_row(job, archive, now)).collect();
        // After the read-back, before the ack: a crash before this line loads the part again, a crash after it skips it.
        self.warehouse.record_archives(&rows).await?;
        failpoint("puller.archives_recorded");
        work.loaded += verified.len() as u64;
        work.rows += verified.iter().map(|archive| archive.decoded.klines.len() as u64).sum::<u64>();
        Ok(())
    }

    fn ledger_row<'a>(&'a self, job: &'a Job, archive: &'a Ready<'_>, loaded_at: Timestamp) -> Loaded<'a> {
        let klines = &archive.decoded.klines;
        let at = |us: Option<i64>| Timestamp::from_microsecond(us.unwrap_or_default()).unwrap_or_default();
        Loaded {
            unit: &job.unit,
            symbol: &archive.object.symbol,
            object_key: &archive.object.key,
            sha256: archive.object.sha256.to_string(),
            size: archive.object.size,
            generated_at: archive.object.generated_at,
            rows: klines.len() as u64,
            expected_rows: archive.decoded.expected_rows,
            first_open_time: at(klines.first_open_time()),
            last_open_time: at(klines.last_open_time()),
            missing_rows: archive.decoded.missing_rows,
            rows_hash: archive.rows_hash,
            loaded_at,
            marker_id: &job.marker_id,
            worker: &self.worker,
        }
    }
}

/// How the unit's archives are to be decoded.
pub(crate) fn spec(job: &Job) -> Result<Spec, WorkError> {
    let dataset = job.unit.dataset.as_str();
    if !KLINE_DATASETS.contains(&dataset) {
        return Err(WorkError::NoDecoder(format!("dataset {dataset}")));
    }
    let interval = job.unit.interval.as_str().parse::<Interval>();
    let interval = interval.map_err(|error| WorkError::NoDecoder(error.to_string()))?;
    let mut spec =
        Spec { interval, period_start: job.unit.period.start(), period_end: job.unit.period.end(), csv_bytes_max: 0 };
    spec.csv_bytes_max = expected_rows(&spec) * CSV_ROW_BYTES_MAX + CSV_SLACK_BYTES;
    Ok(spec)
}

pub(crate) fn expected_rows(spec: &Spec) -> u64 {
    spec.interval.expected_rows(spec.period_start, spec.period_end).max(1)
}

/// Memory an archive takes from fetch to read-back: its bytes and its decoded rows.
pub(crate) fn footprint(object: &Object, rows: u64) -> u64 {
    object.size + rows * ROW_BYTES as u64
}
