//! A ClickHouse destination: the connection and its errors.

use std::time::Duration;

use bytes::Bytes;
use clickhouse::query::Query;
use clickhouse::{Client, RowOwned, RowRead};
use common::config::{ClickHouse, Compression};

use tokio::time::Instant;

use crate::clickhouse::exception::classify;
use crate::clickhouse::overrides::Overrides;
use crate::error::clickhouse::{WarehouseError, WarehouseErrorKind};
use crate::job::writes::{SENDING_MAX, TIMEOUT};

/// Longest text of a query that ClickHouse takes unless it is told another `max_query_size`, in bytes.
const QUERY_BYTES_MAX: usize = 256 << 10;
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

    pub(crate) fn set_overrides(&mut self, overrides: Overrides) {
        self.overrides = overrides;
    }

    pub(crate) fn database(&self) -> &str {
        &self.database
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
            Ok(answer) => answer.map_err(|error| classify(&self.address, &error)),
            Err(_) => Err(classify(&self.address, &clickhouse::error::Error::TimedOut)),
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
                sent.map_err(|error| classify(&self.address, &error))
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
        insert.end().await.map_err(|error| classify(&address, &error))
    }
}

/// A text as an SQL string literal.
pub(crate) fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

#[cfg(test)]
mod tests {
    use super::*;

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
