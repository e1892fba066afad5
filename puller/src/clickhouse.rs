//! ClickHouse: client, tables, inserts, ledger, read-back.

pub(crate) mod account;
pub(crate) mod attempts;
pub(crate) mod audit_log;
pub(crate) mod batch;
pub(crate) mod client;
pub(crate) mod exception;
pub(crate) mod gaps;
pub(crate) mod insert;
pub(crate) mod ledger;
pub(crate) mod lost_stream;
pub mod native;
pub(crate) mod overrides;
pub(crate) mod part;
pub(crate) mod read_back;
pub(crate) mod schema;
pub(crate) mod series;
pub(crate) mod shrink_limit;
pub(crate) mod sql;
pub(crate) mod statements;
pub(crate) mod stored_rows;
pub(crate) mod unproven;
pub(crate) mod version;
