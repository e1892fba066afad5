//! Addresses of servers, checked before anything is connected to: a library that cannot make sense of one tries for a
//! while, and then speaks of its own parts.
//!
//! A text with an `@` anywhere may hold a password, wherever a parser would end the part before the host: no message
//! repeats anything of it.

use std::net::Ipv6Addr;

use reqwest::Url;

use crate::text::shorten;

/// Refuses what is not the address of an HTTP server, such as `example`; a path may follow the host.
pub(super) fn check_http(url: &str, example: &str) -> Result<(), String> {
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    let Some(rest) = rest else { return Err("must begin with http:// or https://".to_owned()) };
    if url.contains('@') {
        return Err("holds an @: a user and a password in it are not supported (in a path, write %40)".to_owned());
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
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

/// The addresses in one text with commas between them. A comma is part of a password where an `@` follows that the address
/// so far lacks, and the next part has no scheme of its own.
pub(super) fn split_nats(text: &str) -> Vec<String> {
    let mut urls: Vec<String> = Vec::new();
    let parts: Vec<&str> = text.split(',').collect();
    for (index, part) in parts.iter().enumerate() {
        let of_one_url = parts[index..].iter().take_while(|part| !part.contains("://"));
        let ends_a_login = of_one_url.into_iter().any(|part| part.contains('@'));
        match urls.last_mut() {
            Some(url) if ends_a_login && !url.contains('@') => {
                url.push(',');
                url.push_str(part);
            }
            _ => urls.push((*part).to_owned()),
        }
    }
    urls.iter().map(|url| url.trim().to_owned()).filter(|url| !url.is_empty()).collect()
}

/// The name or address of a host as a URL takes it: an IPv6 address gets its brackets. `section` is where its port goes.
pub(super) fn host(text: &str, section: &str) -> Result<String, String> {
    if text.contains('@') {
        return Err(format!(
            "holds an @: write the name or address of the host alone, and {section}.user and {section}.password"
        ));
    }
    if let Some((scheme, rest)) = text.split_once("://") {
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let (host, port) = authority.split_at(name_end(authority));
        let port = port.trim_start_matches(':');
        let port = if port.is_empty() { String::new() } else { format!(", {section}.port: {}", shorten(port)) };
        let secure = scheme == "https";
        let host = shorten(host);
        return Err(format!("is a URL; write {section}.host: {host}{port}, {section}.secure: {secure}"));
    }
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    if bare.parse::<Ipv6Addr>().is_ok() {
        return Ok(format!("[{bare}]"));
    }
    let (name, port) = text.split_at(name_end(text));
    match port.strip_prefix(':').map(|port| (name, port)) {
        Some((host, "")) => return Err(format!("ends with a colon; write {section}.host: {}", shorten(host))),
        Some((host, port)) if port.chars().all(|c| c.is_ascii_digit()) => {
            return Err(format!("carries a port; write {section}.host: {}, {section}.port: {port}", shorten(host)));
        }
        _ => {}
    }
    let replaced = if text.contains('$') { ": variables are not replaced" } else { "" };
    let wrong = || format!("'{}' is not the name or address of a host{replaced}", shorten(text));
    let parsed = Url::parse(&format!("http://{text}/")).map_err(|error| format!("{}: {error}", wrong()))?;
    is_host(&parsed, text).then(|| text.to_owned()).ok_or_else(wrong)
}

/// Whether the parser found just this `host[:port]`, and did not take parts of it for something else: it reads
/// `http:://x`, `http:///x` and `http://a\b`, too.
///
/// It writes hosts in one form, in which an IPv6 address is as short as it can be and other letters than ASCII's are
/// encoded: there the texts need not be equal.
fn is_host(parsed: &Url, authority: &str) -> bool {
    let found = parsed.host_str().unwrap_or_default();
    let (name, port) = authority.split_at(name_end(authority));
    let port_is_one = port.is_empty() || port.starts_with(':') && port.len() > 1;
    let ipv6 = |text: &str| text.strip_prefix('[')?.strip_suffix(']')?.parse::<Ipv6Addr>().ok();
    let is_name = match ipv6(found) {
        Some(address) => ipv6(name) == Some(address),
        // The parser takes `$HOST`, `a,b` and more for names; no resolver does.
        None if name.is_ascii() => name.eq_ignore_ascii_case(found) && name.chars().all(is_of_a_name),
        None => !name.contains(['%', '[', ']', '@', '/', '\\', '?', '#']) && !name.contains(char::is_whitespace),
    };
    let named = found.chars().any(|c| c.is_ascii_alphanumeric()) && !found.starts_with('.') && !found.contains("..");
    named && is_name && port_is_one
}

fn is_of_a_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')
}

/// Where the host ends in `host[:port]`.
fn name_end(authority: &str) -> usize {
    let end = if authority.starts_with('[') { authority.find(']').map(|at| at + 1) } else { authority.find(':') };
    end.unwrap_or(authority.len())
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
            "http://u:hun/ter2@host",
            "http://u:hun#ter2@host",
            "http://u:hun?ter2@host",
            "http://u:1/hunter2@host",
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
            "http://%41",
            "http://[::1",
            "http://[::1]x",
            "http://127.1",
            "http://$HOST:9000",
            "http://a,b",
        ] {
            let problem = check(url).expect_err(url);
            assert!(!problem.contains("hun") && !problem.contains("ter2"), "{problem}");
        }
        for url in [
            "https://0123.r2.cloudflarestorage.com",
            "http://127.0.0.1:9000/",
            "http://[::1]:9000",
            "http://[2001:0db8::1]:9000",
            "http://[::ffff:10.0.0.1]",
            "http://Minio_1/s3",
            "https://b\u{fc}cher.example/archive",
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
            "$NATS_HOST",
            "nats://[fd00::2",
        ] {
            let problem = check_nats(url).expect_err(url);
            assert!(!problem.contains("hunter2"), "{problem}");
        }
        for url in [
            "nats://h:4222",
            "tls://h",
            "h",
            "h:4222",
            "nats://user:p@ss/w@h:4222",
            "nats://[::1]:4222/",
            "nats://[fd00:0:0:0:0:0:0:2]:4222",
            "nats://b\u{fc}cher.example",
        ] {
            check_nats(url).unwrap_or_else(|problem| panic!("{url}: {problem}"));
        }
    }

    #[test]
    fn a_comma_may_be_part_of_a_password() {
        let check = |text: &str, expected: &[&str]| assert_eq!(split_nats(text), expected, "{text}");
        check("", &[]);
        check("nats://h", &["nats://h"]);
        check("h1, h2:4222,", &["h1", "h2:4222"]);
        check("nats://u:p@h1,h2", &["nats://u:p@h1", "h2"]);
        check("nats://u:p@h1,nats://u:p@h2", &["nats://u:p@h1", "nats://u:p@h2"]);
        check("nats://u:p,q@h", &["nats://u:p,q@h"]);
        check("nats://u:p,q,r@h1,nats://h2", &["nats://u:p,q,r@h1", "nats://h2"]);
        check("u:p,q@h1,h2", &["u:p,q@h1", "h2"]);
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
        check("[fd00:0:0:0:0:0:0:2]", Ok("[fd00:0:0:0:0:0:0:2]"));
        check("b\u{fc}cher.example", Ok("b\u{fc}cher.example"));
        check("http://ch:8124", Err("clickhouse.host: ch, clickhouse.port: 8124, clickhouse.secure: false"));
        check("http://ch:8124/db", Err("clickhouse.host: ch, clickhouse.port: 8124, clickhouse.secure: false"));
        check("http://[::1]:8124/", Err("clickhouse.host: [::1], clickhouse.port: 8124, clickhouse.secure: false"));
        check("https://ch/", Err("clickhouse.host: ch, clickhouse.secure: true"));
        check("ch:8123", Err("clickhouse.port: 8123"));
        check("[::1]:8123", Err("write clickhouse.host: [::1], clickhouse.port: 8123"));
        check("ch:", Err("ends with a colon; write clickhouse.host: ch"));
        check("ch/db", Err("not the name"));
        check("a b", Err("not the name"));
        check("#", Err("not the name"));
        check("127.0.0.1,", Err("not the name"));
        check("ch1,ch2", Err("not the name"));
        check("$HOST", Err("variables are not replaced"));
        check("${HOST}", Err("not the name"));
        check("ch*", Err("not the name"));
        check("click_house-1.example.", Ok("click_house-1.example."));
        for text in ["u:hunter2@ch", "u:hunter2@ch:8123", "http://u:hunter2@ch:8123", "https://u:hun/ter2@ch"] {
            check(text, Err("write the name or address of the host alone, and clickhouse.user"));
            let problem = host(text, "clickhouse").expect_err(text);
            assert!(!problem.contains("hun") && !problem.contains("ter2"), "{problem}");
        }
    }
}
