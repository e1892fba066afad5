//! The section `storage`: where the objects are, and how they are named there.

use std::path::PathBuf;

use super::address::check_http;
use super::reader::Reader;
use super::secret::Secret;
use crate::bwlimit::BwLimit;
use crate::object_key::Prefix;
use crate::text::shorten;

const ENDPOINT: &str = "https://<account id>.r2.cloudflarestorage.com";

/// Where archives and manifests are kept between the two sites.
#[derive(Debug, Clone)]
pub struct Storage {
    /// All keys begin with it, wherever the objects are: a site that moves from a bucket to a folder keeps its keys.
    pub prefix: Prefix,
    /// Objects, or parts of large ones, in flight at once.
    pub transfers: usize,
    /// Of uploads and of fetches, whatever the place.
    pub bwlimit: BwLimit,
    pub place: Place,
}

#[derive(Debug, Clone)]
pub enum Place {
    /// A bucket behind the S3 API; `r2` is the dialect everything is tested with.
    S3(Bucket),
    /// A folder that both sites can open.
    Folder { path: PathBuf },
    /// The remote site's `data_dir` itself, which the puller reads with rsync over SSH.
    Rsync(Rsync),
}

#[derive(Debug, Clone)]
pub struct Bucket {
    pub bucket: String,
    pub endpoint: String,
    pub region: String,
    /// It identifies the account and opens nothing by itself; logs are passed on all the same.
    pub access_key_id: Secret,
    pub secret_access_key: Secret,
    pub path_style: bool,
}

#[derive(Debug, Clone)]
pub struct Rsync {
    pub host: String,
    pub port: u16,
    /// The remote user; whom ssh takes otherwise.
    pub user: Option<String>,
    pub key_file: Option<PathBuf>,
    /// Where the remote host's key is known from; ssh's own files otherwise.
    pub known_hosts: Option<PathBuf>,
    /// The remote site's `data_dir` as the remote user sees it, without a slash at its end.
    pub path: String,
    /// The same folder on the uploader's own disk: `local.data_dir`.
    pub data_dir: Option<PathBuf>,
    /// What is on its way lies below it: `local.state_dir`.
    pub state_dir: Option<PathBuf>,
}

impl Storage {
    /// Whether the archives in `data_dir` are the stored objects themselves, so that nothing may be removed there.
    pub fn is_data_dir(&self) -> bool {
        matches!(self.place, Place::Rsync(_))
    }

    /// Reads every type's keys, so that all are known; what is missing is an error for the chosen type alone.
    pub(super) fn read(r: &mut Reader, needed: bool) -> Self {
        #[derive(Clone, Copy, Default, PartialEq)]
        enum Type {
            #[default]
            S3,
            Folder,
            Rsync,
        }
        let chosen = r.choice(
            "storage.type",
            &[("r2", Type::S3), ("s3", Type::S3), ("fs", Type::Folder), ("rsync", Type::Rsync)],
        );
        let mut text = |of: Type, key: &str, meaning: &str| {
            if needed && of == chosen { r.required(key, meaning) } else { r.text(key).unwrap_or_default() }
        };
        let bucket = text(Type::S3, "storage.r2.bucket", "the name of the bucket");
        let endpoint = text(Type::S3, "storage.r2.endpoint", &format!("e.g. {ENDPOINT}"));
        let folder = text(Type::Folder, "storage.fs.path", "the folder that both sites can open");
        let host = text(Type::Rsync, "storage.rsync.host", "the machine of the uploader");
        let path = text(Type::Rsync, "storage.rsync.path", "the uploader's data_dir as the puller finds it there");
        if let Err(problem) = check_http(&endpoint, ENDPOINT)
            && !endpoint.is_empty()
        {
            r.problem("storage.r2.endpoint", &problem);
        }
        let named = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if bucket.contains('@') {
            r.problem("storage.r2.bucket", "holds an @: write the name of the bucket alone");
        } else if !bucket.chars().all(named) {
            let problem =
                format!("'{}' is not the name of a bucket (letters, digits, '.', '-', '_')", shorten(&bucket));
            r.problem("storage.r2.bucket", &problem);
        }
        let mut of_token = |key: &str| {
            if needed && chosen == Type::S3 {
                r.required_token_part(key, "part of the bucket's API token")
            } else {
                r.token_part(key).unwrap_or_else(|| Secret::new(""))
            }
        };
        let access_key_id = of_token("storage.r2.access_key_id");
        let secret_access_key = of_token("storage.r2.secret_access_key");
        let bucket = Bucket {
            bucket,
            endpoint,
            region: region(r),
            access_key_id,
            secret_access_key,
            path_style: r.flag("storage.r2.path_style", true),
        };
        let rsync = Rsync::read(r, host, &path);
        Self {
            prefix: prefix(r),
            transfers: r.integer("storage.r2.transfers", 8, 1, 256),
            bwlimit: bwlimit(r),
            place: match chosen {
                Type::S3 => Place::S3(bucket),
                Type::Folder => Place::Folder { path: folder.into() },
                Type::Rsync => Place::Rsync(rsync),
            },
        }
    }
}

/// It is signed and sent in a header.
fn region(r: &mut Reader) -> String {
    let region = r.text("storage.r2.region").unwrap_or_else(|| "auto".into());
    if !region.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
        r.problem("storage.r2.region", &format!("'{}' is not a region such as auto or eu-west-1", shorten(&region)));
    }
    region
}

fn prefix(r: &mut Reader) -> Prefix {
    let text = r.text("storage.r2.prefix").unwrap_or_else(|| "download".into());
    let prefix = Prefix::new(&text);
    let text = prefix.to_string();
    let odd = |segment: &str| segment.trim().is_empty() || segment == "." || segment == ".." || segment.contains('\\');
    if !text.is_empty() && text.split('/').any(odd) {
        r.problem(
            "storage.r2.prefix",
            &format!("'{}' is not a folder such as download or site/download", shorten(&text)),
        );
    }
    prefix
}

fn bwlimit(r: &mut Reader) -> BwLimit {
    let text = r.scalar("storage.bwlimit").unwrap_or_default();
    // YAML reads a bare `off` as a flag, some readers of it at least.
    if matches!(text.as_str(), "" | "false") {
        return BwLimit::default();
    }
    text.parse().unwrap_or_else(|error| {
        r.problem("storage.bwlimit", &format!("{error}"));
        BwLimit::default()
    })
}

impl Rsync {
    fn read(r: &mut Reader, host: String, path: &str) -> Self {
        let user = r.text("storage.rsync.user");
        // They become arguments of ssh and rsync: what begins with a dash would be an option there.
        let plain = |text: &str, more: &[char]| {
            let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_') || more.contains(&c);
            !text.starts_with('-') && text.chars().all(good)
        };
        if host.contains('@') {
            r.problem("storage.rsync.host", "holds an @: write the host alone, and storage.rsync.user");
        } else if !plain(&host, &[':']) {
            r.problem("storage.rsync.host", &format!("'{host}' is no name or address of a host"));
        }
        if let Some(user) = user.as_deref().filter(|user| !plain(user, &[])) {
            r.problem("storage.rsync.user", &format!("'{user}' is no name of a user"));
        }
        if path.chars().any(|c| c.is_control() || matches!(c, '*' | '?' | '[' | ']' | '\\')) {
            r.problem("storage.rsync.path", "must not hold any of * ? [ ] \\ or control characters");
        }
        // They go through ssh's own quoting and replacing of tokens.
        let mut file = |key: &str| {
            let path = r.text(key)?;
            if path.chars().any(|c| c.is_control() || matches!(c, '%' | '"' | '\'' | '\\')) {
                r.problem(key, "must not hold any of % \" ' \\ or control characters");
            }
            Some(path.into())
        };
        let (key_file, known_hosts) = (file("storage.rsync.key_file"), file("storage.rsync.known_hosts"));
        Self {
            host,
            port: r.integer("storage.rsync.port", 22, 1, u16::MAX),
            user,
            key_file,
            known_hosts,
            // The root itself stays what it is.
            path: if path.len() > 1 { path.trim_end_matches('/').to_owned() } else { path.to_owned() },
            data_dir: r.path("local.data_dir"),
            state_dir: r.path("local.state_dir"),
        }
    }
}
