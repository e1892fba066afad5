//! What is run, in which sizes: the full bench, or the quick one that only shows that everything works.

use crate::shape::{Periods, Shape};

/// Beside those of [`Plan::ingest`].
const SCENARIOS: [&str; 5] = ["upload", "latency", "scaling", "growth", "readers"];

pub(crate) struct Plan {
    pub(crate) quick: bool,
    pub(crate) rounds: u32,
    /// In the table before `growth` and `readers`.
    pub(crate) table_rows: u64,
    only: Vec<String>,
}

/// One ingest workload, and who takes part.
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    pub(crate) shape: Shape,
    pub(crate) contenders: Vec<Contender>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contender {
    /// `puller pull`.
    Ours,
    /// The cron job, one insert a file; in the first round only.
    CronPerFile,
    /// The cron job, one insert a unit.
    CronPerUnit,
    /// Both again with the settings that the other contenders insert with; in the first round only.
    CronPerFileTuned,
    CronPerUnitTuned,
    /// ClickHouse's own `s3()`.
    S3Function,
    /// The hand-built pipeline.
    Limit,
}

impl Contender {
    /// Too slow, or of too little interest, for more than one round.
    pub(crate) fn runs_once(self) -> bool {
        matches!(self, Contender::CronPerFile | Contender::CronPerFileTuned | Contender::CronPerUnitTuned)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Contender::Ours => "marketferry",
            Contender::CronPerFile => "cron job, insert per file",
            Contender::CronPerUnit => "(a) cron job, insert per unit",
            Contender::CronPerFileTuned => "cron job, insert per file, tuned",
            Contender::CronPerUnitTuned => "(a) tuned",
            Contender::S3Function => "(b) ClickHouse s3()",
            Contender::Limit => "(c) limit",
        }
    }
}

impl Plan {
    pub(crate) fn new(quick: bool, rounds: Option<u32>, table_rows: Option<u64>, only: &[String]) -> Plan {
        Plan {
            quick,
            rounds: rounds.unwrap_or(if quick { 1 } else { 3 }),
            table_rows: table_rows.unwrap_or(if quick { 1_000_000 } else { 50_000_000 }),
            only: only.to_vec(),
        }
    }

    pub(crate) fn includes(&self, scenario: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|part| scenario.contains(part.as_str()))
    }

    /// Rows that a scenario fills in, at most.
    pub(crate) fn rows_filled(&self) -> u64 {
        if self.includes("growth") || self.includes("readers") { self.table_rows } else { 0 }
    }

    /// Whether `--only` leaves anything.
    pub(crate) fn is_empty(&self) -> bool {
        self.ingest().is_empty() && !SCENARIOS.iter().any(|scenario| self.includes(scenario))
    }

    /// The full size, or the quick one.
    pub(crate) fn size<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }

    pub(crate) fn ingest(&self) -> Vec<Workload> {
        use Contender::{CronPerFile, CronPerFileTuned, CronPerUnit, CronPerUnitTuned, Limit, Ours, S3Function};
        let with_tuned = [Ours, CronPerFile, CronPerUnit, S3Function, Limit, CronPerFileTuned, CronPerUnitTuned];
        let all = [Ours, CronPerFile, CronPerUnit, S3Function, Limit];
        let workload = |name, symbols, interval, periods, contenders: &[Contender]| Workload {
            name,
            shape: Shape { symbols, interval, periods },
            contenders: contenders.to_vec(),
        };
        let first = "2025-02-01";
        let workloads = vec![
            workload("ingest/day-1m", self.size(600, 20), "1m", Periods::days(first, 1), &with_tuned),
            workload("ingest/day-1h", self.size(600, 20), "1h", Periods::days(first, 1), &all),
            workload("ingest/units-365", 4, "1h", Periods::days(first, self.size(365, 12)), &all),
            workload("ingest/units-2000", 4, "1h", Periods::days("2019-06-01", self.size(2_100, 30)), &[Ours, Limit]),
            workload(
                "ingest/daily-5y",
                4,
                "1d",
                Periods::days("2020-01-01", self.size(1_825, 30)),
                &[Ours, S3Function, Limit],
            ),
            workload("ingest/month-1m", self.size(40, 2), "1m", Periods::month("2025-02"), &[Ours, S3Function, Limit]),
            // These two are there for the memory.
            workload(
                "ingest/memory-1s",
                1,
                self.size("1s", "1m"),
                Periods::month(self.size("2025-01", "2025-02")),
                &[Ours],
            ),
            workload("ingest/memory-3000", self.size(3_000, 50), "1m", Periods::days(first, 1), &[Ours]),
        ];
        workloads.into_iter().filter(|workload| self.includes(workload.name)).collect()
    }
}
