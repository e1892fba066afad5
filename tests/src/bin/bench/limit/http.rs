//! HTTP/1.1 over blocking sockets: GETs on a kept connection, and one long chunked POST.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
};

use tests::{Context, Failure, Result};

pub(super) struct Connection {
    stream: TcpStream,
    host: String,
    /// The reply: its head, and what of the body has come.
    buffer: Vec<u8>,
}

impl Connection {
    pub(super) fn open(address: SocketAddr) -> Result<Connection> {
        let stream = TcpStream::connect(address).context(address)?;
        stream.set_nodelay(true).context(address)?;
        Ok(Connection { stream, host: address.to_string(), buffer: Vec::new() })
    }

    /// The body of a reply of status 200 that tells its length.
    pub(super) fn get(&mut self, target: &str) -> Result<&[u8]> {
        write!(self.stream, "GET {target} HTTP/1.1\r\nHost: {}\r\n\r\n", self.host).context(target)?;
        self.buffer.clear();
        let mut chunk = [0; 64 * 1024];
        let (mut head, mut end) = (0, usize::MAX);
        while self.buffer.len() < end {
            let count = self.stream.read(&mut chunk).context(target)?;
            if count == 0 {
                return Err(Failure::new(format!("{target}: the connection ended")));
            }
            self.buffer.extend_from_slice(&chunk[..count]);
            if head == 0
                && let Some(found) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n")
            {
                head = found + 4;
                end = head + content_length(&self.buffer[..head]).context(target)?;
                self.buffer.reserve(end.saturating_sub(self.buffer.len()));
            }
        }
        Ok(&self.buffer[head..end])
    }
}

fn content_length(head: &[u8]) -> Result<usize> {
    let head = String::from_utf8_lossy(head).to_ascii_lowercase();
    if !head.starts_with("http/1.1 200") {
        return Err(Failure::new(format!("the reply begins {head}")));
    }
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
    length.ok_or_else(|| Failure::new("the reply has no length"))
}

pub(super) struct Insert<'a> {
    pub(super) address: SocketAddr,
    pub(super) user: &'a str,
    pub(super) password: &'a str,
    pub(super) table: String,
}

pub(super) struct Post(TcpStream);

impl Insert<'_> {
    pub(super) fn begin(&self) -> Result<Post> {
        let mut stream = TcpStream::connect(self.address).context(self.address)?;
        stream.set_nodelay(true).context(self.address)?;
        write!(
            stream,
            "POST /?query=INSERT%20INTO%20{}%20FORMAT%20Native&async_insert=0&insert_deduplicate=0&optimize_on_insert=0\
             &materialize_statistics_on_insert=0&wait_end_of_query=1 HTTP/1.1\r\nHost: {}\r\nX-ClickHouse-User: {}\r\n\
             X-ClickHouse-Key: {}\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n",
            self.table, self.address, self.user, self.password
        )
        .context("beginning an insert")?;
        Ok(Post(stream))
    }
}

impl Post {
    pub(super) fn send(&mut self, block: &[u8]) -> Result<()> {
        write!(self.0, "{:x}\r\n", block.len()).context("inserting")?;
        self.0.write_all(block).context("inserting")?;
        self.0.write_all(b"\r\n").context("inserting")
    }

    pub(super) fn end(mut self) -> Result<()> {
        self.0.write_all(b"0\r\n\r\n").context("ending an insert")?;
        let mut reply = String::new();
        self.0.read_to_string(&mut reply).context("the reply to an insert")?;
        // The name alone is in every reply, in the list of headers that may be read.
        if reply.starts_with("HTTP/1.1 200") && !reply.contains("\nX-ClickHouse-Exception-Code:") {
            return Ok(());
        }
        Err(Failure::new(format!("the insert was refused: {reply}")))
    }
}
