//! Every kind of storage serves every command: a shared folder, and the remote data_dir itself by rsync over SSH.

use std::fs;
use std::net::SocketAddr;

use tests::data::{ArchiveSpec, Market, mark_all};
use tests::project::Project;
use tests::proxy::{Fault, Proxy};
use tests::servers::{Sshd, Stack};
use tests::{Context, Failure, Result};

use crate::handmade::Handmade;
use crate::scenario::{SOON, assert_nothing_pulled, assert_nothing_uploaded, hours, is_checked, text};

fn write_some(project: &Project) -> Result<()> {
    for symbol in ["BTCUSDT", "币安人生USDT"] {
        for day in ["2025-03-01", "2025-03-02"] {
            hours(symbol, day).write(project.data_dir())?;
            ArchiveSpec::new(Market::Um, symbol, "1m", day).write(project.data_dir())?;
        }
    }
    mark_all(project.data_dir()).map(drop)
}

/// Lets the puller reach the project's data_dir through this address.
pub(crate) fn by_rsync(project: &mut Project, server: &Sshd, address: SocketAddr) -> Result<()> {
    let data_dir = text(project.data_dir())?.to_owned();
    for (key, value) in [
        ("storage.type", "rsync"),
        ("storage.rsync.host", "127.0.0.1"),
        ("storage.rsync.user", server.user()),
        ("storage.rsync.key_file", text(&server.user_key())?),
        ("storage.rsync.known_hosts", text(&server.known_hosts())?),
        ("storage.rsync.path", &data_dir),
    ] {
        project.set(key, value)?;
    }
    project.set("storage.rsync.port", address.port())
}

/// Everything a first run, a second run and a correction do, and what `reconcile` says of it.
fn ship(project: &Project) -> Result<()> {
    write_some(project)?;
    project.uploader(&["upload"])?.expect_code(0)?;
    project.puller(&["migrate"])?.expect_code(0)?;
    project.puller(&["pull"])?.expect_code(0)?;
    project.check_tables(5856)?;
    project.uploader(&["doctor"])?.expect_code(0)?;
    project.puller(&["doctor"])?.expect_code(0)?;
    assert_nothing_uploaded(&project.uploader(&["upload", "--json"])?.expect_code(0)?.json()?);
    assert_nothing_pulled(&project.puller(&["pull", "--json"])?.expect_code(0)?.json()?);
    hours("BTCUSDT", "2025-03-02").seed(7).write(project.data_dir())?;
    project.uploader(&["upload"])?.expect_code(0)?;
    project.puller(&["pull"])?.expect_code(0)?;
    project.check_tables(5856)?;
    project.uploader(&["reconcile"])?.expect_code(0).map(drop)
}

#[test]
fn a_shared_folder_serves_every_command() -> Result<()> {
    let mut project = Project::new(Stack::shared(), "fs")?;
    let share = project.dir().join("share");
    let mounted_elsewhere = project.dir().join("mnt");
    fs::create_dir(&share).context("the share")?;
    std::os::unix::fs::symlink(&share, &mounted_elsewhere).context("a link")?;
    project.set("storage.type", "fs")?;
    project.set("storage.fs.path", text(&share)?)?;
    ship(&project)?;

    // The other site may have it under another name, and the archives may go once they are in it.
    project.set("storage.fs.path", text(&mounted_elsewhere)?)?;
    project.puller(&["replay", "--force"])?.expect_code(0)?;
    project.puller(&["pull"])?.expect_code(0)?;
    project.check_tables(5856)?;
    assert_nothing_uploaded(&project.uploader(&["upload", "--json"])?.expect_code(0)?.json()?);
    project.uploader(&["upload", "--cleanup"])?.expect_code(0)?;
    assert!(tests::data::archives(project.data_dir())?.is_empty());

    project.set("storage.fs.path", text(&project.dir().join("not-mounted"))?)?;
    for binary in ["uploader", "puller"] {
        let doctor = project.start(binary, &["doctor", "--json"], &[])?.wait(SOON)?.expect_code(4)?.json()?;
        assert!(is_checked(&doctor, "check storage.fs.path, and that the share is mounted"), "{doctor:#}");
    }
    hours("NEWUSDT", "2025-03-03").write(project.data_dir())?;
    mark_all(project.data_dir())?;
    let upload = project.uploader(&["upload"])?.expect_code(2)?;
    assert!(upload.stderr.contains("there is no folder"), "{}", upload.stderr);
    Ok(())
}

#[test]
fn the_remote_data_dir_serves_as_the_store() -> Result<()> {
    let mut project = Project::new(Stack::shared(), "rsync")?;
    let server = Sshd::start(&project.dir().join("ssh"))?;
    by_rsync(&mut project, &server, server.address())?;
    ship(&project)?;

    // It is the only copy.
    let before = tests::data::archives(project.data_dir())?;
    let cleanup = project.uploader(&["upload", "--cleanup"])?.expect_code(2)?;
    assert!(cleanup.stderr.contains("the only copy"), "{}", cleanup.stderr);
    assert_eq!(tests::data::archives(project.data_dir())?, before);

    project.set("storage.rsync.key_file", text(&server.stranger_key())?)?;
    let doctor = project.puller(&["doctor"])?.expect_code(4)?;
    let advised = ["Permission denied (publickey", "check storage.rsync.user and key_file"];
    assert!(advised.iter().all(|words| doctor.stdout.contains(words)), "{}", doctor.stdout);
    Ok(())
}

/// The archive changes between two passes of the uploader, while a worker is about to fetch it.
#[test]
fn an_archive_that_changes_before_its_fetch_is_superseded() -> Result<()> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, "rsync-changed")?;
    let server = Sshd::start(&project.dir().join("ssh"))?;
    by_rsync(&mut project, &server, server.address())?;
    project.set("retry.attempts", 24)?;
    let hand = Handmade::new(stack, &project)?;
    write_some(&project)?;
    project.uploader(&["upload"])?.expect_code(0)?;
    let old = hand.markers()?;
    hours("BTCUSDT", "2025-03-01").seed(7).write(project.data_dir())?;

    let mut worker = project.spawn_puller(&["run"])?;
    let outcomes = |outcome: &str| {
        let sql = format!("SELECT count() FROM {{db}}.ingest_log WHERE outcome = '{outcome}'");
        Ok(project.archives_loaded()? > 0 && project.query(&sql)?.trim() != "0")
    };
    project.wait_until("other bytes than the marker names", SOON, || outcomes("retry"))?;
    project.uploader(&["upload"])?.expect_code(0)?;
    project.wait_for_archives(8, SOON)?;
    // And a marker of what was before, from whoever kept one.
    let unit = hours("BTCUSDT", "2025-03-01").unit();
    let subject = unit.replace('/', ".");
    let first = old.iter().find(|(on, _)| on.ends_with(&subject));
    let (_, payload) = first.ok_or_else(|| Failure::new("the unit was not announced"))?;
    hand.publish(&unit, payload.to_string().as_bytes())?;
    project.wait_until("a marker passed over", SOON, || outcomes("superseded"))?;
    worker.drain(SOON)?;
    project.check_tables(5856)?;
    assert!(hand.dead_letters()?.is_empty(), "{:#?}", hand.dead_letters()?);
    Ok(())
}

/// No connection lasts long enough for the archive: it only ever arrives if each goes on where the last was cut.
#[test]
fn a_cut_transfer_resumes_where_it_stopped() -> Result<()> {
    const LASTS: usize = 1_000_000;
    let mut project = Project::new(Stack::shared(), "rsync-cut")?;
    let server = Sshd::start(&project.dir().join("ssh"))?;
    let proxy = Proxy::start(server.address())?;
    by_rsync(&mut project, &server, proxy.address())?;
    let archive = ArchiveSpec::new(Market::Spot, "BTCUSDT", "1s", "2025-03-01").write(project.data_dir())?;
    let bytes = fs::metadata(&archive).context("the archive")?.len();
    assert!(bytes > 2 * LASTS as u64, "{bytes} bytes are no test");
    mark_all(project.data_dir())?;
    project.uploader(&["upload"])?.expect_code(0)?;

    proxy.set(Fault::CutReplyAfter(LASTS));
    let mut worker = project.spawn_puller(&["run"])?;
    project.wait_for_archives(1, SOON)?;
    worker.drain(SOON)?;
    assert!(proxy.met() > 2, "{} connections", proxy.met());
    let attempts = project.query("SELECT max(attempt) FROM {db}.ingest_log")?;
    assert_eq!(attempts.trim(), "1", "a link that drops spends no attempt");
    project.check_tables(86_400)?;
    let left = fs::read_dir(project.dir().join("state/rsync")).context("the staging folder")?.count();
    assert_eq!(left, 0, "what was read is removed");
    Ok(())
}
