//! A proxy that misbehaves on demand, for replies a real server will not give when asked, and sees all that passes.

mod aim;
mod fault;
mod lost;
mod requests;
mod words;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use crate::{Context, Result};
pub use aim::{Aim, Fate};
pub use fault::Fault;
pub use lost::LostAnswer;
pub use requests::Request;
use requests::{Conversation, Log};
pub use words::{Act, Words};

/// Of a connection that is delayed, in one direction.
const CHUNKS_UNDER_WAY_MAX: usize = 1024;

/// Stands before one server; dropping it ends it.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    upstream: SocketAddr,
    fault: Mutex<Fault>,
    /// Counts changes of `fault`: a connection of an older one is cut.
    generation: AtomicU64,
    open: Mutex<Vec<(u64, TcpStream)>>,
    /// Connections that met a fault, and requests that were aimed at.
    met: Arc<AtomicU64>,
    stopped: AtomicU64,
    log: Arc<Log>,
}

impl Proxy {
    pub fn start(upstream: SocketAddr) -> Result<Proxy> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listening")?;
        let address = listener.local_addr().context("an address")?;
        let shared = Arc::new(Shared {
            upstream,
            fault: Mutex::new(Fault::None),
            generation: AtomicU64::new(0),
            open: Mutex::default(),
            met: Arc::default(),
            stopped: AtomicU64::new(0),
            log: Arc::default(),
        });
        let accepting = shared.clone();
        thread::spawn(move || {
            for client in listener.incoming() {
                if accepting.stopped.load(Ordering::SeqCst) > 0 {
                    break;
                }
                if let Ok(client) = client {
                    let shared = accepting.clone();
                    // A connection that breaks is what this is for.
                    thread::spawn(move || drop(shared.serve(client)));
                }
            }
        });
        Ok(Proxy { address, shared })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections met a fault so far, or requests one that was aimed at them.
    pub fn met(&self) -> u64 {
        self.shared.met.load(Ordering::SeqCst)
    }

    /// The HTTP requests that were passed on, in the order they came.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.log.requests()
    }

    /// Bytes that clients sent, heads included.
    pub fn asked_bytes(&self) -> u64 {
        self.shared.log.asked_bytes()
    }

    /// Bytes of requests' bodies that clients sent, where their heads say how long they are.
    pub fn body_bytes(&self) -> u64 {
        self.shared.log.body_bytes()
    }

    /// Bytes of replies that were passed on to clients.
    pub fn reply_bytes(&self) -> u64 {
        self.shared.log.reply_bytes()
    }

    pub fn set(&self, fault: Fault) {
        *self.shared.fault.lock().unwrap_or_else(PoisonError::into_inner) = fault;
        self.shared.generation.fetch_add(1, Ordering::SeqCst);
        self.shared.cut_all();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stopped.store(1, Ordering::SeqCst);
        self.shared.cut_all();
        // Wakes the thread that accepts; it does not matter whether anybody is there.
        drop(TcpStream::connect(self.address));
    }
}

impl Shared {
    fn cut_all(&self) {
        for (_, stream) in self.open.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // It may be closed already.
            drop(stream.shutdown(Shutdown::Both));
        }
    }

    fn remember(&self, generation: u64, stream: &TcpStream) -> std::io::Result<()> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.push((generation, stream.try_clone()?));
        if generation != self.generation.load(Ordering::SeqCst) {
            stream.shutdown(Shutdown::Both)?;
        }
        Ok(())
    }

    fn serve(&self, mut client: TcpStream) -> std::io::Result<()> {
        let generation = self.generation.load(Ordering::SeqCst);
        let fault = self.fault.lock().unwrap_or_else(PoisonError::into_inner).clone();
        client.set_nodelay(true)?;
        self.remember(generation, &client)?;
        if !matches!(fault, Fault::None | Fault::Aimed(_) | Fault::Words(_)) {
            self.met.fetch_add(1, Ordering::SeqCst);
        }
        match fault {
            Fault::Away => client.shutdown(Shutdown::Both),
            Fault::Hang => {
                let mut ignored = [0; 4096];
                while client.read(&mut ignored)? > 0 {}
                Ok(())
            }
            Fault::Answer { status, headers, body } => {
                read_request(&mut client)?;
                let length = body.len();
                write!(
                    client,
                    "HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
                )?;
                // Whatever of the request is still under way must not turn the close into a reset.
                client.shutdown(Shutdown::Write)?;
                client.set_read_timeout(Some(Duration::from_millis(200)))?;
                let mut ignored = [0; 4096];
                while client.read(&mut ignored).is_ok_and(|count| count > 0) {}
                Ok(())
            }
            Fault::None => self.relay(generation, client, usize::MAX, |_, _| Relayed::All),
            Fault::Aimed(aim) => self.relay_aimed(&aim, generation, client),
            Fault::Words(words) => {
                let server = TcpStream::connect(self.upstream)?;
                server.set_nodelay(true)?;
                self.remember(generation, &server)?;
                words.relay(client, server, &self.met)
            }
            Fault::CutRequestAfter(limit) => self.relay(generation, client, limit, |_, _| Relayed::All),
            Fault::Slow(delay) => self.relay(generation, client, usize::MAX, move |_, _| {
                thread::sleep(delay);
                Relayed::All
            }),
            Fault::CutReplyAfter(limit) => self.relay(generation, client, usize::MAX, move |at, chunk| {
                if at + chunk.len() < limit { Relayed::All } else { Relayed::First(limit.saturating_sub(at)) }
            }),
            Fault::FlipReplyByteAt(place) => self.relay(generation, client, usize::MAX, move |at, chunk| {
                if let Some(byte) = place.checked_sub(at).and_then(|index| chunk.get_mut(index)) {
                    *byte ^= 0x20;
                }
                Relayed::All
            }),
            Fault::SwallowReply => self.relay(generation, client, usize::MAX, |_, _| Relayed::First(0)),
            Fault::Delay(each_way) => self.delay(generation, client, each_way),
            Fault::Narrow(bytes_per_second) => self.narrow(generation, client, bytes_per_second),
            Fault::LoseAnswer(lost) => {
                let server = self.upstream(generation)?;
                lost::lose_one(&lost, &client, &server)
            }
            Fault::Unanswered(text) => {
                let server = self.upstream(generation)?;
                lost::misdirect(text, &client, &server)
            }
        }
    }

    fn upstream(&self, generation: u64) -> std::io::Result<TcpStream> {
        let server = TcpStream::connect(self.upstream)?;
        server.set_nodelay(true)?;
        self.remember(generation, &server)?;
        Ok(server)
    }

    fn narrow(&self, generation: u64, mut client: TcpStream, bytes_per_second: usize) -> std::io::Result<()> {
        let mut server = self.upstream(generation)?;
        let (mut requests, mut onward) = (client.try_clone()?, server.try_clone()?);
        thread::spawn(move || drop(std::io::copy(&mut requests, &mut onward)));
        let mut chunk = vec![0; bytes_per_second / 20];
        loop {
            let count = server.read(&mut chunk)?;
            if count == 0 {
                return client.shutdown(Shutdown::Write);
            }
            client.write_all(&chunk[..count])?;
            thread::sleep(
                Duration::from_secs(1) * u32::try_from(count).unwrap_or(1)
                    / u32::try_from(bytes_per_second).unwrap_or(1),
            );
        }
    }

    fn delay(&self, generation: u64, client: TcpStream, each_way: Duration) -> std::io::Result<()> {
        let begun = Instant::now() + 2 * each_way;
        let server = self.upstream(generation)?;
        let (requests, onward) = (client.try_clone()?, server.try_clone()?);
        thread::spawn(move || drop(pass_late(requests, onward, begun, each_way)));
        pass_late(server, client, begun, each_way)
    }

    /// Copies both ways, no more than `requests_max` bytes of requests; `reply` sees every chunk of the replies with its
    /// offset and says how much of it passes.
    fn relay(
        &self,
        generation: u64,
        client: TcpStream,
        requests_max: usize,
        reply: impl FnMut(usize, &mut [u8]) -> Relayed,
    ) -> std::io::Result<()> {
        self.relay_watched(generation, client, requests_max, |_| Ok(()), reply)
    }

    fn relay_aimed(&self, aim: &Arc<Aim>, generation: u64, client: TcpStream) -> std::io::Result<()> {
        let (mut answers, met) = (client.try_clone()?, Arc::clone(&self.met));
        let (aim, reply_lost) = (Arc::clone(aim), Arc::new(AtomicBool::new(false)));
        let losing = Arc::clone(&reply_lost);
        let begun = move |head: &str| {
            let Some(fate) = aim.hit(head) else { return Ok(()) };
            met.fetch_add(1, Ordering::SeqCst);
            match fate {
                Fate::ReplyLost => {
                    losing.store(true, Ordering::SeqCst);
                    Ok(())
                }
                Fate::Refused | Fate::NotImplemented => {
                    let status = if fate == Fate::Refused { "503 Slow Down" } else { "501 Not Implemented" };
                    write!(answers, "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?;
                    Err(std::io::Error::other("refused"))
                }
            }
        };
        let reply = move |_, _: &mut [u8]| match reply_lost.load(Ordering::SeqCst) {
            true => Relayed::First(0),
            false => Relayed::All,
        };
        self.relay_watched(generation, client, usize::MAX, begun, reply)
    }

    /// The same; `begun` is told the head of each request before the server is, and may end the connection.
    fn relay_watched(
        &self,
        generation: u64,
        client: TcpStream,
        requests_max: usize,
        begun: impl FnMut(&str) -> std::io::Result<()> + Send + 'static,
        mut reply: impl FnMut(usize, &mut [u8]) -> Relayed,
    ) -> std::io::Result<()> {
        let server = TcpStream::connect(self.upstream)?;
        server.set_nodelay(true)?;
        self.remember(generation, &server)?;
        let (mut requests, mut onward) = (client.try_clone()?, server.try_clone()?);
        let conversation = Conversation::new(&self.log);
        let seen = conversation.clone();
        thread::spawn(move || {
            // Ends with either side; then the other must end too.
            if pass_on(&mut requests, &mut onward, requests_max, &seen, begun).is_err() {
                drop(requests.shutdown(Shutdown::Both));
            }
            drop(onward.shutdown(Shutdown::Write));
        });
        let (mut replies, mut back) = (server, client);
        let (mut chunk, mut at) = ([0; 16 * 1024], 0);
        loop {
            let count = replies.read(&mut chunk)?;
            if count == 0 {
                return back.shutdown(Shutdown::Write);
            }
            match reply(at, &mut chunk[..count]) {
                Relayed::All => {
                    back.write_all(&chunk[..count])?;
                    conversation.replied(&chunk[..count]);
                }
                Relayed::First(part) => {
                    back.write_all(&chunk[..part])?;
                    replies.shutdown(Shutdown::Both)?;
                    return back.shutdown(Shutdown::Both);
                }
            }
            at += count;
        }
    }
}

/// Copies what a client sends. An error when it sent more than it may. A server may answer before it has heard all, and
/// close: the rest goes nowhere then, and the answer is still the client's.
fn pass_on(
    client: &mut TcpStream,
    server: &mut TcpStream,
    bytes_max: usize,
    seen: &Conversation,
    mut begun: impl FnMut(&str) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let (mut chunk, mut at) = (vec![0; 64 * 1024], 0);
    loop {
        let count = client.read(&mut chunk)?;
        if count == 0 {
            return Ok(());
        }
        if let Some(head) = seen.asked(&chunk[..count]) {
            begun(&head)?;
        }
        at += count;
        if at > bytes_max {
            return Err(std::io::Error::other("cut"));
        }
        if server.write_all(&chunk[..count]).is_err() {
            return std::io::copy(client, &mut std::io::sink()).map(drop);
        }
    }
}

/// Copies until either side ends, each chunk `delay` after it came, or after `begun` if it came before that.
fn pass_late(mut from: TcpStream, mut to: TcpStream, begun: Instant, delay: Duration) -> std::io::Result<()> {
    let (sender, chunks) = mpsc::sync_channel::<(Instant, Vec<u8>)>(CHUNKS_UNDER_WAY_MAX);
    thread::spawn(move || {
        for (due, chunk) in chunks {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if to.write_all(&chunk).is_err() {
                break;
            }
        }
        // It may be closed already.
        drop(to.shutdown(Shutdown::Write));
    });
    let mut chunk = vec![0; 64 * 1024];
    loop {
        let count = from.read(&mut chunk)?;
        let due = Instant::now().max(begun) + delay;
        // The receiver is gone when its side was closed.
        if count == 0 || sender.send((due, chunk[..count].to_vec())).is_err() {
            return Ok(());
        }
    }
}

enum Relayed {
    All,
    /// So many bytes, and then the connection is cut.
    First(usize),
}

/// Reads the head of a request and as much of its body as has a length.
fn read_request(client: &mut TcpStream) -> std::io::Result<()> {
    client.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && head.len() < 64 * 1024 && client.read(&mut byte)? > 0 {
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<u64>().ok());
    std::io::copy(&mut Read::by_ref(client).take(length.unwrap_or_default()), &mut std::io::sink()).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http;

    /// Answers every connection with the same ten-byte body.
    fn upstream() -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = listener.local_addr().expect("an address");
        thread::spawn(move || {
            for client in listener.incoming().take(20) {
                let mut client = client.expect("a connection");
                if read_request(&mut client).is_ok() {
                    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\nConnection: close\r\n\r\n0123456789";
                    drop(client.write_all(answer));
                }
            }
        });
        address
    }

    #[test]
    fn faults_are_what_they_say() {
        let proxy = Proxy::start(upstream()).expect("a proxy");
        let get = || http::get(proxy.address(), "/").and_then(|response| Ok((response.status, response.text()?)));
        assert_eq!(get().expect("passes"), (200, "0123456789".to_owned()));
        proxy.set(Fault::Answer { status: "503 Slow Down", headers: "", body: "slow" });
        assert_eq!(get().expect("answers"), (503, "slow".to_owned()));
        proxy.set(Fault::FlipReplyByteAt(57));
        assert_ne!(get().expect("passes"), (200, "0123456789".to_owned()));
        for fault in [Fault::Away, Fault::CutReplyAfter(60), Fault::SwallowReply] {
            proxy.set(fault.clone());
            // The client reads to the end of the connection, so a body that is cut is a shorter one to it.
            assert_ne!(get().ok(), Some((200, "0123456789".to_owned())), "{fault:?}");
        }
        assert_eq!(proxy.met(), 5);
        let (each_way, start) = (Duration::from_millis(20), Instant::now());
        proxy.set(Fault::Delay(each_way));
        assert_eq!(get().expect("passes late"), (200, "0123456789".to_owned()));
        assert!(start.elapsed() >= 4 * each_way, "connecting and asking are a round trip each: {:?}", start.elapsed());
        proxy.set(Fault::None);
        assert_eq!(get().expect("passes again"), (200, "0123456789".to_owned()));
        let requests = proxy.requests();
        let last = requests.last().expect("a request");
        assert_eq!((last.line.as_str(), last.body, last.status), ("GET / HTTP/1.0", 0, Some(200)));
    }
}
