//! What `doctor` says of the store.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use common::config::{Bucket, Place, Rsync, Storage};
use common::service::doctor::DoctorReport;
use common::text::shorten;

use crate::interface::End;
use crate::object_store::ObjectStore;
use crate::rehearsal::Probe;

/// How long a program may take to say its version.
const PROGRAM_TIMEOUT: Duration = Duration::from_secs(10);
/// The check whether a bucket can be reached.
const BUCKET: &str = "bucket";
const NOT_SET: &str = "set it in the configuration or the environment";

/// What the configuration says, for `doctor --config-only`: it was read without a problem, and nothing was asked.
pub fn describe_storage(report: &mut DoctorReport, storage: &Storage) {
    let (prefix, place) = (&storage.prefix, &storage.place);
    let found = match place {
        Place::S3(bucket) => format!("bucket {} at {}, prefix {prefix}", bucket.bucket, bucket.endpoint),
        Place::Folder { path } => format!("shared folder {}, prefix {prefix}", path.display()),
        Place::Rsync(rsync) => format!("rsync of {} on {}, prefix {prefix}", rsync.path, rsync.host),
    };
    report.good("storage", found);
}

/// What the stream says of the configured bucket and prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Announced {
    /// The newest unit is announced from there; the key of an object that it should have there.
    Here { key: Option<String> },
    /// No unit is announced yet.
    Nothing,
    /// The newest unit is announced from another bucket or prefix.
    Elsewhere,
    /// The queue does not say.
    Unknown,
}

impl Announced {
    /// Why nothing may be written to the configured prefix; `None` where it may.
    fn objection(&self) -> Option<&'static str> {
        match self {
            Self::Here { .. } | Self::Nothing => None,
            Self::Elsewhere => Some("units are announced from another bucket or prefix than the configured one"),
            Self::Unknown => Some("the queue does not say whether units are announced from this bucket and prefix"),
        }
    }
}

/// Whether the store can be reached as configured from this end; part of both binaries' `doctor`. Writes nothing below the
/// prefix.
pub async fn check_storage(report: &mut DoctorReport, storage: &Storage, end: End) {
    match &storage.place {
        Place::S3(bucket) => check_bucket(report, storage, bucket, end).await,
        Place::Folder { path } => check_folder(report, storage, path, end).await,
        Place::Rsync(rsync) => check_rsync(report, storage, rsync, end).await,
    }
}

async fn check_bucket(report: &mut DoctorReport, storage: &Storage, bucket: &Bucket, end: End) {
    const NAME: &str = BUCKET;
    let (name, endpoint) = (&bucket.bucket, &bucket.endpoint);
    for (value, key) in [(name, "storage.r2.bucket"), (endpoint, "storage.r2.endpoint")] {
        if value.is_empty() {
            return report.bad(NAME, format!("{key} is not set"), NOT_SET);
        }
    }
    if endpoint_carries_bucket(endpoint, name) {
        return report.bad(
            NAME,
            format!("storage.r2.endpoint {endpoint} carries the name of the bucket"),
            "use the account's endpoint alone, e.g. https://<account id>.r2.cloudflarestorage.com",
        );
    }
    let store = ObjectStore::new(storage, end);
    match store.probe(&storage.prefix.to_string()).await {
        Ok(()) => report.good(NAME, format!("{name} at {endpoint} is reachable, credentials accepted")),
        Err(error) => report.bad(NAME, format!("{name} at {endpoint}: {error}"), error.advice().unwrap_or_default()),
    }
}

/// Whether a bucket answers each kind of request that the work makes. The uploader's write an object, so they are made only
/// where no unit is known to be announced from elsewhere. Says nothing where [`check_storage`] found fault.
pub async fn check_requests(report: &mut DoctorReport, storage: &Storage, end: End, announced: &Announced) {
    const NAME: &str = "bucket requests";
    let Place::S3(_) = &storage.place else { return };
    if report.checks.iter().any(|check| check.name == BUCKET && !check.ok) {
        return;
    }
    if let Some(objection) = announced.objection() {
        return report.warn(NAME, format!("not tried: {objection}"));
    }
    let known = match announced {
        Announced::Here { key } => key.as_deref(),
        Announced::Nothing | Announced::Elsewhere | Announced::Unknown => None,
    };
    let probe_key = storage.prefix.probe_key();
    let works = "HEAD, GET, PUT, conditional PUT, COPY and parts work";
    match ObjectStore::new(storage, end).rehearse(&storage.prefix, end, known).await {
        Ok(Probe::NotWritten) => report.good(NAME, "GET is answered as the work needs it"),
        Ok(Probe::Removed) => report.good(NAME, format!("{works}; {probe_key} was written for it and removed")),
        Ok(Probe::Stays(why)) => {
            report.good(NAME, format!("{works}; {probe_key} was written for it and stays, which does no harm: {why}"));
        }
        Err(unfit) => report.bad(NAME, unfit.to_string(), unfit.advice),
    }
}

async fn check_folder(report: &mut DoctorReport, storage: &Storage, path: &Path, end: End) {
    const NAME: &str = "shared folder";
    if path.as_os_str().is_empty() {
        return report.bad(NAME, "storage.fs.path is not set", NOT_SET);
    }
    let store = ObjectStore::new(storage, end);
    let outcome = async {
        store.probe(&storage.prefix.to_string()).await?;
        if end == End::Uploader {
            store.probe_writing().await?;
        }
        store.list(&storage.prefix.manifests(), None).await
    };
    match outcome.await {
        Ok(page) => {
            let may = if end == End::Uploader { "read and written" } else { "read" };
            // A mount point without its mount is an empty folder.
            let holds = if page.keys.is_empty() { "; it holds no manifest yet, or is not mounted" } else { "" };
            report.good(NAME, format!("{} can be {may}{holds}", path.display()));
        }
        Err(error) => report.bad(NAME, error.to_string(), error.advice().unwrap_or_default()),
    }
}

async fn check_rsync(report: &mut DoctorReport, storage: &Storage, rsync: &Rsync, end: End) {
    // At the uploader it is what the puller's ssh starts.
    check_program(report, "rsync", "--version").await;
    let store = ObjectStore::new(storage, end);
    if end == End::Uploader {
        const NAME: &str = "manifests";
        match store.probe_writing().await {
            Ok(()) => report.good(NAME, "can be written to local.data_dir, below _markers"),
            Err(error) => report.bad(NAME, error.to_string(), error.advice().unwrap_or_default()),
        }
        return;
    }
    const NAME: &str = "remote data_dir";
    check_program(report, "ssh", "-V").await;
    for (value, key) in [(&rsync.host, "storage.rsync.host"), (&rsync.path, "storage.rsync.path")] {
        if value.is_empty() {
            return report.bad(NAME, format!("{key} is not set"), NOT_SET);
        }
    }
    match store.probe(&storage.prefix.to_string()).await {
        Ok(()) => report.good(NAME, format!("{} on {} is there, credentials accepted", rsync.path, rsync.host)),
        Err(error) => report.bad(NAME, error.to_string(), error.advice().unwrap_or_default()),
    }
}

async fn check_program(report: &mut DoctorReport, name: &str, version: &str) {
    let mut command = tokio::process::Command::new(name);
    let output = command.arg(version).stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(PROGRAM_TIMEOUT, output).await;
    match output.unwrap_or_else(|elapsed| Err(elapsed.into())) {
        Ok(output) => {
            let said = if output.stdout.is_empty() { output.stderr } else { output.stdout };
            let said = String::from_utf8_lossy(&said);
            report.good(name, shorten(said.lines().next().unwrap_or_default()));
        }
        Err(error) => {
            let advice =
                "storage.type rsync needs the programs rsync and ssh; on Debian: apt-get install rsync openssh-client";
            report.bad(name, format!("cannot be started: {error}"), advice);
        }
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
}
