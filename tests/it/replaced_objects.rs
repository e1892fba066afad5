//! An object in the bucket is replaced only by an uploader that has seen its present version.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tests::data::{ArchiveSpec, Market, mark_all};
use tests::project::Project;
use tests::proxy::{Fate, Fault, Proxy};
use tests::servers::Stack;
use tests::{Context, Result};

use crate::handmade::Handmade;
use crate::scenario::{SOON, btc, upload};

fn older() -> ArchiveSpec {
    btc("2025-03-01").generated_at("2025-03-02T00:00:00Z")
}

fn newer() -> ArchiveSpec {
    older().seed(1).generated_at("2025-03-05T00:00:00Z")
}

fn key(project: &Project) -> String {
    format!("{}/{}", project.prefix(), older().path())
}

/// Another machine's folder, marked as complete.
fn elsewhere(project: &Project, write: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let folder = project.dir().join("elsewhere");
    fs::create_dir_all(&folder).context("a folder")?;
    write(&folder)?;
    mark_all(&folder)?;
    Ok(folder)
}

/// Runs the uploader with that folder, to its end.
fn upload_elsewhere(project: &Project, folder: &Path, args: &[&str]) -> Result<tests::process::Finished> {
    let (folder, state) = (folder.display().to_string(), project.dir().join("state-elsewhere").display().to_string());
    let env = [("FERRY__LOCAL__DATA_DIR", folder.as_str()), ("FERRY__LOCAL__STATE_DIR", state.as_str())];
    project.start("uploader", args, &env)?.wait(SOON)
}

/// The uploader of `project` comes to its object, by the request that `words` name; before that goes out, another uploader
/// stores a newer archive, announces it and removes its own copy.
fn late(project: &Project, newer: &Path, words: &str) -> Result<()> {
    let stack = Stack::shared();
    let hand = Handmade::new(stack, project)?;
    let proxy = Proxy::start(stack.s3.address())?;
    proxy.set(Fault::holding(words));
    let endpoint = format!("http://{}", proxy.address());
    let env = [("FERRY__STORAGE__R2__ENDPOINT", endpoint.as_str())];
    let mut late = project.start("uploader", &["upload", "--json"], &env)?;
    project.wait_until("the object's turn", SOON, || Ok(proxy.met() > 0))?;
    upload_elsewhere(project, newer, &["upload", "--cleanup"])?.expect_code(0)?;
    let markers = hand.markers()?;
    proxy.set(Fault::None);
    let late = late.wait(SOON)?.expect_code(0)?;
    assert_eq!(late.json()?["units"]["unchanged"], 1, "{}", late.stdout);
    assert!(late.stderr.contains("--accept-rollback"), "{}", late.stderr);

    let after = hand.markers()?;
    assert_eq!((after.len(), &after), (1, &markers));
    let object = &after[0].1["objects"][0];
    let key = object["key"].as_str().unwrap_or_default();
    assert_eq!(tests::data::sha256(&hand.get(key)?), object["sha256"].as_str().unwrap_or_default());
    let unit = format!("{}/_markers/binance/spot/klines", project.prefix());
    let current = hand.keys()?.into_iter().find(|key| key.starts_with(&unit) && key.ends_with("current.json"));
    let named: Value = serde_json::from_slice(&hand.get(&current.unwrap_or_default())?).context("current.json")?;
    assert_eq!(named["revision"], after[0].1["revision"]);
    let reconcile = project.uploader(&["reconcile", "--content"])?;
    assert!(reconcile.stdout.contains("1 the same"), "{}", reconcile.stdout);
    Ok(())
}

#[test]
fn a_late_put_does_not_replace_a_newer_archive() -> Result<()> {
    let project = Project::new(Stack::shared(), "late-put")?;
    older().write(project.data_dir())?;
    mark_all(project.data_dir())?;
    let folder = elsewhere(&project, |folder| newer().write(folder).map(drop))?;
    late(&project, &folder, &format!("PUT /{}/{}", Stack::shared().s3.bucket(), key(&project)))?;
    project.puller(&["pull"])?.expect_code(0).map(drop)
}

/// It is found before anything is sent.
#[test]
fn an_archive_announced_since_is_not_replaced() -> Result<()> {
    let project = Project::new(Stack::shared(), "late-head")?;
    older().write(project.data_dir())?;
    mark_all(project.data_dir())?;
    let folder = elsewhere(&project, |folder| newer().write(folder).map(drop))?;
    late(&project, &folder, &format!("HEAD /{}/{}", Stack::shared().s3.bucket(), key(&project)))
}

#[test]
fn late_parts_do_not_replace_a_newer_archive() -> Result<()> {
    let project = Project::new(Stack::shared(), "late-parts")?;
    let large = |seed, at: &str| ArchiveSpec::new(Market::Spot, "BIGUSDT", "1s", "2025-03").seed(seed).generated_at(at);
    large(0, "2025-04-02T00:00:00Z").write_bulk(project.data_dir(), 18 << 20)?;
    mark_all(project.data_dir())?;
    let folder = elsewhere(&project, |folder| large(1, "2025-04-05T00:00:00Z").write_bulk(folder, 18 << 20).map(drop))?;
    late(&project, &folder, &format!("POST /{}/{}", Stack::shared().s3.bucket(), project.prefix()))
}

/// What nobody announced is no other uploader's: a run that was killed left it.
#[test]
fn an_object_of_a_killed_run_is_replaced_by_the_next_archive() -> Result<()> {
    let project = Project::new(Stack::shared(), "killed-put")?;
    let hand = Handmade::new(Stack::shared(), &project)?;
    older().write(project.data_dir())?;
    mark_all(project.data_dir())?;
    let die = [("FERRY_FAILPOINT", "uploader.object_put")];
    project.start("uploader", &["upload"], &die)?.wait(SOON)?;
    assert_eq!((hand.get(&key(&project))?, hand.markers()?.len()), (older().zip(), 0));
    newer().write(project.data_dir())?;
    project.uploader(&["upload"])?.expect_code(0)?;
    assert_eq!((hand.get(&key(&project))?, hand.markers()?.len()), (newer().zip(), 1));
    Ok(())
}

#[test]
fn a_bucket_that_refuses_conditions_is_written_without() -> Result<()> {
    let stack = Stack::shared();
    let project = Project::new(stack, "no-conditions")?;
    let hand = Handmade::new(stack, &project)?;
    let proxy = Proxy::start(stack.s3.address())?;
    let endpoint = format!("http://{}", proxy.address());
    for (spec, header) in [(older(), "if-none-match"), (newer(), "if-match")] {
        spec.write(project.data_dir())?;
        mark_all(project.data_dir())?;
        proxy.set(Fault::aimed_at_header(header, Fate::NotImplemented));
        let env = [("FERRY__STORAGE__R2__ENDPOINT", endpoint.as_str())];
        project.start("uploader", &["upload"], &env)?.wait(SOON)?.expect_code(0)?;
        assert_eq!(hand.get(&key(&project))?, spec.zip());
    }
    assert_eq!(hand.markers()?.len(), 2);
    Ok(())
}

/// While it compares, an uploader on another machine announces a correction: what is in the bucket then is no loss.
#[test]
fn reconcile_does_not_replace_a_correction() -> Result<()> {
    let stack = Stack::shared();
    // Seen when the objects are asked for, and when the lost one is sent.
    for (request, code) in [("HEAD", 0), ("PUT", 1)] {
        let project = Project::new(stack, "reconcile-late")?;
        let hand = Handmade::new(stack, &project)?;
        upload(&project, [older()])?;
        let folder = elsewhere(&project, |folder| newer().write(folder).map(drop))?;
        if request == "PUT" {
            hand.delete(&key(&project))?;
        }
        let proxy = Proxy::start(stack.s3.address())?;
        proxy.set(Fault::holding(&format!("{request} /{}/{}", stack.s3.bucket(), key(&project))));
        let endpoint = format!("http://{}", proxy.address());
        let env = [("FERRY__STORAGE__R2__ENDPOINT", endpoint.as_str())];
        let mut reconcile = project.start("uploader", &["reconcile", "--fix"], &env)?;
        project.wait_until("the object's turn", SOON, || Ok(proxy.met() > 0))?;
        upload_elsewhere(&project, &folder, &["upload"])?.expect_code(0)?;
        proxy.set(Fault::None);
        reconcile.wait(SOON)?.expect_code(code)?;
        assert!(hand.get(&key(&project))? == newer().zip(), "{request}: the correction is gone from the bucket");
        project.uploader(&["reconcile", "--content"])?.expect_code(0)?;
    }
    Ok(())
}
