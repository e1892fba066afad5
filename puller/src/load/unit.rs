//! A unit is loaded into ClickHouse: what the ledger has is skipped, the rest goes in parts, then superseded rows disappear.

use std::collections::HashMap;
use std::sync::Arc;

use common::marker::Object;
use futures::StreamExt;
use nats::Activity;
use tokio::sync::Semaphore;

use crate::clickhouse::ledger::Ledger;
use crate::clickhouse::unproven::Recorded;
use crate::clickhouse::version::version;
use crate::error::work::{FaultyObject, WorkError};
use crate::job::memory::DemandGuard;
use crate::job::place::acceptable;
use crate::job::resolve::Job;
use crate::job::spec::{footprint, spec};
use crate::job::work::Work;
use crate::job::writes::Written;
use crate::load::loader::Loader;
use crate::load::part::Cut;
use crate::load::plan::PARTS_MAX;
use crate::load::superseded_rows::EarlyCheck;

impl Loader {
    pub(crate) async fn load(&self, job: &Arc<Job>, activity: &Activity) -> Result<Work, WorkError> {
        let _in_flight = self.statements.enter();
        let spec = spec(job)?;
        let ledger = self.statements.ledger(&job.unit, activity).await?;
        let mut work = Work::default();
        let mut open = Vec::new();
        for object in &job.objects {
            let entry = ledger.get(&object.key);
            let is_loaded = !job.options.force && entry.is_some_and(|entry| entry.covers(object, job.unit.period));
            if is_loaded || entry.is_some_and(|entry| entry.outranks(object, job.unit.period)) {
                work.skipped += 1;
            } else if let Err(fault) = acceptable(job, object, &self.fetcher.prefix, &self.memory) {
                work.faults.push(FaultyObject { key: object.key.clone(), fault });
            } else {
                open.push(object);
            }
        }
        let rows = spec.rows_max;
        let _demand = self.demand_of(job, &open, rows);
        let (huge, usual): (Vec<&Object>, Vec<&Object>) =
            open.iter().partition(|object| footprint(object, rows) > self.part_bytes_max());
        let parts = self.parts(&usual, rows);
        // One part is fetched and decoded at a time, so that the next one is while this one is inserted.
        let fetching = Semaphore::new(1);
        let early_check = EarlyCheck::default();
        let loads: Vec<_> = parts
            .into_iter()
            .map(|objects| {
                self.load_part(
                    job,
                    &spec,
                    Cut { objects, fetching: &fetching, early_check: &early_check },
                    &ledger,
                    activity,
                )
            })
            .collect();
        let mut loads = std::pin::pin!(futures::stream::iter(loads).buffer_unordered(PARTS_MAX));
        while let Some(loaded) = loads.next().await {
            work.add(loaded?);
        }
        for object in &huge {
            work.add(self.load_huge(job, &spec, object, &ledger, activity).await?);
        }
        // In the order of the marker, whatever was done first.
        let place: HashMap<&str, usize> = job.objects.iter().map(|object| object.key.as_str()).zip(0..).collect();
        work.faults.sort_by_key(|faulty| place.get(faulty.key.as_str()).copied());
        // What was skipped or failed may have rows of an earlier attempt, which died before it looked.
        let checked_all = work.loaded == job.objects.len() as u64 && huge.is_empty();
        if !(checked_all && early_check.proves_all()) {
            let needed = self.remove_superseded_rows(job, &ledger, &work, activity).await?;
            work.faults.extend(needed);
        }
        Ok(work)
    }

    /// See [`crate::load::superseded_rows`]; returns archives that are needed for it and cannot be had.
    async fn remove_superseded_rows(
        &self,
        job: &Job,
        before: &Ledger,
        work: &Work,
        activity: &Activity,
    ) -> Result<Vec<FaultyObject>, WorkError> {
        let faulty = |object: &&Object| work.faults.iter().any(|faulty| faulty.key == object.key);
        let mut versions: HashMap<String, u64> = HashMap::new();
        for object in &job.objects {
            let former = before.get(&object.key).map(|entry| entry.version(job.unit.period));
            let now = (!faulty(&object)).then(|| version(object.generated_at, job.unit.period));
            if let Some(version) = former.max(now) {
                versions.insert(object.symbol.clone(), version);
            }
        }
        let symbols = self.statements.unproven_symbols(Recorded { unit: job.unit.clone(), versions }, activity).await?;
        if symbols.is_empty() {
            return Ok(Vec::new());
        }
        let resumed = work.loaded < job.objects.len() as u64;
        let write = job.writes.begin(Written::Outranking);
        let shown = self.show_current_rows(&job.unit, &symbols, resumed, activity).await;
        if !matches!(&shown, Err(WorkError::Warehouse(error)) if error.unanswered) {
            write.answered();
        }
        shown
    }

    /// What all of it wants that is still to be loaded.
    fn demand_of(&self, job: &Job, open: &[&Object], rows: u64) -> DemandGuard<'_> {
        let bytes: u64 = open.iter().map(|object| footprint(object, rows)).sum();
        // Its list stays in memory as long as it is worked on, whatever is loaded of it.
        let list: usize = job.objects.iter().map(|object| size_of::<Object>() + object.key.len()).sum();
        let bytes = bytes + list as u64;
        self.demand.enter(bytes.min(self.memory.total_bytes()))
    }
}
