//! Reads typed values out of the merged tree and collects every problem on the way.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde_json::Value;

use super::secret::Secret;
use crate::unit::{Token, shorten};

/// No password or key is longer; a log file given by mistake is.
const SECRET_BYTES_MAX: u64 = 64 << 10;

/// Everything that is wrong with a configuration, one line a problem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    problems: Vec<String>,
}

impl ConfigError {
    pub(super) fn one(key: &str, problem: &str) -> Self {
        Self { problems: vec![format!("{key}: {problem}")] }
    }

    pub(super) fn file(path: &Path, error: &impl fmt::Display) -> Self {
        Self::one(&path.display().to_string(), &error.to_string())
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the configuration is wrong")?;
        self.problems.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl std::error::Error for ConfigError {}

/// A tree of settings. Each read makes a key known; [`Reader::finish`] reports the keys nobody read.
pub(super) struct Reader {
    tree: Value,
    known: BTreeSet<String>,
    problems: Vec<String>,
}

impl Reader {
    pub(super) fn new(tree: Value) -> Self {
        Self { tree, known: BTreeSet::new(), problems: Vec::new() }
    }

    pub(super) fn problem(&mut self, key: &str, problem: &str) {
        self.problems.push(format!("{key}: {problem}"));
    }

    pub(super) fn finish(mut self) -> Result<(), ConfigError> {
        let mut leaves = Vec::new();
        collect_leaves("", &self.tree, &mut leaves);
        for leaf in leaves {
            if !self.known.contains(&leaf) {
                let nearest = self.known.iter().min_by_key(|known| strsim::damerau_levenshtein(known, &leaf));
                let hint = nearest.map(|known| format!("; did you mean {known}?")).unwrap_or_default();
                self.problem(&shorten(&leaf), &format!("unknown key{hint}"));
            }
        }
        self.finish_unread()
    }

    /// The same where only some of the keys were to be read.
    pub(super) fn finish_unread(self) -> Result<(), ConfigError> {
        if self.problems.is_empty() { Ok(()) } else { Err(ConfigError { problems: self.problems }) }
    }

    fn value(&mut self, key: &str) -> Option<&Value> {
        self.known.insert(key.to_owned());
        let mut at = &self.tree;
        for segment in key.split('.') {
            at = match at {
                Value::Array(items) => items.get(segment.parse::<usize>().ok()?)?,
                other => other.get(segment)?,
            };
        }
        Some(at).filter(|value| !value.is_null())
    }

    /// Text, or a number or flag written without quotes.
    pub(super) fn text(&mut self, key: &str) -> Option<String> {
        let text = match self.value(key)? {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            Value::Bool(flag) => flag.to_string(),
            Value::Null | Value::Array(_) | Value::Object(_) => {
                self.problem(key, "must be a single value");
                return None;
            }
        };
        Some(text).filter(|text| !text.is_empty())
    }

    pub(super) fn required(&mut self, key: &str, meaning: &str) -> String {
        let value = self.text(key);
        if value.is_none() {
            self.problem(key, &format!("is not set ({meaning})"));
        }
        value.unwrap_or_default()
    }

    pub(super) fn path(&mut self, key: &str) -> Option<PathBuf> {
        self.text(key).map(PathBuf::from)
    }

    /// A password or key: itself, or in the file that `<key>_file` names, whose trailing line breaks do not count.
    pub(super) fn secret(&mut self, key: &str) -> Option<Secret> {
        let file_key = format!("{key}_file");
        let (text, file) = (self.text(key), self.path(&file_key));
        match (text, file) {
            (Some(_), Some(_)) => {
                self.problem(key, &format!("is set, and so is {file_key}; only one of them may be"));
                None
            }
            (text, None) => text.map(Secret::new),
            (None, Some(file)) => match read_secret(&file) {
                Ok(secret) => Some(secret),
                Err(why) => {
                    self.problem(&file_key, &format!("{}: {why}", file.display()));
                    None
                }
            },
        }
    }

    /// The same, where it is needed. What is wrong with it is said once.
    pub(super) fn required_secret(&mut self, key: &str, meaning: &str) -> Secret {
        let before = self.problems.len();
        let secret = self.secret(key);
        if secret.is_none() && self.problems.len() == before {
            self.problem(key, &format!("is not set, nor is {key}_file ({meaning})"));
        }
        secret.unwrap_or_else(|| Secret::new(""))
    }

    /// A list, or one text with commas.
    pub(super) fn strings(&mut self, key: &str) -> Vec<String> {
        match self.value(key) {
            Some(Value::Array(items)) => {
                let items = items.clone();
                let texts: Option<Vec<String>> = items.iter().map(|v| v.as_str().map(str::to_owned)).collect();
                if texts.is_none() {
                    self.problem(key, "must be a list of texts");
                }
                texts.unwrap_or_default()
            }
            _ => {
                let text = self.text(key).unwrap_or_default();
                text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
            }
        }
    }

    /// The number of entries of a list; 0 when there is none.
    pub(super) fn list_len(&mut self, key: &str) -> usize {
        match self.value(key) {
            None => 0,
            Some(Value::Array(items)) => items.len(),
            Some(Value::Object(map)) => {
                // The environment writes a list as `…__0__NAME`, which arrives as a map of numbers.
                let map = map.clone();
                if (0..map.len()).all(|index| map.contains_key(&index.to_string())) {
                    return map.len();
                }
                self.problem(key, "must be a list");
                0
            }
            Some(_) => {
                self.problem(key, "must be a list");
                0
            }
        }
    }

    pub(super) fn parsed<T: FromStr>(&mut self, key: &str, meaning: &str) -> Option<T> {
        let text = self.text(key)?;
        let value = text.parse().ok();
        if value.is_none() {
            self.problem(key, &format!("'{}' is not {meaning}", shorten(&text)));
        }
        value
    }

    pub(super) fn integer<T>(&mut self, key: &str, default: T, min: T, max: T) -> T
    where
        T: FromStr + PartialOrd + fmt::Display + Copy,
    {
        let Some(value) = self.parsed(key, "a whole number in range") else { return default };
        if value < min || value > max {
            self.problem(key, &format!("{value} is not between {min} and {max}"));
            return default;
        }
        value
    }

    pub(super) fn number(&mut self, key: &str, default: f64, min: f64, max: f64) -> f64 {
        let Some(value) = self.parsed::<f64>(key, "a number") else { return default };
        if !(min..=max).contains(&value) {
            self.problem(key, &format!("{value} is not between {min} and {max}"));
            return default;
        }
        value
    }

    /// A share of a whole, 0 to 1.
    pub(super) fn share(&mut self, key: &str, default: f64) -> f64 {
        self.number(key, default, 0.0, 1.0)
    }

    pub(super) fn flag(&mut self, key: &str, default: bool) -> bool {
        let Some(text) = self.text(key) else { return default };
        match text.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" | "1" => true,
            "false" | "no" | "off" | "0" => false,
            _ => {
                self.problem(key, &format!("'{}' is neither true nor false", shorten(&text)));
                default
            }
        }
    }

    /// A duration with its unit: `500ms`, `15s`, `30m`, `2h`, `7d`.
    pub(super) fn duration(&mut self, key: &str, default: Duration) -> Duration {
        let Some(text) = self.text(key) else { return default };
        humantime::parse_duration(&text).unwrap_or_else(|error| {
            self.problem(key, &format!("'{}' is not a duration such as 30s or 15m: {error}", shorten(&text)));
            default
        })
    }

    /// A size with its unit: `512MiB`, `1GB`.
    pub(super) fn bytes(&mut self, key: &str, default: u64) -> u64 {
        let Some(text) = self.text(key) else { return default };
        text.parse::<bytesize::ByteSize>().map_or_else(
            |_| {
                self.problem(key, &format!("'{}' is not a size such as 512MiB", shorten(&text)));
                default
            },
            |size| size.as_u64(),
        )
    }

    /// One of the named values; the first is the default.
    pub(super) fn choice<T: Copy>(&mut self, key: &str, choices: &[(&str, T)]) -> T {
        let Some(text) = self.text(key) else { return choices[0].1 };
        choices.iter().find(|(name, _)| *name == text).map_or_else(
            || {
                let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
                self.problem(key, &format!("'{}' is not one of: {}", shorten(&text), names.join(", ")));
                choices[0].1
            },
            |(_, value)| *value,
        )
    }

    /// A name fit for a subject: see [`Token`].
    pub(super) fn token(&mut self, key: &str, meaning: &str) -> String {
        self.required(key, meaning);
        self.optional_token(key).unwrap_or_default()
    }

    pub(super) fn optional_token(&mut self, key: &str) -> Option<String> {
        let text = self.text(key)?;
        if let Err(error) = text.parse::<Token>() {
            self.problem(key, &error.to_string());
        }
        Some(text)
    }

    /// A name that goes into SQL as it is.
    pub(super) fn identifier(&mut self, key: &str, default: &str) -> String {
        let text = self.text(key).unwrap_or_else(|| default.to_owned());
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if !text.chars().all(fits) || text.starts_with(|c: char| c.is_ascii_digit()) {
            self.problem(key, &format!("'{}' is not a name of letters, digits and '_'", shorten(&text)));
        }
        text
    }
}

fn read_secret(file: &Path) -> Result<Secret, String> {
    let opened = File::open(file).map_err(|error| format!("cannot be read: {error}"))?;
    if opened.metadata().is_ok_and(|metadata| metadata.is_dir()) {
        // Docker makes a folder of a file that is not there and is to be mounted.
        return Err("is a directory, not a file".into());
    }
    let mut bytes = Vec::new();
    let read = opened.take(SECRET_BYTES_MAX + 1).read_to_end(&mut bytes);
    let length = read.map_err(|error| format!("cannot be read: {error}"))?;
    if length as u64 > SECRET_BYTES_MAX {
        return Err(format!("is larger than {} KiB", SECRET_BYTES_MAX >> 10));
    }
    let text = String::from_utf8(bytes).map_err(|_| "is not text".to_owned())?;
    let text = text.trim_end_matches(['\r', '\n']);
    if text.is_empty() { Err("is empty".into()) } else { Ok(Secret::new(text)) }
}

fn collect_leaves(at: &str, value: &Value, leaves: &mut Vec<String>) {
    let below = |segment: &str| if at.is_empty() { segment.to_owned() } else { format!("{at}.{segment}") };
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| collect_leaves(&below(key), value, leaves)),
        Value::Array(items) if items.iter().any(Value::is_object) => {
            items
                .iter()
                .enumerate()
                .for_each(|(index, value)| collect_leaves(&below(&index.to_string()), value, leaves));
        }
        _ if at.is_empty() => {}
        _ => leaves.push(at.to_owned()),
    }
}
