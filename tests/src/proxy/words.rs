//! Faults for requests that have certain words anywhere, in what a client sends at once: its head and a short body.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

#[derive(Debug)]
pub struct Words {
    words: Vec<String>,
    left: AtomicU64,
    act: Act,
}

#[derive(Clone, Debug)]
pub enum Act {
    /// The server does not see the request; this is the answer: status line, further header lines, body.
    Answer { status: &'static str, headers: &'static str, body: &'static str },
    /// The server gets the request so much later, also when the client is gone by then.
    Hold(Duration),
}

impl Words {
    pub(super) fn new(words: Vec<String>, times: u64, act: Act) -> Self {
        Self { words, left: times.into(), act }
    }

    fn hit(&self, sent: &[u8]) -> bool {
        let text = String::from_utf8_lossy(sent);
        let one_less = |left: u64| left.checked_sub(1);
        self.words.iter().all(|word| text.contains(word))
            && self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less).is_ok()
    }

    /// Passes a connection on; counts what was met.
    pub(super) fn relay(&self, mut client: TcpStream, mut server: TcpStream, met: &AtomicU64) -> std::io::Result<()> {
        let (mut replies, mut back) = (server.try_clone()?, client.try_clone()?);
        thread::spawn(move || {
            // Ends with either side, and then the client has heard all there is.
            drop(std::io::copy(&mut replies, &mut back));
            drop(back.shutdown(Shutdown::Write));
        });
        let mut chunk = vec![0; 256 * 1024];
        loop {
            let count = client.read(&mut chunk)?;
            if count == 0 {
                return server.shutdown(Shutdown::Write);
            }
            if self.hit(&chunk[..count]) {
                met.fetch_add(1, Ordering::SeqCst);
                match self.act {
                    Act::Hold(delay) => thread::sleep(delay),
                    Act::Answer { status, headers, body } => {
                        let length = body.len();
                        write!(
                            client,
                            "HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
                        )?;
                        // Whatever of the request is still under way must not turn the close into a reset.
                        client.set_read_timeout(Some(Duration::from_millis(200)))?;
                        while client.read(&mut chunk).is_ok_and(|count| count > 0) {}
                        server.shutdown(Shutdown::Both)?;
                        return client.shutdown(Shutdown::Both);
                    }
                }
            }
            server.write_all(&chunk[..count])?;
        }
    }
}
