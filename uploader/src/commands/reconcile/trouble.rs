//! What ends the work on a unit, or all work.

use common::output::Failure;

use crate::error::UnitError;

/// What ends the work on a unit, or all work.
pub(super) enum Trouble {
    Unit(Vec<String>),
    Stop(Failure),
}

impl From<UnitError> for Trouble {
    fn from(error: UnitError) -> Self {
        match error.into_reasons() {
            Ok(reasons) => Self::Unit(reasons),
            Err(error) => Self::Stop(error.into()),
        }
    }
}

impl From<Failure> for Trouble {
    fn from(stop: Failure) -> Self {
        Self::Stop(stop)
    }
}
