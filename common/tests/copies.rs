//! What an object keeps when it is copied onto itself, and what is made of an answer that was lost.
//!
//! The server answers by a script: the one that the other tests start knows no storage classes, and leaves an object that
//! was sent in parts its ETag, where S3 makes it another.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::thread::{self, JoinHandle};

use common::checksum::Sha256Sum;
use common::config::{Config, Need};
use common::object_store::{End, Given, ObjectStore};

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

/// Gives an object its sha256 against these answers.
fn give(answers: Vec<String>) -> (Given, Vec<String>) {
    let dir = tempfile::tempdir().expect("a folder");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let endpoint = listener.local_addr().expect("an address");
    let yaml = format!(
        "storage: {{type: s3, r2: {{bucket: b, endpoint: 'http://{endpoint}', access_key_id: k, secret_access_key: s}}}}"
    );
    let file = dir.path().join("config.yaml");
    std::fs::write(&file, yaml).expect("written");
    let storage = Config::load(Some(&file), &[Need::Storage]).expect("a configuration").storage;
    let server = serve(listener, answers);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let given = runtime.block_on(async {
        let store = ObjectStore::new(&storage, End::Uploader);
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
