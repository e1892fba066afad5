//! What it means that a stream does not take a message, by the server's error code.

use std::error::Error;

use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::{self, ErrorCode};

use crate::connection::{BusError, BusErrorKind};
use crate::topology::relief_of;

/// The server's code, where it gave one.
pub(crate) fn code_of(error: &PublishError) -> Option<ErrorCode> {
    error.source()?.downcast_ref::<jetstream::Error>().map(jetstream::Error::error_code)
}

/// Whether somebody else published on the subject in between. A cluster has a code of its own for it, which the library
/// does not know.
pub(crate) fn is_overtaken(error: &PublishError) -> bool {
    matches!(error.kind(), PublishErrorKind::WrongLastSequence | PublishErrorKind::WrongLastMessageId)
        || code_of(error).is_some_and(is_wrong_last_sequence)
}

fn is_wrong_last_sequence(code: ErrorCode) -> bool {
    [ErrorCode::STREAM_WRONG_LAST_SEQUENCE, ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT].contains(&code)
}

/// A publish that was not acknowledged, or refused.
pub(crate) fn publish_error(stream: &str, doing: String, error: &PublishError) -> BusError {
    match error.kind() {
        PublishErrorKind::StreamNotFound
        | PublishErrorKind::TimedOut
        | PublishErrorKind::BrokenPipe
        | PublishErrorKind::MaxAckPending => BusError::unavailable(doing, error),
        PublishErrorKind::MaxPayloadExceeded
        | PublishErrorKind::WrongLastMessageId
        | PublishErrorKind::WrongLastSequence => BusError::new(BusErrorKind::Refused, doing, error),
        PublishErrorKind::Other => match code_of(error) {
            Some(code) if is_full(code) => {
                let why = common::chain::chain(error);
                let why = format!("stream {stream} takes no more ({why}): {}", relief_of(stream));
                BusError::plain(BusErrorKind::Full, doing, why)
            }
            _ => BusError::new(BusErrorKind::Refused, doing, error),
        },
    }
}

/// The stream, or the account it is in, has no room.
fn is_full(code: ErrorCode) -> bool {
    [
        ErrorCode::STREAM_STORE_FAILED,
        ErrorCode::STORAGE_RESOURCES_EXCEEDED,
        ErrorCode::ACCOUNT_RESOURCES_EXCEEDED,
        ErrorCode::INSUFFICIENT_RESOURCES,
    ]
    .contains(&code)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: u64) -> PublishError {
        let json = format!(r#"{{"code": 503, "err_code": {code}, "description": "what the server says"}}"#);
        let error: jetstream::Error = serde_json::from_str(&json).expect("an error of the server");
        PublishError::with_source(PublishErrorKind::Other, error)
    }

    #[test]
    fn both_codes_of_a_wrong_sequence_mean_overtaken() {
        assert!(is_overtaken(&PublishError::new(PublishErrorKind::WrongLastSequence)));
        assert!(is_overtaken(&refused(10071)));
        assert!(is_overtaken(&refused(10164)));
        assert!(!is_overtaken(&refused(10077)));
        assert!(!is_overtaken(&PublishError::new(PublishErrorKind::TimedOut)));
    }

    #[test]
    fn a_full_stream_is_known_by_the_code() {
        let kind = |code| publish_error("DEAD", "storing".into(), &refused(code)).kind;
        for code in [10077, 10047, 10002, 10023] {
            assert_eq!(kind(code), BusErrorKind::Full, "{code}");
        }
        assert_eq!(kind(10054), BusErrorKind::Refused);
        let text = publish_error("DEAD", "storing".into(), &refused(10077)).to_string();
        assert!(text.contains("stream DEAD takes no more") && text.contains("nats.limits.dead"), "{text}");
        let away = publish_error("DEAD", "storing".into(), &PublishError::new(PublishErrorKind::TimedOut));
        assert_eq!(away.kind, BusErrorKind::Unavailable);
    }
}
