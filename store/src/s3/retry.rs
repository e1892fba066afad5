//! Asks a server again while the server, or the way to it, is at fault; and what its refusals mean.

use std::time::Duration;

use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

use common::backoff::{Backoff, Growth};
use common::text::{chain, shorten};

use crate::error::{StoreError, StoreErrorKind, StoreType};
use crate::s3::limits::UPLOAD_SILENCE;

/// Of one request; beyond it the caller's own retries decide.
const ATTEMPTS: u32 = 6;
/// Between the attempts: 7.75 seconds in all.
const PAUSES: Backoff = Backoff {
    initial: Duration::from_millis(250),
    growth: Growth::Exponential { factor: 2.0 },
    max: Duration::from_secs(10),
};
/// Longest pause a server's `Retry-After` is granted.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);

/// Waits for what a server does with a large object by itself: that takes a while, and there is no body to watch.
pub(super) async fn patiently<T, E, R>(
    request: impl Future<Output = Result<T, SdkError<E, R>>>,
) -> Result<T, SdkError<E, R>> {
    match tokio::time::timeout(UPLOAD_SILENCE, request).await {
        Ok(done) => done,
        Err(_) => {
            let seconds = UPLOAD_SILENCE.as_secs();
            Err(SdkError::timeout_error(format!("no answer for {seconds} s")))
        }
    }
}

/// Sends a request again, by itself, while the server or the way to it is at fault.
pub(super) async fn retried<T, E, F>(
    operation: &'static str,
    key: &str,
    request: impl Fn() -> F,
) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, SdkError<E>>>,
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    let mut attempt = 0;
    loop {
        attempt += 1;
        let failure = match request().await {
            Ok(done) => return Ok(done),
            Err(failure) => failure,
        };
        let asked = retry_after(&failure);
        let error = StoreError::from_sdk(operation, key, failure);
        if error.kind != StoreErrorKind::Unavailable || attempt >= ATTEMPTS {
            return Err(error);
        }
        tracing::debug!(%error, attempt, "trying again");
        tokio::time::sleep(asked.unwrap_or_else(|| PAUSES.delay(attempt))).await;
    }
}

fn retry_after<E>(failure: &SdkError<E>) -> Option<Duration> {
    let seconds = failure.raw_response()?.headers().get("retry-after")?.parse().ok()?;
    Some(Duration::from_secs(seconds).min(RETRY_AFTER_MAX))
}

impl StoreError {
    fn from_sdk<E>(operation: &'static str, key: &str, error: SdkError<E>) -> Self
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let (kind, message) = match &error {
            SdkError::ServiceError(service) => {
                let status = service.raw().status().as_u16();
                let code = service.err().code().unwrap_or_default().to_owned();
                let message = match status {
                    200..=299 => format!("the server answered {status} with a body that is not that of this request"),
                    _ => format!("the server answered {status} {code}").trim_end().to_owned(),
                };
                (kind_of(status, &code), message)
            }
            SdkError::TimeoutError(_) | SdkError::DispatchFailure(_) | SdkError::ResponseError(_) => {
                (StoreErrorKind::Unavailable, chain(&error))
            }
            _ => (StoreErrorKind::Other, chain(&error)),
        };
        Self { store: StoreType::S3, kind, operation, key: shorten(key), message }
    }
}

fn kind_of(status: u16, code: &str) -> StoreErrorKind {
    match (status, code) {
        (_, "NoSuchBucket") => StoreErrorKind::NoSuchBucket,
        (_, "RequestTimeTooSkewed") => StoreErrorKind::ClockSkew,
        (_, "AccessDenied" | "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "Unauthorized") => StoreErrorKind::Denied,
        (404, _) => StoreErrorKind::NotFound,
        // For ever, unlike its neighbours.
        (501, _) => StoreErrorKind::Other,
        (401 | 403, _) => StoreErrorKind::Denied,
        (429 | 500..=599, _) | (_, "SlowDown" | "RequestTimeout") => StoreErrorKind::Unavailable,
        _ => StoreErrorKind::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_distinguished() {
        let check = |status, code, kind| assert_eq!(kind_of(status, code), kind, "{status} {code}");
        check(404, "NoSuchKey", StoreErrorKind::NotFound);
        check(404, "", StoreErrorKind::NotFound);
        check(404, "NoSuchBucket", StoreErrorKind::NoSuchBucket);
        check(403, "RequestTimeTooSkewed", StoreErrorKind::ClockSkew);
        check(403, "SignatureDoesNotMatch", StoreErrorKind::Denied);
        check(403, "", StoreErrorKind::Denied);
        check(503, "SlowDown", StoreErrorKind::Unavailable);
        check(429, "", StoreErrorKind::Unavailable);
        check(500, "InternalError", StoreErrorKind::Unavailable);
        check(501, "NotImplemented", StoreErrorKind::Other);
        check(400, "RequestTimeout", StoreErrorKind::Unavailable);
        check(400, "InvalidArgument", StoreErrorKind::Other);
    }
}
