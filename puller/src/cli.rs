//! What several commands share: connections to the servers, the choice of destinations, times, progress.

pub(crate) mod attendance;
pub(crate) mod context;
pub(crate) mod moment;
pub(crate) mod place;
pub(crate) mod progress;
pub(crate) mod standstill;
pub(crate) mod unit_error;
