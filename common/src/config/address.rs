//! Addresses of servers, checked before anything is connected to: a library that cannot make sense of one tries for a
//! while, and then speaks of its own parts.

use std::net::Ipv6Addr;

use reqwest::Url;

use crate::unit::shorten;

/// Refuses what is not the address of an HTTP server, such as `example`; a path may follow the host.
/// The text of a URL with a password in it is not repeated.
pub(super) fn check_http(url: &str, example: &str) -> Result<(), String> {
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    let Some(rest) = rest else { return Err("must begin with http:// or https://".to_owned()) };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.contains('@') {
        return Err("holds a user or password, which are not supported".to_owned());
    }
    let wrong = || format!("'{}' is not an address such as {example}", shorten(url));
    if rest.contains(['?', '#', '\\']) || rest.contains(char::is_whitespace) {
        return Err(wrong());
    }
    let parsed = Url::parse(url).map_err(|error| format!("{}: {error}", wrong()))?;
    is_host(&parsed, authority).then_some(()).ok_or_else(wrong)
}

/// Refuses what is not the address of a NATS server: `nats://host:4222`, `tls://…`, or the host alone. The text is not
/// repeated: it may hold a password.
pub(super) fn check_nats(url: &str) -> Result<(), String> {
    let wrong = || "is not an address such as nats://nats.example.com:4222 or tls://nats.example.com:4222".to_owned();
    let (scheme, rest) = url.split_once("://").unwrap_or(("nats", url));
    if !matches!(scheme, "nats" | "tls") {
        return Err("must begin with nats:// or tls://".to_owned());
    }
    let authority = rest.rsplit_once('@').map_or(rest, |(_, host)| host).trim_end_matches('/');
    if authority.contains(['/', '?', '#', '\\', ',']) || authority.contains(char::is_whitespace) {
        return Err(wrong());
    }
    let parsed = Url::parse(&format!("http://{authority}/")).map_err(|error| format!("{}: {error}", wrong()))?;
    is_host(&parsed, authority).then_some(()).ok_or_else(wrong)
}

/// The name or address of a host as a URL takes it: an IPv6 address gets its brackets. `section` is where its port goes.
pub(super) fn host(text: &str, section: &str) -> Result<String, String> {
    if let Some((scheme, rest)) = text.split_once("://") {
        let (host, port) = rest.trim_end_matches('/').rsplit_once(':').unwrap_or((rest.trim_end_matches('/'), ""));
        let port = if port.is_empty() { String::new() } else { format!(", {section}.port: {}", shorten(port)) };
        let secure = scheme == "https";
        let host = shorten(host);
        return Err(format!("is a URL; write {section}.host: {host}{port}, {section}.secure: {secure}"));
    }
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    if bare.parse::<Ipv6Addr>().is_ok() {
        return Ok(format!("[{bare}]"));
    }
    if let Some((host, port)) = text.split_once(':').filter(|(_, port)| port.chars().all(|c| c.is_ascii_digit())) {
        return Err(format!("carries a port; write {section}.host: {}, {section}.port: {port}", shorten(host)));
    }
    let wrong = || format!("'{}' is not the name or address of a host", shorten(text));
    let parsed = Url::parse(&format!("http://{text}/")).map_err(|error| format!("{}: {error}", wrong()))?;
    is_host(&parsed, text).then(|| text.to_owned()).ok_or_else(wrong)
}

/// Whether the parser found just this `host[:port]`, and did not take parts of it for something else: it reads
/// `http:://x`, `http:///x` and `http://a\b`, too.
fn is_host(parsed: &Url, authority: &str) -> bool {
    let host = parsed.host_str().unwrap_or_default();
    let named = host.chars().any(|c| c.is_ascii_alphanumeric()) && !host.starts_with('.') && !host.contains("..");
    let rest = authority.get(host.len()..).filter(|_| authority.to_ascii_lowercase().starts_with(host));
    named && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(':') && rest.len() > 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_http_address_is_refused_without_repeating_a_password() {
        let check = |url| check_http(url, "https://example.com");
        for url in [
            "ftp://x",
            "https://",
            "http://u:hunter2@host",
            "http://h/?a=b",
            "example.com",
            "localhost:9000",
            "http:://x",
            "http:///x",
            "http:/x",
            "http://x:",
            "http://x:99999",
            "http://x:port",
            "http://a b",
            "http://x#",
            "https://x/#y",
            "http://.",
            "http://a..b",
            "http://a\\b",
            "http://%zz",
            "http://[::1",
        ] {
            let problem = check(url).expect_err(url);
            assert!(!problem.contains("hunter2"), "{problem}");
        }
        for url in [
            "https://0123.r2.cloudflarestorage.com",
            "http://127.0.0.1:9000/",
            "http://[::1]:9000",
            "http://Minio_1/s3",
        ] {
            check(url).unwrap_or_else(|problem| panic!("{url}: {problem}"));
        }
    }

    #[test]
    fn what_is_no_nats_address_is_refused_without_repeating_a_password() {
        for url in [
            "http://h:4222",
            "nats://",
            "nats://h:port",
            "nats:///h",
            "nats://u:hunter2@",
            "nats://h/x",
            "na ts://h",
            "h h",
        ] {
            let problem = check_nats(url).expect_err(url);
            assert!(!problem.contains("hunter2"), "{problem}");
        }
        for url in ["nats://h:4222", "tls://h", "h", "h:4222", "nats://user:p@ss/w@h:4222", "nats://[::1]:4222/"] {
            check_nats(url).unwrap_or_else(|problem| panic!("{url}: {problem}"));
        }
    }

    #[test]
    fn a_host_is_a_host_alone() {
        let check = |text: &str, expected: Result<&str, &str>| {
            let found = host(text, "clickhouse");
            match expected {
                Ok(expected) => assert_eq!(found.as_deref(), Ok(expected), "{text}"),
                Err(part) => assert!(found.as_ref().is_err_and(|problem| problem.contains(part)), "{text}: {found:?}"),
            }
        };
        check("ch.example.com", Ok("ch.example.com"));
        check("127.0.0.1", Ok("127.0.0.1"));
        check("::1", Ok("[::1]"));
        check("[fd00::2]", Ok("[fd00::2]"));
        check("http://ch:8124", Err("clickhouse.host: ch, clickhouse.port: 8124, clickhouse.secure: false"));
        check("https://ch/", Err("clickhouse.host: ch, clickhouse.secure: true"));
        check("ch:8123", Err("clickhouse.port: 8123"));
        check("ch/db", Err("not the name"));
        check("user@ch", Err("not the name"));
        check("a b", Err("not the name"));
        check("#", Err("not the name"));
    }
}
