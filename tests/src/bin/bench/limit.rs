//! The limit: fetch, hash, inflate, parse, Native blocks over two connections, and nothing else.
//!
//! Built by hand for one purpose and shared with nothing. What it leaves out, and the product does: the queue, leases and
//! acks; the ledger and its log; reading the rows back; looking for an earlier version of the rows; signing requests
//! (they are signed beforehand); bounds on memory; retries; every form of archive but the generator's spot rows of eight
//! decimals without a header; and every check but size, sha256 and CRC. It inserts all units in one go.

mod decode;
mod http;
mod native;

use std::{
    collections::BTreeMap,
    env, fs,
    net::SocketAddr,
    path::Path,
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use aws_sdk_s3::presigning::PresigningConfig;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tests::{
    Context, Failure, Result,
    data::{archives, sha256},
};

use self::{decode::Rows, native::Block};
use crate::{
    ground::Ground,
    measured::{Contestant, Usage},
    world::World,
};

const FETCHERS: usize = 8;
/// Connections to ClickHouse, each with its share of the symbols.
const INSERTERS: usize = 2;
/// Decoded archives that may wait for an inserter.
const WAITING_MAX: usize = 16;
const BLOCK_ROWS: usize = 4_096;
/// Longer than any bench.
const SIGNED_FOR: Duration = Duration::from_secs(7 * 86_400);

/// All but the database, which is another one in each run. In the order of the table's key.
pub(crate) fn prepare(world: &World, ground: &Ground) -> Result<Value> {
    let s3 = &world.stack.s3;
    let client = s3.client();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("a runtime")?;
    let signed_for = PresigningConfig::expires_in(SIGNED_FOR).context("signing")?;
    let mut located = archives(ground.project.data_dir())?;
    located.sort_by(|a, b| (&a.symbol, &a.period).cmp(&(&b.symbol, &b.period)));
    let mut items = Vec::new();
    for archive in located {
        let bytes = fs::read(&archive.path).context(archive.path.display())?;
        let key = format!("{}/{}", ground.project.prefix(), archive.key);
        let request = client.get_object().bucket(s3.bucket()).key(&key).presigned(signed_for.clone());
        let signed = runtime.block_on(request).context(&key)?;
        let target = signed.uri().strip_prefix(&s3.endpoint()).unwrap_or_default().to_owned();
        items
            .push(json!({ "target": target, "symbol": archive.symbol, "size": bytes.len(), "sha256": sha256(&bytes) }));
    }
    let clickhouse = &world.stack.clickhouse;
    Ok(json!({
        "s3": s3.address().to_string(),
        "clickhouse": format!("{}:{}", clickhouse.host(), clickhouse.port()),
        "user": clickhouse.user(),
        "password": clickhouse.password(),
        "interval": ground.shape.interval,
        "archives": items,
    }))
}

pub(crate) fn measure(world: &World, job: &Value, database: &str) -> Result<Usage> {
    let mut job = job.clone();
    job["database"] = database.into();
    let path = world.folder("job")?.join("job.json");
    fs::write(&path, job.to_string()).context("writing the limit's job")?;
    let here = env::current_exe().context("finding the running executable")?;
    let args = vec!["limit".into(), path.into()];
    Contestant { name: "limit".to_owned(), path: here, args, env: Vec::new() }.measure(world)
}

struct Item {
    target: String,
    symbol: String,
    size: usize,
    sha256: String,
    inserter: usize,
    /// Its place among those of its inserter.
    place: usize,
}

/// The body of the process.
pub(crate) fn run(job: &Path) -> Result<()> {
    let job: Value = serde_json::from_slice(&fs::read(job).context(job.display())?).context(job.display())?;
    let text = |name: &str| job[name].as_str().ok_or_else(|| Failure::new(format!("the job has no {name}")));
    let s3: SocketAddr = text("s3")?.parse().context("the address of S3")?;
    let clickhouse: SocketAddr = text("clickhouse")?.parse().context("the address of ClickHouse")?;
    let items = items(&job)?;
    let next = AtomicUsize::new(0);
    let insert = http::Insert {
        address: clickhouse,
        user: text("user")?,
        password: text("password")?,
        table: format!("{}.klines", text("database")?),
    };
    let interval = text("interval")?;
    thread::scope(|scope| {
        let mut senders = Vec::new();
        let mut workers = Vec::new();
        for _ in 0..INSERTERS {
            let (sender, receiver) = mpsc::sync_channel(WAITING_MAX);
            senders.push(sender);
            let insert = &insert;
            workers.push(scope.spawn(move || insert_in_order(insert, interval, &receiver)));
        }
        for _ in 0..FETCHERS.min(items.len()) {
            let (senders, items, next) = (senders.clone(), &items, &next);
            workers.push(scope.spawn(move || fetch_and_decode(s3, items, next, &senders)));
        }
        // An inserter ends when the last fetcher has dropped its sender.
        drop(senders);
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().unwrap_or_else(|_| Err(Failure::new("a thread panicked"))))
    })
}

/// The archives in the order of fetching: from each inserter's share in turn, so that all are busy from the start.
fn items(job: &Value) -> Result<Vec<Item>> {
    let list = job["archives"].as_array().ok_or_else(|| Failure::new("the job has no archives"))?;
    let share = list.len().div_ceil(INSERTERS);
    let mut items = Vec::new();
    for (number, archive) in list.iter().enumerate() {
        let text = |name: &str| archive[name].as_str().map(str::to_owned).ok_or_else(|| Failure::new("a bad job"));
        items.push(Item {
            target: text("target")?,
            symbol: text("symbol")?,
            size: archive["size"].as_u64().ok_or_else(|| Failure::new("a bad job"))? as usize,
            sha256: text("sha256")?,
            inserter: number / share,
            place: number % share,
        });
    }
    items.sort_by_key(|item| (item.place, item.inserter));
    Ok(items)
}

type Decoded = (usize, String, Rows);

fn fetch_and_decode(
    s3: SocketAddr,
    items: &[Item],
    next: &AtomicUsize,
    senders: &[mpsc::SyncSender<Decoded>],
) -> Result<()> {
    let mut connection = http::Connection::open(s3)?;
    let mut decoder = decode::Decoder::default();
    while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
        let zip = connection.get(&item.target)?;
        let digest: String = Sha256::digest(zip).iter().map(|byte| format!("{byte:02x}")).collect();
        if zip.len() != item.size || digest != item.sha256 {
            return Err(Failure::new(format!("{} came with other bytes", item.target)));
        }
        let rows = decoder.rows(zip).context(&item.target)?;
        // Gone only when the inserter failed, and that is what is told.
        if senders[item.inserter].send((item.place, item.symbol.clone(), rows)).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// Sends blocks of whole archives, in the order of the key whatever order they come in.
fn insert_in_order(insert: &http::Insert<'_>, interval: &str, decoded: &mpsc::Receiver<Decoded>) -> Result<()> {
    let mut post = insert.begin()?;
    let mut early: BTreeMap<usize, (String, Rows)> = BTreeMap::new();
    let (mut place, mut block) = (0, Block::default());
    for (number, symbol, rows) in decoded {
        early.insert(number, (symbol, rows));
        while let Some((symbol, rows)) = early.remove(&place) {
            place += 1;
            block.add(&symbol, rows);
            if block.rows() >= BLOCK_ROWS {
                post.send(&std::mem::take(&mut block).encode(interval))?;
            }
        }
    }
    if block.rows() > 0 {
        post.send(&block.encode(interval))?;
    }
    post.end()
}
