//! Archives of one unit that go together: fetched and decoded, then inserted, read back and recorded at once.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::failpoint::failpoint;
use common::marker::Object;
use futures::StreamExt;
use nats::Activity;
use tokio::sync::Semaphore;

use crate::clickhouse::ledger::{ArchiveFacts, Ledger};
use crate::clickhouse::part::{DecodedArchive, InsertPart};
use crate::clickhouse::read_back::{Depth, ReadBack};
use crate::clickhouse::version::version;
use crate::error::work::{FaultyObject, ObjectFault, WorkError};
use crate::job::resolve::Job;
use crate::job::spec::{FETCHES_MAX, footprint};
use crate::job::work::Work;
use crate::job::writes::Written;
use crate::load::loader::Loader;
use crate::load::superseded_rows::EarlyCheck;
use archive::{Decoded, Spec};

/// An archive of up to so many bytes is decoded in less time than it takes to hand it to another thread and back.
const DECODED_HERE_BYTES_MAX: usize = 8 * 1024;

/// Objects of a unit that are to go together.
pub(super) struct Cut<'a> {
    pub objects: &'a [&'a Object],
    /// Whose turn it is to fetch and decode, of the unit's parts.
    pub fetching: &'a Semaphore,
    pub early_check: &'a EarlyCheck,
}

impl Loader {
    pub(super) async fn load_part(
        &self,
        job: &Arc<Job>,
        spec: &Spec,
        cut: Cut<'_>,
        ledger: &Ledger,
        activity: &Activity,
    ) -> Result<Work, WorkError> {
        let Cut { objects, fetching, early_check } = cut;
        let permit = fetching.acquire().await.expect("the semaphore is never closed");
        let bytes = objects.iter().map(|object| footprint(object, spec.rows_max)).sum();
        let memory = activity.while_waiting(self.memory.acquire(bytes)).await;
        let mut work = Work::default();

        // In order, so that rows arrive sorted by the table's key.
        let decodings: Vec<_> =
            objects.iter().map(|object| self.fetch_and_decode(job, object, spec, activity)).collect();
        let mut decoding = futures::stream::iter(decodings).buffered(FETCHES_MAX);
        let mut objects = objects.iter().copied();
        let mut archives = Vec::with_capacity(objects.len());
        while let (Some(outcome), Some(object)) = (decoding.next().await, objects.next()) {
            match outcome? {
                Ok((decoded, rows_hash, times)) => {
                    work.bytes += object.size;
                    work.times.fetch += times.fetch;
                    work.times.decode += times.decode;
                    let version = version(object.generated_at, job.unit.period);
                    archives.push(DecodedArchive { object: object.clone(), version, rows_hash, decoded });
                }
                Err(fault) => work.faults.push(FaultyObject { key: object.key.clone(), fault }),
            }
        }
        drop(decoding);
        drop(permit);
        let recorded_before = archives.iter().filter(|archive| ledger.contains_key(&archive.object.key));
        let mut exceeding = self.exceeding_limit(job, recorded_before.map(DecodedArchive::candidate), ledger).await?;
        archives.retain(|archive| match exceeding.remove(&archive.object.key) {
            Some(fault) => {
                work.faults.push(FaultyObject { key: archive.object.key.clone(), fault });
                false
            }
            None => true,
        });
        if !archives.is_empty() {
            let awaited = Arc::new(());
            let part = InsertPart::new(Arc::clone(job), archives, activity.clone(), &awaited, memory);
            self.insert_and_read_back(&Arc::new(part), ledger, early_check, &mut work).await?;
            drop(awaited);
        }
        Ok(work)
    }

    /// One archive, verified and decoded, with the hash of its rows. The outer error stops the unit, the inner one is the
    /// object's own.
    async fn fetch_and_decode(
        &self,
        job: &Job,
        object: &Object,
        spec: &Spec,
        activity: &Activity,
    ) -> Result<Result<(Decoded, u64, Times), ObjectFault>, WorkError> {
        let started = Instant::now();
        let bytes = match self.fetcher.fetch(&job.unit, object, activity).await? {
            Ok(bytes) => bytes,
            Err(fault) => return Ok(Err(fault)),
        };
        let fetch = started.elapsed();
        let name = object.key.rsplit('/').next().unwrap_or_default().to_owned();
        let spec = *spec;
        let small = bytes.len() <= DECODED_HERE_BYTES_MAX;
        let decode = move || {
            let started = Instant::now();
            let decoded = archive::decode(&name, &bytes, &spec);
            decoded.map(|decoded| (decoded.klines.hash(), decoded, started.elapsed()))
        };
        let decoded = if small {
            decode()
        } else {
            let place = activity.while_waiting(self.decodings.acquire()).await;
            let _place = place.expect("the semaphore is never closed");
            let decoding = tokio::task::spawn_blocking(decode);
            decoding.await.map_err(|error| WorkError::Panicked(error.to_string()))?
        };
        activity.bump();
        Ok(match decoded {
            Ok((rows_hash, decoded, decode)) => Ok((decoded, rows_hash, Times { fetch, decode })),
            Err(error) => Err(ObjectFault::Damaged(error)),
        })
    }

    async fn insert_and_read_back(
        &self,
        part: &Arc<InsertPart>,
        ledger: &Ledger,
        early_check: &EarlyCheck,
        work: &mut Work,
    ) -> Result<(), WorkError> {
        let ReadBack { answers, other_versions, at } = match self.inserted_before(part, early_check, work).await? {
            Some(found) => found,
            None => {
                self.insert(part, work).await?;
                self.read_back(part, Depth::Rows, early_check, work).await?
            }
        };
        early_check.saw(other_versions, at);
        failpoint("puller.read_back");

        let mut exceeding = HashMap::new();
        if other_versions {
            let not_recorded = part.archives.iter().filter(|archive| !ledger.contains_key(&archive.object.key));
            exceeding = self.exceeding_limit(&part.job, not_recorded.map(DecodedArchive::candidate), ledger).await?;
        }
        let mut verified = Vec::with_capacity(part.archives.len());
        for (archive, answer) in part.archives.iter().zip(answers) {
            let fault =
                answer.map_err(ObjectFault::NotReadBack).err().or_else(|| exceeding.remove(&archive.object.key));
            match fault {
                None => verified.push(archive),
                Some(fault) => work.faults.push(FaultyObject { key: archive.object.key.clone(), fault }),
            }
        }
        let facts = verified.iter().map(|archive| {
            let Decoded { klines, expected_rows, missing_rows, .. } = &archive.decoded;
            let facts = ArchiveFacts {
                rows: klines.len() as u64,
                expected_rows: *expected_rows,
                missing_rows: *missing_rows,
                first_open_time: klines.first_open_time(),
                last_open_time: klines.last_open_time(),
                rows_hash: archive.rows_hash,
            };
            (&archive.object, facts)
        });
        let facts: Vec<(&Object, ArchiveFacts)> = facts.collect();
        work.loaded += facts.len() as u64;
        work.rows += facts.iter().map(|(_, facts)| facts.rows).sum::<u64>();
        if let Some(server_ms) = self.record_archives(&part.job, facts, &part.activity).await? {
            early_check.recorded(server_ms);
        }
        failpoint("puller.archives_recorded");
        Ok(())
    }

    /// What is found of a part whose rows are all there, because an earlier attempt came so far: they are not inserted over
    /// and over when what follows fails. Where sums do not prove that, the rows are inserted: comparing them one by one
    /// would take longer, and find nothing of a unit that was interrupted before its insert.
    async fn inserted_before(
        &self,
        part: &Arc<InsertPart>,
        early_check: &EarlyCheck,
        work: &mut Work,
    ) -> Result<Option<ReadBack>, WorkError> {
        if !part.job.tried_before || part.job.options.force {
            return Ok(None);
        }
        let found = self.read_back(part, Depth::Sums, early_check, work).await?;
        Ok(Some(found).filter(|found| found.answers.iter().all(Result::is_ok)))
    }

    async fn read_back(
        &self,
        part: &Arc<InsertPart>,
        depth: Depth,
        early_check: &EarlyCheck,
        work: &mut Work,
    ) -> Result<ReadBack, WorkError> {
        let started = Instant::now();
        early_check.begins();
        let found = self.statements.read_back(part, depth).await?;
        work.times.read_back += started.elapsed();
        Ok(found)
    }

    async fn insert(&self, part: &Arc<InsertPart>, work: &mut Work) -> Result<(), WorkError> {
        let started = Instant::now();
        failpoint("puller.decoded");
        let write = part.job.writes.begin(Written::Archives);
        write.end(self.statements.insert(part).await)?;
        failpoint("puller.inserted");
        work.times.insert += started.elapsed();
        Ok(())
    }
}

/// How long one archive took.
pub(crate) struct Times {
    pub fetch: Duration,
    pub decode: Duration,
}
