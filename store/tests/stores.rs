//! One suite over every kind of store. What the uploader stores, the puller fetches: each through its own end.

use std::collections::HashSet;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use common::checksum::{Md5Sum, Sha256Sum, parts_etag};
use common::config::{Config, Need};
use store::{End, Given, ObjectStore, Over, Put, StoreErrorKind};
use tests::servers::{RunDir, S3, Sshd};

/// A store as both sites see it.
struct Place {
    /// The configuration file's `local` and `storage`, as YAML.
    yaml: String,
    dir: PathBuf,
    /// The folder that keys are paths of, where there is one.
    folder: Option<PathBuf>,
}

impl Place {
    fn open(&self) -> (ObjectStore, ObjectStore) {
        self.open_with(&[])
    }

    /// With some of the settings replaced.
    fn open_with(&self, changes: &[(&str, &str)]) -> (ObjectStore, ObjectStore) {
        let mut yaml = self.yaml.clone();
        for (from, to) in changes {
            assert!(yaml.contains(from), "{from} in {yaml}");
            yaml = yaml.replace(from, to);
        }
        let file = self.dir.join(format!("config-{}.yaml", Sha256Sum::of(yaml.as_bytes())));
        std::fs::write(&file, yaml).expect("written");
        let storage = Config::load(Some(&file), &[Need::Storage]).expect("a configuration").storage;
        (ObjectStore::new(&storage, End::Uploader), ObjectStore::new(&storage, End::Puller))
    }
}

fn key(name: &str) -> String {
    format!("download/_markers/{name}")
}

/// Bytes that are not the same anywhere.
fn body(seed: u64, bytes: usize) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut body: Vec<u8> = (0..bytes.div_ceil(8)).flat_map(|_| next()).collect();
    body.truncate(bytes);
    body.into()
}

async fn put(store: &ObjectStore, key: &str, body: &Bytes) {
    store.put(key, body.clone(), Sha256Sum::of(body)).await.expect(key);
}

async fn fetch(store: &ObjectStore, key: &str) -> Bytes {
    let mut download = store.get(key, 1 << 30).await.expect(key);
    let mut bytes = Vec::new();
    while let Some(chunk) = download.chunk().await.expect(key) {
        bytes.extend_from_slice(&chunk);
    }
    bytes.into()
}

async fn what_is_put_is_there(uploader: &ObjectStore, puller: &ObjectStore) {
    for (name, body) in [
        ("binance/um/klines/1h/2026-02-14/current.json", body(1, 500)),
        ("empty", Bytes::new()),
        ("with a space/and 'quotes' & $(touch x); #", body(2, 1_000)),
        ("币安人生USDT/ünï.json", body(3, 1_000)),
        ("-rf", body(4, 10)),
        ("large", body(5, 40 << 20)),
    ] {
        let key = key(name);
        put(uploader, &key, &body).await;
        let stored = uploader.head(&key).await.expect(name).expect(name);
        assert_eq!((stored.size, stored.sha256), (body.len() as u64, Some(Sha256Sum::of(&body))), "{name}");
        for store in [uploader, puller] {
            assert!(fetch(store, &key).await == body, "{name} came back otherwise");
        }
        let whole = puller.get_small(&key, 64 << 20).await.expect(name).expect(name);
        assert!(whole == body, "{name}");
    }
}

async fn the_last_one_put_stays(uploader: &ObjectStore, puller: &ObjectStore) {
    // Longer, shorter, and of the same length: what was there must not shine through.
    for (seed, bytes) in [(1, 2_000_000), (2, 3_000_000), (3, 1_000), (4, 1_000), (5, 0)] {
        let (key, body) = (key("changes"), body(seed, bytes));
        put(uploader, &key, &body).await;
        assert_eq!(uploader.head(&key).await.expect("answers").expect("is there").sha256, Some(Sha256Sum::of(&body)));
        assert!(fetch(puller, &key).await == body, "{bytes} bytes");
    }
}

async fn what_is_not_there_is_said_so(place: &Place, uploader: &ObjectStore, puller: &ObjectStore) {
    put(uploader, &key("a/file"), &body(1, 10)).await;
    let mut names = vec!["nothing", "no/such/folder"];
    if place.folder.is_some() {
        // A folder, and below a file; the test's S3 server takes keys for paths too, and fails over these.
        names.extend(["a", "a/file/below"]);
    }
    for name in names {
        let key = key(name);
        assert_eq!(uploader.head(&key).await.expect(name), None);
        for store in [uploader, puller] {
            let error = store.get(&key, 100).await.err().expect(name);
            assert_eq!(error.kind, StoreErrorKind::NotFound, "{name}: {error}");
            assert_eq!(store.get_small(&key, 100).await.expect(name), None);
        }
    }
}

async fn no_more_is_taken_than_was_asked_for(uploader: &ObjectStore, puller: &ObjectStore) {
    put(uploader, &key("long"), &body(1, 5_000)).await;
    for store in [uploader, puller] {
        let error = store.get_small(&key("long"), 4_999).await.expect_err("too large");
        assert_eq!(error.kind, StoreErrorKind::TooLarge, "{error}");
        assert_eq!(store.get_small(&key("long"), 5_000).await.expect("fits").expect("is there").len(), 5_000);
    }
}

/// A key is a name, or it is refused; it never is a way out.
async fn no_key_leads_out(place: &Place, uploader: &ObjectStore, puller: &ObjectStore) {
    let secret = place.dir.join("secret");
    std::fs::write(&secret, "secret").expect("written");
    let climb = "../".repeat(20);
    let out = secret.display();
    let long = key(&"a/".repeat(600));
    for key in [
        format!("download/_markers/{climb}{out}"),
        format!("download/_markers/../../{climb}{out}"),
        format!("{climb}{out}"),
        format!("/{out}"),
        "download/_markers/./x".into(),
        "download/_markers//x".into(),
        "download/_markers/new\nline".into(),
        long,
    ] {
        let written = uploader.put(&key, body(1, 10), Sha256Sum::of(&body(1, 10))).await;
        assert_eq!(std::fs::read(&secret).expect("reads"), b"secret", "{key}");
        for store in [uploader, puller] {
            if let Ok(Some(bytes)) = store.get_small(&key, 100).await {
                assert!(bytes != b"secret"[..], "{key}");
            }
        }
        if place.folder.is_some() {
            assert!(written.is_err(), "{key}");
            assert!(uploader.head(&key).await.is_err(), "{key}");
        }
    }
}

/// Whoever may write to a share may put links there.
async fn no_link_leads_out(place: &Place, uploader: &ObjectStore) {
    let Some(folder) = &place.folder else { return };
    let outside = place.dir.join("outside");
    std::fs::create_dir_all(&outside).expect("made");
    std::fs::write(outside.join("file"), "secret").expect("written");
    let markers = folder.join("_markers");
    for (link, to) in [("folder", outside.clone()), ("file", outside.join("file")), ("root", PathBuf::from("/"))] {
        std::os::unix::fs::symlink(to, markers.join(link)).expect("linked");
    }
    let root = format!("root{}", outside.join("file").display());
    for name in ["folder/file", "folder/new", "file", root.as_str()] {
        let key = key(name);
        assert!(uploader.head(&key).await.is_err(), "{name}");
        assert!(uploader.get(&key, 100).await.is_err(), "{name}");
        let put = uploader.put(&key, body(1, 10), Sha256Sum::of(&body(1, 10))).await;
        // A file in the place of a link replaces it.
        assert_eq!(put.is_ok(), name == "file", "{name}");
    }
    assert_eq!(std::fs::read(outside.join("file")).expect("reads"), b"secret");
    assert_eq!(std::fs::read_dir(&outside).expect("reads").count(), 1);
}

/// Of two uploaders the second does not replace what it has not seen.
async fn what_was_not_seen_is_not_replaced(uploader: &ObjectStore, puller: &ObjectStore) {
    let key = key("seen");
    let put = async |seed, over: Over<'_>| {
        let body = body(seed, 1_000);
        uploader.put_over(&key, body.clone(), Sha256Sum::of(&body), over).await.expect("answers")
    };
    let head = async || uploader.head(&key).await.expect("answers").expect("is there");
    assert_eq!(put(1, Over::Nothing).await, Put::Done);
    let first = head().await;
    assert_eq!(put(2, Over::Nothing).await, Put::Changed);
    assert_eq!(put(2, Over::This(&first)).await, Put::Done);
    assert_eq!(put(3, Over::This(&first)).await, Put::Changed);
    assert!(fetch(puller, &key).await == body(2, 1_000));
    assert_eq!(put(3, Over::This(&head().await)).await, Put::Done);
    let gone = store::Stored { size: 1, ..first };
    let other = format!("{key}-other");
    let none = uploader.put_over(&other, body(1, 10), Sha256Sum::of(&body(1, 10)), Over::This(&gone)).await;
    assert_eq!(none.expect("answers"), Put::Changed, "nothing lies there");
    assert_eq!(uploader.head(&other).await.expect("answers"), None);
}

/// Stores that copy files take one if it is the one that is meant; others say that they do not.
async fn a_file_is_stored_if_it_is_the_one_meant(place: &Place, uploader: &ObjectStore, puller: &ObjectStore) {
    let (file, body, key) = (place.dir.join("source"), body(1, 3_000_000), key("from a file"));
    std::fs::write(&file, &body).expect("written");
    let sha256 = Sha256Sum::of(&body);
    // The one end of rsync stores archives by their lying there: see `archives_by_rsync`.
    if !puller.copies_files() {
        assert!(puller.put_file(&key, &file, sha256, Over::Nothing).await.is_err());
        assert_eq!(puller.get_small(&key, 100).await.expect("answers"), None);
        return;
    }
    let put = async |sha256, over: Over<'_>| uploader.put_file(&key, &file, sha256, over).await.expect("answers");
    let other = Sha256Sum::of(b"other");
    assert_eq!(put(other, Over::Nothing).await, Put::OtherBytes, "another file");
    assert_eq!(uploader.head(&key).await.expect("answers"), None);
    assert_eq!(put(sha256, Over::Nothing).await, Put::Done);
    assert!(fetch(puller, &key).await == body);
    let stored = uploader.head(&key).await.expect("answers");
    assert_eq!(put(other, Over::Anything).await, Put::OtherBytes, "another file");
    assert_eq!(put(sha256, Over::Nothing).await, Put::Changed, "something lies there");
    assert!(fetch(puller, &key).await == body, "what was there stays");
    assert_eq!(put(sha256, Over::seen(stored.as_ref())).await, Put::Done);
    assert!(uploader.put_file(&key, &place.dir.join("nothing"), sha256, Over::Anything).await.is_err());
}

/// What is ours has its sha256, and is none the worse for being given it once more.
async fn what_is_known_of_an_object(uploader: &ObjectStore) {
    assert_eq!(uploader.details(&key("unknown")).await.expect("answers"), None);
    let (key, body) = (key("known"), body(1, 1_000));
    put(uploader, &key, &body).await;
    let stored = uploader.head(&key).await.expect("answers").expect("is there");
    let details = uploader.details(&key).await.expect("answers").expect("is there");
    assert_eq!((&details.stored, details.md5), (&stored, None));
    let given = uploader.give_sha256(&key, &stored.etag, Sha256Sum::of(&body)).await;
    assert_eq!(given.expect("answers"), Given::Done);
    assert_eq!(uploader.head(&key).await.expect("answers"), Some(stored));
}

async fn parts_become_an_object(place: &Place, uploader: &ObjectStore, puller: &ObjectStore) {
    let key = key("in parts");
    let parts = [body(1, 5 << 20), body(2, 5 << 20), body(3, 100)];
    let (whole, md5s) = (Bytes::from(parts.concat()), parts.each_ref().map(|part| Md5Sum::of(part)));
    let sha256 = Sha256Sum::of(&whole);
    if place.folder.is_some() {
        for store in [uploader, puller] {
            assert!(store.begin_parts(&key, sha256).await.is_err());
            assert_eq!(store.pending_uploads("download").await.expect("answers"), []);
        }
        return;
    }
    let upload = uploader.begin_parts(&key, sha256).await.expect("begins");
    let seen = uploader.head(&key).await.expect("answers");
    // In any order, and one of them twice.
    for (number, part) in [(3, &parts[2]), (1, &parts[2]), (1, &parts[0])] {
        uploader.put_part(&upload, number, part.clone()).await.expect("stored");
    }
    let mut stored = uploader.stored_parts(&upload).await.expect("answers");
    stored.sort_by_key(|part| part.number);
    assert_eq!(stored.iter().map(|part| (part.number, part.size)).collect::<Vec<_>>(), [(1, 5 << 20), (3, 100)]);
    assert_eq!(uploader.head(&key).await.expect("answers"), None, "nobody sees parts");
    uploader.put_part(&upload, 2, parts[1].clone()).await.expect("stored");
    let etags = md5s.map(|md5| format!("\"{md5}\""));
    let put = uploader.complete_parts(&upload, &etags, Over::Nothing).await;
    assert_eq!(put.expect("put together"), Put::Done);
    let again = uploader.begin_parts(&key, sha256).await.expect("begins");
    let etag = uploader.put_part(&again, 1, parts[2].clone()).await.expect("stored");
    let put = uploader.complete_parts(&again, &[etag], Over::seen(seen.as_ref())).await;
    assert_eq!(put.expect("answers"), Put::Changed, "something lies there");
    uploader.abort_parts(&again).await.expect("answers");
    let found = uploader.head(&key).await.expect("answers").expect("is there");
    assert_eq!((found.size, found.sha256), (whole.len() as u64, Some(sha256)));
    assert_eq!(found.etag, parts_etag(&md5s));
    assert!(fetch(puller, &key).await == whole);

    let upload = uploader.begin_parts(&key, sha256).await.expect("begins");
    uploader.put_part(&upload, 1, parts[2].clone()).await.expect("stored");
    uploader.abort_parts(&upload).await.expect("forgotten");
    // Some servers know nothing of it, others say that it has none.
    assert!(uploader.stored_parts(&upload).await.map_or(true, |parts| parts.is_empty()));
    assert!(fetch(puller, &key).await == whole);
}

async fn of_many_puts_one_is_whole(place: &Place, uploader: &ObjectStore, puller: &ObjectStore) {
    let key = key("contended");
    let bodies: Vec<Bytes> = (0..12).map(|seed| body(seed, 300_000)).collect();
    let known: HashSet<Sha256Sum> = bodies.iter().map(|body| Sha256Sum::of(body)).collect();
    put(uploader, &key, &bodies[0]).await;
    let putting: Vec<_> = bodies
        .into_iter()
        .map(|body| {
            let (uploader, key) = (uploader.clone(), key.clone());
            tokio::spawn(async move { put(&uploader, &key, &body).await })
        })
        .collect();
    for _ in 0..3 {
        assert!(known.contains(&Sha256Sum::of(&fetch(puller, &key).await)), "a reader saw half of one");
    }
    for put in putting {
        put.await.expect("stored");
    }
    let stored = uploader.head(&key).await.expect("answers").expect("is there");
    assert!(stored.sha256.is_some_and(|sha256| known.contains(&sha256)));
    let fetched = Sha256Sum::of(&fetch(puller, &key).await);
    assert!(known.contains(&fetched));
    // The test's S3 server writes an object and its metadata one after the other, and does not keep them together.
    if place.folder.is_some() {
        assert_eq!(stored.sha256, Some(fetched));
    }
}

async fn listings_are_in_order_and_in_pages(uploader: &ObjectStore) {
    let mut expected: Vec<String> = (0..1_050).map(|n| key(&format!("list/{}/{n}.json", n % 7))).collect();
    expected.extend(["list.json", "list-a/b", "list0"].map(key));
    let slots = Arc::new(tokio::sync::Semaphore::new(16));
    let putting: Vec<_> = expected
        .iter()
        .map(|key| {
            let (uploader, key, slots) = (uploader.clone(), key.clone(), slots.clone());
            tokio::spawn(async move {
                let _slot = slots.acquire().await.expect("never closed");
                put(&uploader, &key, &body(1, 10)).await;
            })
        })
        .collect();
    for put in putting {
        put.await.expect("stored");
    }
    expected.sort();
    for (prefix, count) in [(key("list"), 1_053), (key("list/"), 1_050), (key("list/3/"), 150), (key("lists"), 0)] {
        let (mut keys, mut after, mut pages) = (Vec::new(), None, 0);
        loop {
            let page = uploader.list(&prefix, after).await.expect("a page");
            assert!(page.keys.len() <= 1_000, "{} keys", page.keys.len());
            keys.extend(page.keys);
            pages += 1;
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        let expected: Vec<&String> = expected.iter().filter(|key| key.starts_with(&prefix)).collect();
        assert_eq!(keys.iter().collect::<Vec<_>>(), expected);
        assert_eq!((keys.len(), pages > 1), (count, count > 1_000), "{prefix}");
    }
}

/// Nothing is wrong with an object whose store is not there: it must not be taken for a missing one.
async fn a_missing_place_is_told(place: &Place, changes: &[(&str, &str)]) {
    let (uploader, puller) = place.open();
    for store in [&uploader, &puller] {
        store.probe("download").await.expect("is there");
    }
    uploader.probe_writing().await.expect("may be written");

    let (uploader, puller) = place.open_with(changes);
    let body = body(1, 10);
    for store in [&uploader, &puller] {
        let error = store.probe("download").await.expect_err("is not there");
        assert_eq!(error.kind, StoreErrorKind::NoSuchBucket, "{error}");
        // S3 servers differ in which of the two they call missing.
        if place.folder.is_some() {
            let error = store.get(&key("a"), 100).await.err().expect("is not there");
            assert_eq!(error.kind, StoreErrorKind::NoSuchBucket, "{error}");
        }
    }
    if place.folder.is_some() {
        let error = uploader.put(&key("a"), body.clone(), Sha256Sum::of(&body)).await.expect_err("is not there");
        assert_eq!(error.kind, StoreErrorKind::NoSuchBucket, "{error}");
    }
}

async fn every_case(place: &Place, missing: &[(&str, &str)]) {
    let (uploader, puller) = place.open();
    what_is_put_is_there(&uploader, &puller).await;
    the_last_one_put_stays(&uploader, &puller).await;
    what_is_not_there_is_said_so(place, &uploader, &puller).await;
    no_more_is_taken_than_was_asked_for(&uploader, &puller).await;
    no_key_leads_out(place, &uploader, &puller).await;
    no_link_leads_out(place, &uploader).await;
    what_was_not_seen_is_not_replaced(&uploader, &puller).await;
    a_file_is_stored_if_it_is_the_one_meant(place, &uploader, &puller).await;
    what_is_known_of_an_object(&uploader).await;
    parts_become_an_object(place, &uploader, &puller).await;
    of_many_puts_one_is_whole(place, &uploader, &puller).await;
    listings_are_in_order_and_in_pages(&uploader).await;
    a_missing_place_is_told(place, missing).await;
    if let Some(folder) = &place.folder {
        assert_eq!(temporaries(folder), Vec::<PathBuf>::new());
    }
}

fn temporaries(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("reads").map(|entry| entry.expect("an entry")) {
        if entry.file_type().expect("a type").is_dir() {
            found.extend(temporaries(&entry.path()));
        } else if entry.file_name().to_string_lossy().starts_with(".ferry") {
            found.push(entry.path());
        }
    }
    found
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Runtime::new().expect("a runtime").block_on(future)
}

#[test]
fn a_bucket() -> tests::Result<()> {
    let dir = RunDir::new("store-s3")?;
    let server = S3::start(&dir.path().join("s3"))?;
    let (endpoint, keys) = (server.endpoint(), server.credentials());
    let yaml = format!(
        "storage: {{type: s3, r2: {{bucket: {}, endpoint: '{endpoint}', access_key_id: '{}', secret_access_key: '{}'}}}}",
        server.bucket(),
        keys.access_key_id,
        keys.secret_access_key
    );
    let place = Place { yaml, dir: dir.path().to_owned(), folder: None };
    block_on(every_case(&place, &[("bucket: ferry", "bucket: no-such-bucket")]));
    Ok(())
}

#[test]
fn a_shared_folder() -> tests::Result<()> {
    let dir = RunDir::new("store-fs")?;
    let share = dir.path().join("sh are");
    std::fs::create_dir(&share).expect("made");
    let yaml = format!("storage: {{type: fs, fs: {{path: '{}'}}}}", share.display());
    let place = Place { yaml, dir: dir.path().to_owned(), folder: Some(share.join("download")) };
    block_on(every_case(&place, &[("sh are", "not mounted")]));
    Ok(())
}

/// A data_dir, an SSH server, and what the configuration says of both.
fn remote(dir: &Path) -> tests::Result<(Sshd, Place)> {
    let server = Sshd::start(&dir.join("ssh keys"))?;
    let data_dir = dir.join("data dir");
    std::fs::create_dir(&data_dir).expect("made");
    let shown = data_dir.display();
    let yaml = format!(
        "local: {{data_dir: '{shown}', state_dir: '{}'}}\n\
         storage: {{type: rsync, rsync: {{host: 127.0.0.1, port: {}, user: {}, key_file: '{}', known_hosts: '{}', \
         path: '{shown}'}}}}",
        dir.join("state").display(),
        server.address().port(),
        server.user(),
        server.user_key().display(),
        server.known_hosts().display(),
    );
    Ok((server, Place { yaml, dir: dir.to_owned(), folder: Some(data_dir) }))
}

#[test]
fn a_data_dir_by_rsync() -> tests::Result<()> {
    let dir = RunDir::new("store-rsync")?;
    let (_server, place) = remote(dir.path())?;
    block_on(every_case(&place, &[("data dir", "not mounted")]));
    // What was fetched is read and gone.
    assert_eq!(std::fs::read_dir(dir.path().join("state/rsync")).expect("reads").count(), 0);
    Ok(())
}

/// The archives of an rsync store are the files of the data_dir.
#[test]
fn archives_by_rsync() -> tests::Result<()> {
    let dir = RunDir::new("store-archives")?;
    let (server, place) = remote(dir.path())?;
    let data_dir = place.folder.clone().expect("a folder");
    let archive = data_dir.join("data/spot/A.zip");
    std::fs::create_dir_all(archive.parent().expect("a folder")).expect("made");
    // A data_dir may be put together from several disks.
    std::fs::create_dir(dir.path().join("disk")).expect("made");
    std::os::unix::fs::symlink(dir.path().join("disk"), data_dir.join("data/futures")).expect("linked");
    block_on(async {
        let (uploader, puller) = place.open();
        for (key, file) in [
            ("download/data/spot/A.zip", archive.clone()),
            ("download/data/futures/B.zip", dir.path().join("disk/B.zip")),
        ] {
            let content = body(1, 100_000);
            let sha256 = Sha256Sum::of(&content);
            let absent = uploader.put(key, content.clone(), sha256).await;
            assert!(absent.is_err() && !file.exists(), "an archive is never written");
            assert_eq!(uploader.head(key).await.expect("answers"), None);

            std::fs::write(&file, &content).expect("written");
            let before = std::fs::metadata(&file).expect("is there").modified().expect("a time");
            uploader.put(key, content.clone(), sha256).await.expect("is there already");
            assert_eq!(std::fs::metadata(&file).expect("is there").modified().expect("a time"), before);
            assert_eq!(uploader.head(key).await.expect("answers").expect("is there").sha256, Some(sha256));
            assert!(fetch(&puller, key).await == content);
            let put = uploader.put_file(key, &file, sha256, Over::Nothing).await;
            assert_eq!(put.expect("answers"), Put::Done, "lies there");
            let other = body(2, 100_000);
            let put = uploader.put_file(key, &file, Sha256Sum::of(&other), Over::Anything).await;
            assert!(put.is_err(), "it has other bytes");
            assert!(uploader.put(key, other.clone(), Sha256Sum::of(&other)).await.is_err());
            assert!(fetch(&puller, key).await == content, "an archive is never overwritten");
        }
        for odd in ["download/data/spot/*.zip", "download/data/spot/[A].zip", "elsewhere/data/spot/A.zip"] {
            let error = puller.get(odd, 1 << 20).await.err().expect(odd);
            assert_eq!(error.kind, StoreErrorKind::BadKey, "{odd}: {error}");
        }
        let stranger = server.stranger_key().display().to_string();
        let denied = [
            (server.user_key().display().to_string(), stranger),
            (server.known_hosts().display().to_string(), "/dev/null".into()),
        ];
        for (from, to) in &denied {
            let (_, puller) = place.open_with(&[(from, to)]);
            let error = puller.get("download/data/spot/A.zip", 1 << 20).await.err().expect("refused");
            assert_eq!(error.kind, StoreErrorKind::Denied, "{to}: {error}");
        }
        let (_, away) = place.open_with(&[(&format!("port: {}", server.address().port()), "port: 9")]);
        let error = away.get("download/data/spot/A.zip", 1 << 20).await.err().expect("nobody listens");
        assert_eq!(error.kind, StoreErrorKind::Unavailable, "{error}");
    });
    Ok(())
}
