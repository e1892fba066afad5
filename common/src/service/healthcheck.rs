//! What `healthcheck` asks: is the service of this configuration ready? For Docker's HEALTHCHECK, where a shell and
//! curl are not to be had.

use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::config::Config;
use crate::output::{Failure, Reply};

/// For the whole question: Docker's own time limit is longer.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Of an answer; the reasons of a service are some lines.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

/// Asks, and says what came of it.
///
/// Of the configuration only `http.listen` counts, and nothing else is connected to.
///
/// # Errors
/// It is not ready, or nobody answers: exit code 1. Where the configuration does not say whom to ask, 2. To Docker every code
/// but 0 means unhealthy.
pub fn run(config: Option<&Path>, live: bool) -> Result<Reply, Failure> {
    let listen = Config::load_http_listen(config).map_err(|error| Failure::config(error.to_string()))?;
    let listen = listen.ok_or_else(|| {
        Failure::config("http.listen is not set: set it, e.g. to 127.0.0.1:9100, for the service and for this command")
    })?;
    let answer = examine(listen, live).map_err(Failure::failed)?;
    Ok(Reply::default().text(answer))
}

fn examine(listen: SocketAddr, live: bool) -> Result<String, String> {
    let address = reachable(listen);
    let path = if live { "/livez" } else { "/readyz" };
    let answer = ask(address, path).map_err(|error| match error.kind() {
        io::ErrorKind::ConnectionRefused => format!(
            "nothing listens on {address}: the service does not run, or http.listen ({listen}) is not what it was \
             started with"
        ),
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
            format!("no answer from {address} within {} s", TIMEOUT.as_secs())
        }
        _ => format!("asking {address}: {error}"),
    })?;
    let body = answer.body.trim_end();
    match answer.status {
        200 => Ok(if live { "alive".into() } else { "ready".into() }),
        503 => Err(body.into()),
        status => Err(format!("{address}{path} answers {status}: is it another program's?")),
    }
}

/// Where a service that listens there can be asked from the same machine.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

struct Answer {
    status: u16,
    body: String,
}

fn ask(address: SocketAddr, path: &str) -> io::Result<Answer> {
    let deadline = Instant::now() + TIMEOUT;
    let mut socket = TcpStream::connect_timeout(&address, TIMEOUT)?;
    let mut request = String::new();
    // 1.0, so that the answer ends with the connection and never comes in chunks.
    write!(request, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").expect("writing to a string cannot fail");
    socket.set_write_timeout(Some(TIMEOUT))?;
    socket.write_all(request.as_bytes())?;
    let mut bytes = Vec::new();
    let mut part = [0; 4096];
    while (bytes.len() as u64) < ANSWER_BYTES_MAX {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        socket.set_read_timeout(Some(left))?;
        match socket.read(&mut part)? {
            0 => break,
            read => bytes.extend_from_slice(&part[..read]),
        }
    }
    parse(&String::from_utf8_lossy(&bytes)).ok_or_else(|| io::Error::other("the answer is no HTTP"))
}

fn parse(answer: &str) -> Option<Answer> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    Some(Answer { status, body: body.to_owned() })
}

#[cfg(test)]
mod tests {
    use std::io::BufRead;
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn an_unspecified_address_is_asked_here() {
        let check = |listen: &str, asked: &str| {
            assert_eq!(reachable(listen.parse().expect("an address")).to_string(), asked);
        };
        check("0.0.0.0:9100", "127.0.0.1:9100");
        check("[::]:9100", "[::1]:9100");
        check("10.0.0.7:9100", "10.0.0.7:9100");
    }

    /// Of a configuration in which much is wrong. The answer, or the exit code and why.
    fn check(http: &str, live: bool) -> Result<String, (u8, String)> {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let yaml = format!("colour: red\nnats: {{password_file: /nonexistent}}\n{http}");
        std::fs::write(file.path(), yaml).expect("written");
        let asked = run(Some(file.path()), live);
        asked.map(|reply| reply.text).map_err(|failure| (failure.exit_code(), failure.text))
    }

    #[test]
    fn what_the_service_says_is_passed_on() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let http = format!("http: {{listen: '0.0.0.0:{}'}}", listener.local_addr().expect("its address").port());
        let answers = [
            ("GET /readyz HTTP/1.0\r\n", "HTTP/1.0 200 OK\r\ncontent-length: 6\r\n\r\nready\n"),
            ("GET /readyz HTTP/1.0\r\n", "HTTP/1.0 503 Service Unavailable\r\n\r\nnot ready\nnats: connecting\n"),
            ("GET /livez HTTP/1.0\r\n", "HTTP/1.1 200 OK\r\n\r\nok\n"),
            ("GET /readyz HTTP/1.0\r\n", "HTTP/1.1 404 Not Found\r\n\r\n"),
            ("GET /readyz HTTP/1.0\r\n", "SSH-2.0\r\n"),
        ];
        let serving = std::thread::spawn(move || {
            for (expected, answer) in answers {
                let (mut socket, _) = listener.accept().expect("a connection");
                let mut reader = io::BufReader::new(socket.try_clone().expect("a second handle"));
                let mut line = String::new();
                reader.read_line(&mut line).expect("a request");
                assert_eq!(line, expected);
                while line != "\r\n" {
                    line.clear();
                    reader.read_line(&mut line).expect("a header");
                }
                socket.write_all(answer.as_bytes()).expect("answered");
            }
        });
        assert_eq!(check(&http, false), Ok("ready".into()));
        assert_eq!(check(&http, false), Err((1, "not ready\nnats: connecting".into())));
        assert_eq!(check(&http, true), Ok("alive".into()));
        assert!(check(&http, false).expect_err("404").1.contains("answers 404"));
        assert!(check(&http, false).expect_err("no HTTP").1.contains("no HTTP"));
        serving.join().expect("served");
        let (code, gone) = check(&http, false).expect_err("gone");
        assert!(code == 1 && gone.contains("nothing listens on 127.0.0.1:") && gone.contains("http.listen"), "{gone}");
    }

    #[test]
    fn http_listen_must_be_set_and_be_an_address() {
        let (code, unset) = check("", false).expect_err("not set");
        assert!(code == 2 && unset.starts_with("http.listen is not set"), "{unset}");
        let (code, wrong) = check("http: {listen: here}", false).expect_err("no address");
        assert!(code == 2 && wrong.contains("http.listen: 'here'") && !wrong.contains("colour"), "{wrong}");
    }
}
