//! `storage.bwlimit` and `--bwlimit`, measured from outside.

use std::time::{Duration, Instant};

use tests::Result;
use tests::data::{ArchiveSpec, Market, mark_all};
use tests::project::Project;
use tests::proxy::Proxy;
use tests::servers::Stack;

const SOON: Duration = Duration::from_secs(90);
const MIB: u64 = 1 << 20;

/// Of the limit: the contract.
const TOLERANCE: f64 = 0.1;

fn behind_a_proxy(label: &str) -> Result<(Project, Proxy)> {
    let mut project = Project::new(Stack::shared(), label)?;
    let proxy = Proxy::start(Stack::shared().s3.address())?;
    project.set("storage.r2.endpoint", format!("http://{}", proxy.address()))?;
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
fn the_limit_is_kept_within_a_tenth_both_ways() -> Result<()> {
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

/// Three seconds before the hour it is slow, and at the hour it is not.
#[test]
fn the_limit_changes_at_the_timetables_hour() -> Result<()> {
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
fn what_is_wrong_in_a_limit_is_named() -> Result<()> {
    let mut project = Project::new(Stack::shared(), "bad-limit")?;
    let wrong = project.uploader(&["upload", "--bwlimit", "08:00,512K 19:00,fast"])?.expect_code(2)?;
    assert!(wrong.stderr.contains("'fast' is not a limit"), "{}", wrong.stderr);
    project.set("storage.bwlimit", "Someday-08:00,1M")?;
    let wrong = project.puller(&["pull"])?.expect_code(2)?;
    assert!(wrong.stderr.contains("storage.bwlimit: 'Someday' is not a day"), "{}", wrong.stderr);
    Ok(())
}
