//! The slots of a worker: a delivery begins, its unit is loaded, and the queue is told how it ended.

pub(crate) mod attempt_log;
pub(crate) mod circuit;
pub(crate) mod clock;
pub(crate) mod context;
pub(crate) mod delivery;
pub(crate) mod destination;
pub(crate) mod earlier_deliveries;
pub(crate) mod ending;
pub(crate) mod evidence;
pub(crate) mod metrics;
pub(crate) mod outcome;
pub(crate) mod runner;
pub(crate) mod stats;
pub(crate) mod suspects;
pub(crate) mod task_report;
