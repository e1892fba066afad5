//! Redelivered and repeated markers: few queries, no row twice, and no dead letter for a lost delivery record.

use jiff::Timestamp;
use serde_json::{Value, json};
use tests::data::{ArchiveSpec, Market, mark_all};
use tests::project::Project;
use tests::proxy::{Fault, Proxy};
use tests::servers::Stack;
use tests::{Context, Failure, Result};

use crate::handmade::Handmade;
use crate::scenario::{SOON, btc, loopback, upload};

const BACKFILL: &str = "backfill-primary";
/// More than a crash loop has, with `retry.attempts` of 3.
const MANY: i64 = 20;

fn spec(symbol: usize, period: &str) -> ArchiveSpec {
    ArchiveSpec::new(Market::Spot, &format!("S{symbol:03}USDT"), "1h", period)
}

/// Requests that one `puller pull` makes to ClickHouse.
fn requests_of_a_pull(project: &Project, clickhouse: &Proxy) -> Result<usize> {
    let before = clickhouse.requests().len();
    let port = clickhouse.address().port().to_string();
    let mut pull = project.start("puller", &["pull"], &[("FERRY__CLICKHOUSE__PORT", &port)])?;
    pull.wait(SOON)?.expect_code(0)?;
    Ok(clickhouse.requests().len() - before)
}

#[test]
fn a_redelivered_unit_costs_no_query_for_each_archive() -> Result<()> {
    const SYMBOLS: usize = 60;
    /// What a pull of one unit may cost, whatever its archives are.
    const QUERIES_MAX: usize = 35;
    let stack = Stack::shared();
    let project = Project::new(stack, "redelivered")?;
    let clickhouse = Proxy::start(loopback(stack.clickhouse.port()))?;
    let upload = |period: &str| -> Result<()> {
        (0..SYMBOLS).try_for_each(|symbol| {
            let made = if period == "2025-03" { "2025-06-01T00:00:00Z" } else { "2025-03-03T00:00:00Z" };
            spec(symbol, period).generated_at(made).write(project.data_dir()).map(drop)
        })?;
        mark_all(project.data_dir())?;
        project.uploader(&["upload"])?.expect_code(0).map(drop)
    };

    // Interrupted before anything of it was inserted.
    upload("2025-03-02")?;
    project.puller(&["migrate"])?.expect_code(0)?;
    let mut dying = project.start("puller", &["pull"], &[("FERRY_FAILPOINT", "puller.decoded")])?;
    assert_eq!(dying.wait(SOON)?.code, None, "it was to die");
    let queries = requests_of_a_pull(&project, &clickhouse)?;
    assert!(queries < QUERIES_MAX, "{queries} queries");
    project.check_tables(1440)?;

    // Its rows are stored twice, and other archives' rows are shown in their place.
    upload("2025-03")?;
    project.puller(&["pull"])?.expect_code(0)?;
    project.puller(&["replay", "--unit", &spec(0, "2025-03-02").unit(), "--force"])?.expect_code(0)?;
    let queries = requests_of_a_pull(&project, &clickhouse)?;
    assert!(queries < QUERIES_MAX, "{queries} queries");
    project.check_tables(44_640)
}

/// A unit of one archive whose marker was handed back [`MANY`] times, as workers noted.
struct RecordedUnit<'p> {
    hand: Handmade<'p>,
    unit: String,
    /// Of the note, in TASKS.
    subject: String,
}

impl<'p> RecordedUnit<'p> {
    fn new(stack: &Stack, project: &'p Project) -> Result<Self> {
        let hand = Handmade::new(stack, project)?;
        let spec = spec(0, "2025-03-02");
        hand.publish_marker(&spec.unit(), &[hand.place(&spec, &spec.zip())?])?;
        hand.spend_deliveries(BACKFILL, MANY)?;
        let tokens = spec.unit().replace('/', ".");
        let (sequence, stored_at) = hand.act(async |jetstream| {
            let stream = jetstream.get_stream("MARKERS").await.context("MARKERS")?;
            let marker = stream.get_last_raw_message_by_subject(&format!("marker.backfill.{tokens}")).await;
            let marker = marker.context("the marker")?;
            let stored_at = Timestamp::from_nanosecond(marker.time.unix_timestamp_nanos()).context("a time")?;
            Ok((marker.sequence, stored_at))
        })?;
        let subject = format!("task.deliveries-{BACKFILL}-{sequence}.{tokens}");
        let delivery_record = json!({ "stored_at": stored_at, "failed": 0, "handed_back": MANY });
        hand.publish_on(&subject, delivery_record.to_string().as_bytes())?;
        Ok(Self { hand, unit: spec.unit(), subject })
    }

    fn delivery_record(&self) -> Result<Value> {
        self.hand.act(async |jetstream| {
            let stream = jetstream.get_stream("TASKS").await.context("TASKS")?;
            let delivery_record = stream.get_last_raw_message_by_subject(&self.subject).await.context("the note")?;
            serde_json::from_slice(&delivery_record.payload).context("the note")
        })
    }
}

#[test]
fn an_unreadable_delivery_record_causes_no_dead_letter_and_stays() -> Result<()> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, "unread-note")?;
    let queue = Proxy::start(loopback(stack.nats.port()))?;
    let url = project.config()["nats"]["url"].as_str().unwrap_or_default().to_owned();
    let behind = format!("nats://{}", queue.address());
    project.set("nats.url", url)?;
    let recorded = RecordedUnit::new(stack, &project)?;
    let key = recorded.hand.keys()?.into_iter().find(|key| key.ends_with(".zip"));
    let key = key.ok_or_else(|| Failure::new("no archive"))?;
    let archive = recorded.hand.get(&key)?;
    recorded.hand.delete(&key)?;

    queue.set(Fault::Unanswered("GET.TASKS"));
    let mut worker = project.spawn("puller", &["run"], &[("FERRY__NATS__URL", &behind)])?;
    let ended = "SELECT any(outcome), any(attempt) FROM {db}.ingest_log FORMAT TSV";
    project.wait_until("an attempt", SOON, || Ok(!project.query(ended)?.starts_with('\t')))?;
    assert_eq!(project.query(ended)?.trim(), "retry\t1", "{:?}", recorded.hand.dead_letters()?);
    worker.drain(SOON)?;
    let delivery_record = recorded.delivery_record()?;
    assert_eq!(
        (&delivery_record["failed"], &delivery_record["handed_back"]),
        (&json!(0), &json!(MANY)),
        "{delivery_record}"
    );

    queue.set(Fault::None);
    recorded.hand.put(&key, &archive)?;
    project.puller(&["pull"])?.expect_code(0)?;
    assert_eq!(recorded.hand.dead_letters()?.len(), 0);
    project.puller(&["explain", &recorded.unit])?.expect_code(0)?;
    Ok(())
}

#[test]
fn an_evicted_delivery_record_causes_no_dead_letter() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "dropped-note")?;
    let recorded = RecordedUnit::new(stack, &project)?;
    recorded.hand.change_stream("TASKS", |config| config.max_bytes = 64 * 1024)?;
    let others: Vec<String> = (1..=400).map(|number| format!("task.replay-{number}")).collect();
    recorded.hand.publish_all(&others, &[b' '; 200])?;
    assert!(recorded.delivery_record().is_err(), "the note has made room");
    project.puller(&["pull"])?.expect_code(0)?;
    assert_eq!(recorded.hand.dead_letters()?.len(), 0);
    assert_eq!(project.archives_loaded()?, 1);
    Ok(())
}

/// Markers twice, and revisions in the wrong order.
#[test]
fn repeated_and_unordered_markers_load_the_newest_revision() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "disorder")?;
    let hand = Handmade::new(stack, &project)?;
    let spec = |seed: u64| {
        let at = format!("2025-03-{:02}T00:00:00Z", 5 + seed);
        btc("2025-03-01").seed(seed).generated_at(&at)
    };
    let mut markers = Vec::new();
    for seed in [0, 1] {
        upload(&project, [spec(seed)])?;
        markers.push(hand.markers()?.pop().ok_or_else(|| Failure::new("no marker"))?.1.to_string());
    }
    for payload in [&markers[1], &markers[0], &markers[1], &markers[0]] {
        hand.publish(&spec(0).unit(), payload.as_bytes())?;
    }
    project.puller(&["pull"])?.expect_code(0)?;
    project.check_tables(24)?;
    assert!(hand.dead_letters()?.is_empty());
    Ok(())
}
