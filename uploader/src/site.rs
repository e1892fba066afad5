//! What all work at this site shares: configuration, bucket, queue, caches, metrics.

pub(crate) mod context;
pub(crate) mod metrics;
pub(crate) mod progress;
pub(crate) mod queue;
pub(crate) mod refusals;
