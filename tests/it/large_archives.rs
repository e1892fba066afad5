//! Large archives: sent in parts, resumed after a kill, and never stored with other bytes than those that were checked.

use std::path::Path;
use std::time::Duration;

use tests::data::{ArchiveSpec, Market, mark_all, sha256};
use tests::process::Process;
use tests::project::Project;
use tests::proxy::{Fault, Proxy, Request};
use tests::servers::Stack;
use tests::{Context, Result};

use crate::handmade::Handmade;
use crate::scenario::{MIB, SLOW_DOWN, SOON, assert_nothing_uploaded, proxy_of_bucket};

/// Of the size that all large archives here are cut into.
const PART: u64 = 8 * MIB;

fn large(seed: u64) -> ArchiveSpec {
    ArchiveSpec::new(Market::Spot, "BIGUSDT", "1s", "2025-03").seed(seed)
}

/// A project whose uploader sees the bucket through a proxy, with one large archive.
fn with_large(label: &str, bytes: u64) -> Result<(Project, Proxy)> {
    let mut project = Project::new(Stack::shared(), label)?;
    let proxy = proxy_of_bucket(&mut project, Stack::shared())?;
    large(0).write_bulk(project.data_dir(), bytes)?;
    mark_all(project.data_dir())?;
    Ok((project, proxy))
}

/// The bucket has the archive as it lies on disk, stored in parts, and one marker announces it.
fn check_stored(hand: &Handmade<'_>, markers: usize) -> Result<()> {
    let spec = large(0);
    let key = format!("{}/{}", hand.project.prefix(), spec.path());
    let on_disk = std::fs::read(hand.project.data_dir().join(spec.path())).context("the archive")?;
    assert!(hand.get(&key)? == on_disk, "other bytes are in the bucket");
    let (etag, metadata) = hand.head(&key)?;
    assert_eq!(metadata, sha256(&on_disk));
    let parts = (on_disk.len() as u64).div_ceil(PART);
    assert!(etag.ends_with(&format!("-{parts}")), "{etag}");
    let all = hand.markers()?;
    assert_eq!(all.len(), markers);
    assert_eq!(all[markers - 1].1["objects"][0]["sha256"], metadata.as_str());
    assert_eq!(remembered(hand.project)?, 0);
    Ok(())
}

/// Uploads the uploader remembers.
fn remembered(project: &Project) -> Result<usize> {
    let state = project.dir().join("state");
    let found = std::process::Command::new("find").arg(state).args(["-path", "*/uploads-*/*.json"]).output();
    let found = found.context("find")?;
    Ok(String::from_utf8_lossy(&found.stdout).lines().count())
}

fn part_puts(proxy: &Proxy) -> Vec<Request> {
    proxy.requests().into_iter().filter(|request| request.line.contains("partNumber=")).collect()
}

fn wait_for_bytes(project: &Project, proxy: &Proxy, bytes: u64) -> Result<()> {
    project.wait_until(&format!("{bytes} bytes on their way"), SOON, || Ok(proxy.body_bytes() >= bytes))
}

#[test]
fn a_killed_upload_of_a_large_archive_resumes() -> Result<()> {
    const SIZE: u64 = 45 * MIB;
    let (mut project, proxy) = with_large("resumed", SIZE)?;
    project.set("storage.r2.transfers", 1)?;
    let hand = Handmade::new(Stack::shared(), &project)?;
    let mut kills = 0;
    // Each time a part and a half further.
    while proxy.body_bytes() + PART * 3 / 2 < SIZE {
        let goal = proxy.body_bytes() + PART * 3 / 2;
        let mut dying = project.start("uploader", &["upload", "--bwlimit", "24M"], &[])?;
        wait_for_bytes(&project, &proxy, goal)?;
        dying.kill9()?;
        kills += 1;
    }
    assert!(kills >= 3, "{kills} kills");
    assert_eq!(remembered(&project)?, 1);
    let done = project.uploader(&["upload"])?.expect_code(0)?;
    assert!(done.stderr.contains("going on with an upload"), "{}", done.stderr);
    check_stored(&hand, 1)?;
    let sent: u64 = part_puts(&proxy).iter().map(|request| request.body).sum();
    assert!(sent <= SIZE + kills * PART + PART / 8, "{sent} bytes were sent of {SIZE}, with {kills} kills");
    // What was answered was not sent again.
    let answered = part_puts(&proxy).into_iter().filter(|request| request.status == Some(200)).count() as u64;
    assert_eq!(answered, SIZE.div_ceil(PART));

    // A run that dies between the last step at the bucket and its own note of it.
    large(1).write_bulk(project.data_dir(), 20 * MIB)?;
    let mut dying = project.start("uploader", &["upload"], &[("FERRY_FAILPOINT", "uploader.parts_completed")])?;
    assert_eq!(dying.wait(SOON)?.code, None);
    let before = part_puts(&proxy).len();
    project.uploader(&["upload"])?.expect_code(0)?;
    assert_eq!(part_puts(&proxy).len(), before, "the object was whole");
    assert_nothing_uploaded(&project.uploader(&["upload", "--json"])?.expect_code(0)?.json()?);
    Ok(())
}

/// Between a kill and the next run, and while its parts are on their way.
#[test]
fn an_archive_changed_during_its_upload_is_never_stored_mixed() -> Result<()> {
    let (mut project, proxy) = with_large("changed", 30 * MIB)?;
    project.set("storage.r2.transfers", 1)?;
    let hand = Handmade::new(Stack::shared(), &project)?;
    let begin = |bytes: u64| -> Result<Process> {
        let goal = proxy.body_bytes() + bytes;
        let process = project.start("uploader", &["upload", "--bwlimit", "24M"], &[])?;
        wait_for_bytes(&project, &proxy, goal)?;
        Ok(process)
    };
    begin(PART * 3 / 2)?.kill9()?;
    large(1).write_bulk(project.data_dir(), 30 * MIB)?;
    let mut uploading = begin(PART * 3 / 2)?;
    let aborts = || proxy.requests().iter().filter(|request| request.line.starts_with("DELETE ")).count();
    assert_eq!(aborts(), 1, "the first upload is dropped");

    // One byte, in place, of a part that is sent already.
    let path = project.data_dir().join(large(1).path());
    flip(&path, 4 * MIB)?;
    let held_back = uploading.wait(SOON)?.expect_code(1)?;
    assert!(held_back.stderr.contains("changed after it was checked"), "{}", held_back.stderr);
    assert!(hand.markers()?.is_empty());
    assert!(hand.keys()?.iter().all(|key| !key.ends_with(".zip")), "{:?}", hand.keys()?);
    // It is a damaged archive now: its member's CRC is that of the other byte.
    project.uploader(&["upload"])?.expect_code(1)?;
    flip(&path, 4 * MIB)?;
    project.uploader(&["upload"])?.expect_code(0)?;
    check_stored(&hand, 1)
}

fn flip(path: &Path, at: u64) -> Result<()> {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::options().read(true).write(true).open(path).context("the archive")?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).context("a byte")?;
    file.write_all_at(&[byte[0] ^ 1], at).context("a byte")
}

#[test]
fn abandoned_parts_are_removed_from_the_bucket() -> Result<()> {
    let (mut project, proxy) = with_large("stale", 30 * MIB)?;
    project.set("storage.r2.transfers", 1)?;
    let mut dying = project.start("uploader", &["upload", "--bwlimit", "24M"], &[])?;
    wait_for_bytes(&project, &proxy, PART * 3 / 2)?;
    dying.kill9()?;
    // The unit is no longer wanted.
    for name in std::fs::read_dir(project.data_dir()).context("data_dir")?.flatten() {
        if name.file_name().to_string_lossy().starts_with("_SUCCESS__") {
            std::fs::remove_file(name.path()).context("a mark")?;
        }
    }
    let upload = |offset: Duration| -> Result<usize> {
        let offset = offset.as_secs().to_string();
        let mut run = project.start("uploader", &["upload"], &[("FERRY_CLOCK_OFFSET_S", &offset)])?;
        run.wait(SOON)?.expect_code(0)?;
        Ok(proxy.requests().iter().filter(|request| request.line.starts_with("DELETE ")).count())
    };
    assert_eq!(upload(Duration::from_secs(47 * 3600))?, 0);
    assert_eq!(remembered(&project)?, 1);
    assert_eq!(upload(Duration::from_secs(49 * 3600))?, 1);
    assert_eq!(remembered(&project)?, 0);
    let aborted = proxy.requests().into_iter().find(|request| request.line.starts_with("DELETE "));
    assert_eq!(aborted.and_then(|request| request.status), Some(204));
    Ok(())
}

/// Within one run: each part is sent again by itself.
#[test]
fn parts_are_retried_after_cut_connections_and_busy_answers() -> Result<()> {
    const TRANSFERS: usize = 2;
    // The zip around the rows is somewhat larger.
    const SIZE: u64 = 118 * MIB;
    let (mut project, proxy) = with_large("cut-parts", SIZE)?;
    project.set("storage.r2.transfers", TRANSFERS)?;
    let hand = Handmade::new(Stack::shared(), &project)?;
    // Two parts go through, and the connection breaks in the third.
    proxy.set(Fault::CutRequestAfter(20 * MIB as usize));
    let mut uploading = project.start("uploader", &["upload", "--bwlimit", "24M"], &[])?;
    wait_for_bytes(&project, &proxy, 30 * MIB)?;
    for fault in [
        Fault::Answer { status: "503 Slow Down", headers: "", body: SLOW_DOWN },
        Fault::Answer { status: "500 Internal Server Error", headers: "Retry-After: 1\r\n", body: "" },
        Fault::Away,
    ] {
        let met = proxy.met();
        proxy.set(fault);
        project.wait_until("the fault to be met", SOON, || Ok(proxy.met() >= met + 2))?;
        // A part has so many attempts; each fault is to meet parts that have spent none yet.
        let goal = part_puts(&proxy).iter().filter_map(part_number).max().unwrap_or_default() + TRANSFERS;
        let goal = goal.min(SIZE.div_ceil(PART) as usize);
        proxy.set(Fault::None);
        project.wait_until(&format!("the first {goal} parts"), SOON, || {
            let stored = answered_parts(&proxy);
            Ok((1..=goal).all(|number| stored.contains(&number)))
        })?;
    }
    uploading.wait(SOON)?.expect_code(0)?;
    check_stored(&hand, 1)?;
    assert_eq!(answered_parts(&proxy).len() as u64, SIZE.div_ceil(PART), "each part is stored once");
    Ok(())
}

fn part_number(request: &Request) -> Option<usize> {
    let (_, after) = request.line.split_once("partNumber=")?;
    after.split(['&', ' ']).next()?.parse().ok()
}

/// The numbers of the parts that the bucket took, one for each time it did.
fn answered_parts(proxy: &Proxy) -> Vec<usize> {
    part_puts(proxy).iter().filter(|request| request.status == Some(200)).filter_map(part_number).collect()
}

/// A seventh of what the archive has.
#[test]
fn an_archive_larger_than_the_memory_limit_is_uploaded_within_it() -> Result<()> {
    const SIZE: u64 = 300 * MIB;
    const RESIDENT_MAX: u64 = 200 * MIB;
    let (project, proxy) = with_large("memory", SIZE)?;
    let hand = Handmade::new(Stack::shared(), &project)?;
    let mut uploading = project.start("uploader", &["upload"], &[])?;
    let mut resident = 0;
    while uploading.is_running() {
        resident = high_water(uploading.pid()).unwrap_or(resident);
        std::thread::sleep(Duration::from_millis(10));
    }
    uploading.wait(SOON)?.expect_code(0)?;
    check_stored(&hand, 1)?;
    eprintln!("at most {} MiB were resident", resident / MIB);
    assert!((MIB..RESIDENT_MAX).contains(&resident), "{resident} bytes were resident");
    let sent: u64 = part_puts(&proxy).iter().map(|request| request.body).sum();
    assert!((SIZE..SIZE + MIB).contains(&sent), "{sent}");
    Ok(())
}

/// The most memory a process ever had, in bytes; `None` once it is gone.
fn high_water(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

/// `reconcile --fix` puts a large archive back that somebody deleted from the bucket.
#[test]
fn a_large_archive_that_the_bucket_lost_is_uploaded_again() -> Result<()> {
    let (project, _proxy) = with_large("lost-large", 20 * MIB)?;
    let hand = Handmade::new(Stack::shared(), &project)?;
    project.uploader(&["upload"])?.expect_code(0)?;
    let key = format!("{}/{}", project.prefix(), large(0).path());
    hand.delete(&key)?;
    project.uploader(&["reconcile"])?.expect_code(4)?;
    project.uploader(&["reconcile", "--fix"])?.expect_code(0)?;
    check_stored(&hand, 1)?;
    assert_nothing_uploaded(&project.uploader(&["upload", "--json"])?.expect_code(0)?.json()?);
    Ok(())
}
