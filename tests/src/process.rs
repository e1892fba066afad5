//! A child process that dies with this one, with its output captured line by line.
//!
//! The tie is `servers/leash.py`. The kernel's signal comes when the *thread* that started a child ends, and test
//! threads come and go, so one thread that lives as long as the process starts all children.

use std::{
    ffi::OsString,
    io::{self, BufRead, BufReader, Read},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, OnceLock, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use crate::{Context, Failure, Result, setup};

/// What to start; environment variables of the product that this process has are not handed on.
pub struct Program {
    pub name: String,
    pub path: PathBuf,
    pub args: Vec<OsString>,
    pub env: Vec<(String, String)>,
    pub dir: PathBuf,
}

pub struct Process {
    name: String,
    child: Child,
    stdout: Arc<Lines>,
    stderr: Arc<Lines>,
}

/// How a process ended, and all it said.
#[derive(Debug, Clone)]
pub struct Finished {
    pub name: String,
    /// None when a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    pub elapsed: Duration,
}

impl Finished {
    /// Fails, showing all the process said, unless it exited with `code`.
    pub fn expect_code(self, code: i32) -> Result<Finished> {
        if self.code == Some(code) {
            return Ok(self);
        }
        Err(Failure::new(format!(
            "{} ended with {:?}, expected exit code {code}\n--- stdout\n{}--- stderr\n{}",
            self.name, self.code, self.stdout, self.stderr
        )))
    }

    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_str(&self.stdout).context(format!("the stdout of {} is not JSON: {}", self.name, self.stdout))
    }
}

impl Process {
    /// Starts a program on the leash; its pid is that of [`Process::pid`], so signals reach it.
    pub fn spawn(program: Program) -> Result<Process> {
        let servers = setup::ensure()?;
        let mut command = Command::new(&servers.python);
        // -I -S: the leash needs nothing but the standard library, and starts in 10 ms this way.
        command
            .args(["-I", "-S"])
            .arg(&servers.leash)
            .arg(std::process::id().to_string())
            .arg(&program.path)
            .args(&program.args);
        Process::spawn_raw(program, command)
    }

    /// Starts a command that puts itself on the leash; of `program` only name, environment and directory count.
    pub(crate) fn spawn_raw(program: Program, mut command: Command) -> Result<Process> {
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(is_ours) {
                command.env_remove(&name);
            }
        }
        command
            .envs(program.env)
            .current_dir(&program.dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = spawn_on_lasting_thread(command).context(format!(
            "starting {} ({})",
            program.name,
            program.path.display()
        ))?;
        let stdout = Lines::collect(child.stdout.take().expect("stdout is piped"));
        let stderr = Lines::collect(child.stderr.take().expect("stderr is piped"));
        Ok(Process { name: program.name, child, stdout, stderr })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends a signal by name: `TERM`, `STOP`, `CONT`, `INT`.
    pub fn signal(&mut self, name: &str) -> Result<()> {
        let text = format!("signal {name}: {} is gone", self.name);
        // Once waited for, its number may be another process's.
        if !matches!(self.child.try_wait(), Ok(None)) {
            return Err(Failure::new(text));
        }
        // The shell has `kill` built in; a system call of our own would be unsafe code or one more crate.
        let status = Command::new("sh")
            .args(["-c", "kill -\"$0\" \"$1\"", name, &self.pid().to_string()])
            .status()
            .context("running sh")?;
        if status.success() { Ok(()) } else { Err(Failure::new(text)) }
    }

    pub fn sigterm(&mut self) -> Result<()> {
        self.signal("TERM")
    }

    /// SIGTERM, and expects exit code 0 within the timeout.
    pub fn drain(&mut self, timeout: Duration) -> Result<Finished> {
        self.sigterm()?;
        self.wait(timeout)?.expect_code(0)
    }

    /// SIGKILL, and waits until the process is gone.
    pub fn kill9(&mut self) -> Result<()> {
        self.child.kill().context(format!("killing {}", self.name))?;
        self.child.wait().context(format!("waiting for {}", self.name))?;
        Ok(())
    }

    /// Waits for the end; past the timeout the process is killed and its output is the error.
    pub fn wait(&mut self, timeout: Duration) -> Result<Finished> {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().context(format!("waiting for {}", self.name))? {
                break status;
            }
            if start.elapsed() > timeout {
                self.kill9()?;
                return Err(Failure::new(format!("{} did not end within {timeout:?}\n{}", self.name, self.said())));
            }
            thread::sleep(Duration::from_millis(5));
        };
        Ok(self.finished(status, start.elapsed()))
    }

    fn finished(&self, status: ExitStatus, elapsed: Duration) -> Finished {
        self.stdout.wait_until_closed();
        self.stderr.wait_until_closed();
        Finished {
            name: self.name.clone(),
            code: status.code(),
            stdout: self.stdout.text(),
            stderr: self.stderr.text(),
            elapsed,
        }
    }

    /// Waits until stdout or stderr has a line that contains `needle`, also one said before; returns the line.
    pub fn wait_for_line(&mut self, needle: &str, timeout: Duration) -> Result<String> {
        let deadline = Instant::now() + timeout;
        loop {
            // Look whether it runs first: what it said before it ended still counts.
            let running = self.is_running();
            let closed = self.stdout.is_closed() && self.stderr.is_closed();
            for lines in [&self.stdout, &self.stderr] {
                if let Some(line) = lines.wait_for(needle, Duration::from_millis(10)) {
                    return Ok(line);
                }
            }
            if (!running && closed) || Instant::now() > deadline {
                let why = if running { "did not say" } else { "ended without saying" };
                return Err(Failure::new(format!("{} {why} {needle:?}\n{}", self.name, self.said())));
            }
        }
    }

    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    fn said(&self) -> String {
        format!("--- stdout\n{}--- stderr\n{}", self.stdout(), self.stderr())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Failing here means that it is gone already, which is what we want.
        if self.is_running() {
            drop(self.kill9());
        }
    }
}

/// The product's environment variables: set on the machine of whoever runs the tests, they would change their course.
fn is_ours(name: &str) -> bool {
    ["FERRY_", "R2_", "CLICKHOUSE_", "LOCAL_", "STORAGE_", "NATS_"].iter().any(|prefix| name.starts_with(prefix))
}

type Order = (Command, mpsc::Sender<io::Result<Child>>);

fn spawn_on_lasting_thread(command: Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<mpsc::Sender<Order>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (orders, inbox) = mpsc::channel::<Order>();
        thread::Builder::new()
            .name("spawner".to_owned())
            .spawn(move || {
                for (mut command, reply) in inbox {
                    // Only gone when the asking thread panicked, and then the child is dropped with the message.
                    drop(reply.send(command.spawn()));
                }
            })
            .expect("a thread can be started");
        orders
    });
    let (reply, answer) = mpsc::channel();
    spawner.send((command, reply)).expect("the spawner thread never ends");
    answer.recv().expect("the spawner thread answers every order")
}

/// Lines as they come, with a way to wait for one.
#[derive(Default)]
struct Lines {
    state: Mutex<LinesState>,
    changed: Condvar,
}

#[derive(Default)]
struct LinesState {
    lines: Vec<String>,
    closed: bool,
}

/// How long the output may stay open after its process ended (a grandchild that holds it is not ours to wait for).
const CLOSE_GRACE: Duration = Duration::from_secs(2);

impl Lines {
    fn collect(source: impl Read + Send + 'static) -> Arc<Lines> {
        let lines = Arc::new(Lines::default());
        let sink = Arc::clone(&lines);
        thread::spawn(move || {
            let mut source = BufReader::new(source);
            let mut line = Vec::new();
            while source.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
                let text = String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned();
                sink.lock().lines.push(text);
                sink.changed.notify_all();
                line.clear();
            }
            sink.lock().closed = true;
            sink.changed.notify_all();
        });
        lines
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, LinesState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn text(&self) -> String {
        self.lock().lines.iter().map(|line| format!("{line}\n")).collect()
    }

    fn is_closed(&self) -> bool {
        self.lock().closed
    }

    fn wait_until_closed(&self) {
        drop(self.changed.wait_timeout_while(self.lock(), CLOSE_GRACE, |state| !state.closed));
    }

    fn wait_for(&self, needle: &str, timeout: Duration) -> Option<String> {
        let found = |state: &LinesState| state.lines.iter().find(|line| line.contains(needle)).cloned();
        let (state, _) = self
            .changed
            .wait_timeout_while(self.lock(), timeout, |state| found(state).is_none() && !state.closed)
            .unwrap_or_else(PoisonError::into_inner);
        found(&state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Process {
        Process::spawn(Program {
            name: "shell".to_owned(),
            path: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
            env: vec![("GIVEN".to_owned(), "kept".to_owned())],
            dir: "/".into(),
        })
        .expect("sh starts")
    }

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn captures_output_and_exit_code() {
        let end = shell("echo out $GIVEN; echo err >&2; exit 3").wait(LONG).expect("it ends");
        assert_eq!((end.code, end.stdout.as_str(), end.stderr.as_str()), (Some(3), "out kept\n", "err\n"));
        assert!(end.expect_code(0).is_err());
    }

    #[test]
    fn waits_for_a_line_and_fails_when_none_can_come() {
        let mut process = shell("trap 'echo got it; exit 0' TERM; echo ready; while :; do sleep 0.01; done");
        process.wait_for_line("ready", LONG).expect("it says so");
        process.sigterm().expect("it runs");
        assert_eq!(process.wait_for_line("got", LONG).expect("it says so"), "got it");
        assert_eq!(process.wait(LONG).expect("it ends").code, Some(0));
        assert!(process.wait_for_line("more", LONG).is_err());
        assert!(process.sigterm().is_err(), "it is gone");
    }

    #[test]
    fn kills_what_takes_too_long() {
        let mut process = shell("echo begun; exec sleep 600");
        let failure = process.wait(Duration::from_millis(500)).expect_err("it sleeps on").to_string();
        assert!(failure.contains("begun"), "{failure}");
        assert!(!process.is_running());
    }
}
