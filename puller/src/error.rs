//! What can go wrong: with an object, a unit, a server.

pub(crate) mod clickhouse;
pub(crate) mod work;
