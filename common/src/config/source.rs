//! Where settings come from, merged into one tree.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use config::{Environment, File, FileFormat};
use serde_json::Value;

use super::error::ConfigError;
use super::small_file;

/// The environment names of the cron job this replaces, which people have in their `.env`.
const OLDER_NAMES: [(&str, &str); 16] = [
    ("R2_ACCESS_KEY_ID", "storage.r2.access_key_id"),
    ("R2_SECRET_ACCESS_KEY", "storage.r2.secret_access_key"),
    ("R2_ENDPOINT", "storage.r2.endpoint"),
    ("R2_BUCKET", "storage.r2.bucket"),
    ("R2_PREFIX", "storage.r2.prefix"),
    ("R2_TRANSFERS", "storage.r2.transfers"),
    ("STORAGE_TYPE", "storage.type"),
    ("LOCAL_DATA_DIR", "local.data_dir"),
    ("LOCAL_STATE_DIR", "local.state_dir"),
    ("LOCAL_LOG_DIR", "local.log_dir"),
    ("CLICKHOUSE_HOST", "clickhouse.host"),
    ("CLICKHOUSE_PORT", "clickhouse.port"),
    ("CLICKHOUSE_DB", "clickhouse.database"),
    ("CLICKHOUSE_USER", "clickhouse.user"),
    ("CLICKHOUSE_PASSWORD", "clickhouse.password"),
    ("NATS_URL", "nats.url"),
];

const FERRY_CONFIG: &str = "FERRY_CONFIG";
/// Names of variables, with spaces or commas between them. Compose files set it: compose itself reads the variables of
/// all profiles and so cannot ask for those of one.
const FERRY_REQUIRED: &str = "FERRY_REQUIRED";
const DEFAULT_FILE: &str = "config.yaml";
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The variables that are text. Those that are not are other programs', and no concern of ours.
///
/// # Errors
/// One of ours is not text.
pub(super) fn environment(
    variables: impl Iterator<Item = (OsString, OsString)>,
) -> Result<Vec<(String, String)>, ConfigError> {
    let mut texts = Vec::new();
    for (name, value) in variables {
        let Ok(name) = name.into_string() else { continue };
        match value.into_string() {
            Ok(value) => texts.push((name, value)),
            Err(_) if is_ours(&name) => return Err(ConfigError::one(&name, "is not text in UTF-8")),
            Err(_) => {}
        }
    }
    Ok(texts)
}

fn is_ours(name: &str) -> bool {
    name.starts_with("FERRY__")
        || [FERRY_CONFIG, FERRY_REQUIRED].contains(&name)
        || OLDER_NAMES.iter().any(|(older, _)| *older == name)
}

/// A variable of the environment, and the key that it sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Variable {
    pub name: String,
    pub key: String,
}

/// Those that begin with `FERRY__` and are not empty.
pub(super) fn variables(environment: &[(String, String)]) -> Vec<Variable> {
    let is_set = environment.iter().filter(|(_, value)| !value.is_empty());
    let named = is_set.filter_map(|(name, _)| Some((name, name.strip_prefix("FERRY__")?)));
    named.map(|(name, key)| Variable { name: name.clone(), key: key.to_lowercase().replace("__", ".") }).collect()
}

/// Merges the file, `FERRY__…` and the older names; of two, the one named later here wins.
/// An empty environment variable counts as not set: compose files pass those on.
pub(super) fn tree(path: Option<&Path>, environment: &[(String, String)]) -> Result<Value, ConfigError> {
    let variable = |name: &str| {
        environment.iter().find(|(key, value)| key == name && !value.is_empty()).map(|(_, value)| value.clone())
    };
    let mut builder = config::Config::builder();
    if let Some(file) = file(path, variable(FERRY_CONFIG).as_deref()) {
        let text = small_file::read(&file, FILE_BYTES_MAX).map_err(|error| ConfigError::file(&file, &error))?;
        // Editors on Windows write this mark at the beginning; the parser would take it for part of the first key.
        let text = text.trim_start_matches('\u{feff}').to_owned();
        builder = builder.add_source(File::from_str(&text, FileFormat::Yaml));
        // Parsed once by itself, so that an error names the file.
        config::Config::builder()
            .add_source(File::from_str(&text, FileFormat::Yaml))
            .build()
            .map_err(|error| ConfigError::file(&file, &error))?;
    }
    let ferry: std::collections::HashMap<String, String> =
        environment.iter().filter(|(key, _)| key.starts_with("FERRY__")).cloned().collect();
    builder = builder.add_source(
        Environment::with_prefix("FERRY").prefix_separator("__").separator("__").ignore_empty(true).source(Some(ferry)),
    );
    for (name, key) in OLDER_NAMES {
        builder = builder
            .set_override_option(key, variable(name))
            .map_err(|error| ConfigError::one(key, &error.to_string()))?;
    }
    let merged = builder.build().map_err(|error| ConfigError::one("configuration", &error.to_string()))?;
    merged.try_deserialize().map_err(|error| ConfigError::one("configuration", &error.to_string()))
}

/// The variables that [`FERRY_REQUIRED`] names and that are not set, or empty.
pub(super) fn required_and_not_set(environment: &[(String, String)]) -> Vec<String> {
    let value = |name: &str| environment.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value.as_str());
    let names = value(FERRY_REQUIRED).split([' ', ',', '\n']).map(str::trim).filter(|name| !name.is_empty());
    names.filter(|name| value(name).is_empty()).map(str::to_owned).collect()
}

fn file(path: Option<&Path>, from_environment: Option<&str>) -> Option<PathBuf> {
    match (path, from_environment) {
        (Some(path), _) => Some(path.to_owned()),
        (None, Some(path)) => Some(path.into()),
        (None, None) => Some(PathBuf::from(DEFAULT_FILE)).filter(|default| default.exists()),
    }
}
