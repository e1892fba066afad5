//! On which conditions a server stores an object.

use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

use crate::interface::Over;

/// On which a server stores an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Condition {
    Always,
    IfNoneMatch,
    /// The ETag, in its quotes.
    IfMatch(String),
}

impl Condition {
    pub(super) fn of(over: Over<'_>) -> Self {
        match over {
            Over::Anything => Self::Always,
            // No strong ETag to compare with.
            Over::This(stored) if stored.etag.is_empty() || stored.etag.contains('"') => Self::Always,
            Over::Nothing => Self::IfNoneMatch,
            Over::This(stored) => Self::IfMatch(format!("\"{}\"", stored.etag)),
        }
    }

    /// `If-Match` and `If-None-Match`.
    pub(super) fn headers(self) -> (Option<String>, Option<String>) {
        match self {
            Self::Always => (None, None),
            Self::IfNoneMatch => (None, Some("*".to_owned())),
            Self::IfMatch(etag) => (Some(etag), None),
        }
    }
}

/// Whether the server did nothing because something else lies there, or somebody stores it at the same moment.
pub(super) fn is_precondition_failed<E: ProvideErrorMetadata>(error: &SdkError<E>) -> bool {
    let SdkError::ServiceError(service) = error else { return false };
    match (service.raw().status().as_u16(), service.err().code()) {
        (412, _) | (409, Some("ConditionalRequestConflict")) => true,
        // If-Match, and the object is gone.
        (404, code) => code == Some("NoSuchKey"),
        _ => false,
    }
}
