//! An uploader that is killed a hundred times during one upload, over a link that drops.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::Path;
use std::time::{Duration, Instant};

use tests::data::{ArchiveSpec, Market, archives, mark, mark_all, sha256};
use tests::dice::Dice;
use tests::project::Project;
use tests::proxy::{Fault, Proxy, Request};
use tests::servers::Stack;
use tests::{Context, Result};

use crate::handmade::{Handmade, Placed, revision};
use crate::scenario::{SOON, assert_nothing_uploaded, proxy_of_bucket};

const KILLS: u64 = 100;
const TRANSFERS: u64 = 4;
/// A tree of archives to take instead of the generated one; it is only read. It must be large enough for so many kills
/// before its upload is through: some hundred archives.
const TREE: &str = "FERRY_KILLS_DATA";
/// Repeats a run.
const SEED: &str = "FERRY_KILLS_SEED";

/// How long an uploader lives: mostly short, sometimes long.
fn life(dice: &mut Dice) -> Duration {
    let limit = if dice.one_in(8) { 2_500 } else { 400 };
    Duration::from_millis(dice.below(limit))
}

fn unit(project: &Project, day: usize) -> Result<()> {
    for symbol in 0..25 {
        let date = format!("2024-{:02}-{:02}", day / 28 + 1, day % 28 + 1);
        let spec = ArchiveSpec::new(Market::Um, &format!("S{symbol:02}USDT"), "1h", &date);
        spec.write(project.data_dir())?;
        if symbol == 24 {
            mark(project.data_dir(), &spec.unit())?;
        }
    }
    Ok(())
}

/// 300 archives in 12 units and a large one, or what `FERRY_KILLS_DATA` names.
fn tree(project: &Project) -> Result<()> {
    if let Some(given) = given_tree() {
        let given = Path::new(&given).join("data");
        std::os::unix::fs::symlink(given, project.data_dir().join("data")).context(TREE)?;
    } else {
        (0..12).try_for_each(|day| unit(project, day))?;
        ArchiveSpec::new(Market::Spot, "BIGUSDT", "1s", "2025-03").write_bulk(project.data_dir(), 20 << 20)?;
    }
    mark_all(project.data_dir()).map(drop)
}

fn given_tree() -> Option<OsString> {
    std::env::var_os(TREE)
}

/// What a request takes longer, so that all lives together are shorter than the upload of a tree that was given: two
/// requests an archive, of which so many are under way at once. To the generated one something is added when it is through.
fn delay(project: &Project) -> Result<Duration> {
    const LIVES: Duration = Duration::from_secs(20);
    const SHORTEST: Duration = Duration::from_millis(15);
    if given_tree().is_none() {
        return Ok(SHORTEST);
    }
    let requests = 2 * archives(project.data_dir())?.len();
    let at_once = u32::try_from(TRANSFERS).context("a small number")?;
    Ok((LIVES * at_once / u32::try_from(requests.max(1)).context("a number of requests")?).max(SHORTEST))
}

#[test]
fn an_uploader_killed_a_hundred_times_publishes_every_unit() -> Result<()> {
    let stack = Stack::shared();
    let mut project = Project::new(stack, "kills")?;
    let proxy = proxy_of_bucket(&mut project, stack)?;
    project.set("storage.r2.transfers", TRANSFERS)?;
    let hand = Handmade::new(stack, &project)?;
    tree(&project)?;
    // A link with a delay, which makes the upload last; setting it anew cuts what is open.
    let link = Fault::Slow(delay(&project)?);
    proxy.set(link.clone());

    let given = std::env::var(SEED).ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or(u64::from(std::process::id()));
    eprintln!("{SEED}={seed}");
    let (mut dice, mut cuts, mut kills, mut days, mut early) = (Dice::new(seed), 0, 0, 12, 0);
    for round in 0.. {
        assert!(round < 4 * KILLS, "the uploader keeps ending by itself");
        if kills >= KILLS {
            break;
        }
        let connections = proxy.met();
        // So that the parts of the large archive arrive within a long life, and not within a short one.
        let mut uploader = project.start("uploader", &["upload", "--bwlimit", "16M"], &[])?;
        let lifetime = life(&mut dice);
        let mut cut_at = dice.one_in(3).then(|| life(&mut dice));
        let started = Instant::now();
        let mut begun = started;
        while begun.elapsed() < lifetime && uploader.is_running() {
            assert!(started.elapsed() < SOON, "it does not speak to the bucket: {}", uploader.stderr());
            if cut_at.is_some_and(|at| begun.elapsed() > at) {
                proxy.set(link.clone());
                (cut_at, cuts) = (None, cuts + 1);
            }
            // A life begins when it speaks to the bucket, however busy the machine is; one in ten may not come that far.
            if proxy.met() == connections && kills % 10 != 0 {
                begun = Instant::now();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        if uploader.is_running() {
            uploader.kill9()?;
        }
        // A run that was through at that very moment was not killed.
        let code = uploader.wait(SOON)?.code;
        if code.is_none() {
            kills += 1;
        } else if code == Some(0) {
            // Done before the last kill: there is more to do, except of a tree that was given.
            assert!(given_tree().is_none(), "all of {TREE} was uploaded after {kills} kills: take a larger tree");
            early += 1;
            unit(&project, days)?;
            days += 1;
        }
    }
    let stored = archive_puts(&proxy).iter().filter(|request| request.status == Some(200)).count();
    eprintln!("{kills} kills, {cuts} cuts, done early {early} times, {stored} archives and parts stored until then");
    assert!(stored > 0, "the kills came too early to be of any use");
    proxy.set(Fault::None);
    project.uploader(&["upload"])?.expect_code(0)?;
    check_bucket_and_stream(&hand)?;
    check_bytes(&project, &proxy, kills, cuts)?;
    assert_nothing_uploaded(&project.uploader(&["upload", "--json"])?.expect_code(0)?.json()?);
    Ok(())
}

/// Every archive as it is on disk, every unit announced once with just these, and nothing else.
fn check_bucket_and_stream(hand: &Handmade<'_>) -> Result<()> {
    let mut units: BTreeMap<String, Vec<Placed>> = BTreeMap::new();
    let mut keys = BTreeSet::new();
    for archive in archives(hand.project.data_dir())? {
        let key = format!("{}/{}", hand.project.prefix(), archive.key);
        let bytes = std::fs::read(&archive.path).context(&archive.key)?;
        assert!(hand.get(&key)? == bytes, "{key} has other bytes");
        let placed =
            Placed { key: key.clone(), symbol: archive.symbol.clone(), size: bytes.len(), sha256: sha256(&bytes) };
        units.entry(archive.unit()).or_default().push(placed);
        keys.insert(key);
    }
    let markers = hand.markers()?;
    assert_eq!(markers.len(), units.len(), "markers");
    for (unit, objects) in &units {
        let announced: Vec<_> =
            markers.iter().filter(|(subject, _)| subject.ends_with(&unit.replace('/', "."))).collect();
        assert_eq!(announced.len(), 1, "{unit}");
        assert_eq!(announced[0].1["revision"], revision(objects).as_str(), "{unit}");
        let folder = format!("{}/_markers/{unit}", hand.project.prefix());
        keys.insert(format!("{folder}/{}.json", revision(objects)));
        keys.insert(format!("{folder}/current.json"));
    }
    assert_eq!(hand.keys()?.into_iter().collect::<BTreeSet<_>>(), keys);
    Ok(())
}

/// What was sent of archives beyond their sizes was in flight when a kill or a cut came: at most `TRANSFERS` requests each
/// time. Nothing was sent again that had been answered, with one exception: of a large archive that this server was
/// putting together when its client died, it loses the parts (S3 goes on with it).
fn check_bytes(project: &Project, proxy: &Proxy, kills: u64, cuts: u64) -> Result<()> {
    let needed: u64 = archives(project.data_dir())?
        .iter()
        .map(|archive| std::fs::metadata(&archive.path).map(|metadata| metadata.len()).context(&archive.key))
        .sum::<Result<u64>>()?;
    let (answered, lost): (Vec<Request>, Vec<Request>) =
        archive_puts(proxy).into_iter().partition(|request| request.status == Some(200));
    let bytes = |requests: &[Request]| requests.iter().map(|request| request.body).sum::<u64>();
    let (sent, in_flight) = (bytes(&answered), bytes(&lost));
    eprintln!("{needed} bytes to send: {sent} answered, {in_flight} in {} requests cut short", lost.len());
    assert!(lost.len() as u64 <= (kills + cuts) * TRANSFERS, "{} requests cut short", lost.len());
    let mut repeated: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    answered.iter().for_each(|request| repeated.entry(target(request)).or_default().push(request.body));
    repeated.retain(|_, bodies| bodies.len() > 1);
    let lost_whole: Vec<String> = requests_of("POST ", proxy)
        .iter()
        .filter(|request| request.line.contains("uploadId=") && request.status != Some(200))
        .map(target)
        .collect();
    let excused = |target: &str| lost_whole.iter().any(|whole| target.starts_with(whole.trim_end()));
    eprintln!("repeated though answered: {repeated:?}; put together without an answer: {lost_whole:?}");
    assert!(repeated.keys().all(|target| excused(target)), "sent again though answered: {repeated:?}");
    let twice: u64 = repeated.values().flat_map(|bodies| &bodies[1..]).sum();
    assert!(sent <= needed + twice, "{sent} bytes were answered of {needed}");
    // Of what was not answered some arrived all the same, and was not sent again either.
    assert!(sent + in_flight >= needed + twice, "{sent} bytes were answered of {needed}");
    Ok(())
}

fn archive_puts(proxy: &Proxy) -> Vec<Request> {
    requests_of("PUT ", proxy)
}

fn requests_of(method: &str, proxy: &Proxy) -> Vec<Request> {
    let of_archives = |request: &Request| {
        request.line.starts_with(method) && (request.line.contains(".zip?") || request.line.contains(".zip "))
    };
    proxy.requests().into_iter().filter(of_archives).collect()
}

/// The object, and the part of it.
fn target(request: &Request) -> String {
    let path = request.line.split(' ').nth(1).unwrap_or_default();
    let (key, query) = path.split_once('?').unwrap_or((path, ""));
    let part = query.split('&').find(|pair| pair.starts_with("partNumber=")).unwrap_or_default();
    format!("{key} {part}")
}
