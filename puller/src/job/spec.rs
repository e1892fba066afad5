//! What is known of a unit's archives before they are decoded: interval, period, and the limits that follow.

use archive::{Interval, ROW_BYTES, Spec};
use common::catalogue::DATASETS;
use common::marker::Object;
use common::unit::Unit;

use crate::error::work::WorkError;
use crate::job::resolve::Job;

/// Longest row accepted on average; genuine ones have 145 to 160 bytes.
const CSV_ROW_BYTES_MAX: u64 = 256;
/// For a header line, and for a few rows more than the interval implies, as early files have.
const CSV_SLACK_BYTES: u64 = 64 * 1024;
/// Rows that an archive may have beyond what its interval implies: one in so many, and so many more.
const ROWS_SPARE_PART: u64 = 20;
const ROWS_SPARE: u64 = 16;
/// Archives of one unit, or of one part of it, that are fetched at once.
pub(crate) const FETCHES_MAX: usize = 64;

/// How the unit's archives are to be decoded.
pub(crate) fn spec(job: &Job) -> Result<Spec, WorkError> {
    spec_of(&job.unit)
}

/// The same of any unit.
pub(crate) fn spec_of(unit: &Unit) -> Result<Spec, WorkError> {
    let dataset = unit.dataset.as_str();
    if !DATASETS.contains(&dataset) {
        return Err(WorkError::NoDecoder(format!("dataset {dataset}")));
    }
    let interval = unit.interval.as_str().parse::<Interval>();
    let interval = interval.map_err(|error| WorkError::NoDecoder(error.to_string()))?;
    let (period_start, period_end) = (unit.period.start(), unit.period.end());
    let mut spec = Spec { interval, period_start, period_end, csv_bytes_max: 0, rows_max: 0 };
    let rows = expected_rows(&spec);
    spec.csv_bytes_max = rows * CSV_ROW_BYTES_MAX + CSV_SLACK_BYTES;
    spec.rows_max = rows + rows / ROWS_SPARE_PART + ROWS_SPARE;
    Ok(spec)
}

pub(crate) fn expected_rows(spec: &Spec) -> u64 {
    spec.interval.expected_rows(spec.period_start, spec.period_end).max(1)
}

/// Memory an archive takes from fetch to read-back: its bytes and its decoded rows, as many as it may have.
pub(crate) fn footprint(object: &Object, rows: u64) -> u64 {
    object.size + rows * ROW_BYTES as u64
}
