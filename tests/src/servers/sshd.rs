//! An SSH server for one user, whoever runs the tests, with keys of its own. Nobody's `~/.ssh` is read or written.

use std::{
    fs,
    io::Read,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use super::{PORT_TRIES, poll, ports::free_port};
use crate::setup;
use crate::{
    Context, Failure, Result,
    process::{Process, Program},
};

pub struct Sshd {
    dir: PathBuf,
    program: PathBuf,
    user: String,
    port: u16,
    process: Option<Process>,
}

impl Sshd {
    /// A server whose keys and configuration are below `dir`.
    pub fn start(dir: &Path) -> Result<Sshd> {
        let program = setup::ensure_sshd()?;
        fs::create_dir_all(dir).context(format!("making {}", dir.display()))?;
        for name in ["host_key", "user_key", "stranger_key"] {
            let mut command = Command::new("ssh-keygen");
            run(command.args(["-q", "-t", "ed25519", "-N", "", "-C", name, "-f"]).arg(dir.join(name)))?;
        }
        fs::copy(dir.join("user_key.pub"), dir.join("authorized_keys")).context("authorized_keys")?;
        let host_key = fs::read_to_string(dir.join("host_key.pub")).context("host_key.pub")?;
        // For every name and port, so that a proxy may stand before the server.
        fs::write(dir.join("known_hosts"), format!("* {host_key}")).context("known_hosts")?;
        let user = run(Command::new("id").arg("-un"))?.trim().to_owned();
        let mut server = Sshd { dir: dir.to_owned(), program, user, port: 0, process: None };
        for attempt in 1.. {
            server.port = free_port();
            match server.launch() {
                Err(failure) if attempt < PORT_TRIES && failure.to_string().contains("Address already in use") => {
                    continue;
                }
                result => return result.map(|()| server),
            }
        }
        unreachable!("the loop returns at the last attempt");
    }

    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// The one user who may come in.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The key it lets in.
    pub fn user_key(&self) -> PathBuf {
        self.dir.join("user_key")
    }

    /// A key it does not know.
    pub fn stranger_key(&self) -> PathBuf {
        self.dir.join("stranger_key")
    }

    pub fn known_hosts(&self) -> PathBuf {
        self.dir.join("known_hosts")
    }

    fn launch(&mut self) -> Result<()> {
        let dir = self.dir.display();
        let (port, user) = (self.port, &self.user);
        let settings = format!(
            "ListenAddress 127.0.0.1\nPort {port}\nHostKey \"{dir}/host_key\"\n\
             AuthorizedKeysFile \"{dir}/authorized_keys\"\nAllowUsers {user}\nPidFile none\nStrictModes no\nUsePAM no\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\n\
             MaxStartups 100\n"
        );
        let config = self.dir.join("sshd_config");
        fs::write(&config, settings).context("sshd_config")?;
        let mut process = Process::spawn(Program {
            name: "sshd".to_owned(),
            path: self.program.clone(),
            args: vec!["-D".into(), "-e".into(), "-f".into(), config.into()],
            env: Vec::new(),
            dir: self.dir.clone(),
        })?;
        let address = self.address();
        poll("sshd", || {
            if !process.is_running() {
                let end = process.wait(Duration::from_secs(5))?;
                return Err(Failure::new(format!("sshd ended with {:?}\n{}", end.code, end.stderr)));
            }
            Ok(greets(address).then_some(()))
        })?;
        self.process = Some(process);
        Ok(())
    }
}

fn greets(address: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect(address) else { return false };
    let mut greeting = [0; 4];
    stream.set_read_timeout(Some(Duration::from_secs(5))).is_ok()
        && stream.read_exact(&mut greeting).is_ok()
        && &greeting == b"SSH-"
}

fn run(command: &mut Command) -> Result<String> {
    let output = command.output().context(format!("running {:?}", command.get_program()))?;
    if !output.status.success() {
        return Err(Failure::new(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr))));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
