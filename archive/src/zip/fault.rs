//! What can be wrong with an archive.

/// Characters of untrusted text quoted in a message.
const QUOTED_CHARS_MAX: usize = 40;
const NAME_CHARS_MAX: usize = 120;

/// What is wrong with the zip around the CSV.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArchiveFault {
    /// What it is instead.
    #[error("{0}")]
    NotZip(&'static str),
    #[error("damaged zip file: {0}")]
    Damaged(&'static str),
    #[error("the local header and the directory of the zip file disagree on the {0}")]
    HeadersDisagree(&'static str),
    #[error("the name of the archive is not that of a zip file: '{0}'")]
    FileName(String),
    #[error("exactly one member expected, found {0}")]
    MemberCount(u16),
    #[error("member '{expected}' expected, found '{found}'")]
    MemberName { expected: String, found: String },
    #[error("the member is encrypted")]
    Encrypted,
    #[error("compression method {0} is not supported: stored and deflate are")]
    Method(u16),
    #[error("{0} is not supported")]
    Unsupported(&'static str),
    #[error("the member declares {declared_bytes} bytes, the limit is {limit_bytes}")]
    TooLarge { declared_bytes: u64, limit_bytes: u64 },
    #[error("the member inflates beyond the {declared_bytes} bytes it declares")]
    Overrun { declared_bytes: u64 },
    #[error("the member inflates to {actual_bytes} bytes, it declares {declared_bytes}")]
    Underrun { declared_bytes: u64, actual_bytes: u64 },
    #[error("CRC-32 of the member is {computed:08x}, the zip file says {stored:08x}")]
    Crc { stored: u32, computed: u32 },
}

impl ArchiveFault {
    /// Short stable name, one of `zip`, `member`, `unsupported`, `bomb`, `crc`.
    pub fn class(&self) -> &'static str {
        match self {
            Self::NotZip(_) | Self::Damaged(_) | Self::HeadersDisagree(_) | Self::Underrun { .. } => "zip",
            Self::FileName(_) | Self::MemberCount(_) | Self::MemberName { .. } => "member",
            Self::Encrypted | Self::Method(_) | Self::Unsupported(_) => "unsupported",
            Self::TooLarge { .. } | Self::Overrun { .. } => "bomb",
            Self::Crc { .. } => "crc",
        }
    }
}

/// What a file is that has no end of a zip file, by how it begins: what servers and broken transfers leave under the name
/// of an archive.
pub(crate) fn not_zip(head: &[u8]) -> ArchiveFault {
    let text = String::from_utf8_lossy(head).trim_start_matches('\u{feff}').trim_start().to_lowercase();
    let begins = |with: &str| text.starts_with(with);
    ArchiveFault::NotZip(if head.is_empty() {
        "an empty file"
    } else if head.starts_with(b"PK\x03\x04") {
        "a zip file without its end: it was cut short, or bytes were added"
    } else if begins("<!doctype html") || begins("<html") {
        "an HTML page, and no zip file"
    } else if begins("<?xml") || begins("<error") {
        "an error of a server in XML, and no zip file"
    } else if begins("{") {
        "a JSON document, and no zip file"
    } else {
        "not a zip file"
    })
}

/// Untrusted bytes made fit for a message: escaped, at most 40 characters.
pub fn printable(bytes: &[u8]) -> String {
    shorten(bytes, QUOTED_CHARS_MAX)
}

/// The name of a file made fit for a message; real ones have some 30 characters.
pub fn printable_name(file_name: &str) -> String {
    shorten(file_name.as_bytes(), NAME_CHARS_MAX)
}

fn shorten(bytes: &[u8], chars_max: usize) -> String {
    // A character takes at most four bytes; a cut through one falls behind what is quoted.
    let head = String::from_utf8_lossy(bytes.get(..4 * (chars_max + 1)).unwrap_or(bytes));
    let mut quoted: String = head.chars().take(chars_max).flat_map(char::escape_debug).collect();
    if head.chars().nth(chars_max).is_some() {
        quoted.push('…');
    }
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_text_is_short_and_harmless() {
        let check = |bytes: &[u8], expected: &str| assert_eq!(printable(bytes), expected);
        check(b"1e5", "1e5");
        check(b"\x1b[2J\r\n", "\\u{1b}[2J\\r\\n");
        check("\u{202e}x".as_bytes(), "\\u{202e}x");
        check("币安".as_bytes(), "币安");
        check(b"\xff\xfe", "��");
        check(&[b'7'; 40], &"7".repeat(40));
        check(&[b'7'; 9000], &format!("{}…", "7".repeat(40)));
        check("币".repeat(9000).as_bytes(), &format!("{}…", "币".repeat(40)));
    }

    #[test]
    fn what_is_no_zip_file_is_said() {
        let check = |head: &str, expected: &str| {
            let fault = not_zip(head.as_bytes()).to_string();
            assert!(fault.contains(expected), "{fault}");
        };
        check("", "an empty file");
        check("\u{feff}<!DOCTYPE html><html>", "an HTML page");
        check("\n<HTML><title>404</title>", "an HTML page");
        check("<?xml version=\"1.0\"?><Error>", "an error of a server in XML");
        check("<Error><Code>NoSuchKey</Code></Error>", "an error of a server in XML");
        check("{\"error\": 1}", "JSON");
        check("PK\x03\x04rest", "cut short");
        check("1704067200000,1,2", "not a zip file");
    }
}
