//! The rsync program: its arguments, its process and what its exit codes mean.

use std::io;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

use super::staging::StagedPart;
use crate::error::StoreErrorKind;
use crate::folder::Fault;
use common::config;

/// How long a process that was killed may take to end.
const KILLED_WITHIN: Duration = Duration::from_secs(5);
/// How long the last words of a process that has ended may take.
const WORDS_WITHIN: Duration = Duration::from_millis(400);

/// Seconds without a byte after which rsync gives up.
const TIMEOUT_S: u32 = 30;
const CONNECT_TIMEOUT_S: u32 = 10;
/// What is kept of what a process says; the rest is read and thrown away, or it would wait for its reader.
const SAID_BYTES_MAX: u64 = 16 * 1024;

/// The other end, as arguments.
pub(super) struct Remote {
    /// The remote shell, in the notation rsync splits by itself: no shell sees it.
    ssh: String,
    host: String,
    path: String,
}

impl Remote {
    pub(super) fn new(settings: &config::Rsync) -> Self {
        let mut ssh = vec!["ssh".to_owned(), "-p".into(), settings.port.to_string()];
        let mut option = |text: String| ssh.extend(["-o".into(), text]);
        // Never a question on a terminal, never a host whose key nobody has vouched for.
        option("BatchMode=yes".into());
        option("StrictHostKeyChecking=yes".into());
        option(format!("ConnectTimeout={CONNECT_TIMEOUT_S}"));
        option("ServerAliveInterval=10".into());
        option("ServerAliveCountMax=3".into());
        if let Some(known_hosts) = &settings.known_hosts {
            option(format!("UserKnownHostsFile=\"{}\"", known_hosts.display()));
        }
        if let Some(key_file) = &settings.key_file {
            // Without the second an agent's keys would be tried first, and a server allows few tries.
            option("IdentitiesOnly=yes".into());
            ssh.extend(["-i".into(), key_file.display().to_string()]);
        }
        if let Some(user) = &settings.user {
            ssh.extend(["-l".into(), user.clone()]);
        }
        let host = if settings.host.contains(':') { format!("[{}]", settings.host) } else { settings.host.clone() };
        let ssh: Vec<String> = ssh.iter().map(|word| format!("'{}'", word.replace('\'', "''"))).collect();
        Self { ssh: ssh.join(" "), host, path: settings.path.clone() }
    }

    /// Fetches the file with this path below the remote folder into a part.
    pub(super) fn fetch(
        &self,
        path: &str,
        bytes_max: u64,
        rate_kib: Option<u64>,
        part: &StagedPart,
    ) -> Result<Running, Fault> {
        let mut command = self.command();
        command.args(rate_kib.map(|rate| format!("--bwlimit={rate}")));
        command
            // The bytes go into the very file that is locked, and stay there when the connection breaks.
            .args(["--inplace", "--partial"])
            // What is in the part is compared whatever its time and size: it may be another archive's former half.
            .arg("--ignore-times")
            .arg("--copy-links")
            // 0 would be no limit.
            .arg(format!("--max-size={}", bytes_max.max(1)))
            // One line, its size, for a file that was fetched.
            .arg("--out-format=%l")
            .arg("--")
            .arg(format!("{}:{}/{path}", self.host, self.path.trim_end_matches('/')))
            .arg(part.path())
            // Not to be read: every process of this rsync holds the part's lock until it ends, also when we die first.
            .stdin(part.lock()?);
        Running::start(command)
    }

    /// Lists the remote folder itself, one line.
    pub(super) fn inspect(&self) -> Result<Running, Fault> {
        let mut command = self.command();
        command
            .args(["--list-only", "--copy-links", "--"])
            .arg(format!("{}:{}", self.host, self.path))
            .stdin(Stdio::null());
        Running::start(command)
    }

    fn command(&self) -> Command {
        let mut command = Command::new("rsync");
        command
            // Names reach the other side by the protocol: the remote shell does not see them.
            .arg("--protect-args")
            .arg(format!("--timeout={TIMEOUT_S}"))
            .args(["-e", &self.ssh])
            // Messages are told apart by their words.
            .env("LC_ALL", "C")
            // They would change what the options above mean.
            .env_remove("RSYNC_PARTIAL_DIR")
            .env_remove("RSYNC_OLD_ARGS");
        command
    }
}

/// An rsync at work. Dropping it kills it and the processes it started.
pub(super) struct Running {
    child: Child,
    stdout: Option<JoinHandle<String>>,
    stderr: Option<JoinHandle<String>>,
}

/// An rsync that succeeded.
pub(super) struct Ended {
    pub(super) said: String,
}

impl Running {
    fn start(mut command: Command) -> Result<Self, Fault> {
        // A group of its own: rsync is two processes and an ssh, and the half that writes would outlive the other.
        command.process_group(0).kill_on_drop(true).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Fault::unavailable("the program rsync is not installed on this machine"),
            _ => Fault::unavailable(format!("rsync cannot be started: {error}")),
        })?;
        let stdout = Some(tokio::spawn(collect(child.stdout.take().expect("stdout is piped"))));
        let stderr = Some(tokio::spawn(collect(child.stderr.take().expect("stderr is piped"))));
        Ok(Self { child, stdout, stderr })
    }

    /// Waits for the end. May be dropped and called again.
    pub(super) async fn ended(&mut self) -> Result<Ended, (StoreErrorKind, String)> {
        let lost = |error: io::Error| (StoreErrorKind::Unavailable, format!("rsync was lost: {error}"));
        let status = self.child.wait().await.map_err(lost)?;
        if status.success() {
            return Ok(Ended { said: said(&mut self.stdout).await });
        }
        Err(meaning(status.code(), &said(&mut self.stderr).await))
    }
}

impl Running {
    /// Ends it, so that another may write where it did.
    pub(super) async fn kill(&mut self) {
        self.kill_group();
        match tokio::time::timeout(KILLED_WITHIN, self.child.wait()).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::debug!(%error, "rsync was killed and is not waited for"),
            // It hangs in the kernel. Its lock on the part keeps others from writing there.
            Err(_) => tracing::warn!("rsync was killed and has not ended"),
        }
    }

    fn kill_group(&self) {
        let Some(pid) = self.child.id().and_then(|id| Pid::from_raw(id.cast_signed())) else { return };
        if let Err(error) = kill_process_group(pid, Signal::KILL) {
            tracing::debug!(%error, "rsync was gone before it was killed");
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill_group();
    }
}

async fn collect(mut pipe: impl AsyncRead + Unpin) -> String {
    let mut said = Vec::new();
    // A pipe that breaks ends what is said; the exit code tells the rest.
    let read = (&mut pipe).take(SAID_BYTES_MAX).read_to_end(&mut said).await;
    if read.is_ok() {
        drop(tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await);
    }
    String::from_utf8_lossy(&said).into_owned()
}

async fn said(pipe: &mut Option<JoinHandle<String>>) -> String {
    match pipe.take() {
        // A process that ssh left behind (ControlPersist) may hold the pipe open for as long as it likes.
        Some(collecting) => match tokio::time::timeout(WORDS_WITHIN, collecting).await {
            Ok(Ok(words)) => words,
            Ok(Err(_)) | Err(_) => String::new(),
        },
        None => String::new(),
    }
}

/// What a failed rsync says: the kind, and its last words. See EXIT VALUES in rsync(1).
fn meaning(code: Option<i32>, stderr: &str) -> (StoreErrorKind, String) {
    use StoreErrorKind::{BadKey, Denied, NotFound, Other, Unavailable};
    let (summary, words): (Vec<&str>, Vec<&str>) = stderr
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('@'))
        .partition(|line| line.starts_with("rsync error:") || line.contains("connection unexpectedly closed"));
    // The number of the system's error is at the end in every language.
    let errno = |number: &str| words.iter().any(|line| line.ends_with(number));
    let says = |text: &str| words.iter().any(|line| line.contains(text));
    let kind = match code {
        // No such file, or a file where a folder would be.
        Some(23) if errno("(2)") || errno("(20)") => NotFound,
        Some(23) if errno("(13)") => Denied,
        // File name too long, too many levels of symbolic links.
        Some(23) if errno("(36)") || errno("(40)") => BadKey,
        Some(23) if errno("(5)") => Unavailable,
        // What was there when it was listed has gone since.
        Some(24) => NotFound,
        Some(23 | 25) => Other,
        // ssh's own 255, or 12 when rsync noticed first that nobody is there to talk to.
        Some(12 | 255) if says("Permission denied (") || says("Host key verification failed") => Denied,
        // The other side does not speak to us as we ask: refused or forced commands, an account without a shell.
        Some(2 | 4 | 5) => Denied,
        // Streams that break, time-outs, sockets, a full disk here, signals, ssh that gets no connection, no rsync there.
        _ => Unavailable,
    };
    let mut last: Vec<&str> = words.iter().rev().take(2).copied().collect();
    last.reverse();
    let words = if last.is_empty() { summary.first().copied().unwrap_or("it said nothing") } else { &last.join("; ") };
    let code = code.map_or_else(|| "was killed".to_owned(), |code| format!("ended with {code}"));
    let words: String = words.chars().take(400).map(|c| if c.is_control() { ' ' } else { c }).collect();
    (kind, format!("rsync {code}: {words}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_told_apart() {
        use StoreErrorKind::{BadKey, Denied, NotFound, Other, Unavailable};
        let check = |code, stderr: &str, kind| assert_eq!(meaning(Some(code), stderr).0, kind, "{code} {stderr}");
        check(
            23,
            "rsync: [sender] link_stat \"/a\" failed: No such file or directory (2)\nrsync error: x (code 23)",
            NotFound,
        );
        check(23, "rsync: [sender] link_stat \"/a\" failed: Datei oder Verzeichnis nicht gefunden (2)", NotFound);
        check(23, "rsync: [sender] send_files failed to open \"/a (2)\": Permission denied (13)", Denied);
        check(23, "rsync: [sender] read errors mapping \"/a\": Input/output error (5)", Unavailable);
        check(23, "rsync: [sender] link_stat \"/a\" failed: File name too long (36)", BadKey);
        check(23, "rsync: [receiver] something else", Other);
        check(24, "file has vanished: \"/a\"", NotFound);
        check(255, "ferry@127.0.0.1: Permission denied (publickey).", Denied);
        check(12, "ferry@127.0.0.1: Permission denied (publickey).", Denied);
        check(255, "No ED25519 host key is known for [127.0.0.1]:22\nHost key verification failed.", Denied);
        check(255, "ssh: connect to host 127.0.0.1 port 9: Connection refused", Unavailable);
        check(
            12,
            "bash: line 1: rsync: command not found\nrsync error: error in rsync protocol data stream (code 12)",
            Unavailable,
        );
        check(11, "rsync: [receiver] write failed on \"/a\": No space left on device (28)", Unavailable);
        check(30, "rsync error: timeout in data send/receive (code 30)", Unavailable);
        assert_eq!(meaning(None, "").0, Unavailable);
    }

    #[test]
    fn the_words_of_ssh_are_passed_on() {
        let stderr = "@@@@@@\nPermissions 0644 for '/k' are too open.\nLoad key \"/k\": bad permissions\n\
                      ferry@h: Permission denied (publickey).\r\nrsync: connection unexpectedly closed (0 bytes)\n\
                      rsync error: unexplained error (code 255)";
        let message = meaning(Some(255), stderr).1;
        assert_eq!(
            message,
            "rsync ended with 255: Load key \"/k\": bad permissions; ferry@h: Permission denied (publickey)."
        );
        assert_eq!(
            meaning(Some(30), "rsync error: timeout (code 30)").1,
            "rsync ended with 30: rsync error: timeout (code 30)"
        );
    }

    #[test]
    fn paths_with_spaces_stay_one_word() {
        let settings = config::Rsync {
            host: "::1".into(),
            port: 2222,
            user: Some("ferry".into()),
            key_file: Some("/my keys/id".into()),
            known_hosts: Some("/my keys/known".into()),
            path: "/srv/binance".into(),
            data_dir: None,
            state_dir: None,
        };
        let remote = Remote::new(&settings);
        assert_eq!(remote.host, "[::1]");
        assert!(remote.ssh.starts_with("'ssh' '-p' '2222' '-o' 'BatchMode=yes'"), "{}", remote.ssh);
        assert!(remote.ssh.contains("'-o' 'UserKnownHostsFile=\"/my keys/known\"'"), "{}", remote.ssh);
        assert!(remote.ssh.ends_with("'-i' '/my keys/id' '-l' 'ferry'"), "{}", remote.ssh);
    }
}
