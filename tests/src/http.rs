//! One HTTP/1.0 request per connection, blocking: enough to ask a server on the loopback something.
//!
//! HTTP/1.0 because its replies end with the connection: no chunks, no keep-alive, nothing to get wrong. The replies
//! of ClickHouse are read with this rather than with the client the product uses.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use crate::{Context, Failure, Result};

/// How long one may be silent.
pub const TIMEOUT: Duration = Duration::from_secs(60);

pub struct Response {
    pub status: u16,
    pub body: BufReader<TcpStream>,
}

impl Response {
    pub fn text(mut self) -> Result<String> {
        let mut text = String::new();
        self.body.read_to_string(&mut text).context("reading the body of a reply")?;
        Ok(text)
    }
}

pub fn get(address: SocketAddr, path: &str) -> Result<Response> {
    send(address, "GET", path, &[], b"", TIMEOUT)
}

pub fn post(
    address: SocketAddr,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
    timeout: Duration,
) -> Result<Response> {
    send(address, "POST", path, headers, body, timeout)
}

/// `GET path`, as text, when the answer is 200.
pub fn get_text(address: SocketAddr, path: &str) -> Result<String> {
    let response = get(address, path)?;
    match response.status {
        200 => response.text(),
        status => Err(Failure::new(format!("GET {path}: {status} {}", response.text()?))),
    }
}

fn send(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
    timeout: Duration,
) -> Result<Response> {
    let doing = format!("{method} http://{address}{path}");
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT).context(&doing)?;
    stream.set_read_timeout(Some(timeout)).context(&doing)?;
    stream.set_write_timeout(Some(timeout)).context(&doing)?;
    let mut request = format!("{method} {path} HTTP/1.0\r\nHost: {address}\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes()).context(&doing)?;
    stream.write_all(body).context(&doing)?;

    let mut body = BufReader::new(stream);
    let mut line = String::new();
    body.read_line(&mut line).context(&doing)?;
    let status = line
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .ok_or_else(|| Failure::new(format!("{doing}: not an HTTP reply: {line:?}")))?;
    while line.trim_end() != "" {
        line.clear();
        body.read_line(&mut line).context(&doing)?;
    }
    Ok(Response { status, body })
}
