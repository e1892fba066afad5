//! A proxy that misbehaves on demand, for replies a real server will not give when asked.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::{Context, Result};

/// What happens to connections from now on. Those that are open are cut when this changes.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Everything passes.
    None,
    /// Connections are closed at once.
    Away,
    /// Requests are read and never answered.
    Hang,
    /// Every request gets this answer: status line, further header lines, body.
    Answer { status: &'static str, headers: &'static str, body: &'static str },
    /// Replies end after so many bytes, head included.
    CutReplyAfter(usize),
    /// One byte at this place of each connection's replies is changed.
    FlipReplyByteAt(usize),
    /// The server gets the whole request and does its work; the reply is thrown away and the connection cut.
    SwallowReply,
}

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
    /// Connections that met a fault.
    met: AtomicU64,
    stopped: AtomicU64,
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
            met: AtomicU64::new(0),
            stopped: AtomicU64::new(0),
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

    /// How many connections met a fault so far.
    pub fn met(&self) -> u64 {
        self.shared.met.load(Ordering::SeqCst)
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
        if !matches!(fault, Fault::None) {
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
            Fault::None => self.relay(generation, client, |_, _| Relayed::All),
            Fault::CutReplyAfter(limit) => self.relay(generation, client, move |at, chunk| {
                if at + chunk.len() < limit { Relayed::All } else { Relayed::First(limit.saturating_sub(at)) }
            }),
            Fault::FlipReplyByteAt(place) => self.relay(generation, client, move |at, chunk| {
                if let Some(byte) = place.checked_sub(at).and_then(|index| chunk.get_mut(index)) {
                    *byte ^= 0x20;
                }
                Relayed::All
            }),
            Fault::SwallowReply => self.relay(generation, client, |_, _| Relayed::First(0)),
        }
    }

    /// Copies both ways; `reply` sees every chunk of the replies with its offset and says how much of it passes.
    fn relay(
        &self,
        generation: u64,
        client: TcpStream,
        mut reply: impl FnMut(usize, &mut [u8]) -> Relayed,
    ) -> std::io::Result<()> {
        let server = TcpStream::connect(self.upstream)?;
        server.set_nodelay(true)?;
        self.remember(generation, &server)?;
        let (mut requests, mut onward) = (client.try_clone()?, server.try_clone()?);
        thread::spawn(move || {
            // Ends with either side; then the other must end too.
            drop(std::io::copy(&mut requests, &mut onward));
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
                Relayed::All => back.write_all(&chunk[..count])?,
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
        proxy.set(Fault::None);
        assert_eq!(get().expect("passes again"), (200, "0123456789".to_owned()));
    }
}
