//! The users of `deploy/nats/users.conf`, with keys made for a test.

use std::{
    fs,
    path::{Path, PathBuf},
};

use nkeys::KeyPair;

use super::repository;
use crate::{Context, Result};

const ROLES: [&str; 4] = ["uploader", "worker", "operator", "monitor"];

/// Where the seeds are.
pub struct Roles {
    dir: PathBuf,
}

impl Roles {
    /// Puts `users.conf`, the public keys it includes, and a file with the seed of each user into `dir`.
    pub(super) fn make(dir: &Path) -> Result<Roles> {
        let template = repository().join("deploy/nats/users.conf");
        fs::copy(&template, dir.join("users.conf")).context(template.display())?;
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
