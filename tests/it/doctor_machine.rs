//! `doctor` on the machine: clocks, open files and disk space.

use tests::process::Finished;
use tests::project::Project;
use tests::root::is_root;
use tests::servers::Stack;
use tests::{Context, Failure, Result};

use crate::handmade::{Handmade, Placed};
use crate::scenario::{SOON, btc};

fn doctor(project: &Project, script: &str, binary: &str) -> Result<Finished> {
    project.start_by_script(script, binary, &["doctor"])?.wait(SOON)
}

#[test]
fn doctor_compares_the_clock_with_every_server() -> Result<()> {
    let project = Project::new(Stack::shared(), "clocks")?;
    project.puller(&["migrate"])?.expect_code(0)?;
    for (offset, said) in [("-3600", "behind it"), ("7200", "ahead of it")] {
        for (binary, clocks) in [
            ("puller", &["nats, clock", "bucket, clock", "destination primary, clock"][..]),
            ("uploader", &["nats, clock", "bucket, clock"]),
        ] {
            let doctor = project.start(binary, &["doctor"], &[("FERRY_CLOCK_OFFSET_S", offset)])?.wait(SOON)?;
            let doctor = doctor.expect_code(4)?;
            for clock in clocks {
                let found = doctor.stdout.lines().find(|line| line.contains(clock));
                let found = found.ok_or_else(|| Failure::new(format!("no {clock} in {}", doctor.stdout)))?;
                assert!(found.starts_with("FAIL") && found.contains(said), "{found}");
            }
        }
    }
    Ok(())
}

#[test]
fn the_limit_of_open_files_is_raised_and_a_low_one_is_named() -> Result<()> {
    let mut project = Project::new(Stack::shared(), "open-files")?;
    project.puller(&["migrate"])?.expect_code(0)?;
    project.set("puller.slots", 16)?;
    let low = doctor(&project, r#"exec prlimit --nofile=100:200 "$@""#, "puller")?.expect_code(4)?;
    assert!(low.stdout.contains("open files: 200 may be open, and 256 can be needed"), "{}", low.stdout);
    let mut worker = project.start_by_script(r#"exec prlimit --nofile=100:200 "$@""#, "puller", &["run"])?;
    worker.wait_for_line("200 may be open", SOON)?;
    worker.drain(SOON)?;

    let raised = doctor(&project, r#"exec prlimit --nofile=100:4096 "$@""#, "puller")?.expect_code(0)?;
    assert!(raised.stdout.contains("open files: 4096 may be open"), "{}", raised.stdout);
    let uploader = doctor(&project, r#"exec prlimit --nofile=64:100 "$@""#, "uploader")?.expect_code(4)?;
    assert!(uploader.stdout.contains("open files: 100 may be open"), "{}", uploader.stdout);
    Ok(())
}

/// Root gives the folder a small file system that no other process sees.
#[test]
fn a_folder_with_too_little_space_is_named() -> Result<()> {
    if !is_root("to mount a file system")? {
        return Ok(());
    }
    let mut project = Project::new(Stack::shared(), "no-room")?;
    let folder = project.dir().join("copy");
    std::fs::create_dir(&folder).context("the folder")?;
    let folder = folder.to_string_lossy().into_owned();
    project.set("destinations", serde_json::json!([{ "name": "copy", "type": "directory", "path": folder }]))?;
    project.puller(&["migrate"])?.expect_code(0)?;
    project.puller(&["doctor"])?.expect_code(0)?;
    let script =
        format!(r#"exec unshare --mount sh -c 'mount -t tmpfs -o size=16m none "{folder}" && exec "$@"' sh "$@""#);
    let doctor = doctor(&project, &script, "puller")?.expect_code(4)?;
    assert!(doctor.stdout.contains("destination copy, space: 16.0 MiB free, 1.0 GiB are needed"), "{}", doctor.stdout);
    Ok(())
}

/// What is announced to a folder, or still to be stored in one, needs more than the least.
#[test]
fn a_folder_with_too_little_space_for_the_backlog_is_named() -> Result<()> {
    const LARGE: u64 = 3 << 30;
    if !is_root("to mount a file system")? {
        return Ok(());
    }
    let stack = Stack::shared();
    let mut project = Project::new(stack, "little-room")?;
    let folder = project.dir().join("copy");
    std::fs::create_dir(&folder).context("the folder")?;
    let folder = folder.to_string_lossy().into_owned();
    let script =
        format!(r#"exec unshare --mount sh -c 'mount -t tmpfs -o size=2g none "{folder}" && exec "$@"' sh "$@""#);

    project.set("destinations", serde_json::json!([{ "name": "copy", "type": "directory", "path": folder }]))?;
    project.puller(&["migrate"])?.expect_code(0)?;
    {
        let hand = Handmade::new(stack, &project)?;
        let spec = btc("2025-03-01");
        let mut marker = hand.marker(&spec.unit(), &[Placed::of(&project, &spec, &spec.zip())]);
        marker["objects"][0]["size"] = LARGE.into();
        hand.publish(&spec.unit(), marker.to_string().as_bytes())?;
    }
    let found = doctor(&project, &script, "puller")?.expect_code(4)?;
    assert!(found.stdout.contains("destination copy, space: 2.0 GiB free, 3.0 GiB are needed"), "{}", found.stdout);

    // The same at the other end: a sparse file, so large that it must be asked for by its length.
    let archive = project.data_dir().join("data/spot/daily/klines/BTCUSDT/1h/BTCUSDT-1h-2025-03-02.zip");
    std::fs::create_dir_all(archive.parent().unwrap_or(&archive)).context("its folder")?;
    std::fs::File::create(&archive).and_then(|file| file.set_len(LARGE)).context("a sparse file")?;
    project.set("storage.type", "fs")?;
    project.set("storage.fs.path", folder.as_str())?;
    project.set("destinations", serde_json::json!([]))?;
    let found = doctor(&project, &script, "uploader")?.expect_code(4)?;
    assert!(found.stdout.contains("shared folder, space: 2.0 GiB free, 3.0 GiB are needed"), "{}", found.stdout);
    Ok(())
}
