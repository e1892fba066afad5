//! The exchange: serves Binance's tree over HTTP as its bucket does, and misbehaves on demand.
//!
//! One request per connection, all in memory. It keeps what it was asked and how many bytes of bodies it gave away.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use percent_encoding::percent_decode_str;

use crate::data::{ArchiveSpec, sha256};
use crate::{Context, Result};

/// What happens to requests for a path.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Status line and further header lines.
    Answer(&'static str, &'static str),
    /// The connection ends after so many bytes of the body.
    CutAfter(usize),
    /// So many bytes of the body come, and then nothing.
    StallAfter(usize),
    /// The body comes in so many pieces, with a pause before each.
    Slow(usize, Duration),
    /// `Range` is not looked at.
    NoRange,
    /// The answer does not say how long it is.
    NoLength,
}

/// One request and what was sent for it.
#[derive(Clone, Debug)]
pub struct Asked {
    pub method: String,
    /// Without the leading `/`; with the query, if there is one.
    pub path: String,
    pub range: Option<String>,
    pub status: u16,
    /// Of the body.
    pub bytes: usize,
}

/// Dropping it ends it.
pub struct Exchange {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    stopped: AtomicBool,
}

#[derive(Default)]
struct State {
    files: BTreeMap<String, File>,
    /// By the end of a path; with how often they still happen.
    faults: Vec<(String, Fault, usize)>,
    asked: Vec<Asked>,
    publications: u32,
}

#[derive(Clone)]
struct File {
    bytes: Arc<[u8]>,
    etag: String,
    last_modified: String,
}

/// Folders on one page of a listing; few, so that there are pages.
const PAGE: usize = 2;

impl Exchange {
    pub fn start() -> Result<Exchange> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listening")?;
        let address = listener.local_addr().context("an address")?;
        let shared = Arc::new(Shared::default());
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming() {
                if accepting.stopped.load(Ordering::SeqCst) {
                    break;
                }
                if let Ok(client) = client {
                    let shared = Arc::clone(&accepting);
                    // A client that goes away is part of the scenarios.
                    thread::spawn(move || drop(shared.serve(client)));
                }
            }
        });
        Ok(Exchange { address, shared })
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Publishes an archive, and the `.CHECKSUM` that belongs to it.
    pub fn publish(&self, spec: &ArchiveSpec) {
        self.publish_bytes(spec, &spec.zip());
    }

    /// The same with other bytes in its place.
    pub fn publish_bytes(&self, spec: &ArchiveSpec, bytes: &[u8]) {
        self.put(&checksum_path(spec), format!("{}  {}.zip", sha256(bytes), spec.stem()).as_bytes());
        self.put(&spec.path(), bytes);
    }

    /// Publishes one file.
    pub fn put(&self, path: &str, bytes: &[u8]) {
        let mut state = self.shared.state();
        state.publications += 1;
        let number = state.publications;
        let last_modified =
            format!("Mon, 02 Mar 2026 {:02}:{:02}:{:02} GMT", number / 3600, number / 60 % 60, number % 60);
        let file = File { bytes: bytes.into(), etag: format!("\"{}\"", &sha256(bytes)[..32]), last_modified };
        state.files.insert(path.to_owned(), file);
    }

    pub fn withdraw(&self, path: &str) {
        self.shared.state().files.remove(path);
    }

    /// The next `times` requests for paths that end so meet this fault.
    pub fn fault(&self, path_ends: &str, fault: Fault, times: usize) {
        self.shared.state().faults.push((path_ends.to_owned(), fault, times));
    }

    pub fn no_faults(&self) {
        self.shared.state().faults.clear();
    }

    /// What it was asked since the last time, in the order the answers ended.
    pub fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.shared.state().asked)
    }
}

/// Where the `.CHECKSUM` of an archive lies.
pub fn checksum_path(spec: &ArchiveSpec) -> String {
    format!("{}.CHECKSUM", spec.path())
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts; it does not matter whether anybody is there.
        drop(TcpStream::connect(self.address));
    }
}

struct Answer {
    status: &'static str,
    headers: String,
    body: Vec<u8>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, mut client: TcpStream) -> std::io::Result<()> {
        client.set_read_timeout(Some(Duration::from_secs(5)))?;
        client.set_nodelay(true)?;
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") && head.len() < 64 << 10 && client.read(&mut byte)? > 0 {
            head.push(byte[0]);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let mut words = head.split(' ');
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let path = percent_decode_str(target.trim_start_matches('/')).decode_utf8_lossy().into_owned();
        let header = |name: &str| {
            let line = head.lines().find(|line| line.to_ascii_lowercase().starts_with(&format!("{name}:")))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let (fault, answer) = {
            let mut state = self.state();
            let fault = state.next_fault(&path);
            let range = header("range").filter(|_| !matches!(fault, Some(Fault::NoRange)));
            let answer = state.answer(&path, range.as_deref(), header("if-range").as_deref());
            (fault, answer)
        };
        let mut asked = Asked {
            method: method.to_owned(),
            path,
            range: header("range"),
            status: answer.status[..3].parse().unwrap_or_default(),
            bytes: 0,
        };
        let sent = send(&mut client, method == "HEAD", fault, answer, &mut asked);
        self.state().asked.push(asked);
        sent
    }
}

fn send(
    client: &mut TcpStream,
    head_only: bool,
    fault: Option<Fault>,
    answer: Answer,
    asked: &mut Asked,
) -> std::io::Result<()> {
    let Answer { mut status, mut headers, mut body } = answer;
    if let Some(Fault::Answer(other, more)) = fault {
        (status, headers, body) = (other, more.to_owned(), Vec::new());
        asked.status = other[..3].parse().unwrap_or_default();
    }
    if !matches!(fault, Some(Fault::NoLength)) {
        headers.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    write!(client, "HTTP/1.1 {status}\r\n{headers}Connection: close\r\n\r\n")?;
    if head_only {
        body.clear();
    }
    let (upto, pieces, pause) = match fault {
        Some(Fault::CutAfter(bytes) | Fault::StallAfter(bytes)) => (bytes.min(body.len()), 1, Duration::ZERO),
        Some(Fault::Slow(pieces, pause)) => (body.len(), pieces, pause),
        _ => (body.len(), 1, Duration::ZERO),
    };
    for piece in body[..upto].chunks(upto.div_ceil(pieces).max(1)) {
        thread::sleep(pause);
        client.write_all(piece)?;
        asked.bytes += piece.len();
    }
    if let Some(Fault::StallAfter(_)) = fault {
        // Until the client has had enough of it.
        client.set_read_timeout(Some(Duration::from_secs(60)))?;
        drop(client.read(&mut [0]));
    }
    client.shutdown(Shutdown::Both)
}

impl State {
    fn next_fault(&mut self, path: &str) -> Option<Fault> {
        let at = self.faults.iter().position(|(ends, _, times)| path.ends_with(ends.as_str()) && *times > 0)?;
        self.faults[at].2 -= 1;
        Some(self.faults[at].1.clone())
    }

    fn answer(&self, path: &str, range: Option<&str>, if_range: Option<&str>) -> Answer {
        let plain = |status, body: Vec<u8>| Answer { status, headers: String::new(), body };
        if let Some(query) = path.strip_prefix('?') {
            return plain("200 OK", self.listing(query).into_bytes());
        }
        let Some(file) = self.files.get(path) else { return plain("404 Not Found", b"<Error/>".to_vec()) };
        let File { bytes, etag, last_modified } = file;
        let mut headers = format!("ETag: {etag}\r\nLast-Modified: {last_modified}\r\nAccept-Ranges: bytes\r\n");
        let same = if_range.is_none_or(|validator| validator == etag || validator == last_modified);
        let from = range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
        match from.filter(|_| same) {
            Some(from) if from < bytes.len() => {
                headers.push_str(&format!("Content-Range: bytes {from}-{}/{}\r\n", bytes.len() - 1, bytes.len()));
                Answer { status: "206 Partial Content", headers, body: bytes[from..].to_vec() }
            }
            Some(_) => plain("416 Range Not Satisfiable", Vec::new()),
            None => Answer { status: "200 OK", headers, body: bytes.to_vec() },
        }
    }

    /// The folders below a prefix, as S3 lists them.
    fn listing(&self, query: &str) -> String {
        let parameter = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        let prefix = parameter("prefix").unwrap_or_default();
        let after = parameter("continuation-token").unwrap_or_default();
        let folder = |path: &String| Some(format!("{prefix}{}/", path.strip_prefix(prefix)?.split_once('/')?.0));
        let folders: BTreeSet<String> = self.files.keys().filter_map(folder).collect();
        let mut rest = folders.iter().filter(|folder| folder.as_str() > after);
        let page: Vec<&String> = rest.by_ref().take(PAGE).collect();
        let more = rest.next().is_some();
        let mut xml = format!("<?xml version=\"1.0\"?>\n<ListBucketResult><IsTruncated>{more}</IsTruncated>");
        if let (true, Some(last)) = (more, page.last()) {
            xml.push_str(&format!("<NextContinuationToken>{last}</NextContinuationToken>"));
        }
        for folder in page {
            xml.push_str(&format!("<CommonPrefixes><Prefix>{folder}</Prefix></CommonPrefixes>"));
        }
        xml.push_str("</ListBucketResult>");
        xml
    }
}
