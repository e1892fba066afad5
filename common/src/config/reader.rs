//! Reads typed values out of the merged tree and collects every problem on the way.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde_json::Value;

use super::address::split_nats;
use super::error::ConfigError;
use super::secret::Secret;
use super::small_file;
use super::source::Variable;
use super::text::{self, Kind};
use crate::text::shorten;
use crate::unit::Token;

/// No password or key is longer; a log file given by mistake is.
const SECRET_BYTES_MAX: u64 = 64 << 10;

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
        let text = format!("{key}: {problem}");
        // A key that two sections need is read twice; and one that cannot be understood is set.
        let is_known = |known: &String| {
            *known == text || problem.starts_with("is not set") && known.starts_with(&format!("{key}: "))
        };
        if !self.problems.iter().any(is_known) {
            self.problems.push(text);
        }
    }

    /// Reports the keys that nobody read. `variables`: those of the environment, which are named where they are at fault.
    pub(super) fn finish(mut self, variables: &[Variable]) -> Result<(), ConfigError> {
        let mut leaves = Vec::new();
        collect_leaves("", &self.tree, &mut leaves);
        // Whether the tree has the text or what stands below the section depends on the order of the two.
        let mut texts: Vec<(String, bool)> = variables.iter().map(|variable| (variable.key.clone(), false)).collect();
        texts.retain(|(key, _)| self.first_of_section(key).is_some());
        leaves.retain(|leaf| !texts.contains(leaf));
        for (leaf, is_empty) in texts.into_iter().chain(leaves) {
            let first = self.first_of_section(&leaf);
            // A section whose keys are all commented out is null to YAML.
            if self.known.contains(&leaf) || is_empty && first.is_some() {
                continue;
            }
            let variable = variables.iter().find(|variable| variable.key == leaf);
            let problem = match (first, variable) {
                (Some(first), None) => format!("is a section, and not a value: it has keys such as {first}"),
                (Some(first), Some(Variable { name, .. })) => {
                    let own = format!("FERRY__{}", first.to_uppercase().replace('.', "__"));
                    format!("is a section, and {name} gives it a value: set its keys, e.g. {own}")
                }
                (None, variable) => {
                    let from = variable.map(|variable| format!(" (of {})", variable.name)).unwrap_or_default();
                    let hint = self.nearest(&leaf).map(|nearest| format!("; did you mean {nearest}?"));
                    format!("unknown key{from}{}", hint.unwrap_or_default())
                }
            };
            self.problem(&shorten(&leaf), &problem);
        }
        self.finish_unread()
    }

    /// A key of the section, if there is such a section.
    fn first_of_section(&self, name: &str) -> Option<&String> {
        let section = format!("{name}.");
        self.known.range(section.clone()..).next().filter(|key| key.starts_with(&section))
    }

    /// The known key or section that is written most like this one.
    fn nearest(&self, unknown: &str) -> Option<&str> {
        let sections = self.known.iter().flat_map(|key| key.match_indices('.').map(|(end, _)| &key[..end]));
        let known = self.known.iter().map(String::as_str).chain(sections);
        known.min_by_key(|known| strsim::damerau_levenshtein(known, unknown))
    }

    /// The same where only some of the keys were to be read.
    pub(super) fn finish_unread(self) -> Result<(), ConfigError> {
        ConfigError::of(self.problems).map_or(Ok(()), Err)
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

    /// Text, without the white space around it.
    pub(super) fn text(&mut self, key: &str) -> Option<String> {
        self.cleaned(key, Kind::Name)
    }

    /// What is parsed afterwards: text, or a number or flag written without quotes.
    pub(super) fn scalar(&mut self, key: &str) -> Option<String> {
        match self.value(key)? {
            Value::Number(number) => Some(number.to_string()),
            Value::Bool(flag) => Some(flag.to_string()),
            _ => self.text(key),
        }
    }

    pub(super) fn is_set(&mut self, key: &str) -> bool {
        self.scalar(key).is_some()
    }

    fn cleaned(&mut self, key: &str, kind: Kind) -> Option<String> {
        let cleaned = match self.value(key)? {
            Value::String(text) => text::clean(text, kind).map(str::to_owned),
            // YAML has lost what was written: 000123 arrives as 123, and 1e5 as 100000.
            Value::Number(_) | Value::Bool(_) => {
                Err("is a number or a flag to YAML, and may not arrive as it is written: put it in quotes")
            }
            Value::Null | Value::Array(_) | Value::Object(_) => Err("must be a single value"),
        };
        match cleaned {
            Ok(text) => Some(text).filter(|text| !text.is_empty()),
            Err(problem) => {
                self.problem(key, problem);
                None
            }
        }
    }

    /// The same, where it is needed. What is wrong with it is said once.
    pub(super) fn required(&mut self, key: &str, meaning: &str) -> String {
        let value = self.text(key);
        if value.is_none() {
            self.problem(key, &format!("is not set ({meaning})"));
        }
        value.unwrap_or_default()
    }

    /// A path, which no shell has seen.
    pub(super) fn path(&mut self, key: &str) -> Option<PathBuf> {
        let path = self.text(key)?;
        self.check_path(key, &path);
        Some(path.into())
    }

    pub(super) fn check_path(&mut self, key: &str, path: &str) {
        if path == "~" || path.starts_with("~/") || path.starts_with('$') || path.contains("${") {
            self.problem(
                key,
                &format!("'{}' is used as it is written: ~ and variables are not replaced", shorten(path)),
            );
        }
    }

    /// A password: itself, or in the file that `<key>_file` names. White space at its ends may be meant, or not: it is
    /// refused, but for the line break that ends a file.
    pub(super) fn password(&mut self, key: &str) -> Option<Secret> {
        self.secret(key, Kind::Password)
    }

    fn secret(&mut self, key: &str, kind: Kind) -> Option<Secret> {
        let file_key = format!("{key}_file");
        let before = self.problems.len();
        let text = self.cleaned(key, kind);
        let file = self.path(&file_key);
        match (text, file) {
            _ if self.problems.len() > before => None,
            (Some(_), Some(_)) => {
                self.problem(key, &format!("is set, and so is {file_key}; only one of them may be"));
                None
            }
            (text, None) => text.map(Secret::new),
            (None, Some(file)) => match read_secret(&file, kind) {
                Ok(secret) => Some(secret),
                Err(why) => {
                    self.problem(&file_key, &format!("{}: {why}", file.display()));
                    None
                }
            },
        }
    }

    /// One half of an API token, given as [`Reader::password`] is. It is sent in a header: visible ASCII only.
    pub(super) fn token_part(&mut self, key: &str) -> Option<Secret> {
        self.secret(key, Kind::Token)
    }

    /// The same, where it is needed. What is wrong with it is said once.
    pub(super) fn required_token_part(&mut self, key: &str, meaning: &str) -> Secret {
        let before = self.problems.len();
        let secret = self.token_part(key);
        if secret.is_none() && self.problems.len() == before {
            self.problem(key, &format!("is not set, nor is {key}_file ({meaning})"));
        }
        secret.unwrap_or_else(|| Secret::new(""))
    }

    /// A list, or one text with commas.
    pub(super) fn strings(&mut self, key: &str) -> Vec<String> {
        match self.value(key) {
            Some(Value::Array(items)) => {
                let clean = |item: &Value| {
                    let text =
                        item.as_str().ok_or("must be a list of texts; put what looks like a number in quotes")?;
                    text::clean(text, Kind::Name).map(str::to_owned)
                };
                let texts: Result<Vec<String>, &str> = items.iter().map(clean).collect();
                texts.unwrap_or_else(|problem| {
                    self.problem(key, problem);
                    Vec::new()
                })
            }
            _ => {
                let text = self.text(key).unwrap_or_default();
                text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
            }
        }
    }

    /// Addresses of NATS servers: a list, or one text with commas between them.
    pub(super) fn nats_urls(&mut self, key: &str) -> Vec<String> {
        match self.value(key) {
            Some(Value::Array(_)) => self.strings(key),
            _ => self.text(key).map_or_else(Vec::new, |text| split_nats(&text)),
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
        let text = self.scalar(key)?;
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
        let Some(text) = self.scalar(key) else { return default };
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
        let Some(text) = self.scalar(key) else { return default };
        humantime::parse_duration(&text).unwrap_or_else(|error| {
            self.problem(key, &format!("'{}' is not a duration such as 30s or 15m: {error}", shorten(&text)));
            default
        })
    }

    /// A size with its unit: `512MiB`, `1GB`. A small number without one is refused: it was hardly meant in bytes.
    pub(super) fn bytes(&mut self, key: &str, default: u64) -> u64 {
        let Some(text) = self.scalar(key) else { return default };
        if text.parse::<u64>().is_ok_and(|bytes| bytes < 1 << 20) {
            self.problem(key, &format!("'{text}' has no unit, and would be bytes; did you mean {text}MiB?"));
            return default;
        }
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
        let Some(text) = self.scalar(key) else { return choices[0].1 };
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
        let text = self.required(key, meaning);
        self.check_token(key, text).unwrap_or_default()
    }

    pub(super) fn optional_token(&mut self, key: &str) -> Option<String> {
        let text = self.text(key)?;
        self.check_token(key, text)
    }

    fn check_token(&mut self, key: &str, text: String) -> Option<String> {
        let text = Some(text).filter(|text| !text.is_empty())?;
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

fn read_secret(file: &Path, kind: Kind) -> Result<Secret, String> {
    let text = small_file::read(file, SECRET_BYTES_MAX).map_err(|error| format!("cannot be read: {error}"))?;
    let text = text::clean(&text, kind)?;
    if text.is_empty() { Err("is empty".into()) } else { Ok(Secret::new(text)) }
}

/// All keys that have a value, and whether it is null or a section without keys.
fn collect_leaves(at: &str, value: &Value, leaves: &mut Vec<(String, bool)>) {
    let below = |segment: &str| if at.is_empty() { segment.to_owned() } else { format!("{at}.{segment}") };
    match value {
        Value::Object(map) if map.is_empty() && !at.is_empty() => leaves.push((at.to_owned(), true)),
        Value::Object(map) => map.iter().for_each(|(key, value)| collect_leaves(&below(key), value, leaves)),
        Value::Array(items) if items.iter().any(Value::is_object) => {
            items
                .iter()
                .enumerate()
                .for_each(|(index, value)| collect_leaves(&below(&index.to_string()), value, leaves));
        }
        _ if at.is_empty() => {}
        _ => leaves.push((at.to_owned(), value.is_null())),
    }
}
