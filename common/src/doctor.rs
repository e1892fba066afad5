//! What `doctor` finds: a list of checks, for people and as JSON.

use serde::Serialize;

use crate::config::Storage;
use crate::exit;
use crate::object_store::ObjectStore;

/// One thing that was looked at.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    pub name: String,
    pub ok: bool,
    /// What was found.
    pub found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

/// Checks in the order they were made.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    pub checks: Vec<Check>,
}

impl Report {
    pub fn good(&mut self, name: &str, found: impl Into<String>) {
        self.checks.push(Check { name: name.to_owned(), ok: true, found: found.into(), advice: None });
    }

    pub fn bad(&mut self, name: &str, found: impl Into<String>, advice: impl Into<String>) {
        self.checks.push(Check { name: name.to_owned(), ok: false, found: found.into(), advice: Some(advice.into()) });
    }

    pub fn exit_code(&self) -> u8 {
        if self.checks.iter().all(|check| check.ok) { exit::DONE } else { exit::WANTING }
    }

    /// One line a check, and the advice below what is wrong.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for check in &self.checks {
            let mark = if check.ok { "ok  " } else { "FAIL" };
            text.push_str(&format!("{mark}  {}: {}\n", check.name, check.found));
            if let Some(advice) = &check.advice {
                text.push_str(&format!("      → {advice}\n"));
            }
        }
        text
    }
}

/// Whether the bucket can be used as configured; part of both binaries' `doctor`.
pub async fn check_storage(report: &mut Report, storage: &Storage) {
    const NAME: &str = "bucket";
    for (value, key) in [(&storage.bucket, "storage.r2.bucket"), (&storage.endpoint, "storage.r2.endpoint")] {
        if value.is_empty() {
            return report.bad(NAME, format!("{key} is not set"), "set it in the configuration or the environment");
        }
    }
    if endpoint_carries_bucket(&storage.endpoint, &storage.bucket) {
        return report.bad(
            NAME,
            format!("storage.r2.endpoint {} carries the name of the bucket", storage.endpoint),
            "use the account's endpoint alone, e.g. https://<account id>.r2.cloudflarestorage.com",
        );
    }
    match ObjectStore::new(storage).probe(&storage.prefix.to_string()).await {
        Ok(()) => {
            report.good(NAME, format!("{} at {} is reachable, credentials accepted", storage.bucket, storage.endpoint));
        }
        Err(error) => report.bad(NAME, error.to_string(), error.advice()),
    }
}

/// People copy `https://<account>.r2.cloudflarestorage.com/<bucket>` from the console; every key would then go astray.
fn endpoint_carries_bucket(endpoint: &str, bucket: &str) -> bool {
    let rest = endpoint.split_once("://").map_or(endpoint, |(_, rest)| rest);
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    host.starts_with(&format!("{bucket}.")) || path.split('/').any(|segment| segment == bucket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_with_the_bucket_in_it_is_noticed() {
        let carries = |endpoint| endpoint_carries_bucket(endpoint, "archive");
        assert!(carries("https://0123.r2.cloudflarestorage.com/archive"));
        assert!(carries("https://archive.s3.amazonaws.com"));
        assert!(!carries("https://0123.r2.cloudflarestorage.com"));
        assert!(!carries("http://127.0.0.1:9000/"));
        assert!(!carries("https://archives.example.com"));
    }

    #[test]
    fn one_bad_check_makes_the_exit_code() {
        let mut report = Report::default();
        report.good("a", "fine");
        assert_eq!(report.exit_code(), exit::DONE);
        report.bad("b", "broken", "mend it");
        assert_eq!(report.exit_code(), exit::WANTING);
        assert_eq!(report.to_text(), "ok    a: fine\nFAIL  b: broken\n      → mend it\n");
    }
}
