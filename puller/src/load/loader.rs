//! What every unit of a destination is loaded with.

use std::collections::HashMap;
use std::sync::Arc;

use common::config::Corrections;
use common::marker::Object;
use jiff::Timestamp;
use nats::Activity;
use tokio::sync::Semaphore;

use crate::clickhouse::client::Warehouse;
use crate::clickhouse::ledger::{ArchiveFacts, Ledger, Loaded, json_lines};
use crate::clickhouse::shrink_limit;
use crate::clickhouse::shrink_limit::Candidate;
use crate::clickhouse::statements::Statements;
use crate::error::work::{ObjectFault, WorkError};
use crate::fetch::fetcher::Fetcher;
use crate::job::memory::{Demand, MemoryBudget};
use crate::job::resolve::Job;
use crate::job::writes::Written;
use crate::load::decisions::Decisions;

pub(crate) struct Loader {
    pub warehouse: Warehouse,
    pub statements: Statements,
    pub fetcher: Fetcher,
    pub memory: MemoryBudget,
    pub demand: Demand,
    /// Archives decoded at once: as many as there are processors.
    pub decodings: Arc<Semaphore>,
    pub corrections: Corrections,
    pub decisions: Decisions,
    /// Held by the one unit that makes missing tables again: as many as there are slots may miss them.
    pub preparing: tokio::sync::Mutex<()>,
    pub worker: String,
}

impl Loader {
    /// See [`shrink_limit::exceeding_shrink_limit`].
    pub(super) async fn exceeding_limit(
        &self,
        job: &Job,
        candidates: impl Iterator<Item = Candidate<'_>>,
        ledger: &Ledger,
    ) -> Result<HashMap<String, ObjectFault>, WorkError> {
        let limit = if job.options.accept_shrink { 1.0 } else { self.corrections.shrink_limit };
        Ok(shrink_limit::exceeding_shrink_limit(&self.warehouse, &job.unit, candidates, ledger, limit).await?)
    }

    /// After the read-back, before the ack: a crash before this loads the archives again, a crash after it skips them.
    /// Returns the server's clock when it has them, in ms.
    pub(crate) async fn record_archives(
        &self,
        job: &Job,
        verified: Vec<(&Object, ArchiveFacts)>,
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
