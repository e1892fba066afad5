//! A ClickHouse destination: the connection and its errors.

use std::time::Duration;

use bytes::Bytes;
use clickhouse::query::Query;
use clickhouse::{Client, RowOwned, RowRead};
use common::config::{ClickHouse, Compression};
use common::text::chain;

use tokio::time::Instant;

use crate::account::Overrides;

/// Longest text of a query that ClickHouse takes unless it is told another `max_query_size`, in bytes.
const QUERY_BYTES_MAX: usize = 256 << 10;
/// Longest answer of a query or an insert.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(120);
/// How long the rows of one insert may be on their way to the server. Over a slow line fewer rows an insert must do.
pub(crate) const SENDING_MAX: Duration = Duration::from_secs(60);
/// How long an insert may take: it is sent, then answered.
pub(crate) const INSERT_MAX: Duration = SENDING_MAX.saturating_add(TIMEOUT);

/// A connection to one ClickHouse database, shared by cloning.
#[derive(Clone)]
pub(crate) struct Warehouse {
    client: Client,
    database: String,
    /// For messages: host and port.
    address: String,
    /// What statements must say, because this server, for this account, would do otherwise.
    overrides: Overrides,
}

impl Warehouse {
    /// Makes a client; connects on first use.
    pub(crate) fn new(config: &ClickHouse) -> Self {
        let scheme = if config.secure { "https" } else { "http" };
        let client = Client::default()
            .with_url(format!("{scheme}://{}:{}", config.host, config.port))
            .with_user(&config.user)
            .with_password(config.password.reveal())
            .with_compression(match config.compression {
                Compression::None => clickhouse::Compression::None,
                Compression::Lz4 => clickhouse::Compression::Lz4,
            })
            .with_product_info("marketferry", env!("CARGO_PKG_VERSION"));
        Self {
            client,
            database: config.database.clone(),
            address: format!("{}:{}", config.host, config.port),
            overrides: Overrides::default(),
        }
    }

    /// A connection for commands that only look: also for an account that may not set anything, or not write.
    pub(crate) async fn to_look(config: &ClickHouse) -> Result<Self, WarehouseError> {
        let mut warehouse = Self::new(config);
        warehouse.learn_overrides_to_look().await?;
        Ok(warehouse)
    }

    pub(crate) fn set_overrides(&mut self, overrides: Overrides) {
        self.overrides = overrides;
    }

    pub(crate) fn database(&self) -> &str {
        &self.database
    }

    /// Checks that the server answers, that it computes row hashes as we do, and that this account may be relied on; learns
    /// what statements must say.
    pub(crate) async fn connect(&mut self) -> Result<String, WarehouseError> {
        self.learn_overrides().await?;
        let version: String = self.select_one("SELECT version()").await?;
        crate::read_back::check_hash_function(self).await?;
        Ok(version)
    }

    /// Runs a statement that returns nothing.
    pub(crate) async fn execute(&self, sql: &str) -> Result<(), WarehouseError> {
        self.timed(self.query(sql).execute()).await
    }

    /// All rows of a query; `{database}` stands for the database's name.
    pub(crate) async fn select<T: RowOwned + RowRead>(&self, sql: &str) -> Result<Vec<T>, WarehouseError> {
        self.timed(self.query(sql).fetch_all()).await
    }

    pub(crate) async fn select_one<T: RowOwned + RowRead>(&self, sql: &str) -> Result<T, WarehouseError> {
        self.timed(self.query(sql).fetch_one()).await
    }

    fn query(&self, sql: &str) -> Query {
        let sql = sql.replace("{database}", &self.database);
        // Raw: a `?` in the text is a character, not a parameter.
        let query = self.client.query_raw(&sql);
        let query = self.overrides.queries.iter().fold(query, |query, (name, value)| query.with_setting(*name, *value));
        // Only where it must be: a user of `readonly = 1` may not set anything.
        if sql.len() < QUERY_BYTES_MAX {
            query
        } else {
            query.with_setting("max_query_size", (sql.len() + 1).to_string())
        }
    }

    /// Asks for an insert of no row as an insert is asked for.
    pub(crate) async fn try_insert(&self, table: &str) -> Result<(), WarehouseError> {
        let query = self.query(&format!("INSERT INTO {{database}}.{table} SELECT * FROM {{database}}.{table} LIMIT 0"));
        let inserts = self.overrides.inserts.iter();
        self.timed(inserts.fold(query, |query, (name, value)| query.with_setting(*name, *value)).execute()).await
    }

    /// Begins an `INSERT INTO <table> FORMAT <format>`.
    pub(crate) fn insert(&self, table: &str, format: &str) -> InsertStream {
        let sql = format!("INSERT INTO {}.{table} FORMAT {format}", self.database);
        let mut insert = self.client.insert_formatted_with(sql).with_timeouts(Some(TIMEOUT), Some(TIMEOUT));
        for (name, value) in &self.overrides.inserts {
            insert = insert.with_setting(*name, *value);
        }
        if format == "JSONEachRow" {
            // A few rows: handing them to other threads costs the server more than it does with them.
            let single = [("max_threads", "1"), ("max_insert_threads", "1"), ("input_format_parallel_parsing", "0")];
            for (name, value) in single.into_iter().chain([("date_time_input_format", "best_effort")]) {
                insert = insert.with_setting(name, value);
            }
        }
        InsertStream { insert, begun: Instant::now(), sent: Instant::now(), address: self.address.clone() }
    }

    /// Whether the server answers, and whether it answers a question about our tables.
    pub(crate) async fn answers(&self) -> bool {
        const PROBE_TIMEOUT: Duration = Duration::from_secs(10);
        let asked = async {
            self.select_one::<u8>("SELECT 1").await?;
            self.select::<u64>("SELECT version FROM {database}.klines LIMIT 1").await?;
            self.select::<u64>("SELECT rows FROM {database}.archives LIMIT 1").await
        };
        matches!(tokio::time::timeout(PROBE_TIMEOUT, asked).await, Ok(Ok(_)))
    }

    async fn timed<T>(&self, query: impl Future<Output = clickhouse::error::Result<T>>) -> Result<T, WarehouseError> {
        match tokio::time::timeout(TIMEOUT, query).await {
            Ok(answer) => answer.map_err(|error| WarehouseError::new(&self.address, &error)),
            Err(_) => Err(WarehouseError::new(&self.address, &clickhouse::error::Error::TimedOut)),
        }
    }
}

/// An insert under way. Dropped before [`InsertStream::end`] it is aborted; whole blocks may have been stored.
pub(crate) struct InsertStream {
    insert: clickhouse::insert_formatted::InsertFormatted,
    begun: Instant,
    /// When the last block had been sent.
    sent: Instant,
    address: String,
}

impl InsertStream {
    /// Sends a block. The insert as a whole has [`SENDING_MAX`] for its blocks, not each of them.
    pub(crate) async fn send(&mut self, block: Vec<u8>) -> Result<(), WarehouseError> {
        match tokio::time::timeout_at(self.begun + SENDING_MAX, self.insert.send(Bytes::from(block))).await {
            Ok(sent) => {
                self.sent = Instant::now();
                sent.map_err(|error| WarehouseError::new(&self.address, &error))
            }
            Err(_) => Err(WarehouseError {
                kind: WarehouseErrorKind::TooHeavy,
                code: None,
                // A slow line: without its end it is no insert to the server, and fewer rows may be sent in time.
                unanswered: self.sent.elapsed() > SENDING_MAX / 2,
                address: self.address.clone(),
                message: format!("an insert was not sent within {} s", SENDING_MAX.as_secs()),
            }),
        }
    }

    /// Whether it is time to end this insert and begin another one, where the rows come one after the other.
    pub(crate) fn is_long(&self) -> bool {
        self.begun.elapsed() > SENDING_MAX / 2
    }

    /// Returns when the server has answered that everything is stored.
    pub(crate) async fn end(self) -> Result<(), WarehouseError> {
        let Self { insert, address, .. } = self;
        insert.end().await.map_err(|error| WarehouseError::new(&address, &error))
    }
}

/// A text as an SQL string literal.
pub(crate) fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

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
    code: Option<u32>,
    /// The statement was sent, or some of it, and nobody knows what came of it: it may still be under way.
    pub unanswered: bool,
    address: String,
    message: String,
}

impl WarehouseError {
    fn new(address: &str, error: &clickhouse::error::Error) -> Self {
        use clickhouse::error::Error;
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
        Self { kind, code, unanswered, address: address.to_owned(), message }
    }

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

    #[test]
    fn exceptions_are_told_apart() {
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

    /// Sends blocks without end to a server that reads as `reading` says; returns what comes of it.
    async fn endless_insert<F: Future<Output = ()> + Send + 'static>(
        reading: impl FnOnce(tokio::net::TcpStream) -> F + Send + 'static,
    ) -> WarehouseError {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        tokio::spawn(async move { reading(listener.accept().await.expect("a connection").0).await });
        let warehouse = Warehouse::new(&ClickHouse {
            host: "127.0.0.1".into(),
            port,
            database: "d".into(),
            user: "u".into(),
            password: common::config::Secret::new(""),
            secure: false,
            compression: Compression::None,
        });
        let begun = Instant::now();
        let mut insert = warehouse.insert("klines", "Native");
        loop {
            if let Err(error) = insert.send(vec![0; 1 << 20]).await {
                assert_eq!(begun.elapsed().as_secs(), SENDING_MAX.as_secs(), "{error}");
                assert_eq!(error.kind, WarehouseErrorKind::TooHeavy, "{error}");
                return error;
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_insert_is_sent_within_a_minute_however_its_blocks_trickle() {
        let silent = endless_insert(async |connection| {
            std::future::pending::<()>().await;
            drop(connection);
        });
        assert!(silent.await.unanswered, "a server that reads nothing may be at work");
        let slow = endless_insert(async |mut connection| {
            let mut chunk = vec![0; 1 << 20];
            while tokio::io::AsyncReadExt::read(&mut connection, &mut chunk).await.is_ok_and(|count| count > 0) {
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        });
        assert!(!slow.await.unanswered, "half of it may do");
    }

    #[test]
    fn literals_cannot_be_left() {
        assert_eq!(quoted("a'b\\"), "'a\\'b\\\\'");
    }
}
