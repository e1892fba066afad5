//! A ClickHouse destination: the connection, its errors, and the schema.

use std::time::Duration;

use bytes::Bytes;
use clickhouse::query::Query;
use clickhouse::{Client, RowOwned, RowRead};
use common::chain::chain;
use common::config::{ClickHouse, Compression};

/// Longest text of a query that ClickHouse takes unless it is told another `max_query_size`, in bytes.
const QUERY_BYTES_MAX: usize = 256 << 10;
/// Longest answer of a query, and longest silence in the middle of an insert.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(120);

/// The schema, one step a version; only ever appended to, and each step safe to run again.
const MIGRATIONS: [&str; 3] = [
    include_str!("../schema/0001_init.sql"),
    include_str!("../schema/0003_own_version.sql"),
    include_str!("../schema/0004_coverage.sql"),
];
const MIGRATIONS_TABLE: &str = "CREATE TABLE IF NOT EXISTS {database}.schema_migrations \
     (version UInt32, applied_at DateTime DEFAULT now()) ENGINE = ReplacingMergeTree ORDER BY version";

/// A connection to one ClickHouse database, shared by cloning.
#[derive(Clone)]
pub(crate) struct Warehouse {
    client: Client,
    database: String,
    /// For messages: host and port.
    address: String,
    /// Settings for inserts that this server knows.
    insert_settings: Vec<(&'static str, &'static str)>,
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
            insert_settings: Vec::new(),
        }
    }

    pub(crate) fn database(&self) -> &str {
        &self.database
    }

    /// Checks that the server answers and that it computes row hashes as we do, and learns which settings it knows.
    pub(crate) async fn connect(&mut self) -> Result<String, WarehouseError> {
        // Statistics on insert and collapsing on insert cost half of the insert's time and add nothing: a block holds
        // no key twice, and merges and FINAL do the rest. Deduplication would drop an insert that brings deleted rows
        // back. Servers before 26 do not know all of these, and refuse settings they do not know.
        const WANTED: [(&str, &str); 4] = [
            ("async_insert", "0"),
            ("insert_deduplicate", "0"),
            ("materialize_statistics_on_insert", "0"),
            ("optimize_on_insert", "0"),
        ];
        let known: Vec<String> = self
            .select(
                "SELECT name FROM system.settings WHERE name IN \
                 ('async_insert', 'insert_deduplicate', 'materialize_statistics_on_insert', 'optimize_on_insert')",
            )
            .await?;
        self.insert_settings = WANTED.into_iter().filter(|(name, _)| known.iter().any(|k| k == name)).collect();
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
        // Only where it must be: a user of `readonly = 1` may not set anything.
        if sql.len() < QUERY_BYTES_MAX {
            query
        } else {
            query.with_setting("max_query_size", (sql.len() + 1).to_string())
        }
    }

    /// Begins an `INSERT INTO <table> FORMAT <format>`.
    pub(crate) fn insert(&self, table: &str, format: &str) -> InsertStream {
        let sql = format!("INSERT INTO {}.{table} FORMAT {format}", self.database);
        let mut insert = self.client.insert_formatted_with(sql).with_timeouts(Some(TIMEOUT), Some(TIMEOUT));
        for (name, value) in &self.insert_settings {
            insert = insert.with_setting(*name, *value);
        }
        if format == "JSONEachRow" {
            // A few rows: handing them to other threads costs the server more than it does with them.
            let single = [("max_threads", "1"), ("max_insert_threads", "1"), ("input_format_parallel_parsing", "0")];
            for (name, value) in single.into_iter().chain([("date_time_input_format", "best_effort")]) {
                insert = insert.with_setting(name, value);
            }
        }
        InsertStream { insert, address: self.address.clone() }
    }

    /// Applies the migrations that are missing; returns how many.
    pub(crate) async fn migrate(&self) -> Result<usize, WarehouseError> {
        self.execute("CREATE DATABASE IF NOT EXISTS {database}").await?;
        self.execute(MIGRATIONS_TABLE).await?;
        let applied = self.applied_migrations().await?;
        for (index, script) in MIGRATIONS.iter().enumerate().skip(applied) {
            for statement in script.split(";\n").map(str::trim).filter(|statement| !statement.is_empty()) {
                self.execute(statement.trim_end_matches(';')).await?;
            }
            let version = index + 1;
            self.execute(&format!("INSERT INTO {{database}}.schema_migrations (version) VALUES ({version})")).await?;
        }
        Ok(MIGRATIONS.len().saturating_sub(applied))
    }

    /// How many migrations are still to be applied.
    pub(crate) async fn missing_migrations(&self) -> Result<usize, WarehouseError> {
        match self.applied_migrations().await {
            Ok(applied) => Ok(MIGRATIONS.len().saturating_sub(applied)),
            Err(error) if error.kind == WarehouseErrorKind::MissingSchema => Ok(MIGRATIONS.len()),
            Err(error) => Err(error),
        }
    }

    async fn applied_migrations(&self) -> Result<usize, WarehouseError> {
        let version: u32 = self.select_one("SELECT max(version) FROM {database}.schema_migrations").await?;
        Ok(version as usize)
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
    address: String,
}

impl InsertStream {
    pub(crate) async fn send(&mut self, block: Vec<u8>) -> Result<(), WarehouseError> {
        let sent = self.insert.send(Bytes::from(block)).await;
        sent.map_err(|error| WarehouseError::new(&self.address, &error))
    }

    /// Returns when the server has answered that everything is stored.
    pub(crate) async fn end(self) -> Result<(), WarehouseError> {
        let Self { insert, address } = self;
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
    /// The database or a table is not there.
    MissingSchema,
    /// Anything else the server says; another try may or may not help.
    Other,
}

#[derive(Debug, Clone, thiserror::Error)]
#[error("ClickHouse at {address}: {message}")]
pub(crate) struct WarehouseError {
    pub kind: WarehouseErrorKind,
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
        Self { kind, unanswered, address: address.to_owned(), message }
    }

    pub(crate) fn wrong(message: impl Into<String>) -> Self {
        Self {
            kind: WarehouseErrorKind::Other,
            unanswered: false,
            address: "this server".into(),
            message: message.into(),
        }
    }

    /// What to do about it, for a person.
    pub(crate) fn advice(&self) -> &'static str {
        match self.kind {
            WarehouseErrorKind::Unavailable => {
                "check clickhouse.host and port (the HTTP port, 8123 or 8443), and the server"
            }
            WarehouseErrorKind::TooHeavy => {
                "the server gave the statement up, or did not answer in time: see its max_memory_usage and max_execution_time, and \
                 what else it does"
            }
            WarehouseErrorKind::Denied => "check clickhouse.user and password, and what the user may do",
            WarehouseErrorKind::MissingSchema => "run `puller migrate`",
            WarehouseErrorKind::Other => "see the message, and the server's log",
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
        // UNKNOWN_TABLE, UNKNOWN_DATABASE
        Some(60 | 81) => WarehouseErrorKind::MissingSchema,
        // UNKNOWN_USER, WRONG_PASSWORD, REQUIRED_PASSWORD, ACCESS_DENIED, AUTHENTICATION_FAILED
        Some(192..=194 | 497 | 516) => WarehouseErrorKind::Denied,
        // MEMORY_LIMIT_EXCEEDED of the whole server is not the statement's.
        Some(241) if message.contains("(total)") => WarehouseErrorKind::Unavailable,
        // TIMEOUT_EXCEEDED, TOO_SLOW, MEMORY_LIMIT_EXCEEDED
        Some(159 | 160 | 241) => WarehouseErrorKind::TooHeavy,
        // TOO_MANY_SIMULTANEOUS_QUERIES, SOCKET_TIMEOUT, NETWORK_ERROR,
        // TABLE_IS_READ_ONLY, NOT_ENOUGH_SPACE, TOO_MANY_PARTS, ALL_CONNECTION_TRIES_FAILED,
        // TOO_FEW_LIVE_REPLICAS, QUERY_WAS_CANCELLED, CANNOT_SCHEDULE_TASK, KEEPER_EXCEPTION
        Some(202 | 209 | 210 | 242 | 243 | 252 | 279 | 285 | 394 | 439 | 999) => WarehouseErrorKind::Unavailable,
        Some(_) => WarehouseErrorKind::Other,
        // No exception of ClickHouse's: a proxy's 502 or 503, or a server that is starting.
        None if message.contains("DB::Exception") => WarehouseErrorKind::Other,
        None => WarehouseErrorKind::Unavailable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exceptions_are_told_apart() {
        let check = |message: &str, kind| assert_eq!(kind_of(exception_code(message), message), kind, "{message}");
        check("Code: 252. DB::Exception: Too many parts", WarehouseErrorKind::Unavailable);
        check("Code: 241. DB::Exception: Query memory limit exceeded: would use 1 GiB", WarehouseErrorKind::TooHeavy);
        check("Code: 241. DB::Exception: (total) memory limit exceeded", WarehouseErrorKind::Unavailable);
        check("Code: 159. DB::Exception: Timeout exceeded", WarehouseErrorKind::TooHeavy);
        check("Code: 516. DB::Exception: default: Authentication failed", WarehouseErrorKind::Denied);
        check("Code: 60. DB::Exception: Unknown table", WarehouseErrorKind::MissingSchema);
        check("Code: 62. DB::Exception: Syntax error", WarehouseErrorKind::Other);
        check("<html>503 Service Unavailable</html>", WarehouseErrorKind::Unavailable);
        check("DB::Exception without a number", WarehouseErrorKind::Other);
    }

    #[test]
    fn literals_cannot_be_left() {
        assert_eq!(quoted("a'b\\"), "'a\\'b\\\\'");
    }
}
