//! What ClickHouse answers when it refuses, and what to do about it.

use common::output::{Failure, FailureClass};

/// What a caller can do about an error of ClickHouse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WarehouseErrorKind {
    /// Away, overloaded, out of space or of memory: it passes.
    Unavailable,
    /// This statement takes too long or too much memory; others may not.
    TooHeavy,
    /// Wrong user or password, or not allowed to do this.
    Denied,
    /// The database, a table or a column is not there, or is not ours.
    MissingSchema,
    /// The account's profile, quota or constraints do not allow what the work needs.
    AccountLimit,
    /// Anything else the server says. A server in trouble says a lot that no list of codes has, so it is not known whose
    /// fault it is.
    Other,
    /// Not the server's word: its answers do not make sense for this unit, or this worker has a defect.
    Inconsistent,
}

#[derive(Debug, Clone, thiserror::Error)]
#[error("ClickHouse at {address}: {message}")]
pub(crate) struct WarehouseError {
    pub kind: WarehouseErrorKind,
    /// Of ClickHouse's exception.
    pub code: Option<u32>,
    /// The statement was sent, or some of it, and nobody knows what came of it: it may still be under way.
    pub unanswered: bool,
    pub address: String,
    pub message: String,
}

impl WarehouseError {
    pub(crate) fn wrong(message: impl Into<String>) -> Self {
        Self::of_kind(WarehouseErrorKind::Inconsistent, message)
    }

    /// What was found out by asking.
    pub(crate) fn of_kind(kind: WarehouseErrorKind, message: impl Into<String>) -> Self {
        Self { kind, code: None, unanswered: false, address: "this server".into(), message: message.into() }
    }

    /// What to do about it, for a person.
    pub(crate) fn advice(&self) -> &'static str {
        match self.kind {
            WarehouseErrorKind::Unavailable if self.code == Some(241) => {
                "the account's max_memory_usage, or the server's memory, is too little: raise it"
            }
            WarehouseErrorKind::Unavailable if self.code.is_some() => "see the message, and the server's log",
            WarehouseErrorKind::Unavailable => unreachable_advice(&self.message),
            WarehouseErrorKind::TooHeavy if self.code.is_none() => {
                "the server did not answer within 120 s: see what else it does, and the way to it"
            }
            WarehouseErrorKind::TooHeavy => {
                "the server gave the statement up: see its max_memory_usage and max_execution_time, and what else it does"
            }
            WarehouseErrorKind::Denied => "check clickhouse.user and password, and what the user may do",
            WarehouseErrorKind::MissingSchema => "run `puller migrate`",
            WarehouseErrorKind::AccountLimit => limit_advice(self.code),
            WarehouseErrorKind::Other => "see the message, and the server's log",
            WarehouseErrorKind::Inconsistent => "see the message, and the logs of the server and of the worker",
        }
    }
}

impl From<WarehouseError> for Failure {
    fn from(error: WarehouseError) -> Self {
        let class = match error.kind {
            WarehouseErrorKind::Unavailable | WarehouseErrorKind::TooHeavy => FailureClass::Unreachable,
            WarehouseErrorKind::Denied | WarehouseErrorKind::AccountLimit => FailureClass::Denied,
            WarehouseErrorKind::MissingSchema => FailureClass::Missing,
            WarehouseErrorKind::Other | WarehouseErrorKind::Inconsistent => FailureClass::Failed,
        };
        Self::new(class, error.to_string()).advice(error.advice())
    }
}

/// What a server that speaks TLS, or none, says to a client that does the other.
fn unreachable_advice(message: &str) -> &'static str {
    let says = |texts: &[&str]| texts.iter().any(|text| message.contains(text));
    if says(&["InvalidContentType"]) {
        "the server speaks no TLS at this port: set clickhouse.secure to false, or clickhouse.port to its HTTPS port (8443)"
    } else if says(&["HTTPS port", "HTTPS server", "invalid HTTP version"]) {
        "the server may expect TLS at this port: set clickhouse.secure to true, or clickhouse.port to its HTTP port (8123)"
    } else {
        "check clickhouse.host and port (8123, or 8443 with clickhouse.secure: true), and the server"
    }
}

fn limit_advice(code: Option<u32>) -> &'static str {
    match code {
        Some(158) => "the account's profile limits max_rows_to_read, or another count of rows: raise it",
        Some(159) => "the account's profile has a max_execution_time that is too short: make it 120 or more",
        Some(307) => "the account's profile limits max_bytes_to_read: raise it",
        Some(396) => "the account's profile limits max_result_rows or max_result_bytes: raise it",
        Some(191) => "the account's profile limits max_rows_in_set, max_bytes_in_set or max_rows_in_distinct: raise it",
        Some(161) => "the account's profile limits max_columns_to_read: raise it",
        Some(167 | 168) => {
            "the account's profile limits max_ast_depth or max_ast_elements: leave them at their defaults"
        }
        Some(565) => "the account's profile limits max_partitions_to_read: raise it",
        Some(252) => "the account's profile limits max_partitions_per_insert_block: leave it at 100",
        Some(62) => "the account's profile fixes max_query_size: let it be set by the statement",
        Some(164) => "the account is read-only (readonly): give it another profile",
        Some(197 | 201) => "the account's quota is used up: wait until its interval ends, or raise it",
        Some(392) => "the account's profile forbids it (allow_ddl): use one that may",
        Some(452) => "the account's profile has a constraint on this setting: take it away",
        _ => "change the account's profile, quota or constraints; `puller doctor` names them",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mix_up_of_tls_is_named() {
        let check = |message, advice| assert!(unreachable_advice(message).contains(advice), "{message}");
        check("network error: client error (Connect): received corrupt message of type InvalidContentType", "false");
        check("bad response: The plain HTTP request was sent to HTTPS port", "clickhouse.secure to true");
        check("tcp connect error: Connection refused", "8443 with clickhouse.secure: true");
    }
}
