//! What every service has: logs, HTTP for its state, an orderly end, checks of its machine.

pub mod doctor;
pub mod healthcheck;
pub mod host;
pub mod http;
pub mod open_files;
pub mod shutdown;
pub mod telemetry;
