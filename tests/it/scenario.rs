//! Shared by the scenarios: their archives, their usual steps, and how long they wait.

use std::borrow::Borrow;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tests::data::{ArchiveSpec, Market, mark_all};
use tests::project::Project;
use tests::proxy::{Act, Proxy};
use tests::servers::Stack;
use tests::{Context, Failure, Result};

use crate::handmade::Handmade;

/// How long a step that takes seconds may take on a busy machine. Only a failure lasts that long.
pub(crate) const SOON: Duration = Duration::from_secs(120);
pub(crate) const MIB: u64 = 1 << 20;
/// What S3 answers with its 503.
pub(crate) const SLOW_DOWN: &str = "<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>";
pub(crate) const DENIED: Act = Act::Answer {
    status: "403 Forbidden",
    headers: "",
    body: "<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>",
};
/// What ClickHouse answers to a query that is over its memory limit.
pub(crate) const TOO_MUCH_MEMORY: Act = Act::Answer {
    status: "500 Internal Server Error",
    headers: "X-ClickHouse-Exception-Code: 241\r\n",
    body: "Code: 241. DB::Exception: Query memory limit exceeded: would use 9.31 GiB (attempt to allocate chunk of 4 MiB), \
           maximum: 9.31 GiB. (MEMORY_LIMIT_EXCEEDED)",
};

/// A day of hours of a symbol of the spot market: 24 rows.
pub(crate) fn hours(symbol: &str, day: &str) -> ArchiveSpec {
    ArchiveSpec::new(Market::Spot, symbol, "1h", day)
}

/// [`hours`] of BTCUSDT.
pub(crate) fn btc(day: &str) -> ArchiveSpec {
    hours("BTCUSDT", day)
}

/// [`hours`] of BTCUSDT on a day of March 2025.
pub(crate) fn march(day: u32) -> ArchiveSpec {
    btc(&format!("2025-03-{day:02}"))
}

/// Weeks of BTCUSDT in 2025.
pub(crate) fn weeks(month: &str) -> ArchiveSpec {
    ArchiveSpec::new(Market::Spot, "BTCUSDT", "1w", month)
}

/// Writes a month of weeks that begins with the last week of the month before.
pub(crate) fn write_with_week_before(project: &Project, month: &ArchiveSpec) -> Result<()> {
    const WEEK_US: i64 = 7 * 86_400_000_000;
    let mut records = month.records();
    let mut early = records[0].clone();
    for time in [0, 6] {
        early[time] = (early[time].parse::<i64>().context("a time")? - WEEK_US).to_string();
    }
    records.insert(0, early);
    month.write_bytes(project.data_dir(), &month.zip_of(&month.csv_of(&records))).map(drop)
}

pub(crate) const SYMBOLS: [&str; 2] = ["BTCUSDT", "ETHUSDT"];
pub(crate) const DAYS: [&str; 3] = ["2025-03-01", "2025-03-02", "2025-03-03"];

/// Three units of two archives each.
pub(crate) fn three_units() -> impl Iterator<Item = ArchiveSpec> {
    SYMBOLS.into_iter().flat_map(|symbol| DAYS.map(|day| hours(symbol, day)))
}

/// The unit of [`hours`] on this day.
pub(crate) fn unit_of(day: &str) -> String {
    btc(day).unit()
}

/// Writes archives, and marks every unit in the data_dir complete.
pub(crate) fn write(project: &Project, archives: impl IntoIterator<Item: Borrow<ArchiveSpec>>) -> Result<()> {
    for archive in archives {
        archive.borrow().write(project.data_dir())?;
    }
    mark_all(project.data_dir()).map(drop)
}

/// The same, and `uploader upload`.
pub(crate) fn upload(project: &Project, archives: impl IntoIterator<Item: Borrow<ArchiveSpec>>) -> Result<()> {
    write(project, archives)?;
    project.uploader(&["upload"])?.expect_code(0).map(drop)
}

/// The same, and `puller pull`.
pub(crate) fn ship(project: &Project, archives: impl IntoIterator<Item: Borrow<ArchiveSpec>>) -> Result<()> {
    upload(project, archives)?;
    project.puller(&["pull"])?.expect_code(0).map(drop)
}

/// The units of an answer's findings in this state, in its order.
pub(crate) fn units_found(report: &Value, state: &str) -> Vec<String> {
    let findings = report["findings"].as_array().into_iter().flatten();
    let found = findings.filter(|finding| finding["state"] == state);
    found.map(|finding| finding["unit"].as_str().unwrap_or_default().to_owned()).collect()
}

/// Whether a text of an answer's findings says this.
pub(crate) fn is_found(report: &Value, text: &str) -> bool {
    let findings = report["findings"].as_array().into_iter().flatten();
    findings.filter_map(|finding| finding["text"].as_str()).any(|found| found.contains(text))
}

/// Fails unless `doctor --json` has a check of this name with this verdict: `ok`, `warning` or `failed`.
pub(crate) fn assert_verdict(report: &Value, name: &str, verdict: &str) {
    let mut checks = report["checks"].as_array().into_iter().flatten();
    let check = checks.find(|check| check["name"] == name).unwrap_or_else(|| panic!("no check {name}: {report:#}"));
    let found = match (check["ok"] == true, check["warning"] == true) {
        (false, _) => "failed",
        (true, true) => "warning",
        (true, false) => "ok",
    };
    assert_eq!(found, verdict, "{name}: {report:#}");
}

/// Whether a check of `doctor --json` says this, in what it found or in its advice.
pub(crate) fn is_checked(report: &Value, text: &str) -> bool {
    let checks = report["checks"].as_array().into_iter().flatten();
    let mut texts = checks.flat_map(|check| [check["found"].as_str(), check["advice"].as_str()]).flatten();
    texts.any(|said| said.contains(text))
}

/// How many units an `uploader upload --json` left in each state.
pub(crate) fn assert_units(report: &Value, expected: &[(&str, u64)]) {
    for (state, units) in expected {
        assert_eq!(report["units"][state], *units, "{state}: {report:#}");
    }
}

/// What an `uploader upload --json` that had nothing to do reports.
pub(crate) fn assert_nothing_uploaded(report: &Value) {
    let (units, archives) = (&report["units"], &report["archives"]);
    let done = [&units["published"], &units["waiting"], &archives["uploaded"], &archives["removed"]];
    assert!(done.iter().all(|count| **count == 0), "{report:#}");
}

/// Whether a destination of `puller pull --json` loaded so many archives and has so many dead letters.
pub(crate) fn has_pulled(report: &Value, archives: u64, dead_letters: u64) -> bool {
    let mut destinations = report["destinations"].as_array().into_iter().flatten();
    destinations.any(|found| found["archives"] == archives && found["dead_letters"] == dead_letters)
}

/// What a `puller pull --json` that had nothing to do reports.
pub(crate) fn assert_nothing_pulled(report: &Value) {
    let destinations = report["destinations"].as_array().cloned().unwrap_or_default();
    let is_idle = |destination: &Value| destination["units"] == 0 && destination["left"] == 0;
    assert!(!destinations.is_empty() && destinations.iter().all(is_idle), "{report:#}");
}

/// From now on the project reaches the bucket through this proxy.
pub(crate) fn proxy_of_bucket(project: &mut Project, stack: &Stack) -> Result<Proxy> {
    let proxy = Proxy::start(stack.s3.address())?;
    project.set("storage.r2.endpoint", format!("http://{}", proxy.address()))?;
    Ok(proxy)
}

/// From now on the project reaches ClickHouse through this proxy.
pub(crate) fn proxy_of_clickhouse(project: &mut Project, stack: &Stack) -> Result<Proxy> {
    let proxy = Proxy::start(loopback(stack.clickhouse.port()))?;
    project.set("clickhouse.port", proxy.address().port())?;
    Ok(proxy)
}

pub(crate) fn loopback(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

/// What `puller status --json` says of a destination.
pub(crate) fn status(project: &Project, destination: &str) -> Result<Value> {
    let all = project.puller(&["status", "--json"])?.expect_code(0)?.json()?;
    let mut all = all["destinations"].as_array().into_iter().flatten();
    let found = all.find(|status| status["destination"] == destination);
    found.cloned().ok_or_else(|| Failure::new(format!("no status of {destination}")))
}

/// Whether nothing is pending, in flight or scheduled for a retry at the first destination.
pub(crate) fn is_drained(project: &Project) -> Result<bool> {
    let status = project.puller(&["status", "--json"])?.expect_code(0)?.json()?;
    Ok(["pending", "in_flight", "retries_scheduled"].iter().all(|key| status["destinations"][0][key] == 0))
}

/// What `puller dead ls --json` lists.
pub(crate) fn listed_letters(project: &Project, filters: &[&str]) -> Result<Vec<Value>> {
    let finished = project.puller(&[&["dead", "ls", "--json"], filters].concat())?;
    let list = finished.json()?;
    let letters = list["findings"].as_array().cloned().ok_or_else(|| Failure::new(format!("no list: {list}")))?;
    // Filters that match nothing are told from a list that is empty.
    finished.expect_code(if letters.is_empty() && !filters.is_empty() { 4 } else { 0 })?;
    Ok(letters)
}

/// The classes of the stored dead letters, sorted.
pub(crate) fn classes(hand: &Handmade<'_>) -> Result<Vec<String>> {
    let mut classes: Vec<String> = hand.dead_letters()?.into_iter().map(|letter| letter.class).collect();
    classes.sort();
    Ok(classes)
}

/// The value of a setting, by its dotted key.
pub(crate) fn setting(project: &Project, key: &str) -> Value {
    key.split('.').fold(project.config().clone(), |section, key| section[key].clone())
}

pub(crate) fn text(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| Failure::new(format!("{} is not UTF-8", path.display())))
}
