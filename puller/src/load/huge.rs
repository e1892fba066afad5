//! An archive whose rows do not fit into memory with others': a month of seconds has 2.7 million of them.
//!
//! It is decoded twice. The first time nothing is kept of a row but its time and hash, so that an archive that is damaged
//! at its end is refused before any row of it is inserted; the second time rows go to the server as they come.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use common::failpoint::failpoint;
use common::marker::Object;
use common::unit::Unit;
use nats::Activity;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use crate::clickhouse::insert::columns;
use crate::clickhouse::ledger::{ArchiveFacts, Ledger};
use crate::clickhouse::native::{Rows, Slice, blocks};
use crate::clickhouse::read_back::{Depth, Expected, ExpectedRows, Sought};
use crate::clickhouse::shrink_limit::Candidate;
use crate::clickhouse::version::version;
use crate::error::clickhouse::WarehouseError;
use crate::error::work::{FaultyObject, ObjectFault, WorkError};
use crate::job::resolve::Job;
use crate::job::work::Work;
use crate::job::writes::Written;
use crate::load::loader::Loader;
use crate::load::plan::PART_ROWS_MAX;
use archive::{CHUNK_ROWS, DecodeError, Klines, Outline, ROW_BYTES, Spec};

/// What the outline keeps of a row: time and hash; doubled while a vector grows.
const OUTLINE_ROW_BYTES: u64 = 2 * 16;
/// Chunks of rows on their way from the decoder to the server: one being filled, one waiting, one being sent.
const CHUNKS: u64 = 3;

/// An outline and the memory that it takes.
pub(crate) struct BudgetedOutline {
    outline: Outline,
    _memory: OwnedSemaphorePermit,
}

impl Deref for BudgetedOutline {
    type Target = Outline;

    fn deref(&self) -> &Outline {
        &self.outline
    }
}

impl Loader {
    pub(super) async fn load_huge(
        &self,
        job: &Arc<Job>,
        spec: &Spec,
        object: &Object,
        ledger: &Ledger,
        activity: &Activity,
    ) -> Result<Work, WorkError> {
        let mut work = Work::default();
        if let Err(fault) = self.try_huge(job, spec, object, ledger, activity, &mut work).await? {
            work.faults.push(FaultyObject { key: object.key.clone(), fault });
        }
        Ok(work)
    }

    async fn try_huge(
        &self,
        job: &Arc<Job>,
        spec: &Spec,
        object: &Object,
        ledger: &Ledger,
        activity: &Activity,
        work: &mut Work,
    ) -> Result<Result<(), ObjectFault>, WorkError> {
        let chunks = CHUNKS * (CHUNK_ROWS * ROW_BYTES) as u64;
        let _memory = activity.while_waiting(self.memory.acquire(outline_footprint(object, spec) + chunks)).await;
        let started = Instant::now();
        let bytes = match self.fetcher.fetch(&job.unit, object, activity).await? {
            Ok(bytes) => bytes,
            Err(fault) => return Ok(Err(fault)),
        };
        work.bytes += object.size;
        work.times.fetch += started.elapsed();

        let started = Instant::now();
        let place = activity.while_waiting(self.decodings.acquire()).await;
        let _place = place.expect("the semaphore is never closed");
        let name: Arc<str> = object.key.rsplit('/').next().unwrap_or_default().into();
        let outline = match outlined(&name, &bytes, spec).await? {
            Ok(outline) => outline,
            Err(error) => return Ok(Err(error.into())),
        };
        activity.bump();
        work.times.decode += started.elapsed();
        let candidate = || std::iter::once(Candidate { object, open_times: &outline.open_times });
        if ledger.contains_key(&object.key)
            && let Some(fault) = self.exceeding_limit(job, candidate(), ledger).await?.remove(&object.key)
        {
            return Ok(Err(fault));
        }

        // See `inserted_before`.
        let mut found = None;
        if job.tried_before && !job.options.force {
            found = Some(self.read_back_huge(job, (object, &outline), Depth::Sums, activity, work).await?);
        }
        let (answer, other_versions) = match found.filter(|(answer, _)| answer.is_ok()) {
            Some(found) => found,
            None => {
                let started = Instant::now();
                failpoint("puller.decoded");
                let write = job.writes.begin(Written::Archives);
                self.insert_huge(job, spec, object, (&name, bytes), activity).await?;
                write.answered();
                failpoint("puller.inserted");
                work.times.insert += started.elapsed();
                self.read_back_huge(job, (object, &outline), Depth::Rows, activity, work).await?
            }
        };
        failpoint("puller.read_back");
        if let Err(why) = answer {
            return Ok(Err(ObjectFault::NotReadBack(why)));
        }
        if other_versions
            && !ledger.contains_key(&object.key)
            && let Some(fault) = self.exceeding_limit(job, candidate(), ledger).await?.remove(&object.key)
        {
            return Ok(Err(fault));
        }
        let facts = ArchiveFacts::of(&outline);
        work.loaded += 1;
        work.rows += facts.rows;
        self.record_archives(job, vec![(object, facts)], activity).await?;
        failpoint("puller.archives_recorded");
        Ok(Ok(()))
    }

    /// The inner error says what is not as it was sent; and whether rows of other versions are there.
    async fn read_back_huge(
        &self,
        job: &Job,
        (object, outline): (&Object, &Outline),
        depth: Depth,
        activity: &Activity,
        work: &mut Work,
    ) -> Result<(Result<(), String>, bool), WorkError> {
        let started = Instant::now();
        let expected = Expected {
            symbol: &object.symbol,
            version: version(object.generated_at, job.unit.period),
            rows: ExpectedRows::Outline(outline),
            rows_hash: outline.hash(),
        };
        let sought = Sought { unit: &job.unit, archives: vec![expected], depth };
        let found = self.warehouse.read_back(&[sought], &|| activity.bump()).await?;
        work.times.read_back += started.elapsed();
        let other_versions = found.iter().any(|found| found.other_versions);
        let answer = found.into_iter().flat_map(|found| found.answers).next();
        let answer = answer.ok_or_else(|| WarehouseError::wrong("a read-back has no answer for an archive"))?;
        Ok((answer, other_versions))
    }

    /// What an archive holds, verified, for a comparison with what is stored.
    pub(crate) async fn fetch_outline(
        &self,
        unit: &Unit,
        object: &Object,
        spec: &Spec,
    ) -> Result<Result<BudgetedOutline, ObjectFault>, WorkError> {
        let memory = self.memory.acquire(outline_footprint(object, spec)).await;
        let bytes = match self.fetcher.fetch(unit, object, &Activity::default()).await? {
            Ok(bytes) => bytes,
            Err(fault) => return Ok(Err(fault)),
        };
        let _place = self.decodings.acquire().await.expect("the semaphore is never closed");
        let name = object.key.rsplit('/').next().unwrap_or_default().into();
        let outline = outlined(&name, &bytes, spec).await?;
        Ok(outline.map(|outline| BudgetedOutline { outline, _memory: memory }).map_err(ObjectFault::Damaged))
    }

    /// Decodes again and inserts as rows come, in inserts that the server stores as one block each.
    async fn insert_huge(
        &self,
        job: &Job,
        spec: &Spec,
        object: &Object,
        (name, bytes): (&Arc<str>, Bytes),
        activity: &Activity,
    ) -> Result<(), WorkError> {
        let (chunks, mut decoded) = mpsc::channel::<Klines>(1);
        let (name, spec) = (Arc::clone(name), *spec);
        let decoding = tokio::task::spawn_blocking(move || {
            // When the receiver is gone, the insert has failed and says why.
            archive::chunks(&name, &bytes, &spec, |klines| drop(chunks.blocking_send(klines)))
        });
        let version = version(object.generated_at, job.unit.period);
        let mut insert = self.warehouse.insert("klines", "Native");
        let mut rows_sent = 0;
        while let Some(klines) = decoded.recv().await {
            if rows_sent + klines.len() as u64 > PART_ROWS_MAX || insert.is_long() {
                let full = std::mem::replace(&mut insert, self.warehouse.insert("klines", "Native"));
                full.end().await?;
                rows_sent = 0;
            }
            rows_sent += klines.len() as u64;
            let rows = Rows::Klines { klines: &klines, range: 0..klines.len() };
            let slice = [Slice { unit: columns(&job.unit), symbol: &object.symbol, version, rows }];
            for block in blocks(&slice) {
                insert.send(block).await?;
                activity.bump();
            }
        }
        insert.end().await?;
        let decoded = decoding.await.map_err(|error| WorkError::Panicked(error.to_string()))?;
        // It was whole a moment ago, and these are the same bytes.
        decoded.map_err(|error| WorkError::Panicked(format!("an archive was decoded once and not twice: {error}")))
    }
}

/// Memory for an archive's bytes and its outline.
fn outline_footprint(object: &Object, spec: &Spec) -> u64 {
    object.size + spec.rows_max * OUTLINE_ROW_BYTES
}

/// Reads an archive through without keeping its rows.
async fn outlined(name: &Arc<str>, bytes: &Bytes, spec: &Spec) -> Result<Result<Outline, DecodeError>, WorkError> {
    let (name, bytes, spec) = (Arc::clone(name), bytes.clone(), *spec);
    let outlining = tokio::task::spawn_blocking(move || archive::outline(&name, &bytes, &spec));
    outlining.await.map_err(|error| WorkError::Panicked(error.to_string()))
}
