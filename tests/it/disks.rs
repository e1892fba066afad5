//! Read-only and full disks: the uploader names them, and does all that needs no writing.

use std::fs;

use tests::data::{ArchiveSpec, Market, archives, mark_all};
use tests::process::Process;
use tests::project::Project;
use tests::root::is_root;
use tests::servers::Stack;
use tests::{Context, Result};

use crate::handmade::Handmade;
use crate::scenario::{SOON, assert_units, hours};

/// Root may write whatever the permissions say, so it gets a mount of its own that is read-only; others get permissions.
const READ_ONLY: &str = r#"
    if [ "$(id -u)" = 0 ]; then
        exec unshare --mount sh -c 'mount --bind -o ro "$0" "$0" && exec "$@"' "$@"
    fi
    chmod -R a-w "$1" && shift && exec "$@"
"#;

fn write(project: &Project, day: &str) -> Result<()> {
    for symbol in ["BTCUSDT", "ETHUSDT"] {
        hours(symbol, day).write(project.data_dir())?;
    }
    mark_all(project.data_dir()).map(drop)
}

/// Runs the uploader by a shell script, which gets `folder` and then the command.
fn uploader(project: &Project, script: &str, folder: &std::path::Path, args: &[&str]) -> Result<Process> {
    let words = ["/bin/sh".as_ref(), "-c".as_ref(), script.as_ref(), "sh".as_ref(), folder.as_os_str()];
    project.start_by(&words, "uploader", args, &[])
}

fn read_only(project: &Project, args: &[&str]) -> Result<Process> {
    uploader(project, READ_ONLY, project.data_dir(), args)
}

/// What a `data_dir` that cannot be written is for, is done: all but removing.
#[test]
fn a_read_only_data_dir_is_uploaded_and_not_cleaned_up() -> Result<()> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, "read-only")?;
    write(&project, "2025-03-01")?;
    let before = archives(project.data_dir())?.len();
    let pass = read_only(&project, &["upload", "--json"])?.wait(SOON)?.expect_code(0)?;
    assert_units(&pass.json()?, &[("published", 1)]);

    // What cannot be removed is named, and a new unit goes out all the same.
    let writable = std::process::Command::new("chmod").args(["-R", "u+w"]).arg(project.data_dir()).status();
    assert!(writable.context("chmod")?.success());
    write(&project, "2025-03-02")?;
    let cleanup = read_only(&project, &["upload", "--cleanup", "--json"])?.wait(SOON)?.expect_code(1)?;
    assert_units(&cleanup.json()?, &[("published", 1), ("unchanged", 1)]);
    for day in ["2025-03-01", "2025-03-02"] {
        let named = |line: &&str| {
            // The last line says all of them once more, as the command's failure.
            line.contains(" WARN ")
                && line.contains(&hours("ETHUSDT", day).path())
                && line.contains("cannot be removed")
                && (line.contains("Read-only file system") || line.contains("Permission denied"))
        };
        assert_eq!(cleanup.stderr.lines().filter(named).count(), 1, "{}", cleanup.stderr);
    }
    let state = |project: &Project| -> Result<_> {
        Ok((archives(project.data_dir())?.len(), Handmade::new(stack, project)?.markers()?.len()))
    };
    assert_eq!(state(&project)?, (before + 2, 2));

    // The service says the same, and goes on.
    project.set("publish.cleanup_after", "1ms")?;
    let mut service = read_only(&project, &["watch"])?;
    service.wait_for_line("cannot be removed", SOON)?;
    service.drain(SOON)?;
    assert_eq!(state(&project)?, (before + 2, 2));
    Ok(())
}

/// By a limit on the size of files: what does not fit is held back, nothing is left of it, and the rest goes out.
#[test]
fn a_share_that_refuses_large_files_holds_back_only_their_units() -> Result<()> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, "share-limit")?;
    let share = project.dir().join("share");
    fs::create_dir(&share).context("the share")?;
    project.set("storage.type", "fs")?;
    project.set("storage.fs.path", share.to_string_lossy().as_ref())?;
    let hand = Handmade::new(stack, &project)?;
    write(&project, "2025-03-01")?;
    let large = ArchiveSpec::new(Market::Spot, "BTCUSDT", "1m", "2025-03-02");
    let bytes = fs::metadata(large.write(project.data_dir())?).context("the archive")?.len();
    assert!(bytes > 32_768, "{bytes} bytes are no test");
    mark_all(project.data_dir())?;
    let limited = r#"shift; exec prlimit --fsize=32768 "$@""#;
    let pass = uploader(&project, limited, &share, &["upload", "--json"])?.wait(SOON)?.expect_code(1)?;
    let said = |line: &str| line.contains(&large.unit()) && line.contains("File too large");
    assert!(pass.stderr.lines().any(said), "{}", pass.stderr);
    assert_units(&pass.json()?, &[("published", 1), ("unchanged", 0), ("held_back", 1)]);
    let stored = share.join(project.prefix());
    assert_eq!(archives(&stored)?.len(), 2);
    let left = std::process::Command::new("find").arg(&share).args(["-name", ".ferry-*"]).output().context("find")?;
    assert!(left.stdout.is_empty(), "{}", String::from_utf8_lossy(&left.stdout));
    project.uploader(&["upload"])?.expect_code(0)?;
    assert_eq!((archives(&stored)?.len(), hand.markers()?.len()), (3, 2));
    Ok(())
}

/// A share whose disk is full, which takes root to make: a small file system in memory that no other process sees.
#[test]
fn a_share_with_a_full_disk_holds_no_partial_file() -> Result<()> {
    if !is_root("to mount a file system")? {
        return Ok(());
    }
    let stack = Stack::shared();
    let mut project = Project::new(stack, "share-full")?;
    let share = project.dir().join("share");
    fs::create_dir(&share).context("the share")?;
    project.set("storage.type", "fs")?;
    project.set("storage.fs.path", share.to_string_lossy().as_ref())?;
    let hand = Handmade::new(stack, &project)?;
    for day in 1..=9 {
        ArchiveSpec::new(Market::Spot, "BTCUSDT", "1m", &format!("2025-03-0{day}")).write(project.data_dir())?;
    }
    mark_all(project.data_dir())?;
    // Full, still full, and then with room: what each run ended with, and what lay there.
    let script = r#"
        export share=$1; shift
        exec unshare --mount sh -c '
            mount -t tmpfs -o size=256k none "$share"
            for size in 256k 256k 16m; do
                mount -o remount,size=$size "$share" && "$@" >/dev/null; echo "exit $?"
                find "$share" -name ".ferry-*" | sed "s/^/left /"
            done
            echo "archives $(find "$share" -name "*.zip" | wc -l)"
        ' sh "$@"
    "#;
    let runs = uploader(&project, script, &share, &["upload"])?.wait(SOON)?.expect_code(0)?;
    assert_eq!(runs.stdout, "exit 3\nexit 3\nexit 0\narchives 9\n", "{}", runs.stderr);
    assert!(runs.stderr.contains("No space left on device"), "{}", runs.stderr);
    assert_eq!(hand.markers()?.len(), 9);
    Ok(())
}
