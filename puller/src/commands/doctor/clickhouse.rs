//! A ClickHouse destination: whether what the work asks of it would be answered.

use common::config::ClickHouse;
use common::service::doctor::DoctorReport;
use common::service::doctor::machine::{check_clock, say_space};
use common::unit::Unit;
use jiff::Timestamp;

use crate::clickhouse::client::{Warehouse, quoted};
use crate::clickhouse::ledger::{ARCHIVES, LOG};
use crate::clickhouse::read_back::{Depth, Expected, ExpectedRows, Sought};
use crate::clickhouse::schema::{Defect, describe};
use crate::clickhouse::version::version;
use crate::error::clickhouse::{WarehouseError, WarehouseErrorKind};
use archive::{Kline, Klines};

/// Below this, inserts and merges would soon be refused.
const SPACE_BYTES_MIN: u64 = 1 << 30;
/// How much of a quota may be used up before it is worth a word.
const QUOTA_SHARE_MAX: f64 = 0.9;

pub(super) async fn check(report: &mut DoctorReport, name: &str, server: &ClickHouse) {
    let mut warehouse = Warehouse::new(server);
    match warehouse.connect().await {
        Ok(version) => report.good(name, format!("ClickHouse {version} is reachable and hashes rows as expected")),
        Err(error) => {
            let native = matches!(server.port, 9000 | 9440) && error.kind == WarehouseErrorKind::Unavailable;
            let advice = if native {
                "clickhouse.port is the native port; the HTTP port is needed, usually 8123 or 8443"
            } else {
                error.advice()
            };
            return report.bad(name, error.to_string(), advice);
        }
    }
    check_clock(report, &format!("{name}, clock"), async || warehouse.server_time().await.ok()).await;
    check_limits(report, &format!("{name}, limits"), &warehouse).await;
    check_space(report, &format!("{name}, space"), &warehouse).await;
    if check_tables(report, name, &warehouse).await {
        check_statements(report, &format!("{name}, statements"), &warehouse).await;
    }
}

/// Whether the tables can be asked.
async fn check_tables(report: &mut DoctorReport, name: &str, warehouse: &Warehouse) -> bool {
    let tables = format!("{name}, tables");
    let mut found = match warehouse.inspect().await {
        Ok(found) => found,
        Err(error) => {
            report.bad(&tables, error.to_string(), error.advice());
            return false;
        }
    };
    if found.is_newer() {
        // What a later version has otherwise, it has on purpose.
        found.defects.retain(Defect::is_mendable);
    }
    if !found.defects.is_empty() {
        let advice = match found.defects.iter().all(Defect::is_mendable) {
            true => "run `puller migrate`; what was loaded into what is missing, `puller verify --fix` loads again",
            false => {
                "workers do not work with it; rename it, run `puller migrate`, then `puller verify --fix`, which loads its rows"
            }
        };
        report.bad(&tables, describe(&found.defects), advice);
        return false;
    }
    match found.versions_missing() {
        0 => report.good(&tables, format!("database {} is up to date", warehouse.database())),
        missing => report.bad(&tables, format!("{missing} migrations are missing"), "run `puller migrate`"),
    }
    let durability = format!("{name}, durability");
    if found.unsynced.is_empty() {
        report.good(&durability, found.promise());
    } else {
        report.bad(
            &durability,
            format!("inserts are acknowledged before they are on disk: {}", found.unsynced.join("; ")),
            "a power cut can take acknowledged rows: `ALTER TABLE … MODIFY SETTING …` to 1, as docs/OPERATING.md says",
        );
    }
    match warehouse.has_lost_all_rows().await {
        Ok(true) => report.bad(
            &format!("{name}, rows"),
            "klines is empty, and the ledger names archives that are loaded",
            "run `puller verify --fix`; workers or `puller pull` then load them again",
        ),
        Ok(false) => {}
        Err(error) => report.bad(&format!("{name}, rows"), error.to_string(), error.advice()),
    }
    true
}

/// What the account's profile and quota leave for the work.
async fn check_limits(report: &mut DoctorReport, name: &str, warehouse: &Warehouse) {
    match warehouse.low_limits().await {
        Ok(low) if low.is_empty() => report.good(name, "this account's profile leaves room for every statement"),
        Ok(low) => {
            report.bad(name, low.join(", "), "raise these in the account's profile: larger units would wait for it");
        }
        Err(error) => report.bad(name, error.to_string(), error.advice()),
    }
    // Servers differ in who may see it.
    match warehouse.quotas().await {
        Ok(quotas) => {
            for quota in quotas {
                let found = format!("{} of {} {} used", quota.used, quota.most, quota.what);
                if quota.used < quota.most * QUOTA_SHARE_MAX {
                    report.good(&format!("{name}, quota {}", quota.name), found);
                } else {
                    let advice = "raise the quota, or give the account another one: units wait until its interval ends";
                    report.bad(&format!("{name}, quota {}", quota.name), found, advice);
                }
            }
        }
        Err(error) => tracing::debug!(%error, "asking for the account's quota"),
    }
}

/// A merge takes as much again as the parts that it merges: the largest month must fit once more.
async fn check_space(report: &mut DoctorReport, name: &str, warehouse: &Warehouse) {
    let disks = match warehouse.disks().await {
        Ok(disks) => disks,
        // Not granted to most accounts.
        Err(error) if error.kind == WarehouseErrorKind::Denied => {
            return report.good(name, "not seen: the account may not read system.disks");
        }
        Err(error) => return report.bad(name, error.to_string(), error.advice()),
    };
    let largest = warehouse.largest_partition_bytes().await.unwrap_or_default();
    for (disk, free_bytes) in disks {
        say_space(report, &format!("{name}, disk {disk}"), free_bytes, largest.saturating_add(SPACE_BYTES_MIN));
    }
}

/// Every kind of statement, on a range without rows and a symbol that nobody has.
async fn check_statements(report: &mut DoctorReport, name: &str, warehouse: &Warehouse) {
    match try_statements(warehouse).await {
        Ok(()) => report.good(name, "look-ups, read-backs and inserts are allowed"),
        Err(error) => report.bad(name, error.to_string(), error.advice()),
    }
}

async fn try_statements(warehouse: &Warehouse) -> Result<(), WarehouseError> {
    let unit: Unit = "binance/um/klines/1h/1980-01-01".parse().expect("a unit");
    let symbol = "DOCTOR";
    let open_time = unit.period.start().as_microsecond();
    let mut klines = Klines::default();
    klines.push(&Kline { open_time, ..Kline::default() });
    let expected = || Expected {
        symbol,
        version: version(Timestamp::UNIX_EPOCH, unit.period),
        rows: ExpectedRows::Klines(&klines),
        rows_hash: klines.hash(),
    };
    for table in ["klines", ARCHIVES, LOG] {
        warehouse.try_insert(table).await?;
    }
    warehouse.ledger(&unit).await?;
    warehouse.last_loaded().await?;
    let sought = Sought { unit: &unit, archives: vec![expected()], depth: Depth::Rows };
    warehouse.read_back(&[sought], &|| ()).await?;
    warehouse.shown_otherwise(&unit, &expected()).await?;
    warehouse.symbols_with_rows(&unit, [symbol].into_iter(), (open_time, open_time)).await?;
    warehouse.select::<String>("SELECT symbol::String FROM {database}.klines_latest LIMIT 1").await?;
    warehouse
        .select::<String>("SELECT symbol::String FROM {database}.coverage WHERE state = 'missing' LIMIT 1")
        .await?;
    Ok(())
}

/// What is used of one limit of a quota.
struct QuotaUse {
    name: String,
    what: String,
    used: f64,
    most: f64,
}

impl Warehouse {
    async fn server_time(&self) -> Result<Timestamp, WarehouseError> {
        let ms: i64 = self.select_one("SELECT toUnixTimestamp64Milli(now64(3))").await?;
        Timestamp::from_millisecond(ms).map_err(|error| WarehouseError::wrong(error.to_string()))
    }

    /// Names and free bytes of the disks, those of unlimited storage left out.
    async fn disks(&self) -> Result<Vec<(String, u64)>, WarehouseError> {
        self.select("SELECT name, unreserved_space FROM system.disks WHERE total_space < 9000000000000000000").await
    }

    async fn largest_partition_bytes(&self) -> Result<u64, WarehouseError> {
        let sizes = format!(
            "SELECT sum(bytes_on_disk) AS bytes FROM system.parts WHERE active AND database = {} GROUP BY table, partition_id",
            quoted(self.database())
        );
        self.select_one(&format!("SELECT max(bytes) FROM ({sizes})")).await
    }

    async fn quotas(&self) -> Result<Vec<QuotaUse>, WarehouseError> {
        let counts = [
            "queries",
            "query_selects",
            "query_inserts",
            "errors",
            "result_rows",
            "result_bytes",
            "read_rows",
            "read_bytes",
        ];
        let pairs =
            counts.map(|name| format!("('{name}', toFloat64(ifNull({name}, 0)), toFloat64(ifNull(max_{name}, 0)))"));
        let sql = format!(
            "SELECT quota_name, use.1, use.2, use.3 FROM (SELECT quota_name, arrayJoin([{}]) AS use FROM system.quota_usage) \
             WHERE use.3 > 0",
            pairs.join(", ")
        );
        let found: Vec<(String, String, f64, f64)> = self.select(&sql).await?;
        Ok(found.into_iter().map(|(name, what, used, most)| QuotaUse { name, what, used, most }).collect())
    }
}
