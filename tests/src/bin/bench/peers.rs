//! The peers: the Python cron job, and ClickHouse reading the bucket by itself.

use std::{env, fs, io::Read, path::Path, time::Instant};

use serde_json::{Value, json};
use tests::{Context, Failure, Result, data::archives, servers::repository};
use zip::ZipArchive;

use crate::{
    ground::Ground,
    measured::{Contestant, Usage},
    plan::Contender,
    world::World,
};

/// Of ClickHouse's `s3()`; more readers than cores, for each waits for the server in turn.
const READERS: usize = 8;
const WRITERS: usize = 2;

/// Where rclone is, in PATH or where `tests/bench/setup.py` has put it.
pub(crate) fn rclone() -> Option<String> {
    let paths = env::var_os("PATH").unwrap_or_default();
    let own = repository().join(".servers/rclone");
    let mut found = env::split_paths(&paths).chain([own]).map(|folder| folder.join("rclone"));
    found.find(|path| path.is_file())?.to_str().map(str::to_owned)
}

/// One of `tests/bench/*.py` with its job; `more` is added to what every job has.
pub(crate) fn python(world: &World, ground: &Ground, script: &str, folder: &Path, more: &Value) -> Result<Contestant> {
    let s3 = &world.stack.s3;
    let mut job = json!({
        "endpoint": s3.endpoint(),
        "bucket": s3.bucket(),
        "prefix": ground.project.prefix(),
        "access_key_id": s3.credentials().access_key_id,
        "secret_access_key": s3.credentials().secret_access_key,
        "clickhouse": ground.clickhouse,
        "rclone": rclone(),
        "folder": folder,
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        job[key] = value.clone();
    }
    let python = repository().join(".servers/bench-venv/bin/python");
    if !python.exists() {
        return Err(Failure::new("the Python peers are not installed: run tests/bench/setup.py (`make bench` does)"));
    }
    let path = world.folder("job")?.join("job.json");
    fs::write(&path, job.to_string()).context("writing a peer's job")?;
    let script = repository().join("tests/bench").join(script);
    Ok(Contestant { name: "peer".to_owned(), path: python, args: vec![script.into(), path.into()], env: Vec::new() })
}

pub(crate) fn cron_job(world: &World, ground: &Ground, database: &str, contender: Contender) -> Result<Usage> {
    let per_file = matches!(contender, Contender::CronPerFile | Contender::CronPerFileTuned);
    let insert_per = if per_file { "file" } else { "unit" };
    let tuned = matches!(contender, Contender::CronPerFileTuned | Contender::CronPerUnitTuned);
    // On disk, where a cron job keeps them.
    let folder = world.folder("copied")?;
    let more = json!({ "database": database, "insert_per": insert_per, "tuned": tuned });
    let usage = python(world, ground, "cron_job.py", &folder, &more)?.measure(world)?;
    fs::remove_dir_all(&folder).context("removing the copied archives")?;
    Ok(usage)
}

/// Puts every archive beside the others as `.csv.gz`, with the very same deflate stream: the embedded ClickHouse cannot
/// read zip. Returns the glob for `s3()`.
pub(crate) fn place_gzips(world: &World, ground: &Ground) -> Result<String> {
    let folder = format!("{}/gz", ground.project.prefix());
    let target = world.stack.s3.bucket_dir().join(&folder);
    fs::create_dir_all(&target).context("making a folder for .csv.gz")?;
    for archive in archives(ground.project.data_dir())? {
        let zip = fs::read(&archive.path).context(archive.path.display())?;
        let name = format!("{}-{}-{}.csv.gz", archive.symbol, archive.interval, archive.period);
        fs::write(target.join(&name), gzip_of(&zip).context(&name)?).context(&name)?;
    }
    Ok(format!("{}/{}/{folder}/*.csv.gz", world.stack.s3.endpoint(), world.stack.s3.bucket()))
}

fn gzip_of(zip: &[u8]) -> Result<Vec<u8>> {
    let mut archive = ZipArchive::new(std::io::Cursor::new(zip)).context("opening")?;
    let mut member = archive.by_index_raw(0).context("its member")?;
    // No name, no time; 255 is an unknown system.
    let mut gzip = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    member.read_to_end(&mut gzip).context("its bytes")?;
    gzip.extend(member.crc32().to_le_bytes());
    gzip.extend((member.size() as u32).to_le_bytes());
    Ok(gzip)
}

/// One statement; the client is this process and only waits.
pub(crate) fn s3_function(world: &World, ground: &Ground, database: &str, glob: &str) -> Result<Usage> {
    let credentials = world.stack.s3.credentials();
    let time = |column: &str| format!("fromUnixTimestamp64Micro({column}, 'UTC')");
    let columns: [&str; 12] = [
        "open_us Int64",
        "open Decimal(18, 8)",
        "high Decimal(18, 8)",
        "low Decimal(18, 8)",
        "close Decimal(18, 8)",
        "volume Decimal(38, 8)",
        "close_us Int64",
        "quote_volume Decimal(38, 8)",
        "trades UInt64",
        "taker_buy_volume Decimal(38, 8)",
        "taker_buy_quote_volume Decimal(38, 8)",
        "ignored UInt8",
    ];
    let sql = format!(
        "INSERT INTO {database}.klines SELECT 'binance', 'spot', 'klines', '{interval}', splitByChar('-', _file)[1], {}, {}, \
         open, high, low, close, volume, quote_volume, taker_buy_volume, taker_buy_quote_volume, trades, 1, 0 \
         FROM s3('{glob}', '{}', '{}', 'CSV', '{}') \
         SETTINGS max_threads = {READERS}, max_insert_threads = {WRITERS}, max_download_threads = 1, \
         optimize_on_insert = 0, materialize_statistics_on_insert = 0, insert_deduplicate = 0",
        time("open_us"),
        time("close_us"),
        credentials.access_key_id,
        credentials.secret_access_key,
        columns.join(", "),
        interval = ground.shape.interval,
    );
    let (before, start) = (world.spent()?, Instant::now());
    world.ask(&sql).map_err(|failure| {
        // The statement, which an error repeats, holds a password.
        Failure::new(failure.to_string().replace(&credentials.secret_access_key, "…"))
    })?;
    let wall_s = start.elapsed().as_secs_f64();
    Ok(Usage { wall_s, servers: world.spent()?.minus(before), ..Usage::default() })
}
