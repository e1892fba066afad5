"""A Docker engine and a compose program: those of the machine, or from Debian's packages, with an engine of its own."""
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# What the engine stores, images above all; it may be deleted while no test runs.
STATE = ROOT / ".servers" / "docker"
PACKAGES = ["docker.io", "docker-compose", "debootstrap", "iptables", "openssl"]
START_DEADLINE_S = 60


def say(text):
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def fail(text):
    raise SystemExit(f"test-compose: {text}")


def run(*command, check=True, timeout=900, **options):
    """Its output; a failure shows it."""
    command = [str(part) for part in command]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout, **options)
    if check and done.returncode != 0:
        tail = "\n".join(done.stdout.splitlines()[-40:])
        raise AssertionError(f"{' '.join(command)}: exit {done.returncode}\n{tail}")
    return done.stdout if check else done


class Engine:
    """`compose` is the command, as a list; an engine started here ends with this process."""

    def __init__(self):
        self.daemon = None
        if not self.answers():
            self.start()
        if os.environ.get("COMPOSE"):
            self.compose = os.environ["COMPOSE"].split()
        elif run("docker", "compose", "version", check=False).returncode == 0:
            self.compose = ["docker", "compose"]
        elif shutil.which("docker-compose"):
            self.compose = ["docker-compose"]
        else:
            install(["docker-compose"])
            self.compose = ["docker-compose"]
        say(f"engine {self.version()}, {run(*self.compose, 'version', '--short').strip()}")

    def answers(self):
        return shutil.which("docker") is not None and run("docker", "info", check=False).returncode == 0

    def version(self):
        return run("docker", "version", "--format", "{{.Server.Version}}").strip()

    def start(self):
        if os.geteuid() != 0:
            fail("no Docker engine answers, and only root can start one: start Docker, or run this as root")
        if not shutil.which("dockerd") or not shutil.which("docker"):
            install(PACKAGES)
        STATE.mkdir(parents=True, exist_ok=True)
        # On paths of its own, and short ones: a socket's may have 107 characters.
        running = Path(tempfile.mkdtemp(prefix="marketferry-docker-"))
        os.environ["DOCKER_HOST"] = f"unix://{running}/docker.sock"
        say("starting a Docker engine")
        log = open(STATE / "log", "w")
        self.daemon = subprocess.Popen(
            ["dockerd", "--host", os.environ["DOCKER_HOST"], "--data-root", STATE / "data", "--exec-root", running / "run",
             "--pidfile", running / "pid"],
            stdout=log, stderr=log,
        )
        deadline = time.monotonic() + START_DEADLINE_S
        while not self.answers():
            if self.daemon.poll() is not None or time.monotonic() > deadline:
                fail("dockerd does not start:\n" + "\n".join((STATE / "log").read_text().splitlines()[-15:]))
            time.sleep(0.5)

    def stop(self):
        if self.daemon:
            self.daemon.terminate()
            try:
                self.daemon.wait(60)
            except subprocess.TimeoutExpired:
                self.daemon.kill()


def install(packages):
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        fail(f"these are needed, and only root on a Debian can install them here: {' '.join(packages)}")
    say(f"installing {' '.join(packages)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    command = ["apt-get", "install", "--yes", "--no-install-recommends", *packages]
    if run(*command, check=False, env=environment).returncode != 0:
        run("apt-get", "update", env=environment)
        run(*command, env=environment)


def inspect(*names):
    return json.loads(run("docker", "inspect", *names))

