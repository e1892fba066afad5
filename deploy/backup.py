"""Backs ClickHouse's database up into one file, and restores it from one. Uses ClickHouse's own BACKUP and RESTORE.

    make backup                            backups/marketferry-20261120T184500Z.tar; TO=folder for another place
    make restore FROM=backups/….tar        into an empty server; REPLACE=1 drops the database that is there first

The stream is not backed up: the bucket is enough to make it again (`uploader reconcile --fix`), and workers skip what the
ledger in the database says is loaded. What was loaded after the backup was made, `ops verify --fix` has loaded again.

Needs the stack's ClickHouse running, its port on this machine (CLICKHOUSE_BIND and CLICKHOUSE_PORT in .env) and room for
a second copy of the database in its volume. COMPOSE='docker-compose' for Compose 1.29, COMPOSE_ARGS for a project of
another name.
"""
import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
from datetime import datetime, timezone
from pathlib import Path

from make_secrets import read_env

# The disk `backups` of deploy/clickhouse/config.d/marketferry.xml.
INSIDE = "/var/lib/clickhouse/backups"
TIMEOUT_S = 24 * 3600


class Stack:
    def __init__(self, env_file, secrets):
        env = read_env(env_file)
        host = env.get("CLICKHOUSE_BIND") or "127.0.0.1"
        self.url = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{env.get('CLICKHOUSE_PORT') or 8123}/"
        self.database = env.get("CLICKHOUSE_DB") or "marketferry"
        password = secrets / "clickhouse-admin"
        if not password.exists():
            sys.exit(f"{password} is not there: this is where the stack's secrets are needed (make secrets)")
        self.password = password.read_text().strip()
        self.compose = [*compose_command(), *shlex.split(os.environ.get("COMPOSE_ARGS", "")), "--profile", "local"]

    def ask(self, sql):
        headers = {"X-ClickHouse-User": "admin", "X-ClickHouse-Key": self.password}
        request = urllib.request.Request(self.url + "?wait_end_of_query=1", sql.encode(), headers)
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=TIMEOUT_S) as answer:
                return answer.read().decode().strip()
        except urllib.error.HTTPError as error:
            sys.exit(f"ClickHouse: {error.read().decode().strip()[:1000]}")
        except OSError as error:
            sys.exit(f"ClickHouse at {self.url}: {error}; is the stack up?")

    def running(self, service):
        """Containers; 1.29 lists those that were stopped too."""
        listed = subprocess.run([*self.compose, "ps", "-q", service], stdout=subprocess.PIPE, text=True).stdout.split()
        running = subprocess.run(["docker", "ps", "-q", "--no-trunc"], stdout=subprocess.PIPE, text=True).stdout.split()
        return [container for container in listed if container in running]


def compose_command():
    if os.environ.get("COMPOSE"):
        return shlex.split(os.environ["COMPOSE"])
    plugin = subprocess.run(["docker", "compose", "version"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return ["docker", "compose"] if plugin.returncode == 0 else ["docker-compose"]


def the_container(stack):
    containers = stack.running("clickhouse")
    if not containers:
        sys.exit("the stack's clickhouse does not run: docker compose --profile local up -d clickhouse")
    return containers[0]


def docker(*arguments, **options):
    done = subprocess.run(["docker", *arguments], stderr=subprocess.PIPE, **options)
    if done.returncode != 0:
        sys.exit(f"docker {arguments[0]}: {done.stderr.decode().strip()}")


def remove(container, name):
    docker("exec", container, "rm", "-rf", f"{INSIDE}/{name}")


def backup(stack, folder):
    name = f"{stack.database}-{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}"
    container, target = the_container(stack), folder / f"{name}.tar"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    try:
        stack.ask(f"BACKUP DATABASE `{stack.database}` TO Disk('backups', '{name}')")
        with open(part, "wb") as file:
            docker("exec", container, "tar", "-c", "-C", INSIDE, name, stdout=file)
    finally:
        remove(container, name)
    check(part)
    part.replace(target)
    print(f"{target}: {target.stat().st_size / 1e6:.1f} MB")


def check(path):
    """Its name inside; a file that was cut off is noticed here and not when it is needed."""
    try:
        with tarfile.open(path) as tar:
            names = [member.name for member in tar]
    except (tarfile.TarError, OSError) as error:
        sys.exit(f"{path}: {error}")
    top = names[0].split("/")[0] if names else ""
    if f"{top}/.backup" not in names:
        sys.exit(f"{path}: not a backup that this made: it has no .backup in it")
    return top


def restore(stack, path, replace):
    container, name = the_container(stack), check(path)
    if stack.running("puller"):
        sys.exit("workers are running: stop them first (docker compose --profile local stop puller)")
    rows = "SELECT count() FROM system.tables WHERE total_rows > 0 AND database = "
    if stack.ask(f"{rows}'{stack.database}'") != "0" and not replace:
        sys.exit(f"the database {stack.database} has rows: REPLACE=1 drops it first")
    docker("exec", container, "mkdir", "-p", INSIDE)
    try:
        with open(path, "rb") as file:
            # By the server's own user, so that the files are its own.
            docker("exec", "--interactive", container, "tar", "-x", "-C", INSIDE, stdin=file)
        stack.ask(f"DROP DATABASE IF EXISTS `{stack.database}` SYNC")
        stack.ask(f"RESTORE DATABASE `{stack.database}` FROM Disk('backups', '{name}')")
    finally:
        remove(container, name)
    tables = stack.ask(f"SELECT name, total_rows FROM system.tables WHERE database = '{stack.database}' AND total_rows > 0")
    print(f"restored {stack.database}:\n{tables}\nNext: docker compose --profile local up -d, then `ops verify`.")


def main():
    parser = argparse.ArgumentParser(description="backs up and restores the stack's ClickHouse database")
    parser.add_argument("--env", type=Path, default=Path(".env"))
    parser.add_argument("--secrets", type=Path, default=Path("secrets"))
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("backup").add_argument("--to", type=Path, default=Path("backups"))
    restoring = commands.add_parser("restore")
    restoring.add_argument("path", type=Path)
    restoring.add_argument("--replace", action="store_true", help="drop the database that is there")
    options = parser.parse_args()
    if not shutil.which("docker"):
        sys.exit("docker is not there")
    stack = Stack(options.env, options.secrets)
    if options.command == "backup":
        backup(stack, options.to)
    else:
        restore(stack, options.path, options.replace)


if __name__ == "__main__":
    main()
