//! What to tell the queue about a delivery. Decided here and nowhere else.

use std::time::Duration;

use common::config::Retry;
use common::marker::MarkerError;
use common::object_store::{StoreError, StoreErrorKind};

use crate::destination::Work;
use crate::error::{ErrorClass, FaultyObject, ObjectFault, WorkError};
use crate::warehouse::{WarehouseError, WarehouseErrorKind};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Disposition {
    /// Everything the marker names is at the destination and verified.
    Ack,
    /// Deliver again after a while; spends an attempt.
    Retry { after: Duration, class: ErrorClass },
    /// A person must look at it.
    DeadLetter { class: ErrorClass },
    /// Something everything depends on is away. Keep the delivery and try again here; spends no attempt.
    Wait,
}

/// Deliveries beyond `retry.attempts` that are still worked on. A worker that fails over a delivery settles it within the
/// attempts; what is beyond them was handed back at shutdowns, or its workers died. Enough for a day of restarts.
const MARGIN: u32 = 10;
/// One less than the server's own limit, so that a worker sees it first.
const DELIVERIES_MAX: u32 = 24;

/// Decides before an attempt: a delivery that nobody ever settled is not given the chance to take one more worker down.
pub(crate) fn decide_before(attempt: u32, retry: &Retry) -> Result<(), WorkError> {
    let deliveries_max = retry.attempts.get().saturating_add(MARGIN).min(DELIVERIES_MAX);
    if attempt > deliveries_max { Err(WorkError::Exhausted(attempt)) } else { Ok(()) }
}

/// Decides after one attempt, counted from 1.
pub(crate) fn decide(result: &Result<Work, WorkError>, attempt: u32, retry: &Retry) -> Disposition {
    match result {
        Ok(work) => match work.faults.iter().map(|faulty| faulty.fault.class()).max() {
            None => Disposition::Ack,
            // Retried while any fault may pass, so that nothing waits longer because its neighbour is damaged.
            Some(worst) => match work.faults.iter().find_map(|faulty| retry_fault(faulty, attempt, retry)) {
                Some(retry) => retry,
                None => Disposition::DeadLetter { class: worst },
            },
        },
        Err(error) => match error {
            WorkError::Marker(error) => Disposition::DeadLetter { class: marker_class(error) },
            WorkError::NoDecoder(_) => Disposition::DeadLetter { class: ErrorClass::Unsupported },
            WorkError::Manifest(faulty) => {
                retry_fault(faulty, attempt, retry).unwrap_or(Disposition::DeadLetter { class: faulty.fault.class() })
            }
            WorkError::Store(error) => store(error, attempt, retry),
            WorkError::Warehouse(error) => warehouse(error, attempt, retry),
            // A full disk, a folder that may not be written, a mount that is gone: all need somebody, and nothing is
            // wrong with the unit.
            WorkError::Disk { .. } => Disposition::Wait,
            WorkError::Panicked(_) => attempts(ErrorClass::Internal, attempt, retry),
            WorkError::Exhausted(_) => Disposition::DeadLetter { class: ErrorClass::Exhausted },
        },
    }
}

/// The retry of a fault that may pass; `None` for one that stays, or when the attempts are spent.
fn retry_fault(faulty: &FaultyObject, attempt: u32, retry: &Retry) -> Option<Disposition> {
    let class = faulty.fault.class();
    let disposition = match &faulty.fault {
        // Waited for `retry.missing_object`, spread evenly over the attempts.
        ObjectFault::Missing if attempt < retry.attempts.get() => {
            let after = retry.missing_object / (retry.attempts.get() - 1).max(1);
            Disposition::Retry { after, class }
        }
        ObjectFault::Missing => return None,
        ObjectFault::Differs(_) | ObjectFault::NotReadBack(_) | ObjectFault::Needed { .. } => {
            attempts(class, attempt, retry)
        }
        ObjectFault::Damaged(_) | ObjectFault::Refused(_) | ObjectFault::Shrunk { .. } => return None,
    };
    matches!(disposition, Disposition::Retry { .. }).then_some(disposition)
}

fn attempts(class: ErrorClass, attempt: u32, retry: &Retry) -> Disposition {
    if attempt >= retry.attempts.get() {
        return Disposition::DeadLetter { class };
    }
    Disposition::Retry { after: retry.backoff.delay(attempt), class }
}

fn marker_class(error: &MarkerError) -> ErrorClass {
    match error {
        MarkerError::NotAMarker(_) => ErrorClass::Malformed,
        MarkerError::UnknownSchema(_) => ErrorClass::Schema,
        MarkerError::NoObjects
        | MarkerError::TooManyObjects(_)
        | MarkerError::Key(_)
        | MarkerError::Symbol(_)
        | MarkerError::Twice(_)
        | MarkerError::GeneratedAt { .. }
        | MarkerError::Revision { .. }
        | MarkerError::Subject { .. }
        | MarkerError::Manifest { .. } => ErrorClass::Refused,
    }
}

fn store(error: &StoreError, attempt: u32, retry: &Retry) -> Disposition {
    match error.kind {
        // Credentials, bucket and clock concern every unit alike: stop and say so rather than bury all of them.
        StoreErrorKind::Unavailable
        | StoreErrorKind::Denied
        | StoreErrorKind::NoSuchBucket
        | StoreErrorKind::ClockSkew => Disposition::Wait,
        StoreErrorKind::NotFound => attempts(ErrorClass::Missing, attempt, retry),
        StoreErrorKind::TooLarge | StoreErrorKind::Other => attempts(ErrorClass::Transient, attempt, retry),
    }
}

fn warehouse(error: &WarehouseError, attempt: u32, retry: &Retry) -> Disposition {
    match error.kind {
        WarehouseErrorKind::Unavailable
        | WarehouseErrorKind::Denied
        | WarehouseErrorKind::MissingSchema
        | WarehouseErrorKind::AccountLimit => Disposition::Wait,
        WarehouseErrorKind::Other => attempts(ErrorClass::Transient, attempt, retry),
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use common::backoff::{Backoff, Growth};

    use super::*;

    fn retry() -> Retry {
        let initial = Duration::from_secs(10);
        Retry {
            backoff: Backoff { initial, growth: Growth::Linear, max: initial },
            attempts: NonZeroU32::new(3).expect("not zero"),
            missing_object: Duration::from_secs(60),
        }
    }

    fn with_faults(faults: Vec<ObjectFault>) -> Result<Work, WorkError> {
        let faults = faults.into_iter().map(|fault| FaultyObject { key: "download/a.zip".into(), fault }).collect();
        Ok(Work { faults, ..Work::default() })
    }

    fn damaged() -> ObjectFault {
        let spec = crate::decode::Spec {
            interval: "1h".parse().expect("an interval"),
            period_start: jiff::Timestamp::UNIX_EPOCH,
            period_end: jiff::Timestamp::UNIX_EPOCH,
            csv_bytes_max: 0,
        };
        crate::decode::decode("a.zip", b"", &spec).expect_err("no zip").into()
    }

    fn check(result: &Result<Work, WorkError>, expected: [&str; 3]) {
        let described = [1, 2, 3].map(|attempt| match decide(result, attempt, &retry()) {
            Disposition::Ack => "ack".to_owned(),
            Disposition::Wait => "wait".to_owned(),
            Disposition::Retry { class, .. } => format!("retry {}", class.as_str()),
            Disposition::DeadLetter { class } => format!("dead {}", class.as_str()),
        });
        assert_eq!(described, expected);
    }

    #[test]
    fn every_outcome_has_its_disposition() {
        check(&with_faults(vec![]), ["ack"; 3]);
        check(&with_faults(vec![damaged()]), ["dead damaged"; 3]);
        check(&with_faults(vec![ObjectFault::Shrunk { gone: 5, rows: 10 }]), ["dead shrunk"; 3]);
        check(&with_faults(vec![ObjectFault::Missing]), ["retry missing", "retry missing", "dead missing"]);
        let differs = ObjectFault::Differs("size".into());
        check(&with_faults(vec![differs.clone()]), ["retry mismatch", "retry mismatch", "dead mismatch"]);
        check(&with_faults(vec![damaged(), differs]), ["retry mismatch", "retry mismatch", "dead damaged"]);
        check(&Err(MarkerError::UnknownSchema("x".into()).into()), ["dead schema"; 3]);
        check(&Err(MarkerError::NoObjects.into()), ["dead refused"; 3]);
        check(&Err(WorkError::NoDecoder("trades".into())), ["dead unsupported"; 3]);
        let disk = WorkError::Disk { path: "/x".into(), source: std::io::Error::from_raw_os_error(28) };
        check(&Err(disk), ["wait"; 3]);
        check(&Err(WorkError::Panicked("x".into())), ["retry internal", "retry internal", "dead internal"]);
    }

    #[test]
    fn a_crash_loop_ends() {
        let mut retry = retry();
        assert!(decide_before(13, &retry).is_ok());
        let error = decide_before(14, &retry).expect_err("beyond the margin");
        check(&Err(error), ["dead exhausted"; 3]);
        // Also with the most attempts that can be configured, the worker is there before the server.
        retry.attempts = NonZeroU32::new(24).expect("not zero");
        assert!(decide_before(24, &retry).is_ok());
        assert!(decide_before(25, &retry).is_err());
    }

    #[test]
    fn a_missing_object_is_waited_for_as_long_as_configured() {
        let Disposition::Retry { after, .. } = decide(&with_faults(vec![ObjectFault::Missing]), 1, &retry()) else {
            panic!("not retried");
        };
        assert_eq!(after * 2, retry().missing_object);
    }
}
