//! The marker: "every object of this unit is in the bucket, and here are their sizes and hashes".
//!
//! The same JSON is the message on the stream and the manifest in the bucket; only a list too long for a message
//! is replaced there by a reference to the manifest.

mod dates;
mod object;

use std::collections::BTreeSet;
use std::fmt;

use jiff::{Timestamp, ToSpan};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::checksum::Sha256Sum;
use crate::object_key::{KeyError, Prefix};
use crate::text::{is_seen, shorten};
use crate::unit::Unit;

pub use dates::Dates;
pub use object::Object;

pub const SCHEMA: &str = "marketferry.marker/1";
/// Longest message that carries its list of objects itself, in bytes.
pub const INLINE_BYTES_MAX: usize = 256 * 1024;
/// Most objects a unit may have. Binance has listed under 4,000 symbols in all markets together.
pub const OBJECTS_MAX: usize = 20_000;
/// Largest manifest that is read, in bytes.
pub const MANIFEST_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// Largest `current.json` that is read, in bytes: it may date every object of the largest unit.
pub const CURRENT_BYTES_MAX: u64 = 2 * 1024 * 1024;
/// Most names of missing symbols in a marker: they may not push the list of objects out of a message.
const MISSING_NAMES_MAX: usize = 100;
/// Largest object, in bytes. The exchange's largest archives have some gigabytes; a size that nothing can have is not to be
/// believed by whoever makes room for it.
pub const OBJECT_BYTES_MAX: u64 = 64 << 30;
/// Longest symbol, in bytes of UTF-8.
const SYMBOL_BYTES_MAX: usize = 64;

/// Where the list of objects is, when it is too long for a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestRef {
    pub key: String,
    /// Of the manifest's bytes.
    pub sha256: Sha256Sum,
    /// Objects that are dated otherwise than the manifest says.
    #[serde(default, skip_serializing_if = "Dates::is_empty")]
    pub dates: Dates,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    Objects(Vec<Object>),
    Manifest(ManifestRef),
}

/// Symbols that a unit was to have and was published without.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incomplete {
    /// How many.
    pub count: usize,
    /// Their names, as far as the marker has room for them.
    pub symbols: Vec<String>,
}

impl Incomplete {
    /// `None` when nothing is missing.
    pub fn of(mut missing: Vec<String>) -> Option<Self> {
        let count = missing.len();
        missing.truncate(MISSING_NAMES_MAX);
        (count > 0).then_some(Self { count, symbols: missing })
    }
}

impl fmt::Display for Incomplete {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES_MAX: usize = 10;
        let names: Vec<String> = self.symbols.iter().take(NAMES_MAX).map(|symbol| shorten(symbol)).collect();
        let more = if self.count > names.len() { ", …" } else { "" };
        let plural = if self.count == 1 { "" } else { "s" };
        write!(f, "{} symbol{plural}: {}{more}", self.count, names.join(", "))
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marker {
    /// UUIDv5 of unit and revision. Whoever reads a marker relies on the revision, never on this.
    pub id: String,
    pub unit: Unit,
    pub revision: Sha256Sum,
    pub bucket: String,
    pub content: Content,
    pub published_at: Timestamp,
    /// Who published it: a host name.
    pub uploader: String,
    /// What it lacks. No part of the revision: what there is, is the same with or without it.
    pub incomplete: Option<Incomplete>,
}

/// `current.json`: which manifest of the unit is the newest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Current {
    pub revision: Sha256Sum,
    /// Key of that revision's manifest.
    pub manifest: String,
    /// When it became the newest. Later than its manifest says of a unit that went back to a former revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published_at: Option<Timestamp>,
    /// Objects that are dated otherwise than the manifest says.
    #[serde(default, skip_serializing_if = "Dates::is_empty")]
    pub dates: Dates,
}

impl Current {
    /// The manifest that it names as it counts now: dated and published as is said here.
    #[must_use]
    pub fn applied_to(&self, mut manifest: Marker) -> Marker {
        if let Content::Objects(objects) = &mut manifest.content {
            self.dates.apply(objects);
        }
        Marker { published_at: self.published_at.unwrap_or(manifest.published_at), ..manifest }
    }
}

/// The JSON form. Unknown fields are ignored, so that a newer uploader can add some.
#[derive(Serialize, Deserialize)]
struct Wire {
    schema: String,
    #[serde(default)]
    id: String,
    #[serde(flatten)]
    unit: Unit,
    revision: Sha256Sum,
    bucket: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    objects: Option<Vec<Object>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    manifest: Option<ManifestRef>,
    published_at: Timestamp,
    #[serde(default)]
    uploader: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    incomplete: Option<Incomplete>,
}

impl Marker {
    /// A marker for these objects, with the revision and the id that follow from them.
    pub fn new(
        unit: Unit,
        bucket: String,
        mut objects: Vec<Object>,
        published_at: Timestamp,
        uploader: String,
    ) -> Self {
        objects.sort_by(|a, b| a.key.cmp(&b.key));
        let revision = revision(&objects);
        let name = format!("marketferry:{unit}@{revision}");
        let id = Uuid::new_v5(&Uuid::NAMESPACE_URL, name.as_bytes()).to_string();
        Self {
            id,
            unit,
            revision,
            bucket,
            content: Content::Objects(objects),
            published_at,
            uploader,
            incomplete: None,
        }
    }

    /// The same, saying what it lacks.
    #[must_use]
    pub fn lacking(self, incomplete: Option<Incomplete>) -> Self {
        Self { incomplete, ..self }
    }

    /// Reads a marker from the stream or the bucket; nothing in it has been checked against anything yet.
    pub fn parse(json: &[u8]) -> Result<Self, MarkerError> {
        #[derive(Deserialize)]
        struct Schema {
            schema: String,
        }
        let Schema { schema } = serde_json::from_slice(json).map_err(MarkerError::NotAMarker)?;
        if schema != SCHEMA {
            return Err(MarkerError::UnknownSchema(shorten(&schema)));
        }
        let wire: Wire = serde_json::from_slice(json).map_err(MarkerError::NotAMarker)?;
        let content = match (wire.objects, wire.manifest) {
            (Some(objects), _) => Content::Objects(objects),
            (None, Some(manifest)) => Content::Manifest(manifest),
            (None, None) => return Err(MarkerError::NoObjects),
        };
        Ok(Self {
            id: wire.id,
            unit: wire.unit,
            revision: wire.revision,
            bucket: wire.bucket,
            content,
            published_at: wire.published_at,
            uploader: wire.uploader,
            incomplete: wire.incomplete,
        })
    }

    /// The prefix of the keys it names; `None` where none of them has one that is understood.
    pub fn prefix(&self) -> Option<Prefix> {
        match &self.content {
            Content::Objects(objects) => objects.iter().find_map(|object| Prefix::of_archive_key(&object.key)),
            Content::Manifest(reference) => Prefix::of_manifest_key(&reference.key),
        }
    }

    /// Why nothing of what the marker names can be here: it was published for another bucket, or none of its keys lies
    /// below the prefix. `None`: some of it can be.
    pub fn elsewhere(&self, bucket: &str, prefix: &Prefix) -> Option<Elsewhere> {
        if self.bucket != bucket {
            return Some(Elsewhere::Bucket { marker: shorten(&self.bucket), configured: bucket.to_owned() });
        }
        let first = match &self.content {
            Content::Objects(objects) if objects.iter().any(|object| prefix.holds(&object.key)) => return None,
            Content::Objects(objects) => &objects.first()?.key,
            Content::Manifest(manifest) if prefix.holds(&manifest.key) => return None,
            Content::Manifest(manifest) => &manifest.key,
        };
        Some(Elsewhere::Prefix { key: shorten(first), configured: prefix.to_string() })
    }

    /// The JSON kept in the bucket, or sent as it is.
    pub fn to_json(&self) -> Vec<u8> {
        let (objects, manifest) = match &self.content {
            Content::Objects(objects) => (Some(objects.clone()), None),
            Content::Manifest(manifest) => (None, Some(manifest.clone())),
        };
        let wire = Wire {
            schema: SCHEMA.to_owned(),
            id: self.id.clone(),
            unit: self.unit.clone(),
            revision: self.revision,
            bucket: self.bucket.clone(),
            objects,
            manifest,
            published_at: self.published_at,
            uploader: self.uploader.clone(),
            incomplete: self.incomplete.clone(),
        };
        serde_json::to_vec(&wire).expect("strings and numbers always serialise")
    }

    /// The message for a marker whose manifest is stored under `manifest_key` with exactly these bytes, which may be of an
    /// earlier time. It carries its list of objects where it is no longer than `inline_bytes_max` then.
    pub fn message(&self, manifest_key: &str, manifest_json: &[u8], dates: Dates, inline_bytes_max: usize) -> Vec<u8> {
        let json = self.to_json();
        if json.len() <= inline_bytes_max {
            return json;
        }
        let reference = ManifestRef { key: manifest_key.to_owned(), sha256: Sha256Sum::of(manifest_json), dates };
        Self { content: Content::Manifest(reference), ..self.clone() }.to_json()
    }

    /// The objects of a marker that lists them.
    ///
    /// # Errors
    /// The list is not here (a reference to a manifest), or it breaks a rule: see [`MarkerError`].
    pub fn checked_objects(&self, prefix: &Prefix, now: Timestamp) -> Result<&[Object], MarkerError> {
        let Content::Objects(objects) = &self.content else {
            return Err(MarkerError::NoObjects);
        };
        if objects.is_empty() {
            return Err(MarkerError::NoObjects);
        }
        if objects.len() > OBJECTS_MAX {
            return Err(MarkerError::TooManyObjects(objects.len()));
        }
        // A time stamp far ahead would win against every later correction, for ever.
        let generated_at_max = now.saturating_add(24.hours()).unwrap_or(Timestamp::MAX);
        let mut keys = BTreeSet::new();
        let mut symbols = BTreeSet::new();
        for object in objects {
            prefix.archive_path(&object.key)?;
            let symbol = &object.symbol;
            if let Some(why) = symbol_fault(symbol) {
                return Err(MarkerError::Symbol { symbol: shorten(symbol), why });
            }
            if !keys.insert(&object.key) || !symbols.insert(symbol) {
                return Err(MarkerError::Twice(shorten(&object.key)));
            }
            if object.size > OBJECT_BYTES_MAX {
                return Err(MarkerError::Size { key: shorten(&object.key), size: object.size });
            }
            if object.generated_at > generated_at_max || object.generated_at < Timestamp::UNIX_EPOCH {
                return Err(MarkerError::GeneratedAt { key: shorten(&object.key), at: object.generated_at });
            }
        }
        let actual = revision(objects);
        if actual != self.revision {
            return Err(MarkerError::Revision { claimed: self.revision, actual });
        }
        Ok(objects)
    }
}

/// Where a marker's objects are, when that is not where this process is to look.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Elsewhere {
    #[error(
        "the marker is of bucket '{marker}', and this process is configured for bucket '{configured}'; check \
         storage.type and storage.r2.bucket"
    )]
    Bucket { marker: String, configured: String },
    #[error(
        "the marker is of objects outside storage.r2.prefix, which is '{configured}': the first key is '{key}'; check \
         storage.r2.prefix"
    )]
    Prefix { key: String, configured: String },
}

fn symbol_fault(symbol: &str) -> Option<&'static str> {
    if symbol.is_empty() {
        Some("it is empty")
    } else if symbol.len() > SYMBOL_BYTES_MAX {
        Some("it is too long")
    } else if symbol.chars().any(|c| !is_seen(c) || c.is_whitespace()) {
        Some("it holds white space or a character that cannot be seen")
    } else if symbol.contains(['/', '\\', '\'', '"']) {
        Some("it holds a slash, a backslash or a quotation mark")
    } else {
        None
    }
}

/// The revision of a list of objects: the same content is the same revision, in whatever order.
pub fn revision(objects: &[Object]) -> Sha256Sum {
    let mut lines: Vec<String> = objects.iter().map(|o| format!("{}\t{}\t{}\n", o.key, o.size, o.sha256)).collect();
    lines.sort_unstable();
    let mut digest = Sha256::new();
    lines.iter().for_each(|line| digest.update(line));
    Sha256Sum::from_digest(digest)
}

/// Why a message is not a marker one can act on. All of these are for ever: another delivery changes nothing.
#[derive(Debug, thiserror::Error)]
pub enum MarkerError {
    #[error("not a marker: {0}")]
    NotAMarker(serde_json::Error),
    #[error("unknown schema '{0}': this version reads {SCHEMA}; update the workers, then retry")]
    UnknownSchema(String),
    #[error("the marker names no objects")]
    NoObjects,
    #[error("the marker names {0} objects, more than {OBJECTS_MAX}")]
    TooManyObjects(usize),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("'{symbol}' cannot be a symbol: {why}")]
    Symbol { symbol: String, why: &'static str },
    #[error("the marker names the key or the symbol of '{0}' twice")]
    Twice(String),
    #[error("'{key}' cannot have {size} bytes: the most is {OBJECT_BYTES_MAX}")]
    Size { key: String, size: u64 },
    #[error("generated_at {at} of '{key}' cannot be: it is before 1970 or more than a day ahead of this clock")]
    GeneratedAt { key: String, at: Timestamp },
    #[error("the marker claims revision {claimed}, but its objects are revision {actual}")]
    Revision { claimed: Sha256Sum, actual: Sha256Sum },
    #[error("the marker's unit {marker} is not that of its subject, {subject}")]
    Subject { marker: String, subject: String },
    #[error("manifest '{key}' is not what the marker says: {why}")]
    Manifest { key: String, why: String },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(key: &str) -> Object {
        Object {
            key: key.to_owned(),
            symbol: key.rsplit('/').next().unwrap_or(key).to_owned(),
            size: 3,
            sha256: Sha256Sum::of(b"abc"),
            generated_at: "2026-02-15T00:44:00Z".parse().expect("a time"),
        }
    }

    fn marker(objects: Vec<Object>) -> Marker {
        let unit = "binance/um/klines/1h/2026-02-14".parse().expect("a unit");
        let at = "2026-02-15T02:00:00Z".parse().expect("a time");
        Marker::new(unit, "archive".into(), objects, at, "host-1".into())
    }

    fn check(marker: &Marker, message: &str) {
        let now = "2026-02-16T00:00:00Z".parse().expect("a time");
        let error = marker.checked_objects(&Prefix::new("download"), now).expect_err(message).to_string();
        assert!(error.contains(message), "{error}");
    }

    #[test]
    fn a_marker_survives_its_json() {
        let marker = marker(vec![object("download/b"), object("download/a")]);
        let json = marker.to_json();
        assert_eq!(Marker::parse(&json).expect("parses"), marker);
        let text = String::from_utf8(json).expect("utf-8");
        assert!(text.starts_with(r#"{"schema":"marketferry.marker/1","id":""#), "{text}");
        assert!(text.contains(r#""market":"um","dataset":"klines","interval":"1h","period":"2026-02-14""#), "{text}");
        assert!(text.contains(r#""generated_at":"2026-02-15T00:44:00Z""#), "{text}");
    }

    #[test]
    fn what_is_missing_is_said_and_is_no_part_of_the_revision() {
        let whole = marker((0..2000).map(|n| object(&format!("download/{n:0100}"))).collect());
        let missing = (0..300).map(|n| format!("S{n}USDT")).collect();
        let lacking = whole.clone().lacking(Incomplete::of(missing));
        assert_eq!((whole.revision, &whole.id), (lacking.revision, &lacking.id));
        let manifest = lacking.to_json();
        assert_eq!(Marker::parse(&manifest).expect("parses"), lacking);
        let message =
            Marker::parse(&lacking.message("download/_markers/x.json", &manifest, Dates::default(), INLINE_BYTES_MAX))
                .expect("parses");
        let incomplete = message.incomplete.expect("said in the short form too");
        assert_eq!((incomplete.count, incomplete.symbols.len()), (300, MISSING_NAMES_MAX));
        assert!(incomplete.to_string().starts_with("300 symbols: S0USDT, S1USDT, "), "{incomplete}");
        assert_eq!(Incomplete::of(vec![]), None);
    }

    #[test]
    fn a_size_that_cannot_be_is_refused() {
        let mut large = object("download/a");
        large.size = 1 << 45;
        check(&marker(vec![large]), "cannot have 35184372088832 bytes");
    }

    #[test]
    fn a_marker_of_another_place_names_both() {
        let prefix = Prefix::new("download");
        let two = |a, b| marker(vec![object(a), object(b)]);
        assert_eq!(two("download/a", "other/b").elsewhere("archive", &prefix), None, "that is a bad key of a marker");
        let said = |marker: Marker, bucket| marker.elsewhere(bucket, &prefix).expect("elsewhere").to_string();
        let bucket = said(two("download/a", "download/b"), "archive-2");
        assert!(bucket.contains("'archive'") && bucket.contains("'archive-2'"), "{bucket}");
        let keys = said(two("other/a", "other/b"), "archive");
        assert!(keys.contains("'download'") && keys.contains("'other/a'"), "{keys}");
        let manifest =
            ManifestRef { key: "other/_markers/x.json".into(), sha256: Sha256Sum::of(b""), dates: Dates::default() };
        let long = Marker { content: Content::Manifest(manifest), ..two("other/a", "other/b") };
        assert!(said(long, "archive").contains("_markers"));
    }

    #[test]
    fn the_revision_is_that_of_the_sorted_lines() {
        let (a, b) = (object("download/a"), object("download/b"));
        let lines = format!("download/a\t3\t{0}\ndownload/b\t3\t{0}\n", Sha256Sum::of(b"abc"));
        assert_eq!(revision(&[b.clone(), a.clone()]), Sha256Sum::of(lines.as_bytes()));
        assert_eq!(marker(vec![a, b]).id, "5ddca5f3-6043-5c34-88ae-3bf15fa000be");
    }

    #[test]
    fn unknown_fields_are_ignored_and_unknown_schemas_are_not() {
        let json = String::from_utf8(marker(vec![object("download/a")]).to_json()).expect("utf-8");
        assert!(Marker::parse(json.replacen('{', r#"{"new_field":[1],"#, 1).as_bytes()).is_ok());
        let newer = json.replace("marker/1", "marker/2");
        assert!(matches!(Marker::parse(newer.as_bytes()), Err(MarkerError::UnknownSchema(_))));
        for text in ["", "{", "[]", "null", "{}", r#"{"schema":"marketferry.marker/1"}"#] {
            assert!(matches!(Marker::parse(text.as_bytes()), Err(MarkerError::NotAMarker(_))), "{text}");
        }
    }

    #[test]
    fn a_long_list_becomes_a_reference() {
        let long = marker((0..2000).map(|n| object(&format!("download/{n:0100}"))).collect());
        let manifest = long.to_json();
        let message = long.message("download/_markers/x.json", &manifest, Dates::default(), INLINE_BYTES_MAX);
        assert!(message.len() < 1000);
        let parsed = Marker::parse(&message).expect("parses");
        assert_eq!(parsed.revision, long.revision);
        let Content::Manifest(reference) = parsed.content else { panic!("inline") };
        assert_eq!(reference.sha256, Sha256Sum::of(&manifest));
    }

    #[test]
    fn what_breaks_a_rule_is_refused() {
        let mut wrong = marker(vec![object("download/a")]);
        wrong.revision = Sha256Sum::of(b"");
        check(&wrong, "claims revision");
        check(&marker(vec![object("elsewhere/a")]), "outside storage.r2.prefix");
        check(&marker(vec![]), "no objects");
        check(&marker(vec![object("download/a"), object("download/a")]), "twice");
        check(&marker((0..=OBJECTS_MAX).map(|n| object(&format!("download/{n}"))).collect()), "more than 20000");
        let ahead = Object { generated_at: "2036-01-01T00:00:00Z".parse().expect("a time"), ..object("download/a") };
        check(&marker(vec![ahead]), "generated_at");
        check(
            &marker(vec![Object { symbol: "A'B".into(), ..object("download/a") }]),
            "cannot be a symbol: it holds a slash, a backslash or a quotation mark",
        );
    }
}
