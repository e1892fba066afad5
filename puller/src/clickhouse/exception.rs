//! What an error of the client or an exception of the server means.

use clickhouse::error::Error;
use common::text::chain;

use crate::error::clickhouse::{WarehouseError, WarehouseErrorKind};
use crate::job::writes::TIMEOUT;

/// The error as callers see it.
pub(crate) fn classify(address: &str, error: &Error) -> WarehouseError {
    let kind = match error {
        Error::Network(_) => WarehouseErrorKind::Unavailable,
        // As the server's own time-out.
        Error::TimedOut => WarehouseErrorKind::TooHeavy,
        Error::BadResponse(message) => kind_of(exception_code(message), message),
        _ => WarehouseErrorKind::Other,
    };
    let code = if let Error::BadResponse(message) = error { exception_code(message) } else { None };
    // The server's version and stack follow the text; one line is enough.
    let message = chain(error);
    let unanswered = match error {
        // Nothing was sent to a server that no connection could be made to.
        Error::Network(_) => !message.contains("(Connect)"),
        Error::TimedOut => true,
        // A proxy's word, not the server's.
        Error::BadResponse(message) => exception_code(message).is_none(),
        _ => false,
    };
    let message = message.lines().next().unwrap_or_default().chars().take(500).collect();
    WarehouseError { kind, code, unanswered, address: address.to_owned(), message }
}

/// The number in `Code: 252. DB::Exception: …`.
fn exception_code(message: &str) -> Option<u32> {
    let (_, rest) = message.split_once("Code: ")?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Codes from ClickHouse's `src/Common/ErrorCodes.cpp`.
fn kind_of(code: Option<u32>, message: &str) -> WarehouseErrorKind {
    match code {
        // The limits that these name are the account's; the codes alone are also those of a server that cannot keep up, and
        // of a statement that is wrong.
        Some(252) if message.contains("max_partitions_per_insert_block") => WarehouseErrorKind::AccountLimit,
        Some(62) if message.contains("max_query_size") => WarehouseErrorKind::AccountLimit,
        Some(159) if stated_time_limit_s(message).is_some_and(|limit| limit < TIMEOUT.as_secs_f64()) => {
            WarehouseErrorKind::AccountLimit
        }
        // UNKNOWN_TABLE, UNKNOWN_DATABASE, TABLE_IS_DROPPED; and what our statements can only meet in tables that are not
        // ours: THERE_IS_NO_COLUMN, NOT_FOUND_COLUMN_IN_BLOCK, NO_SUCH_COLUMN_IN_TABLE, UNKNOWN_IDENTIFIER, ILLEGAL_FINAL
        Some(8 | 10 | 16 | 47 | 60 | 81 | 181 | 218) => WarehouseErrorKind::MissingSchema,
        // UNKNOWN_USER, WRONG_PASSWORD, REQUIRED_PASSWORD, IP_ADDRESS_NOT_ALLOWED, DATABASE_ACCESS_DENIED, ACCESS_DENIED,
        // AUTHENTICATION_FAILED
        Some(192..=195 | 291 | 497 | 516) => WarehouseErrorKind::Denied,
        // TOO_MANY_ROWS, TOO_MANY_COLUMNS, TOO_DEEP_SUBQUERIES, READONLY, TOO_DEEP_AST, TOO_BIG_AST,
        // SET_SIZE_LIMIT_EXCEEDED, QUOTA_DOESNT_ALLOW_KEYS, QUOTA_EXCEEDED, TOO_MANY_BYTES, QUERY_IS_PROHIBITED,
        // TOO_MANY_ROWS_OR_BYTES, SETTING_CONSTRAINT_VIOLATION, TOO_MANY_PARTITIONS
        Some(158 | 161 | 162 | 164 | 167 | 168 | 191 | 197 | 201 | 307 | 392 | 396 | 452 | 565) => {
            WarehouseErrorKind::AccountLimit
        }
        // MEMORY_LIMIT_EXCEEDED of the whole server is not the statement's.
        Some(241) if message.contains("(total)") => WarehouseErrorKind::Unavailable,
        // TIMEOUT_EXCEEDED, TOO_SLOW, MEMORY_LIMIT_EXCEEDED
        Some(159 | 160 | 241) => WarehouseErrorKind::TooHeavy,
        // TOO_MANY_SIMULTANEOUS_QUERIES, SOCKET_TIMEOUT, NETWORK_ERROR, NO_ZOOKEEPER, TABLE_IS_READ_ONLY, NOT_ENOUGH_SPACE,
        // TOO_MANY_PARTS, ALL_CONNECTION_TRIES_FAILED, TOO_FEW_LIVE_REPLICAS, UNSATISFIED_QUORUM_FOR_PREVIOUS_WRITE,
        // REPLICA_IS_NOT_IN_QUORUM, UNKNOWN_STATUS_OF_INSERT (read back, like any), QUERY_WAS_CANCELLED,
        // CANNOT_SCHEDULE_TASK, SERVER_OVERLOADED, KEEPER_EXCEPTION
        Some(202 | 209 | 210 | 225 | 242 | 243 | 252 | 279 | 285 | 286 | 289 | 319 | 394 | 439 | 745 | 999) => {
            WarehouseErrorKind::Unavailable
        }
        // Of the whole server too: CANNOT_ALLOCATE_MEMORY, DNS_ERROR, NO_FREE_CONNECTION, ABORTED, SYSTEM_ERROR,
        // DEADLOCK_AVOIDED
        Some(173 | 198 | 203 | 236 | 425 | 473) => WarehouseErrorKind::Unavailable,
        // Also what a disk or a shared storage in trouble answers with (74 to 76, 499), and the exceptions of libraries (1000
        // to 1002): a single file may be at fault, so what is refused together is tried one by one.
        Some(_) => WarehouseErrorKind::Other,
        // No exception of ClickHouse's: a proxy's 502 or 503, or a server that is starting.
        None if message.contains("DB::Exception") => WarehouseErrorKind::Other,
        None => WarehouseErrorKind::Unavailable,
    }
}

/// The seconds in `Timeout exceeded: elapsed 1001.4 ms, maximum: 1000.000 ms`, or `elapsed 1.1 seconds, maximum: 1`.
fn stated_time_limit_s(message: &str) -> Option<f64> {
    let (_, rest) = message.split_once("maximum: ")?;
    let (number, unit) = rest.split_once(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or((rest, ""));
    let number: f64 = number.parse().ok()?;
    Some(if unit.trim_start().starts_with("ms") { number / 1000.0 } else { number })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exceptions_are_distinguished() {
        let check = |message: &str, kind| assert_eq!(kind_of(exception_code(message), message), kind, "{message}");
        check("Code: 252. DB::Exception: Too many parts", WarehouseErrorKind::Unavailable);
        check(
            "Code: 252. DB::Exception: Too many partitions for single INSERT block (more than 1). The limit is controlled by \
             'max_partitions_per_insert_block' setting.",
            WarehouseErrorKind::AccountLimit,
        );
        check(
            "Code: 62. DB::Exception: Max query size exceeded (can be increased with the `max_query_size` setting)",
            WarehouseErrorKind::AccountLimit,
        );
        let timeout =
            |limit: &str| format!("Code: 159. DB::Exception: Timeout exceeded: elapsed 1001.439 ms, maximum: {limit}");
        check(&timeout("1000.000 ms. (TIMEOUT_EXCEEDED)"), WarehouseErrorKind::AccountLimit);
        check(&timeout("1"), WarehouseErrorKind::AccountLimit);
        check(&timeout("600000.000 ms."), WarehouseErrorKind::TooHeavy);
        check("Code: 307. DB::Exception: Limit for rows or bytes to read exceeded", WarehouseErrorKind::AccountLimit);
        check(
            "Code: 201. DB::Exception: Quota for user `u` for 1m has been exceeded",
            WarehouseErrorKind::AccountLimit,
        );
        check("Code: 452. DB::Exception: Setting async_insert should not be changed", WarehouseErrorKind::AccountLimit);
        check("Code: 181. DB::Exception: Storage MergeTree doesn't support FINAL", WarehouseErrorKind::MissingSchema);
        check("Code: 241. DB::Exception: Query memory limit exceeded: would use 1 GiB", WarehouseErrorKind::TooHeavy);
        check("Code: 241. DB::Exception: (total) memory limit exceeded", WarehouseErrorKind::Unavailable);
        check("Code: 159. DB::Exception: Timeout exceeded", WarehouseErrorKind::TooHeavy);
        check("Code: 516. DB::Exception: default: Authentication failed", WarehouseErrorKind::Denied);
        check("Code: 60. DB::Exception: Unknown table", WarehouseErrorKind::MissingSchema);
        for code in [173, 198, 203, 236, 425, 473] {
            check(&format!("Code: {code}. DB::Exception: of a server in trouble"), WarehouseErrorKind::Unavailable);
        }
        for code in [74, 75, 76, 226, 499, 1000, 1001, 1002] {
            check(&format!("Code: {code}. DB::Exception: of a disk or a storage"), WarehouseErrorKind::Other);
        }
        check("Code: 62. DB::Exception: Syntax error", WarehouseErrorKind::Other);
        check("<html>503 Service Unavailable</html>", WarehouseErrorKind::Unavailable);
        check("DB::Exception without a number", WarehouseErrorKind::Other);
    }
}
