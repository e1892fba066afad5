//! Times of objects that their manifest does not say.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use super::object::Object;

/// When objects count as generated, by that time and their symbols, where it is another time than their manifest says: a
/// manifest is never rewritten, and a unit that goes back to a former revision is newer than it was then.
///
/// All objects of a unit may be dated anew at once. By symbol and time a few thousand of them take a message as short as
/// half a list of objects; by key they would be too long for one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Dates(BTreeMap<Timestamp, BTreeSet<String>>);

#[derive(Deserialize)]
#[serde(untagged)]
enum Entry {
    /// Of a time.
    Symbols(BTreeSet<String>),
    /// Of a key: streams and buckets keep what earlier versions wrote.
    Time(Timestamp),
}

impl<'de> Deserialize<'de> for Dates {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut dates = BTreeMap::<_, BTreeSet<_>>::new();
        for (name, entry) in BTreeMap::<String, Entry>::deserialize(deserializer)? {
            match entry {
                Entry::Symbols(symbols) => {
                    dates.entry(name.parse().map_err(D::Error::custom)?).or_default().extend(symbols);
                }
                Entry::Time(at) => {
                    // …/<symbol>/<interval>/<file>
                    let symbol = name.rsplit('/').nth(2);
                    let symbol =
                        symbol.ok_or_else(|| D::Error::custom(format!("{name:?} is not the key of an archive")))?;
                    dates.entry(at).or_default().insert(symbol.to_owned());
                }
            }
        }
        Ok(Self(dates))
    }
}

impl Dates {
    /// Those of a revision whose objects are listed in a manifest, too.
    pub fn between(manifest: &[Object], objects: &[Object]) -> Self {
        let listed: BTreeMap<&str, Timestamp> =
            manifest.iter().map(|object| (object.key.as_str(), object.generated_at)).collect();
        let mut dates = BTreeMap::<_, BTreeSet<_>>::new();
        for object in objects {
            if listed.get(object.key.as_str()).is_some_and(|at| *at != object.generated_at) {
                dates.entry(object.generated_at).or_default().insert(object.symbol.clone());
            }
        }
        Self(dates)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Dates the objects of the manifest.
    pub fn apply(&self, objects: &mut [Object]) {
        let dated = self.0.iter().flat_map(|(at, symbols)| symbols.iter().map(move |symbol| (symbol.as_str(), *at)));
        let dated: BTreeMap<&str, Timestamp> = dated.collect();
        for object in objects {
            object.generated_at = dated.get(object.symbol.as_str()).copied().unwrap_or(object.generated_at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::marker::{INLINE_BYTES_MAX, Marker};

    fn object(symbol: &str) -> Object {
        Object {
            key: format!("download/data/spot/daily/klines/{symbol}/1h/{symbol}-1h-2026-02-14.zip"),
            symbol: symbol.to_owned(),
            size: 3,
            sha256: crate::checksum::Sha256Sum::of(b"abc"),
            generated_at: "2026-02-15T00:44:00Z".parse().expect("a time"),
        }
    }

    #[test]
    fn they_say_what_a_manifest_does_not() {
        let listed = [object("A"), object("B")];
        let mut dated = listed.clone();
        dated[1].generated_at = "2026-03-01T00:00:00Z".parse().expect("a time");
        assert!(Dates::between(&listed, &listed).is_empty());
        let dates = Dates::between(&listed, &dated);
        let json = serde_json::to_string(&dates).expect("serialises");
        assert_eq!(json, r#"{"2026-03-01T00:00:00Z":["B"]}"#);
        assert_eq!(serde_json::from_str::<Dates>(&json).expect("parses"), dates);
        let by_key = format!(r#"{{"{}":"2026-03-01T00:00:00Z"}}"#, listed[1].key);
        assert_eq!(serde_json::from_str::<Dates>(&by_key).expect("parses"), dates);
        for wrong in [r#"{"B":"2026-03-01T00:00:00Z"}"#, r#"{"soon":["B"]}"#, r#"{"2026-03-01T00:00:00Z":"B"}"#] {
            assert!(serde_json::from_str::<Dates>(wrong).is_err(), "{wrong}");
        }
        let mut objects = listed.clone();
        dates.apply(&mut objects);
        assert_eq!(objects, dated);
    }

    #[test]
    fn all_objects_of_a_large_unit_can_be_dated_anew() {
        const SYMBOLS: usize = 4_000;
        let marker = |objects: &[Object]| {
            let unit = "binance/spot/klines/1h/2026-02-14".parse().expect("a unit");
            Marker::new(unit, "archive".into(), objects.to_vec(), objects[0].generated_at, "host-1".into())
        };
        let listed: Vec<Object> = (0..SYMBOLS).map(|n| object(&format!("SYMBOL{n:04}USDT"))).collect();
        let mut dated = listed.clone();
        for (seconds, object) in dated.iter_mut().enumerate() {
            object.generated_at += jiff::SignedDuration::from_secs(seconds as i64);
        }
        let (dates, manifest) = (Dates::between(&listed, &dated), marker(&listed).to_json());
        let message = marker(&dated).message("download/_markers/x.json", &manifest, dates, INLINE_BYTES_MAX);
        assert!(message.len() <= INLINE_BYTES_MAX, "{}", message.len());
    }
}
