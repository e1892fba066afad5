//! What an object keeps when it is copied onto itself, and what is made of an answer that was lost.
//!
//! For some of it the server answers by a script: the one that tests start knows no storage classes, and leaves an object
//! that was sent in parts its ETag, where S3 makes it another.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::thread::{self, JoinHandle};

use common::checksum::Sha256Sum;
use common::config::{Config, Need};
use store::{End, Given, ObjectStore};
use tests::servers::{RunDir, S3};

const IN_PARTS: &str = "0123456789abcdef0123456789abcdef-2";
const COPIED: &str = "fedcba9876543210fedcba9876543210";

/// Gives each request the next of these answers (status line and headers); at the end it has all their heads.
fn serve(listener: TcpListener, answers: Vec<String>) -> JoinHandle<Vec<String>> {
    thread::spawn(move || {
        let answer = |answer: String| {
            let (mut client, _) = listener.accept().expect("a connection");
            let mut reader = BufReader::new(client.try_clone().expect("a socket"));
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head).expect("a request") > 0 {}
            write!(client, "HTTP/1.1 {answer}\r\nConnection: close\r\n\r\n").expect("answered");
            head
        };
        answers.into_iter().map(answer).collect()
    })
}

/// The uploader's end of a bucket, for a while.
fn with_store<F: Future>(
    endpoint: &str,
    bucket: &str,
    keys: [&str; 2],
    work: impl FnOnce(ObjectStore) -> F,
) -> F::Output {
    let dir = tempfile::tempdir().expect("a folder");
    let [id, secret] = keys;
    let yaml = format!(
        "storage: {{type: s3, r2: {{bucket: {bucket}, endpoint: '{endpoint}', access_key_id: '{id}', \
         secret_access_key: '{secret}'}}}}"
    );
    let file = dir.path().join("config.yaml");
    std::fs::write(&file, yaml).expect("written");
    let storage = Config::load(Some(&file), &[Need::Storage]).expect("a configuration").storage;
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async { work(ObjectStore::new(&storage, End::Uploader)).await })
}

/// Gives an object its sha256 against these answers.
fn give(answers: Vec<String>) -> (Given, Vec<String>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
    let server = serve(listener, answers);
    let given = with_store(&endpoint, "b", ["k", "s"], async |store| {
        store.give_sha256("download/a.zip", IN_PARTS, Sha256Sum::of(b"abc")).await
    });
    (given.expect("an outcome"), server.join().expect("every answer was asked for"))
}

fn head(etag: &str, more: &str) -> String {
    format!("200 OK\r\nContent-Length: 3\r\nETag: \"{etag}\"\r\n{more}")
}

fn ours() -> String {
    format!("x-amz-meta-mtime: 1740787200\r\nx-amz-meta-sha256: {}", Sha256Sum::of(b"abc"))
}

const BUSY: &str = "503 Slow Down\r\nContent-Length: 0";
const REFUSED: &str = "412 Precondition Failed\r\nContent-Length: 0";

#[test]
fn a_copy_keeps_its_class_and_is_made_once_though_its_answer_is_lost() {
    let before = head(IN_PARTS, "x-amz-storage-class: STANDARD_IA\r\nx-amz-meta-mtime: 1740787200");
    let answers = vec![before, BUSY.into(), REFUSED.into(), head(COPIED, &ours())];
    let (given, asked) = give(answers);
    assert_eq!(given, Given::Done);
    for copy in &asked[1..3] {
        let copy = copy.to_ascii_lowercase();
        for line in [
            "x-amz-copy-source: b/download/a.zip",
            "x-amz-copy-source-if-match: \"0123456789abcdef0123456789abcdef-2\"",
            "x-amz-storage-class: standard_ia",
            "x-amz-meta-mtime: 1740787200",
        ] {
            assert!(copy.contains(line), "{line} in {copy}");
        }
    }
}

#[test]
fn what_was_replaced_meanwhile_is_not_taken_for_ours() {
    let replaced = vec![head(IN_PARTS, "x-a: b"), REFUSED.into(), head(COPIED, "x-a: b")];
    assert_eq!(give(replaced).0, Given::Changed);
    let gone = vec![head(IN_PARTS, "x-a: b"), REFUSED.into(), "404 Not Found\r\nContent-Length: 0".into()];
    assert_eq!(give(gone).0, Given::Changed);
    let denied = "403 Forbidden\r\nContent-Length: 0".to_owned();
    let refused = vec![head(IN_PARTS, "x-a: b"), denied, head(IN_PARTS, "x-a: b")];
    assert!(matches!(give(refused).0, Given::Refused(_)));
}

/// An object as another program leaves it, without our metadata, on a real server.
#[test]
fn somebody_elses_object_gets_its_sha256() -> tests::Result<()> {
    let dir = RunDir::new("store-copies")?;
    let server = S3::start(&dir.path().join("s3"))?;
    let keys = server.credentials();
    let keys = [keys.access_key_id.as_str(), keys.secret_access_key.as_str()];
    with_store(&server.endpoint(), server.bucket(), keys, async |store| give_somebody_elses(&server, &store).await);
    Ok(())
}

async fn give_somebody_elses(server: &S3, uploader: &ObjectStore) {
    let (key, body) = ("download/theirs.zip".to_owned(), b"abc".as_slice());
    let stored = server.client().put_object().bucket(server.bucket()).key(&key).content_type("application/x-theirs");
    // The time and MD5 as rclone leaves them.
    let stored = stored.metadata("mtime", "1740787200.5").metadata("md5chksum", "kAFQmDzST7DWlj99KOF/cg==");
    stored.body(body.to_vec().into()).send().await.expect("stored");
    let details = uploader.details(&key).await.expect("answers").expect("is there");
    assert_eq!((details.stored.sha256, details.md5.as_deref()), (None, Some("900150983cd24fb0d6963f7d28e17f72")));
    assert_eq!(details.modified, "2025-03-01T00:00:00.5Z".parse().ok());
    let (etag, sha256) = (details.stored.etag.as_str(), Sha256Sum::of(body));
    for (key, etag) in [(key.as_str(), COPIED), ("download/nothing.zip", etag)] {
        assert_eq!(uploader.give_sha256(key, etag, sha256).await.expect("answers"), Given::Changed);
    }
    assert_eq!(uploader.details(&key).await.expect("answers").as_ref(), Some(&details), "nothing was done");
    assert_eq!(uploader.give_sha256(&key, etag, sha256).await.expect("answers"), Given::Done);
    let given = uploader.details(&key).await.expect("answers").expect("is there");
    assert_eq!((given.stored.sha256, &given.md5, given.modified), (Some(sha256), &details.md5, details.modified));
    let head = server.client().head_object().bucket(server.bucket()).key(&key).send().await.expect("is there");
    assert_eq!(head.content_type(), Some("application/x-theirs"));
    let fetched = uploader.get_small(&key, 100).await.expect("answers");
    assert_eq!(fetched.as_deref(), Some(body));
}
