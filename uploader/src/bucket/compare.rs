//! Whether what is stored is what the marker says.

use common::checksum::Md5Sum;
use common::marker::Object;
use store::Stored;

use crate::local::check::Checked;

/// How what is stored differs from what the marker says; `checked` is about the bytes, where they are here.
pub(crate) fn difference(stored: &Stored, object: &Object, checked: Option<&Checked>) -> Option<String> {
    if stored.size != object.size {
        return Some(format!("it has {} bytes instead of {}", stored.size, object.size));
    }
    match stored.sha256 {
        None => return Some("it has no sha256 in its metadata".to_owned()),
        Some(sha256) if sha256 != object.sha256 => {
            return Some(format!("its metadata says sha256 {sha256} instead of {}", object.sha256));
        }
        Some(_) => {}
    }
    let expected = checked.filter(|_| !stored.encrypted).and_then(|checked| etag_like(&stored.etag, checked))?;
    (stored.etag != expected).then(|| format!("its ETag is {} instead of {expected}", stored.etag))
}

/// The ETag the object would have, had it been stored as the one with this ETag was: by a single PUT, or in as many parts
/// as we cut it into. `None`: it was stored in a way we do not know, and its ETag says nothing.
fn etag_like<'c>(etag: &str, checked: &'c Checked) -> Option<&'c str> {
    let count = |etag: &str| etag.split_once('-').map(|(_, parts)| parts.to_owned());
    if etag.parse::<Md5Sum>().is_ok() {
        return Some(&checked.md5);
    }
    checked.parts_etag.as_deref().filter(|ours| count(etag).is_some() && count(etag) == count(ours))
}

#[cfg(test)]
mod tests {
    use common::checksum::{Sha256Sum, md5_hex};

    use super::*;

    #[test]
    fn what_is_stored_is_compared_with_what_is_announced() {
        let object = Object {
            key: "download/a".into(),
            symbol: "A".into(),
            size: 3,
            sha256: Sha256Sum::of(b"abc"),
            generated_at: "2026-02-15T00:44:06Z".parse().expect("a time"),
        };
        let md5 = md5_hex(b"abc");
        let parts_etag = Some(format!("{}-2", md5_hex(b"parts")));
        let checked = Checked {
            sha256: object.sha256,
            md5: md5.clone(),
            parts_etag: parts_etag.clone(),
            generated_at: object.generated_at,
            stamped: true,
        };
        let good = Stored { size: 3, etag: md5.clone(), encrypted: false, sha256: Some(object.sha256) };
        let check = |stored: Stored, checked: Option<&Checked>, expected: Option<&str>| match (
            difference(&stored, &object, checked),
            expected,
        ) {
            (None, None) => {}
            (Some(text), Some(expected)) => assert!(text.contains(expected), "{text}"),
            (found, expected) => panic!("{found:?}, expected {expected:?}"),
        };
        check(good.clone(), Some(&checked), None);
        check(good.clone(), None, None);
        check(Stored { size: 4, ..good.clone() }, Some(&checked), Some("4 bytes instead of 3"));
        check(Stored { sha256: None, ..good.clone() }, None, Some("no sha256"));
        check(Stored { sha256: Some(Sha256Sum::of(b"x")), ..good.clone() }, None, Some("its metadata says"));
        check(Stored { etag: md5_hex(b"x"), ..good.clone() }, Some(&checked), Some("its ETag"));
        check(Stored { etag: md5_hex(b"x"), ..good.clone() }, None, None);
        // With a key of its own (SSE-KMS) the ETag looks like an MD5 and is none.
        check(Stored { etag: md5_hex(b"x"), encrypted: true, ..good.clone() }, Some(&checked), None);
        let in_parts = |etag: String| Stored { etag, ..good.clone() };
        check(in_parts(format!("{}-2", md5_hex(b"parts"))), Some(&checked), None);
        check(in_parts(format!("{}-2", md5_hex(b"x"))), Some(&checked), Some("its ETag"));
        check(in_parts(format!("{}-2", md5_hex(b"x"))), Some(&Checked { parts_etag: None, ..checked.clone() }), None);
        // Cut into other parts than ours, by somebody else.
        check(in_parts(format!("{}-3", md5_hex(b"x"))), Some(&checked), None);
    }
}
