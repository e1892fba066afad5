//! What it means that a stream does not take a message, by the server's error code.

use std::error::Error;

use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::{self, ErrorCode};

use crate::connection::{BusError, BusErrorKind};
use crate::stream_names::relief_of;

/// The server's own error, where it gave one.
fn server_error(error: &PublishError) -> Option<&jetstream::Error> {
    error.source()?.downcast_ref::<jetstream::Error>()
}

/// The server's code, where it gave one.
pub(crate) fn code_of(error: &PublishError) -> Option<ErrorCode> {
    server_error(error).map(jetstream::Error::error_code)
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
        PublishErrorKind::Other => {
            let why = common::text::chain(error);
            match server_error(error).map(|error| (error, Refusal::of(error.error_code(), error.code(), &why))) {
                Some((_, Refusal::StreamFull)) => {
                    let why = format!("stream {stream} takes no more ({why}): {}", relief_of(stream));
                    BusError::plain(BusErrorKind::Full, doing, why)
                }
                Some((_, Refusal::Full)) => {
                    let why = format!(
                        "the server or the account has no room ({why}): give JetStream and the account more \
                         (max_file_store, the account's limits), or make room on the disk"
                    );
                    BusError::plain(BusErrorKind::Full, doing, why)
                }
                Some((_, Refusal::Temporary)) => BusError::unavailable(doing, error),
                Some((_, Refusal::Final)) | None => BusError::new(BusErrorKind::Refused, doing, error),
            }
        }
    }
}

/// What the server's refusal of a request means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    /// The stream has as much as its limit allows.
    StreamFull,
    /// The account, or the server, has as much as it may.
    Full,
    /// It may do so the next time: no leader, too many requests, a disk that does not write.
    Temporary,
    Final,
}

impl Refusal {
    /// By the server's own code, and the HTTP status that it gives to those this version does not know.
    fn of(code: ErrorCode, status: usize, text: &str) -> Self {
        match code {
            // Of everything that keeps a message from being stored. The text alone says which: "maximum bytes exceeded".
            ErrorCode::STREAM_STORE_FAILED if text.contains("maximum") => Self::StreamFull,
            ErrorCode::STREAM_STORE_FAILED => Self::Temporary,
            ErrorCode::STORAGE_RESOURCES_EXCEEDED
            | ErrorCode::MEMORY_RESOURCES_EXCEEDED
            | ErrorCode::ACCOUNT_RESOURCES_EXCEEDED
            | ErrorCode::INSUFFICIENT_RESOURCES => Self::Full,
            // The server gives them 503, and they stay as they are until somebody changes its configuration.
            ErrorCode::JETSTREAM_NOT_ENABLED | ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT => Self::Final,
            _ if matches!(status, 429 | 503) => Self::Temporary,
            _ => Self::Final,
        }
    }
}

/// Whether the server may take the same request the next time.
pub(crate) fn is_temporary(error: &jetstream::Error) -> bool {
    Refusal::of(error.error_code(), error.code(), &error.to_string()) == Refusal::Temporary
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: u64) -> PublishError {
        answered(400, code, "what the server says")
    }

    fn answered(status: u64, code: u64, text: &str) -> PublishError {
        let json = format!(r#"{{"code": {status}, "err_code": {code}, "description": "{text}"}}"#);
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
        let ended = |status, code, text| publish_error("DEAD", "storing".into(), &answered(status, code, text));
        for (status, code, text) in [(500, 10047, ""), (400, 10002, ""), (503, 10023, ""), (500, 10028, "")] {
            let error = ended(status, code, text);
            assert_eq!(error.kind, BusErrorKind::Full, "{code}");
            let text = error.to_string();
            assert!(text.contains("the server or the account has no room") && !text.contains("stream DEAD"), "{text}");
        }
        let full = ended(503, 10077, "maximum bytes exceeded");
        assert_eq!(full.kind, BusErrorKind::Full);
        let text = full.to_string();
        assert!(text.contains("stream DEAD takes no more") && text.contains("nats.limits.dead"), "{text}");
        let away = publish_error("DEAD", "storing".into(), &PublishError::new(PublishErrorKind::TimedOut));
        assert_eq!(away.kind, BusErrorKind::Unavailable);
    }

    #[test]
    fn what_may_be_taken_the_next_time_is_told_from_what_may_not() {
        for (status, code, expected) in [
            // The disk; no leader; too many requests; codes of a server to come.
            (503, 10077, BusErrorKind::Unavailable),
            (503, 10008, BusErrorKind::Unavailable),
            (429, 10167, BusErrorKind::Unavailable),
            (503, 19_999, BusErrorKind::Unavailable),
            (429, 19_999, BusErrorKind::Unavailable),
            (400, 19_999, BusErrorKind::Refused),
            (400, 10054, BusErrorKind::Refused),
            (503, 10076, BusErrorKind::Refused),
            (503, 10039, BusErrorKind::Refused),
        ] {
            let error = publish_error("DEAD", "storing".into(), &answered(status, code, "no space left on device"));
            assert_eq!(error.kind, expected, "{status} {code}");
        }
    }
}
