//! Archives of one unit that go together: fetched and decoded, then inserted, read back and recorded at once.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use common::failpoint::failpoint;
use common::marker::Object;
use futures::StreamExt;
use jiff::Timestamp;
use nats::Activity;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{FETCHES_MAX, Loader, footprint};
use crate::corrections::{self, Candidate, version};
use crate::destination::Work;
use crate::error::{FaultyObject, ObjectFault, WorkError};
use crate::job::Job;
use crate::ledger::{Ledger, Loaded, json_lines};
use crate::read_back::{Depth, Expected, ExpectedRows, Found};
use crate::superseded_rows::EarlyLook;
use crate::writes::Written;
use archive::{Decoded, Outline, Spec};

/// An archive of up to so many bytes is decoded in less time than it takes to hand it to another thread and back.
const DECODED_HERE_BYTES_MAX: usize = 8 * 1024;

/// Decoded archives of one unit that are loaded together.
pub(crate) struct Part {
    pub job: Arc<Job>,
    pub archives: Vec<Ready>,
    pub activity: Activity,
    /// Lives as long as somebody waits for what is done with the part.
    awaited: Weak<()>,
    /// Of its archives' bytes and rows. A statement may have the part for longer than the unit that asked is worked on.
    _memory: OwnedSemaphorePermit,
}

/// An archive that is decoded and not loaded yet.
pub(crate) struct Ready {
    pub object: Object,
    pub version: u64,
    pub decoded: Decoded,
    rows_hash: u64,
}

impl Part {
    /// Whether the unit that it is of is still worked on: it may have lost its lease, and rows that come long after would
    /// find nobody who looks after them.
    pub(crate) fn is_awaited(&self) -> bool {
        self.awaited.strong_count() > 0
    }

    pub(crate) fn rows(&self) -> u64 {
        self.archives.iter().map(|archive| archive.decoded.klines.len() as u64).sum()
    }
}

impl Ready {
    fn candidate(&self) -> Candidate<'_> {
        Candidate { object: &self.object, open_times: &self.decoded.klines.open_time }
    }

    pub(crate) fn expected(&self) -> Expected<'_> {
        Expected {
            symbol: &self.object.symbol,
            version: self.version,
            rows: ExpectedRows::Klines(&self.decoded.klines),
            rows_hash: self.rows_hash,
        }
    }
}

/// Objects of a unit that are to go together.
pub(super) struct Cut<'a> {
    pub objects: &'a [&'a Object],
    /// Whose turn it is to fetch and decode, of the unit's parts.
    pub fetching: &'a Semaphore,
    pub look: &'a EarlyLook,
}

/// What the ledger says of an archive, beside its names.
pub(crate) struct Facts {
    pub rows: u64,
    pub expected_rows: u64,
    pub missing_rows: u64,
    pub first_open_time: Option<i64>,
    pub last_open_time: Option<i64>,
    pub rows_hash: u64,
}

impl Facts {
    pub(crate) fn of(outline: &Outline) -> Self {
        Self {
            rows: outline.open_times.len() as u64,
            expected_rows: outline.expected_rows,
            missing_rows: outline.missing_rows,
            first_open_time: outline.open_times.first().copied(),
            last_open_time: outline.open_times.last().copied(),
            rows_hash: outline.hash(),
        }
    }
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
        let Cut { objects, fetching, look } = cut;
        let turn = fetching.acquire().await.expect("the semaphore is never closed");
        let bytes = objects.iter().map(|object| footprint(object, spec.rows_max)).sum();
        let memory = activity.while_waiting(self.memory.take(bytes)).await;
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
                    archives.push(Ready { object: object.clone(), version, rows_hash, decoded });
                }
                Err(fault) => work.faults.push(FaultyObject { key: object.key.clone(), fault }),
            }
        }
        drop(decoding);
        drop(turn);
        let recorded_before = archives.iter().filter(|archive| ledger.contains_key(&archive.object.key));
        let mut shrunk = self.shrunk(job, recorded_before.map(Ready::candidate), ledger).await?;
        archives.retain(|archive| match shrunk.remove(&archive.object.key) {
            Some(fault) => {
                work.faults.push(FaultyObject { key: archive.object.key.clone(), fault });
                false
            }
            None => true,
        });
        if !archives.is_empty() {
            let awaited = Arc::new(());
            let part = Part {
                job: Arc::clone(job),
                archives,
                activity: activity.clone(),
                awaited: Arc::downgrade(&awaited),
                _memory: memory,
            };
            self.insert_and_read_back(&Arc::new(part), ledger, look, &mut work).await?;
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

    /// See [`corrections::exceeding_shrink_limit`].
    pub(super) async fn shrunk(
        &self,
        job: &Job,
        candidates: impl Iterator<Item = Candidate<'_>>,
        ledger: &Ledger,
    ) -> Result<HashMap<String, ObjectFault>, WorkError> {
        let limit = if job.options.accept_shrink { 1.0 } else { self.corrections.shrink_limit };
        Ok(corrections::exceeding_shrink_limit(&self.warehouse, &job.unit, candidates, ledger, limit).await?)
    }

    async fn insert_and_read_back(
        &self,
        part: &Arc<Part>,
        ledger: &Ledger,
        look: &EarlyLook,
        work: &mut Work,
    ) -> Result<(), WorkError> {
        let Found { answers, other_versions, at } = match self.inserted_before(part, look, work).await? {
            Some(found) => found,
            None => {
                self.insert(part, work).await?;
                self.read_back(part, Depth::Rows, look, work).await?
            }
        };
        look.saw(other_versions, at);
        failpoint("puller.read_back");

        let mut shrunk = HashMap::new();
        if other_versions {
            let not_recorded = part.archives.iter().filter(|archive| !ledger.contains_key(&archive.object.key));
            shrunk = self.shrunk(&part.job, not_recorded.map(Ready::candidate), ledger).await?;
        }
        let mut verified = Vec::with_capacity(part.archives.len());
        for (archive, answer) in part.archives.iter().zip(answers) {
            let fault = answer.map_err(ObjectFault::NotReadBack).err().or_else(|| shrunk.remove(&archive.object.key));
            match fault {
                None => verified.push(archive),
                Some(fault) => work.faults.push(FaultyObject { key: archive.object.key.clone(), fault }),
            }
        }
        let facts = verified.iter().map(|archive| {
            let Decoded { klines, expected_rows, missing_rows, .. } = &archive.decoded;
            let facts = Facts {
                rows: klines.len() as u64,
                expected_rows: *expected_rows,
                missing_rows: *missing_rows,
                first_open_time: klines.first_open_time(),
                last_open_time: klines.last_open_time(),
                rows_hash: archive.rows_hash,
            };
            (&archive.object, facts)
        });
        let facts: Vec<(&Object, Facts)> = facts.collect();
        work.loaded += facts.len() as u64;
        work.rows += facts.iter().map(|(_, facts)| facts.rows).sum::<u64>();
        if let Some(server_ms) = self.record_archives(&part.job, facts, &part.activity).await? {
            look.recorded(server_ms);
        }
        failpoint("puller.archives_recorded");
        Ok(())
    }

    /// What is found of a part whose rows are all there, because an earlier attempt came so far: they are not inserted over
    /// and over when what follows fails. Where sums do not prove that, the rows are inserted: comparing them one by one
    /// would take longer, and find nothing of a unit that was interrupted before its insert.
    async fn inserted_before(
        &self,
        part: &Arc<Part>,
        look: &EarlyLook,
        work: &mut Work,
    ) -> Result<Option<Found>, WorkError> {
        if !part.job.tried_before || part.job.options.force {
            return Ok(None);
        }
        let found = self.read_back(part, Depth::Sums, look, work).await?;
        Ok(Some(found).filter(|found| found.answers.iter().all(Result::is_ok)))
    }

    async fn read_back(
        &self,
        part: &Arc<Part>,
        depth: Depth,
        look: &EarlyLook,
        work: &mut Work,
    ) -> Result<Found, WorkError> {
        let started = Instant::now();
        look.begins();
        let found = self.statements.read_back(part, depth).await?;
        work.times.read_back += started.elapsed();
        Ok(found)
    }

    async fn insert(&self, part: &Arc<Part>, work: &mut Work) -> Result<(), WorkError> {
        let started = Instant::now();
        failpoint("puller.decoded");
        let write = part.job.writes.begin(Written::Archives);
        write.end(self.statements.insert(part).await)?;
        failpoint("puller.inserted");
        work.times.insert += started.elapsed();
        Ok(())
    }

    /// After the read-back, before the ack: a crash before this loads the archives again, a crash after it skips them.
    /// Returns the server's clock when it has them, in ms.
    pub(crate) async fn record_archives(
        &self,
        job: &Job,
        verified: Vec<(&Object, Facts)>,
        activity: &Activity,
    ) -> Result<Option<i64>, WorkError> {
        let loaded_at = common::clock::now();
        let at = |us: Option<i64>| Timestamp::from_microsecond(us.unwrap_or_default()).unwrap_or_default();
        let rows: Vec<Loaded<'_>> = verified
            .iter()
            .map(|(object, facts)| Loaded {
                unit: &job.unit,
                symbol: &object.symbol,
                object_key: &object.key,
                sha256: object.sha256.to_string(),
                size: object.size,
                generated_at: object.generated_at,
                rows: facts.rows,
                expected_rows: facts.expected_rows,
                first_open_time: at(facts.first_open_time),
                last_open_time: at(facts.last_open_time),
                missing_rows: facts.missing_rows,
                rows_hash: facts.rows_hash,
                loaded_at,
                marker_id: &job.marker_id,
                worker: &self.worker,
            })
            .collect();
        if rows.is_empty() {
            return Ok(None);
        }
        let write = job.writes.begin(Written::Archives);
        Ok(Some(write.end(self.statements.record_archives(json_lines(&rows), activity).await)?))
    }
}

/// How long one archive took.
pub(crate) struct Times {
    pub fetch: Duration,
    pub decode: Duration,
}
