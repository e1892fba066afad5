#!/usr/bin/env python3
"""Installs the peers of `make bench`: requirements.txt into .servers/bench-venv, rclone into .servers/rclone.

Idempotent. rclone is taken from PATH when it is there; else, where apt-get is, its Debian package is fetched and unpacked
into .servers/rclone without installing it. Where neither works the bench goes on with boto3 in its place and says so.
"""
import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
SERVERS = HERE.parent.parent / ".servers"
VENV = SERVERS / "bench-venv"
COMPLETE = VENV / "complete"
REQUIREMENTS = HERE / "requirements.txt"
RCLONE = SERVERS / "rclone"


def say(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


def run(*command, cwd=None):
    done = subprocess.run([str(word) for word in command], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True)
    return done.returncode == 0, done.stdout.strip()


def install_python_peers():
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes() + sys.version.encode()).hexdigest()
    if COMPLETE.exists() and COMPLETE.read_text() == wanted:
        return
    shutil.rmtree(VENV, ignore_errors=True)
    say(f"installing boto3 and clickhouse-connect into {VENV}")
    for command in (
        [sys.executable, "-m", "venv", VENV],
        [VENV / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps",
         "--only-binary", ":all:", "--requirement", REQUIREMENTS],
        [VENV / "bin/python", "-c", "import boto3, clickhouse_connect"],
    ):
        done, output = run(*command)
        if not done:
            sys.exit(f"bench: error: {output}")
    COMPLETE.write_text(wanted)


def install_rclone():
    if shutil.which("rclone") or (RCLONE / "rclone").exists():
        return
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        say("no rclone and no apt-get: boto3 takes its place")
        return
    say("fetching the package rclone")
    with tempfile.TemporaryDirectory() as folder:
        fetched, output = run("apt-get", "download", "rclone", cwd=folder)
        packages = list(Path(folder).glob("rclone_*.deb"))
        unpacked = fetched and packages and run("dpkg-deb", "--extract", packages[0], folder)[0]
        binary = Path(folder, "usr/bin/rclone")
        if not unpacked or not binary.exists():
            say(f"rclone could not be fetched (boto3 takes its place): {output}")
            return
        RCLONE.mkdir(parents=True, exist_ok=True)
        shutil.copy(binary, RCLONE / "rclone")


if __name__ == "__main__":
    install_python_peers()
    install_rclone()
