//! What a command that goes through many units does with an error.

use common::output::Failure;
use store::StoreErrorKind;

use crate::error::work::WorkError;

/// Whether an error is about one unit, and then what to say, or ends the run.
pub(crate) fn unit_error(error: WorkError) -> Result<String, Failure> {
    match error {
        WorkError::Warehouse(error) => Err(error.into()),
        WorkError::Store(error) => match error.kind {
            StoreErrorKind::Unavailable
            | StoreErrorKind::NoSuchBucket
            | StoreErrorKind::Denied
            | StoreErrorKind::ClockSkew => Err(error.into()),
            StoreErrorKind::NotFound | StoreErrorKind::TooLarge | StoreErrorKind::BadKey | StoreErrorKind::Other => {
                Ok(error.to_string())
            }
        },
        error @ (WorkError::Marker(_)
        | WorkError::NoDecoder(_)
        | WorkError::Manifest(_)
        | WorkError::Disk { .. }
        | WorkError::Queue(_)
        | WorkError::Elsewhere(_)
        | WorkError::ClockBehind(_)
        | WorkError::Exhausted { .. }
        | WorkError::Panicked(_)) => Ok(error.to_string()),
    }
}
