//! What to tell the queue about a delivery. Decided here and nowhere else.

use std::time::Duration;

use common::config::Retry;
use common::marker::MarkerError;
use nats::DeliveryRecord;
use store::{StoreError, StoreErrorKind};

use crate::error::clickhouse::{WarehouseError, WarehouseErrorKind};
use crate::error::work::{ErrorClass, FaultyObject, ObjectFault, WorkError};
use crate::job::work::Work;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Disposition {
    /// Everything the marker names is at the destination and verified.
    Ack,
    /// Deliver again after a while; spends an attempt.
    Retry { after: Duration, class: ErrorClass },
    /// A person must look at it.
    DeadLetter { class: ErrorClass },
    /// Something everything depends on is away, or set up wrongly. Keep the delivery and try again here; spends no attempt.
    Wait,
    /// This machine's clock is off. Hand the delivery back, for others' may be right, and pull none; spends no attempt.
    Leave,
}

/// Whose fault an error is that a server which refuses everything would give, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Evidence {
    /// Nothing is known: it is taken for the server's.
    None,
    /// What failed for this unit works for others.
    OthersWork,
}

/// Deliveries beyond `retry.attempts` that may end without a word of their worker.
const MARGIN: u32 = 10;

/// Decides before an attempt: a delivery over which worker after worker is lost is not given the chance to take one more
/// down. Failures and orderly ends are noted and do not count.
pub(crate) fn decide_before(delivery: u32, record: DeliveryRecord, retry: &Retry) -> Result<(), WorkError> {
    let lost = record.lost(delivery);
    if lost >= retry.attempts.get().saturating_add(MARGIN) {
        return Err(WorkError::Exhausted { deliveries: delivery, lost });
    }
    Ok(())
}

/// Decides after one attempt, counted from 1.
pub(crate) fn decide(result: &Result<Work, WorkError>, attempt: u32, retry: &Retry, evidence: Evidence) -> Disposition {
    let error = match result {
        Ok(work) => {
            return match work.faults.iter().map(|faulty| faulty.fault.class()).max() {
                None => Disposition::Ack,
                // Retried while any fault may pass, so that nothing waits longer because its neighbour is damaged.
                Some(worst) => match work.faults.iter().find_map(|faulty| retry_fault(faulty, attempt, retry)) {
                    Some(retry) => retry,
                    None => Disposition::DeadLetter { class: worst },
                },
            };
        }
        Err(error) => error,
    };
    match blame(error) {
        Blame::Server => Disposition::Wait,
        Blame::Clock => Disposition::Leave,
        Blame::Doubtful(class) => match evidence {
            Evidence::None => Disposition::Wait,
            Evidence::OthersWork => attempts(class, attempt, retry),
        },
        Blame::Unit(class) => attempts(class, attempt, retry),
        Blame::Final(class) => Disposition::DeadLetter { class },
        Blame::Object(faulty) => {
            retry_fault(faulty, attempt, retry).unwrap_or(Disposition::DeadLetter { class: faulty.fault.class() })
        }
    }
}

/// Whether an error may be the unit's own, though it looks like the server's.
pub(crate) fn is_doubtful(error: &WorkError) -> bool {
    matches!(blame(error), Blame::Doubtful(_))
}

/// Whether an error may be the unit's own; others may fare better then.
pub(crate) fn may_be_its_own(error: &WorkError) -> bool {
    !matches!(blame(error), Blame::Server | Blame::Clock)
}

/// What an error is a fault of.
enum Blame<'e> {
    /// A server, an account, a disk or the configuration, for sure: nothing is wrong with the unit.
    Server,
    /// This machine's clock.
    Clock,
    /// A server's or the like, or this unit's; then of this class.
    Doubtful(ErrorClass),
    /// The unit; another try may help.
    Unit(ErrorClass),
    /// The unit, for ever.
    Final(ErrorClass),
    Object(&'e FaultyObject),
}

fn blame(error: &WorkError) -> Blame<'_> {
    match error {
        WorkError::Marker(error) => Blame::Final(marker_class(error)),
        WorkError::NoDecoder(_) => Blame::Final(ErrorClass::Unsupported),
        WorkError::Manifest(faulty) => Blame::Object(faulty),
        WorkError::Store(error) => blame_store(error),
        WorkError::Warehouse(error) => blame_warehouse(error),
        // What is wrong with a single file is a fault of its object. A full disk or a mount that is gone needs somebody.
        WorkError::Disk { .. } => Blame::Server,
        WorkError::Queue(_) => Blame::Server,
        WorkError::ClockBehind(_) => Blame::Clock,
        // The worker is set up for another place, or the marker is a stranger among others.
        WorkError::Elsewhere(_) => Blame::Doubtful(ErrorClass::Refused),
        WorkError::Panicked(_) => Blame::Unit(ErrorClass::Internal),
        WorkError::Exhausted { .. } => Blame::Final(ErrorClass::Exhausted),
    }
}

fn blame_store(error: &StoreError) -> Blame<'static> {
    match error.kind {
        // These concern every unit alike: stop and say so rather than bury all of them.
        StoreErrorKind::NoSuchBucket => Blame::Server,
        StoreErrorKind::ClockSkew => Blame::Clock,
        StoreErrorKind::Denied | StoreErrorKind::Other => Blame::Doubtful(ErrorClass::Unreadable),
        StoreErrorKind::Unavailable => Blame::Doubtful(ErrorClass::Transient),
        StoreErrorKind::NotFound => Blame::Unit(ErrorClass::Missing),
        StoreErrorKind::TooLarge => Blame::Unit(ErrorClass::Transient),
        StoreErrorKind::BadKey => Blame::Final(ErrorClass::Refused),
    }
}

fn blame_warehouse(error: &WarehouseError) -> Blame<'static> {
    match error.kind {
        WarehouseErrorKind::Denied | WarehouseErrorKind::MissingSchema => Blame::Server,
        // An account's limits are the same for every unit, and only a person can raise them; but a unit may be the only one
        // that meets one of them.
        WarehouseErrorKind::AccountLimit => Blame::Doubtful(ErrorClass::TooHeavy),
        WarehouseErrorKind::Unavailable => Blame::Doubtful(ErrorClass::Transient),
        WarehouseErrorKind::TooHeavy => Blame::Doubtful(ErrorClass::TooHeavy),
        // No list of codes is complete, and a server in trouble would bury its whole backlog: that others are loaded tells.
        WarehouseErrorKind::Other => Blame::Doubtful(ErrorClass::Transient),
        WarehouseErrorKind::Inconsistent => Blame::Unit(ErrorClass::Transient),
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
        ObjectFault::Differs(_)
        | ObjectFault::NotReadBack(_)
        | ObjectFault::Needed { .. }
        | ObjectFault::Unreadable(_)
        | ObjectFault::Unwritable(_)
        // Whoever put it there may announce it.
        | ObjectFault::NotOurs(_) => attempts(class, attempt, retry),
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
        | MarkerError::Symbol { .. }
        | MarkerError::Twice(_)
        | MarkerError::Size { .. }
        | MarkerError::GeneratedAt { .. }
        | MarkerError::Revision { .. }
        | MarkerError::Subject { .. }
        | MarkerError::Manifest { .. } => ErrorClass::Refused,
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
        let spec = archive::Spec {
            interval: "1h".parse().expect("an interval"),
            period_start: jiff::Timestamp::UNIX_EPOCH,
            period_end: jiff::Timestamp::UNIX_EPOCH,
            csv_bytes_max: 0,
            rows_max: 0,
        };
        archive::decode("a.zip", b"", &spec).expect_err("no zip").into()
    }

    fn check(result: &Result<Work, WorkError>, expected: [&str; 3]) {
        // Whatever is known of others: these are nobody else's fault, or nothing else's.
        for evidence in [Evidence::None, Evidence::OthersWork] {
            assert_eq!(described(result, evidence), expected, "{evidence:?}");
        }
    }

    fn described(result: &Result<Work, WorkError>, evidence: Evidence) -> [String; 3] {
        [1, 2, 3].map(|attempt| match decide(result, attempt, &retry(), evidence) {
            Disposition::Ack => "ack".to_owned(),
            Disposition::Wait => "wait".to_owned(),
            Disposition::Leave => "leave".to_owned(),
            Disposition::Retry { class, .. } => format!("retry {}", class.as_str()),
            Disposition::DeadLetter { class } => format!("dead {}", class.as_str()),
        })
    }

    /// An error that a server would give which refuses everything: waited for until others are known to work.
    fn check_doubtful(error: impl Into<WorkError>, class: &str) {
        let error = error.into();
        assert!(is_doubtful(&error), "{error}");
        let result = Err(error);
        assert_eq!(described(&result, Evidence::None), ["wait"; 3], "{result:?}");
        let expected = [format!("retry {class}"), format!("retry {class}"), format!("dead {class}")];
        assert_eq!(described(&result, Evidence::OthersWork), expected, "{result:?}");
    }

    fn store(kind: StoreErrorKind) -> WorkError {
        StoreError::sample(kind).into()
    }

    fn warehouse(kind: WarehouseErrorKind) -> WorkError {
        let mut error = WarehouseError::wrong("x");
        error.kind = kind;
        error.into()
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
        let unreadable = ObjectFault::Unreadable("403".into());
        check(&with_faults(vec![unreadable]), ["retry unreadable", "retry unreadable", "dead unreadable"]);
        let unwritable = ObjectFault::Unwritable("EIO".into());
        check(&with_faults(vec![unwritable]), ["retry unwritable", "retry unwritable", "dead unwritable"]);
        let not_ours = ObjectFault::NotOurs("/srv/a.zip".into());
        check(&with_faults(vec![not_ours]), ["retry unwritable", "retry unwritable", "dead unwritable"]);
        check(&Err(WorkError::ClockBehind(jiff::SignedDuration::from_hours(72))), ["leave"; 3]);
    }

    #[test]
    fn a_server_that_is_away_is_waited_for_and_a_unit_that_fails_alone_is_not() {
        use StoreErrorKind as Store;
        check(&Err(store(Store::NoSuchBucket)), ["wait"; 3]);
        check(&Err(store(Store::ClockSkew)), ["leave"; 3]);
        check_doubtful(store(Store::Denied), "unreadable");
        check_doubtful(store(Store::Other), "unreadable");
        check_doubtful(store(Store::Unavailable), "transient");
        check(&Err(store(Store::NotFound)), ["retry missing", "retry missing", "dead missing"]);
        check(&Err(store(Store::TooLarge)), ["retry transient", "retry transient", "dead transient"]);
        check(&Err(store(Store::BadKey)), ["dead refused"; 3]);

        use WarehouseErrorKind as Warehouse;
        check(&Err(warehouse(Warehouse::Denied)), ["wait"; 3]);
        check(&Err(warehouse(Warehouse::MissingSchema)), ["wait"; 3]);
        check_doubtful(warehouse(Warehouse::Unavailable), "transient");
        check_doubtful(warehouse(Warehouse::TooHeavy), "too_heavy");
        check_doubtful(warehouse(Warehouse::AccountLimit), "too_heavy");
        check_doubtful(warehouse(Warehouse::Other), "transient");
        check(&Err(warehouse(Warehouse::Inconsistent)), ["retry transient", "retry transient", "dead transient"]);
        assert!(may_be_its_own(&warehouse(Warehouse::Inconsistent)) && may_be_its_own(&warehouse(Warehouse::Other)));
        assert!(!may_be_its_own(&warehouse(Warehouse::Denied)));

        let elsewhere = common::marker::Elsewhere::Bucket { marker: "a".into(), configured: "b".into() };
        check_doubtful(elsewhere, "refused");
    }

    #[test]
    fn only_deliveries_that_nobody_accounts_for_are_a_crash_loop() {
        let nothing = DeliveryRecord::default();
        let retry = retry();
        assert!(decide_before(13, nothing, &retry).is_ok());
        let error = decide_before(14, nothing, &retry).expect_err("beyond the margin");
        assert!(error.to_string().starts_with("it was delivered 14 times, and 13 times nobody said"), "{error}");
        check(&Err(error), ["dead exhausted"; 3]);
        // A thousand orderly restarts while a server was away.
        let restarted = DeliveryRecord { failed: 2, handed_back: 1000 };
        assert!(decide_before(1003 + 12, restarted, &retry).is_ok());
        assert!(decide_before(1003 + 13, restarted, &retry).is_err());
    }

    #[test]
    fn a_missing_object_is_waited_for_as_long_as_configured() {
        let missing = with_faults(vec![ObjectFault::Missing]);
        let Disposition::Retry { after, .. } = decide(&missing, 1, &retry(), Evidence::None) else {
            panic!("not retried");
        };
        assert_eq!(after * 2, retry().missing_object);
    }
}
