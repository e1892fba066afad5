"""A site: a checkout of its own with its .env and secrets, and the compose project that runs in it."""
import os
import shutil
import subprocess
import time
from pathlib import Path

from engine import ROOT, inspect, run

# The settings of a compose file must not leak in from the shell that runs the test.
KEPT = ["PATH", "HOME", "DOCKER_HOST", "LANG", "SSL_CERT_FILE"]
UP_DEADLINE_S = 300


def checkout(folder):
    """What a clone has: what git tracks, and what would be tracked."""
    listed = run("git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in filter(None, listed.split("\0")):
        source, target = ROOT / name, folder / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)


class Site:
    def __init__(self, engine, folder, project, profile, files=()):
        self.engine, self.folder, self.project, self.profile = engine, Path(folder), project, profile
        self.files = list(files)
        self.settings = {}
        if not self.folder.exists():
            self.folder.mkdir(parents=True)
            checkout(self.folder)

    def configure(self, **settings):
        self.settings.update(settings)
        lines = [f"{name}={value}\n" for name, value in self.settings.items()]
        (self.folder / ".env").write_text("".join(lines))

    def environment(self):
        return {name: os.environ[name] for name in KEPT if name in os.environ} | {"DOCKER_BUILDKIT": "0"}

    def make(self, *arguments):
        return run("make", *arguments, cwd=self.folder, env=self.environment())

    def command(self, *arguments):
        files = [part for file in self.files for part in ("--file", file)]
        return [*self.engine.compose, "--project-name", self.project, *files, "--profile", self.profile, *arguments]

    def compose(self, *arguments, **options):
        return run(*self.command(*arguments), cwd=self.folder, env=self.environment(), **options)

    def up(self, *arguments, **options):
        # Without a terminal, or 1.29 shows its bars.
        return self.compose("up", "--detach", *arguments, timeout=UP_DEADLINE_S, stdin=subprocess.DEVNULL, **options)

    def ops(self, *arguments, check=True):
        command = self.command("run", "--rm", "-T", "ops", *arguments)
        return run(*command, cwd=self.folder, env=self.environment(), check=check, stdin=subprocess.DEVNULL)

    def containers(self, service=None, everything=False):
        """Names, of those that run or of all."""
        labels = [f"label=com.docker.compose.project={self.project}"]
        if service:
            labels.append(f"label=com.docker.compose.service={service}")
        filters = [part for label in labels for part in ("--filter", label)]
        listed = run("docker", "ps", *(["--all"] if everything else []), *filters, "--format", "{{.Names}}")
        return sorted(listed.split())

    def network(self):
        return f"{self.project}_default"

    def address(self, service):
        """Where this machine reaches a container."""
        container = inspect(self.containers(service)[0])[0]
        return container["NetworkSettings"]["Networks"][self.network()]["IPAddress"]

    def logs(self):
        return "".join(run("docker", "logs", name) for name in self.containers(everything=True))

    def secret(self, name):
        return (self.folder / "secrets" / name).read_text().strip()

    def down(self, *arguments):
        return self.compose("down", "--remove-orphans", *arguments)


def wait_for(what, condition, seconds=120, every=0.5):
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(every)


def health(name):
    state = inspect(name)[0]["State"]
    return state.get("Health", {}).get("Status", "none") if state["Running"] else state["Status"]

