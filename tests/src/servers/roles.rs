//! The users of `deploy/nats/users.conf`, with keys made for a test.

use std::{
    fs,
    path::{Path, PathBuf},
};

use nkeys::KeyPair;

use super::repository;
use crate::{Context, Result};

/// The roles of the file, and the workers of a second destination `backup`.
const ROLES: [&str; 5] = ["uploader", "worker", "backup", "operator", "monitor"];

/// Where the seeds are.
pub struct Roles {
    dir: PathBuf,
}

impl Roles {
    /// Puts `users.conf`, the public keys it includes, and a file with the seed of each user into `dir`.
    pub(super) fn make(dir: &Path) -> Result<Roles> {
        let template = repository().join("deploy/nats/users.conf");
        let users = fs::read_to_string(&template).context(template.display())?;
        fs::write(dir.join("users.conf"), with_backup(&users)).context("writing users.conf")?;
        let roles = Roles { dir: dir.to_owned() };
        let mut public = String::new();
        for role in ROLES {
            let pair = KeyPair::new_user();
            public.push_str(&format!("{}_NKEY: {:?}\n", role.to_uppercase(), pair.public_key()));
            fs::write(roles.seed_file(role), pair.seed().context("a seed")? + "\n").context(role)?;
        }
        fs::write(dir.join("nkeys.conf"), public).context("writing nkeys.conf")?;
        Ok(roles)
    }

    /// For `nats.nkey_file`.
    pub fn seed_file(&self, role: &str) -> PathBuf {
        self.dir.join(format!("{role}.nk"))
    }

    pub fn seed(&self, role: &str) -> Result<String> {
        Ok(fs::read_to_string(self.seed_file(role)).context(role)?.trim().to_owned())
    }
}

/// Adds an account for the workers of a destination `backup`, as the file says how.
fn with_backup(users: &str) -> String {
    let (start, end) = ("  WORKER {\n", "\n  }\n");
    let Some((before, rest)) = users.split_once(start) else { return users.to_owned() };
    let Some((worker, after)) = rest.split_once(end) else { return users.to_owned() };
    let backup = worker.replace("primary", "backup").replace("$WORKER_NKEY", "$BACKUP_NKEY");
    let backup = backup.replace("_INBOX_worker", "_INBOX_backup");
    let importing = |line: &str| match line.contains("account: WORKER") {
        true => format!("{line}\n{}", line.replace("WORKER", "BACKUP").replace("primary", "backup")),
        false => line.to_owned(),
    };
    let after: Vec<String> = after.lines().map(importing).collect();
    let before = before.replace("[WORKER]", "[WORKER, BACKUP]").replace("WORKER, OPERATOR", "WORKER, BACKUP, OPERATOR");
    format!("{before}{start}{worker}{end}\n  BACKUP {{\n{backup}{end}{}\n", after.join("\n"))
}
