//! `storage.bwlimit` and `--bwlimit`, measured from outside.

use std::time::{Duration, Instant};

use tests::data::{ArchiveSpec, Market, mark_all};
use tests::exchange::Exchange;
use tests::project::Project;
use tests::proxy::Proxy;
use tests::servers::{Sshd, Stack};
use tests::{Context, Result};

use crate::download::days_ago;
use crate::scenario::{MIB, SOON, hours, proxy_of_bucket};
use crate::storages::by_rsync;

/// Of the limit: the contract.
const TOLERANCE: f64 = 0.1;

fn behind_a_proxy(label: &str) -> Result<(Project, Proxy)> {
    let mut project = Project::new(Stack::shared(), label)?;
    let proxy = proxy_of_bucket(&mut project, Stack::shared())?;
    Ok((project, proxy))
}

fn assert_rate(what: &str, bytes: u64, elapsed: Duration, limit: u64) {
    let rate = bytes as f64 / elapsed.as_secs_f64();
    eprintln!("{what}: {bytes} bytes in {elapsed:.2?}, {:.3} of the limit", rate / limit as f64);
    let off = rate / limit as f64 - 1.0;
    assert!(off.abs() <= TOLERANCE, "{what}: {rate:.0} bytes/s instead of {limit}");
}

/// Small archives, parts of a large one, and fetches of both: about ten seconds each way.
#[test]
fn uploads_and_fetches_stay_within_a_tenth_of_the_limit() -> Result<()> {
    const LIMIT: u64 = 2 * MIB;
    let (mut project, proxy) = behind_a_proxy("bandwidth")?;
    // So that they go side by side with the large one.
    for day in 1..=20 {
        let spec = ArchiveSpec::new(Market::Spot, "AAAUSDT", "1m", &format!("2025-03-{day:02}"));
        spec.write_bulk(project.data_dir(), 100_000)?;
    }
    ArchiveSpec::new(Market::Spot, "BIGUSDT", "1s", "2025-03").write_bulk(project.data_dir(), 18 * MIB)?;
    mark_all(project.data_dir())?;
    let mut uploading = project.start("uploader", &["upload", "--bwlimit", "2M"], &[])?;
    project.wait_until("the first bytes", SOON, || Ok(proxy.body_bytes() > 0))?;
    let (begun, before) = (Instant::now(), proxy.body_bytes());
    project.wait_until("most bytes", SOON, || Ok(proxy.body_bytes() > 19 * MIB))?;
    assert_rate("upload", proxy.body_bytes() - before, begun.elapsed(), LIMIT);
    uploading.wait(SOON)?.expect_code(0)?;

    // To another folder, with the limit from the file: 2M up, and as much down.
    let copy = project.dir().join("copy");
    project.set("local.data_dir", copy.to_string_lossy().into_owned())?;
    project.set("storage.bwlimit", "1K:2M")?;
    let before = proxy.reply_bytes();
    let mut pulling = project.start("puller", &["pull", "--no-ingest"], &[])?;
    project.wait_until("the first bytes", SOON, || Ok(proxy.reply_bytes() - before > 100_000))?;
    let begun = Instant::now();
    pulling.wait(SOON)?.expect_code(0)?;
    // What waits in buffers on the way is not here yet, so the end is the process's.
    assert_rate("fetch", proxy.reply_bytes() - before, begun.elapsed(), LIMIT);
    assert_eq!(tests::data::archives(&copy)?.len(), 21);
    Ok(())
}

/// What the service brings from the exchange comes over the same line as all else.
#[test]
fn downloads_stay_within_the_limit() -> Result<()> {
    let exchange = Exchange::start()?;
    let mut project = Project::new(Stack::shared(), "bandwidth-download")?;
    let symbols = ["AUSDT", "BUSDT", "CUSDT", "DUSDT", "EUSDT", "FUSDT"];
    let published = project.dir().join("published");
    for symbol in symbols {
        for day in 1..=3 {
            let spec = ArchiveSpec::new(Market::Spot, symbol, "1h", &days_ago(day));
            let bytes = std::fs::read(spec.write_bulk(&published, MIB)?).context("what was written")?;
            exchange.publish_bytes(&spec, &bytes);
        }
    }
    project.set("download.base_url", exchange.url())?;
    project.set("download.symbols", serde_json::json!(symbols))?;
    project.set("download.market", "spot")?;
    project.set("download.intervals", "1h")?;
    project.set("download.every", "1h")?;
    project.set("storage.bwlimit", "1K:2M")?;
    let mut service = project.spawn_uploader(&["watch"])?;
    let bytes = "marketferry_uploader_download_bytes_total";
    service.wait_for_metric(bytes, SOON, |received| received > 0.0)?;
    let (begun, before) = (Instant::now(), service.metric(bytes)? as u64);
    service.wait_for_metric(bytes, SOON, |received| received > (17 * MIB) as f64)?;
    assert_rate("download", service.metric(bytes)? as u64 - before, begun.elapsed(), 2 * MIB);
    service.drain(SOON).map(drop)
}

/// A shared folder lies behind a network, and what is written there is read back over it.
#[test]
fn reading_a_shared_folder_back_stays_within_the_limit() -> Result<()> {
    let mut project = Project::new(Stack::shared(), "bandwidth-folder")?;
    let share = project.dir().join("share");
    std::fs::create_dir(&share).context("the share")?;
    project.set("storage.type", "fs")?;
    project.set("storage.fs.path", share.to_string_lossy().into_owned())?;
    for day in 1..=16 {
        let spec = hours("AAAUSDT", &format!("2025-03-{day:02}"));
        spec.write_bulk(project.data_dir(), 512 << 10)?;
    }
    mark_all(project.data_dir())?;
    let begun = Instant::now();
    project.uploader(&["upload", "--bwlimit", "off:1M"])?.expect_code(0)?;
    let rate = (8 * MIB) as f64 / begun.elapsed().as_secs_f64() / MIB as f64;
    // With the process's own start and end.
    assert!((0.7..=1.0 + TOLERANCE).contains(&rate), "{rate} of the limit");
    Ok(())
}

/// Each rsync keeps to a limit of its own: one alone has all of it, and several have no more together.
#[test]
fn fetches_by_rsync_share_the_limit() -> Result<()> {
    let mut project = Project::new(Stack::shared(), "bandwidth-rsync")?;
    let server = Sshd::start(&project.dir().join("ssh"))?;
    let proxy = Proxy::start(server.address())?;
    by_rsync(&mut project, &server, proxy.address())?;
    let large = |day: &str| ArchiveSpec::new(Market::Spot, "BIGUSDT", "1s", day);
    let fetch = |project: &mut Project, copy: &str| -> Result<(u64, Duration)> {
        mark_all(project.data_dir())?;
        project.uploader(&["upload"])?.expect_code(0)?;
        let (kept, copy) = (project.data_dir().to_string_lossy().into_owned(), project.dir().join(copy));
        project.set("local.data_dir", copy.to_string_lossy().into_owned())?;
        let before = proxy.reply_bytes();
        let mut pulling = project.start("puller", &["pull", "--no-ingest", "--bwlimit", "2M"], &[])?;
        project.wait_until("the first bytes", SOON, || Ok(proxy.reply_bytes() - before > 100_000))?;
        let (begun, before) = (Instant::now(), proxy.reply_bytes());
        pulling.wait(SOON)?.expect_code(0)?;
        let elapsed = begun.elapsed();
        project.set("local.data_dir", kept)?;
        Ok((proxy.reply_bytes() - before, elapsed))
    };
    large("2025-03-01").write_bulk(project.data_dir(), 16 * MIB)?;
    let (bytes, elapsed) = fetch(&mut project, "first")?;
    assert_rate("one fetch", bytes, elapsed, 2 * MIB);

    large("2025-03-02").write_bulk(project.data_dir(), 9 * MIB)?;
    for number in 1..=7 {
        let symbol = format!("S{number}USDT");
        ArchiveSpec::new(Market::Spot, &symbol, "1s", "2025-03-02").write_bulk(project.data_dir(), MIB)?;
    }
    let (bytes, elapsed) = fetch(&mut project, "second")?;
    let rate = bytes as f64 / elapsed.as_secs_f64() / (2 * MIB) as f64;
    eprintln!("eight fetches: {bytes} bytes in {elapsed:.2?}, {rate:.3} of the limit");
    // The large one logs in again when the small ones are done, and is not fetched again.
    assert!(bytes < 17 * MIB && (0.6..=1.0 + TOLERANCE).contains(&rate), "{rate}");
    Ok(())
}

/// Three seconds before the hour it is slow, and at the hour it is not.
#[test]
fn a_timetable_changes_the_limit_at_its_hour() -> Result<()> {
    let (project, proxy) = behind_a_proxy("timetable")?;
    ArchiveSpec::new(Market::Spot, "BIGUSDT", "1s", "2025-03").write_bulk(project.data_dir(), 20 * MIB)?;
    mark_all(project.data_dir())?;
    let now = jiff::Timestamp::now();
    let goal: jiff::Timestamp = "2027-02-14T07:59:56Z".parse().expect("a time");
    let offset = goal.duration_since(now).as_secs().to_string();
    let env = [("FERRY_CLOCK_OFFSET_S", offset.as_str()), ("TZ", "UTC")];
    let started = Instant::now();
    let mut uploading = project.start("uploader", &["upload", "--bwlimit", "07:00,256K 08:00,off"], &env)?;
    project.wait_until("the first bytes", SOON, || Ok(proxy.body_bytes() > 0))?;
    // Still before the hour, whatever the machine was busy with; else this says nothing.
    project.wait_until("two seconds", SOON, || Ok(started.elapsed() > Duration::from_secs(2)))?;
    let early = proxy.body_bytes();
    if started.elapsed() < Duration::from_millis(2_500) {
        assert!(early <= MIB, "{early} bytes before the hour");
    }
    uploading.wait(SOON)?.expect_code(0)?;
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    Ok(())
}

#[test]
fn a_malformed_limit_is_refused_with_its_reason() -> Result<()> {
    let mut project = Project::new(Stack::shared(), "bad-limit")?;
    let wrong = project.uploader(&["upload", "--bwlimit", "08:00,512K 19:00,fast"])?.expect_code(2)?;
    assert!(wrong.stderr.contains("'fast' is not a limit"), "{}", wrong.stderr);
    project.set("storage.bwlimit", "Someday-08:00,1M")?;
    let wrong = project.puller(&["pull"])?.expect_code(2)?;
    assert!(wrong.stderr.contains("storage.bwlimit: 'Someday' is not a day"), "{}", wrong.stderr);
    Ok(())
}
