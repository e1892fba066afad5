"""ClickHouse in a container, where the image that docker-compose.yml names cannot be pulled: the server of `make test`, with
the configuration and the users that the stack mounts.

Two things differ from the stock image. The user `default` cannot be removed (clickhouse-local signs in as it), so
users.d/no-default.xml is not read and `default` is let in from the loopback only. And logs go nowhere.
"""
import os
import shutil
import signal
import sys
import threading
from pathlib import Path

sys.path.insert(0, "/opt/servers")
from clickhouse import Engine, wait_until_it_answers

# A tmpfs: the root file system is read-only.
DIRECTORY = Path("/tmp/clickhouse-server")
MOUNTED = Path("/etc/clickhouse-server")
DATA = Path("/var/lib/clickhouse")

SERVER_XML = f"""<clickhouse>
    <http_port>8123</http_port>
    <path>{DATA}/</path>
    <tmp_path>{DATA}/tmp/</tmp_path>
    <users_config>{DIRECTORY}/users.xml</users_config>
    <log-level>error</log-level>
</clickhouse>
"""

USERS_XML = """<clickhouse>
    <profiles><default/></profiles>
    <quotas><default/></quotas>
    <users>
        <default>
            <password></password>
            <networks><ip>127.0.0.1</ip></networks>
            <profile>default</profile>
            <quota>default</quota>
        </default>
    </users>
</clickhouse>
"""


def main():
    os.chdir("/")
    from chdb import _chdb

    for folder, skipped in [("config.d", []), ("users.d", ["no-default.xml"])]:
        (DIRECTORY / folder).mkdir(parents=True, exist_ok=True)
        for file in (MOUNTED / folder).glob("*.xml"):
            if file.name not in skipped:
                shutil.copy(file, DIRECTORY / folder)
    (DIRECTORY / "config.xml").write_text(SERVER_XML)
    (DIRECTORY / "users.xml").write_text(USERS_XML)
    os.chdir(DIRECTORY)

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    engine = Engine(_chdb.query, DATA)
    engine.start()
    if wait_until_it_answers(engine, "http://127.0.0.1:8123", stop):
        print("READY", flush=True)
        while engine.is_alive() and not stop.wait(0.2):
            pass
    engine.shut_down()
    if engine.error:
        print(f"clickhouse: {engine.error}", file=sys.stderr, flush=True)
    os._exit(1 if engine.error else 0)


if __name__ == "__main__":
    main()
