//! NATS requests, told by a text in them, whose answers do not come: what a cut connection, or a server that dies, does to a
//! protocol without acknowledgements.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// How long the connection stays open after a request whose answer is lost: the server has done its work by then.
const CUT_AFTER: Duration = Duration::from_millis(300);
/// Where NATS clients want their answers; and another name of the same length, on which nobody listens.
const INBOX: &[u8] = b"_INBOX";
const NO_INBOX: &[u8] = b"_INB0X";

/// The server gets the first request that has this text, on whatever connection; nothing that it sends after that passes
/// there, and that connection is cut. All later ones pass.
#[derive(Debug)]
pub struct LostAnswer {
    to: &'static str,
    done: AtomicBool,
}

impl LostAnswer {
    pub fn to(text: &'static str) -> Arc<Self> {
        Arc::new(Self { to: text, done: AtomicBool::new(false) })
    }

    /// Whether it has happened.
    pub fn is_done(&self) -> bool {
        self.done.load(Ordering::SeqCst)
    }
}

/// Copies both ways, and loses one answer.
pub(super) fn lose_one(lost: &LostAnswer, client: &TcpStream, server: &TcpStream) -> std::io::Result<()> {
    let losing = Arc::new(AtomicBool::new(false));
    let (from, to) = (server.try_clone()?, client.try_clone()?);
    let is_losing = Arc::clone(&losing);
    let answers = thread::spawn(move || copy(&from, &to, |_| !is_losing.load(Ordering::SeqCst)));
    let copied = copy(client, server, |chunk| {
        if place_of(lost.to.as_bytes(), chunk).is_some() && !lost.done.swap(true, Ordering::SeqCst) {
            losing.store(true, Ordering::SeqCst);
            // This chunk still goes to the server.
            let (client, server) = (client.try_clone(), server.try_clone());
            thread::spawn(move || {
                thread::sleep(CUT_AFTER);
                for end in [client, server].into_iter().flatten() {
                    drop(end.shutdown(Shutdown::Both));
                }
            });
        }
        true
    });
    drop(answers.join());
    copied
}

/// Copies both ways; requests that have this text want their answers where nobody is.
pub(super) fn misdirect(text: &str, client: &TcpStream, server: &TcpStream) -> std::io::Result<()> {
    let (from, to) = (server.try_clone()?, client.try_clone()?);
    let answers = thread::spawn(move || copy(&from, &to, |_| true));
    let copied = copy(client, server, |chunk| {
        let mut at = 0;
        while let Some(found) = place_of(text.as_bytes(), &chunk[at..]) {
            at += found + text.len();
            let line = chunk[at..].iter().position(|byte| *byte == b'\n').map_or(chunk.len(), |end| at + end);
            if let Some(inbox) = place_of(INBOX, &chunk[at..line]) {
                chunk[at + inbox..at + inbox + INBOX.len()].copy_from_slice(NO_INBOX);
            }
        }
        true
    });
    drop(answers.join());
    copied
}

/// Copies until either side ends; `passes` may change a chunk, and says whether it goes on.
fn copy(mut from: &TcpStream, mut to: &TcpStream, mut passes: impl FnMut(&mut [u8]) -> bool) -> std::io::Result<()> {
    let mut chunk = vec![0; 64 * 1024];
    let mut copying = || -> std::io::Result<()> {
        loop {
            let count = from.read(&mut chunk)?;
            if count == 0 {
                return Ok(());
            }
            if passes(&mut chunk[..count]) {
                to.write_all(&chunk[..count])?;
            }
        }
    };
    let copied = copying();
    // It may be closed already.
    drop(to.shutdown(Shutdown::Both));
    copied
}

fn place_of(text: &[u8], within: &[u8]) -> Option<usize> {
    within.windows(text.len()).position(|window| window == text)
}
