//! SHA-256 and MD5 as the bucket and the marker write them.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use md5::Md5;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// A SHA-256, written as 64 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Sha256Sum([u8; 32]);

impl Sha256Sum {
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    pub fn from_digest(digest: Sha256) -> Self {
        Self(digest.finalize().into())
    }
}

impl fmt::Display for Sha256Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for Sha256Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a sha256 of 64 hex digits")]
pub struct NotSha256(String);

impl FromStr for Sha256Sum {
    type Err = NotSha256;

    fn from_str(text: &str) -> Result<Self, NotSha256> {
        let bad = || NotSha256(crate::text::shorten(text));
        let digits = text.as_bytes();
        if digits.len() != 64 {
            return Err(bad());
        }
        let mut sum = [0; 32];
        for (byte, pair) in sum.iter_mut().zip(digits.chunks_exact(2)) {
            let nibble = |c: u8| char::from(c).to_digit(16).and_then(|d| u8::try_from(d).ok());
            *byte = match (nibble(pair[0]), nibble(pair[1])) {
                (Some(high), Some(low)) => high << 4 | low,
                _ => return Err(bad()),
            };
        }
        Ok(Self(sum))
    }
}

impl TryFrom<String> for Sha256Sum {
    type Error = NotSha256;

    fn try_from(text: String) -> Result<Self, NotSha256> {
        text.parse()
    }
}

impl From<Sha256Sum> for String {
    fn from(sum: Sha256Sum) -> Self {
        sum.to_string()
    }
}

/// An MD5, written in lower-case hex: what S3 reports as the ETag of an object stored by a single PUT, and of a part.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Md5Sum([u8; 16]);

impl Md5Sum {
    pub fn of(bytes: &[u8]) -> Self {
        Self(Md5::digest(bytes).into())
    }
}

impl fmt::Display for Md5Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for Md5Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not an MD5 of 32 lower-case hex digits")]
pub struct NotMd5(String);

impl FromStr for Md5Sum {
    type Err = NotMd5;

    fn from_str(text: &str) -> Result<Self, NotMd5> {
        let bad = || NotMd5(crate::text::shorten(text));
        if text.len() != 32 || !text.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c)) {
            return Err(bad());
        }
        u128::from_str_radix(text, 16).map(|number| Self(number.to_be_bytes())).map_err(|_| bad())
    }
}

/// MD5 in lower-case hex.
pub fn md5_hex(bytes: &[u8]) -> String {
    Md5Sum::of(bytes).to_string()
}

/// The ETag S3 gives an object that was stored in these parts.
pub fn parts_etag(parts: &[Md5Sum]) -> String {
    let mut whole = Md5::new();
    parts.iter().for_each(|part| whole.update(part.0));
    format!("{}-{}", hex(&whole.finalize()), parts.len())
}

/// Takes all sums of an object in one reading: its SHA-256, its MD5 and, with `part_bytes`, those of its parts.
pub struct Summing {
    sha256: Sha256,
    md5: Md5,
    parts: Option<PartsSumming>,
}

struct PartsSumming {
    part_bytes: u64,
    /// What the part that is being read has so far.
    bytes: u64,
    md5: Md5,
    done: Vec<Md5Sum>,
}

/// The sums of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sums {
    pub sha256: Sha256Sum,
    pub md5: Md5Sum,
    /// Where it is stored in parts.
    pub parts_etag: Option<String>,
}

impl Summing {
    pub fn new(part_bytes: Option<u64>) -> Self {
        let parts = part_bytes.map(|part_bytes| PartsSumming { part_bytes, bytes: 0, md5: Md5::new(), done: vec![] });
        Self { sha256: Sha256::new(), md5: Md5::new(), parts }
    }

    pub fn update(&mut self, mut bytes: &[u8]) {
        self.sha256.update(bytes);
        self.md5.update(bytes);
        while let Some(parts) = self.parts.as_mut().filter(|_| !bytes.is_empty()) {
            let capacity = usize::try_from(parts.part_bytes - parts.bytes).unwrap_or(usize::MAX);
            let (here, rest) = bytes.split_at(bytes.len().min(capacity));
            parts.md5.update(here);
            parts.bytes += here.len() as u64;
            if parts.bytes == parts.part_bytes {
                parts.end();
            }
            bytes = rest;
        }
    }

    pub fn finish(self) -> Sums {
        let parts_etag = self.parts.map(|mut parts| {
            if parts.bytes > 0 {
                parts.end();
            }
            parts_etag(&parts.done)
        });
        Sums { sha256: Sha256Sum::from_digest(self.sha256), md5: Md5Sum(self.md5.finalize().into()), parts_etag }
    }
}

impl PartsSumming {
    fn end(&mut self) {
        let md5 = std::mem::take(&mut self.md5);
        self.done.push(Md5Sum(md5.finalize().into()));
        self.bytes = 0;
    }
}

/// An MD5 written in base64, as some programs keep it, in lower-case hex.
pub fn md5_of_base64(text: &str) -> Option<String> {
    let bytes = base64::engine::general_purpose::STANDARD.decode(text).ok()?;
    (bytes.len() == 16).then(|| hex(&bytes))
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|byte| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]])
        .map(char::from)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_written_as_the_usual_tools_do() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Sha256Sum::of(b"").to_string(), empty);
        assert_eq!(empty.parse(), Ok(Sha256Sum::of(b"")));
        assert_eq!(empty.to_uppercase().parse(), Ok(Sha256Sum::of(b"")));
        assert_eq!(md5_hex(b""), "d41d8cd98f00b204e9800998ecf8427e");
    }

    #[test]
    fn parts_are_summed_wherever_the_reading_breaks() {
        let bytes: Vec<u8> = (0..=255).collect();
        let parts: Vec<Md5Sum> = bytes.chunks(100).map(Md5Sum::of).collect();
        for step in [1, 7, 100, 256] {
            let mut summing = Summing::new(Some(100));
            bytes.chunks(step).for_each(|chunk| summing.update(chunk));
            let sums = summing.finish();
            assert_eq!(sums.sha256, Sha256Sum::of(&bytes));
            assert_eq!(sums.md5, Md5Sum::of(&bytes));
            assert_eq!(sums.parts_etag, Some(parts_etag(&parts)), "{step}");
        }
        // As S3 has it: the MD5 of the parts' MD5s, and how many.
        assert_eq!(parts_etag(&[Md5Sum::of(b"")]), "59adb24ef3cdbe0297f05b395827453f-1");
        let mut summing = Summing::new(Some(128));
        summing.update(&bytes);
        assert!(summing.finish().parts_etag.is_some_and(|etag| etag.ends_with("-2")));
    }

    #[test]
    fn an_md5_in_base64_is_understood() {
        assert_eq!(md5_of_base64("1B2M2Y8AsgTpgAmY7PhCfg=="), Some(md5_hex(b"")));
        assert_eq!(md5_of_base64("kAFQmDzST7DWlj99KOF/cg=="), Some(md5_hex(b"abc")));
        for text in ["", "1B2M2Y8AsgTpgAmY7PhCfg", "1B2M2Y8AsgTpgAmY7PhC g==", "1B2M2Y8AsgTpgAmY7PhCfgAA=="] {
            assert_eq!(md5_of_base64(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_no_sum_is_refused() {
        assert_eq!(md5_hex(b"a").parse(), Ok(Md5Sum::of(b"a")));
        for text in ["", "+0cc175b9c0f1b6a831c399e26977266", &"A".repeat(32), &"0".repeat(33)] {
            assert!(text.parse::<Md5Sum>().is_err(), "{text}");
        }
        for text in ["", "e3", &"g".repeat(64), &"é".repeat(32)] {
            assert!(text.parse::<Sha256Sum>().is_err(), "{text}");
        }
    }
}
