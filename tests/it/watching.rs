//! `uploader watch`: it publishes what appears, waits for what is not whole, and reads nothing twice.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use tests::data::{ArchiveSpec, Market, mark, mark_all, sha256};
use tests::project::{Project, Service};
use tests::proxy::Fault;
use tests::servers::Stack;
use tests::{Context, Result};

use crate::handmade::Handmade;
use crate::scenario::{SOON, assert_units, proxy_of_bucket};

pub(crate) fn archive(symbol: &str, day: &str) -> ArchiveSpec {
    ArchiveSpec::new(Market::Um, symbol, "1h", day)
}

/// A service whose first pass has ended. It looks at everything again in a day only.
pub(crate) fn watch(project: &mut Project) -> Result<Service> {
    project.set("watch.rescan", "1d")?;
    let service = project.spawn_uploader(&["watch"])?;
    project.wait_until("the end of the first pass", SOON, || Ok(service.is_ready()))?;
    Ok(service)
}

/// Revisions of a unit on the stream, oldest first.
pub(crate) fn revisions(hand: &Handmade<'_>, unit: &str) -> Result<Vec<Value>> {
    let subject = unit.replace('/', ".");
    Ok(hand.markers()?.into_iter().filter(|(on, _)| on.ends_with(&subject)).map(|(_, marker)| marker).collect())
}

/// Waits until the service has published so often, and returns the revisions of a unit.
pub(crate) fn published(service: &Service, hand: &Handmade<'_>, unit: &str, times: usize) -> Result<Vec<Value>> {
    service.wait_for_metric("marketferry_uploader_units_total{outcome=\"published\"}", SOON, |units| {
        units >= times as f64
    })?;
    revisions(hand, unit)
}

pub(crate) fn symbols(marker: &Value) -> Vec<&str> {
    marker["objects"].as_array().into_iter().flatten().filter_map(|object| object["symbol"].as_str()).collect()
}

#[test]
fn a_new_archive_is_published_without_a_rescan() -> Result<()> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, "events")?;
    project.set("watch.min_age", "1s")?;
    let mut service = watch(&mut project)?;
    let hand = Handmade::new(stack, &project)?;
    let (data_dir, spec) = (project.data_dir().to_owned(), archive("BTCUSDT", "2025-02-01"));

    // A tree that was not there, a mark, a new archive of a marked unit, a changed one.
    spec.write(&data_dir)?;
    mark(&data_dir, &spec.unit())?;
    published(&service, &hand, &spec.unit(), 1)?;
    archive("ETHUSDT", "2025-02-01").write(&data_dir)?;
    let two = published(&service, &hand, &spec.unit(), 2)?;
    assert_eq!(symbols(&two[1]), ["BTCUSDT", "ETHUSDT"]);
    let changed = spec.seed(7);
    changed.write(&data_dir)?;
    let three = published(&service, &hand, &changed.unit(), 3)?;
    assert_eq!(three[2]["objects"][0]["sha256"], sha256(&changed.zip()));
    service.drain(SOON).map(drop)
}

/// An archive that a downloader renames into its place is whole at once; one that is written there is not.
#[test]
fn a_renamed_archive_is_published_at_once() -> Result<()> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, "rename")?;
    project.set("watch.min_age", "1h")?;
    let (moved, written) = (archive("BTCUSDT", "2025-02-01"), archive("BTCUSDT", "2025-02-02"));
    let place = project.data_dir().join(moved.path());
    fs::create_dir_all(place.parent().unwrap_or(&place)).context("a folder")?;
    for unit in [moved.unit(), written.unit()] {
        mark(project.data_dir(), &unit)?;
    }
    let service = watch(&mut project)?;
    let hand = Handmade::new(stack, &project)?;
    written.write(project.data_dir())?;
    let partial = place.with_added_extension("part");
    fs::write(&partial, moved.zip()).context("writing")?;
    fs::rename(&partial, &place).context("renaming")?;
    published(&service, &hand, &moved.unit(), 1)?;
    service.wait_for_metric("marketferry_uploader_waiting_units", SOON, |units| units == 1.0)?;
    assert_eq!(revisions(&hand, &written.unit())?.len(), 0);
    Ok(())
}

#[test]
fn an_archive_being_written_is_never_uploaded_half() -> Result<()> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, "half")?;
    project.set("watch.min_age", "1s")?;
    let spec = archive("BTCUSDT", "2025-02-01");
    let bytes = spec.zip();
    let service = watch(&mut project)?;
    let hand = Handmade::new(stack, &project)?;
    let path = spec.write_unchecked(project.data_dir(), &bytes[..1])?;
    mark(project.data_dir(), &spec.unit())?;
    let mut file = fs::File::options().append(true).open(&path).context("opening")?;
    let chunks: Vec<&[u8]> = bytes[1..].chunks(bytes.len() / 12).collect();
    for chunk in &chunks[..chunks.len() - 1] {
        file.write_all(chunk).context("writing")?;
        // A pass that is told to run now does not wait; it finds that this is no archive yet.
        let pass = project.uploader(&["upload"])?.expect_code(1)?;
        assert!(pass.stderr.contains("is no whole zip") || pass.stderr.contains("changed while"), "{}", pass.stderr);
    }
    assert_eq!(hand.markers()?.len(), 0);
    file.write_all(chunks[chunks.len() - 1]).context("writing")?;
    drop(file);
    let marker = published(&service, &hand, &spec.unit(), 1)?;
    assert_eq!(marker[0]["objects"][0]["sha256"], sha256(&bytes));
    assert_eq!(hand.markers()?.len(), 1);
    Ok(())
}

/// However long: the service knows that the file was not closed. It is neither read nor complained of.
#[test]
fn a_writer_that_pauses_is_waited_for() -> Result<()> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, "pause")?;
    project.set("watch.min_age", "1s")?;
    let (spec, other) = (archive("BTCUSDT", "2025-02-01"), archive("BTCUSDT", "2025-02-02"));
    let bytes = spec.zip();
    let path = project.data_dir().join(spec.path());
    fs::create_dir_all(path.parent().unwrap_or(&path)).context("a folder")?;
    for unit in [spec.unit(), other.unit()] {
        mark(project.data_dir(), &unit)?;
    }
    let mut service = watch(&mut project)?;
    let hand = Handmade::new(stack, &project)?;
    let held_back = |service: &Service| service.metric("marketferry_uploader_units_total{outcome=\"held_back\"}");
    let held_back_before = held_back(&service)?;
    let mut file = fs::File::create(&path).context("making it")?;
    file.write_all(&bytes[..bytes.len() / 2]).context("writing")?;
    service.wait_for_line(&format!("waits until {} is closed", spec.path()), SOON)?;
    // Longer than watch.min_age, while others come and go.
    std::thread::sleep(Duration::from_secs(3));
    other.write(project.data_dir())?;
    published(&service, &hand, &other.unit(), 1)?;
    assert_eq!(service.metric("marketferry_uploader_archives_read_total")?, 1.0, "the other one");
    assert_eq!(held_back(&service)?, held_back_before, "{}", service.stderr());
    file.write_all(&bytes[bytes.len() / 2..]).context("writing")?;
    drop(file);
    let marker = published(&service, &hand, &spec.unit(), 2)?;
    assert_eq!(marker[0]["objects"][0]["sha256"], sha256(&bytes));
    Ok(())
}

/// A request that gets no answer is waited for two minutes; a service that is told to stop has no such time.
#[test]
fn a_stopping_service_abandons_slow_requests() -> Result<()> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, "told-to-stop")?;
    project.set("watch.min_age", "1ms")?;
    let proxy = proxy_of_bucket(&mut project, stack)?;
    let mut service = watch(&mut project)?;
    proxy.set(Fault::Hang);
    let met = proxy.met();
    let spec = archive("BTCUSDT", "2025-02-01");
    spec.write(project.data_dir())?;
    mark(project.data_dir(), &spec.unit())?;
    project.wait_until("a request that hangs", SOON, || Ok(proxy.met() > met))?;
    service.drain(Duration::from_secs(30))?;
    proxy.set(Fault::None);
    project.uploader(&["upload"])?.expect_code(0)?;
    assert_eq!(Handmade::new(stack, &project)?.markers()?.len(), 1);
    Ok(())
}

/// Overwrites every file below a folder.
fn ruin(folder: &Path) -> Result<usize> {
    let mut ruined = 0;
    for entry in fs::read_dir(folder).context(folder.display())? {
        let path = entry.context(folder.display())?.path();
        if path.is_dir() {
            ruined += ruin(&path)?;
        } else {
            fs::write(&path, b"\xff{\"archives\": nonsense\n\n").context(path.display())?;
            ruined += 1;
        }
    }
    Ok(ruined)
}

#[test]
fn a_lost_or_damaged_cache_costs_only_a_reading() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "ruined-cache")?;
    for day in 1..=20 {
        archive("BTCUSDT", &format!("2025-02-{day:02}")).write(project.data_dir())?;
        archive("ETHUSDT", &format!("2025-02-{day:02}")).write(project.data_dir())?;
    }
    mark_all(project.data_dir())?;
    // So that none of them was changed a moment before it is read: that would not be remembered.
    std::thread::sleep(Duration::from_millis(200));
    let pass = || -> Result<(u64, u64)> {
        let report = project.uploader(&["upload", "--json"])?.expect_code(0)?.json()?;
        let number = |value: &Value| value.as_u64().unwrap_or_default();
        Ok((number(&report["units"]["published"]), number(&report["archives"]["read"])))
    };
    let state = project.dir().join("state");
    assert_eq!(pass()?, (20, 40));
    assert_eq!(pass()?, (0, 0));
    assert_eq!(ruin(&state)?, 20);
    assert_eq!(pass()?, (0, 40));
    assert_eq!(pass()?, (0, 0));
    fs::remove_dir_all(&state).context("the state folder")?;
    assert_eq!(pass()?, (0, 40));
    fs::remove_dir_all(&state).context("the state folder")?;
    fs::write(&state, "a file where a folder should be").context("the state file")?;
    assert_eq!(pass()?, (0, 40));
    assert_eq!(Handmade::new(stack, &project)?.markers()?.len(), 20);
    Ok(())
}

#[test]
fn a_returning_queue_gets_every_marker_without_a_second_reading() -> Result<()> {
    let mut stack = Stack::own()?;
    let mut project = Project::new(&stack, "away")?;
    project.set("publish.timeout", "1s")?;
    project.set("watch.rescan", "1d")?;
    for day in 1..=20 {
        archive("BTCUSDT", &format!("2025-02-{day:02}")).write(project.data_dir())?;
    }
    mark_all(project.data_dir())?;
    std::thread::sleep(Duration::from_millis(200));
    stack.nats.stop()?;
    let stored = project.uploader(&["upload", "--json"])?.expect_code(3)?.json()?;
    assert_eq!((&stored["units"]["unannounced"], &stored["archives"]["read"]), (&json!(20), &json!(20)));

    let service = project.spawn_uploader(&["watch"])?;
    let unannounced = "marketferry_uploader_unannounced_units";
    service.wait_for_metric(unannounced, SOON, |units| units == 20.0)?;
    // What comes meanwhile is stored meanwhile.
    let new = archive("BTCUSDT", "2025-02-21");
    new.write(project.data_dir())?;
    mark(project.data_dir(), &new.unit())?;
    service.wait_for_metric(unannounced, SOON, |units| units == 21.0)?;
    stack.nats.restart()?;
    service.wait_for_metric(unannounced, SOON, |units| units == 0.0)?;
    assert_eq!(service.metric("marketferry_uploader_archives_read_total")?, 1.0, "the new one");
    assert_eq!(service.metric("marketferry_uploader_upload_bytes_total")?, new.zip().len() as f64);
    assert_eq!(Handmade::new(&stack, &project)?.markers()?.len(), 21);
    Ok(())
}

#[test]
fn unexpected_files_are_named_and_stop_nothing() -> Result<()> {
    let project = Project::new(Stack::shared(), "odd-files")?;
    let data_dir = project.data_dir();
    let link = |target: &str, path: &str| {
        let path = data_dir.join(path);
        fs::create_dir_all(path.parent().unwrap_or(&path)).context("a folder")?;
        std::os::unix::fs::symlink(target, &path).context(path.display())
    };
    let good = archive("币安人生USDT", "2025-02-01");
    good.write(data_dir)?;
    // Readable by its permissions, and not in fact.
    link("/proc/self/mem", &archive("BTCUSDT", "2025-02-02").path())?;
    let circle = archive("BTCUSDT", "2025-02-03");
    link(&format!("{}.zip", circle.stem()), &circle.path())?;
    for n in 3..=6 {
        mark(data_dir, &format!("binance/um/klines/1h/2025-02-{:02}", n - 2))?;
    }
    fs::create_dir_all(data_dir.join(archive("BTCUSDT", "2025-02-04").path())).context("a folder")?;
    link("up", "data/futures/um/daily/klines/up")?;
    link("..", "data/futures/um/daily/klines/UPUSDT")?;
    archive("ETHUSDT", "2025-02-01").write(&data_dir.join("data/futures/um/daily/klines/NO NAME"))?;
    fs::write(data_dir.join("_SUCCESS__yesterday"), "").context("a mark")?;

    let pass = project.uploader(&["upload", "--json"])?.expect_code(1)?;
    assert_units(&pass.json()?, &[("published", 1), ("unchanged", 0), ("held_back", 3)]);
    for message in [
        "BTCUSDT-1h-2025-02-02.zip cannot be read: Input/output error",
        "BTCUSDT-1h-2025-02-03.zip is a link that leads nowhere",
        "data/futures/um/daily/klines/NO NAME is left out: no symbol has such a name",
        "binance/um/klines/1h/2025-02-04",
        "_SUCCESS__yesterday",
    ] {
        assert!(pass.stderr.contains(message), "{message}: {}", pass.stderr);
    }
    project.puller(&["pull"])?.expect_code(0)?;
    assert_eq!(project.archives_loaded()?, 1);
    Ok(())
}

/// By a limit on the size of files: what cannot be kept is said, and everything is published all the same.
#[test]
fn a_full_state_folder_stops_no_upload() -> Result<()> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, "state-full")?;
    project.set("watch.min_age", "1ms")?;
    let service = watch(&mut project)?;
    let limited = Command::new("prlimit").args(["--pid", &service.pid().to_string(), "--fsize=64:"]).status();
    assert!(limited.context("prlimit, of util-linux")?.success());
    let hand = Handmade::new(stack, &project)?;
    let specs = [archive("BTCUSDT", "2025-02-01"), archive("BTCUSDT", "2025-02-02")];
    for (spec, times) in specs.iter().zip(1..) {
        let partial = project.dir().join("partial");
        fs::write(&partial, spec.zip()).context("writing")?;
        std::thread::sleep(Duration::from_millis(200));
        let place = project.data_dir().join(spec.path());
        fs::create_dir_all(place.parent().unwrap_or(&place)).context("a folder")?;
        fs::rename(&partial, &place).context("renaming")?;
        mark(project.data_dir(), &spec.unit())?;
        published(&service, &hand, &spec.unit(), times)?;
    }
    assert!(service.stderr().contains("cannot keep the hashes (local.state_dir)"), "{}", service.stderr());
    Ok(())
}
