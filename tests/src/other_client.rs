//! The bucket as an S3 client sees it that is not the product's: `servers/other_client.py`, which is boto3.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::process::{Process, Program};
use crate::project::Project;
use crate::servers::{Stack, ensure_installed};
use crate::{Failure, Result};

const TIMEOUT: Duration = Duration::from_secs(120);

/// All that the bucket says of one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub size: u64,
    pub etag: String,
    /// When it was stored, to the second.
    pub modified: String,
    pub content_type: String,
    pub metadata: BTreeMap<String, String>,
}

pub struct OtherClient<'p> {
    stack: &'p Stack,
    project: &'p Project,
}

impl<'p> OtherClient<'p> {
    pub fn new(stack: &'p Stack, project: &'p Project) -> Self {
        Self { stack, project }
    }

    /// Puts all archives below `data_dir` where they belong, those of `cutoff` bytes and more in parts.
    pub fn fill(&self, data_dir: &Path, cutoff: usize) -> Result<()> {
        self.run("fill", data_dir, &["--cutoff", &cutoff.to_string()]).map(drop)
    }

    /// The same with every file there is.
    pub fn fill_all(&self, data_dir: &Path) -> Result<()> {
        self.run("fill", data_dir, &["--all"]).map(drop)
    }

    /// Fails unless bucket and files have the same archives, by size and MD5; returns how many.
    pub fn check(&self, data_dir: &Path) -> Result<u64> {
        let report = self.run("check", data_dir, &[])?;
        let differences = ["missing", "differ", "extra"].iter().any(|key| report[key] != Value::Array(Vec::new()));
        if differences {
            return Err(Failure::new(format!("bucket and files differ: {report}")));
        }
        report["same"].as_u64().ok_or_else(|| Failure::new(format!("no count: {report}")))
    }

    /// All objects under the project's prefix.
    pub fn list(&self) -> Result<BTreeMap<String, Listed>> {
        let report = self.run("list", Path::new("."), &[])?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let objects = report.as_array().ok_or_else(|| Failure::new(format!("no list: {report}")))?;
        let listed = |object: &Value| {
            let metadata = object["metadata"].as_object().into_iter().flatten();
            let metadata = metadata.map(|(key, value)| (key.clone(), text(value))).collect();
            Listed {
                size: object["size"].as_u64().unwrap_or_default(),
                etag: text(&object["etag"]),
                modified: text(&object["modified"]),
                content_type: text(&object["type"]),
                metadata,
            }
        };
        Ok(objects.iter().map(|object| (text(&object["key"]), listed(object))).collect())
    }

    fn run(&self, command: &str, data_dir: &Path, more: &[&str]) -> Result<Value> {
        let installed = ensure_installed()?;
        let s3 = &self.stack.s3;
        let options = [
            ("--endpoint", s3.endpoint()),
            ("--bucket", s3.bucket().to_owned()),
            ("--prefix", self.project.prefix().to_owned()),
        ];
        let mut args: Vec<OsString> = vec![installed.other_client.clone().into(), command.into()];
        args.extend(options.into_iter().flat_map(|(name, value)| [name.into(), value.into()]));
        args.extend(["--data-dir".into(), data_dir.into()]);
        args.extend(more.iter().map(Into::into));
        let mut process = Process::spawn(Program {
            name: format!("other_client {command}"),
            path: installed.python.clone(),
            args,
            env: vec![
                ("AWS_ACCESS_KEY_ID".into(), s3.credentials().access_key_id.clone()),
                ("AWS_SECRET_ACCESS_KEY".into(), s3.credentials().secret_access_key.clone()),
            ],
            dir: self.project.dir().to_owned(),
        })?;
        process.wait(TIMEOUT)?.expect_code(0)?.json()
    }
}
