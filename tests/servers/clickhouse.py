"""Runs a genuine ClickHouse server (HTTP) out of the chdb-core wheel, until SIGTERM, SIGINT or the parent's death.

    FERRY_CLICKHOUSE_USER=ferry FERRY_CLICKHOUSE_PASSWORD=... \
        .servers/venv/bin/python clickhouse.py --dir DIR --http-port PORT [--parent PID]

FERRY_CLICKHOUSE_PROFILE and FERRY_CLICKHOUSE_QUOTA are the XML of what the user `limited` may do, who has the same password.
Prints one line, `READY http://127.0.0.1:PORT`, when it answers; exit 0 after an ordered shutdown, 1 when it could
not start (why, on stderr). DIR keeps everything: a second start in it finds the tables of the first.

How: the wheel's `_chdb.query` is clickhouse-local. There `SYSTEM START LISTEN HTTP` opens the handlers of the real
server, for as long as the statement list runs; so the last statement reads a pipe to which nothing is ever written.
Closing the pipe is what ends it, in order. Nothing of this is for production: the tests want the real SQL engine,
the real wire format and the real errors on a machine without Docker.
"""
import argparse
import hashlib
import os
import signal
import socket
import sys
import threading
import time
import urllib.request
from pathlib import Path
from xml.sax.saxutils import escape

import leash

START_DEADLINE_S = 60
SHUTDOWN_DEADLINE_S = 20

SERVER_XML = """<clickhouse>
    <listen_host>127.0.0.1</listen_host>
    <http_port>{port}</http_port>
    <path>{dir}/data/</path>
    <tmp_path>{dir}/data/tmp/</tmp_path>
    <users_config>{dir}/users.xml</users_config>
    <!-- The level of <logger> is ignored by clickhouse-local; this one counts. -->
    <log-level>warning</log-level>
    <logger><log>{dir}/server.log</log><size>20M</size><count>1</count></logger>
    <keep_alive_timeout>30</keep_alive_timeout>
    <query_log>
        <database>system</database><table>query_log</table>
        <flush_interval_milliseconds>1000</flush_interval_milliseconds>
    </query_log>
</clickhouse>
"""

# `default` is who clickhouse-local itself signs in as, from the loopback and without a password; anything else than
# that and it refuses to start. So it cannot be shut out: tests of credentials use the other user.
USERS_XML = """<clickhouse>
    <profiles><default/><limited>{profile}</limited></profiles>
    <quotas><default/><limited>{quota}</limited></quotas>
    <users>
        <default><password></password><networks><ip>127.0.0.1</ip></networks>{rights}</default>
        <{user}>
            <password_sha256_hex>{digest}</password_sha256_hex>
            <networks><ip>127.0.0.1</ip></networks>{rights}
        </{user}>
        <limited>
            <password_sha256_hex>{digest}</password_sha256_hex>
            <networks><ip>127.0.0.1</ip></networks>
            <profile>limited</profile><quota>limited</quota>
        </limited>
    </users>
</clickhouse>
"""

RIGHTS_XML = "<profile>default</profile><quota>default</quota><access_management>1</access_management>"


def write_config(directory, port, user, password):
    (directory / "data").mkdir(parents=True, exist_ok=True)
    users = directory / "users.xml"
    users.touch(mode=0o600)
    digest = hashlib.sha256(password.encode()).hexdigest()
    limits = {name: os.environ.get(f"FERRY_CLICKHOUSE_{name.upper()}", "") for name in ("profile", "quota")}
    users.write_text(USERS_XML.format(rights=RIGHTS_XML, user=user, digest=digest, **limits))
    (directory / "config.xml").write_text(SERVER_XML.format(port=port, dir=escape(str(directory))))


def refuse_taken_port(port):
    """Otherwise somebody else's server on the port could answer our readiness request."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            sys.exit(f"port {port}: {error.strerror}")


class Engine(threading.Thread):
    """The thread inside clickhouse-local; it ends when the pipe is closed, or with an error."""

    def __init__(self, query, data):
        super().__init__(daemon=True)
        self.query, self.data, self.error = query, data, None
        self.hold_read, self.hold_write = os.pipe()

    def run(self):
        statements = (
            "SYSTEM START LISTEN HTTP; "
            f"SELECT * FROM file('/dev/fd/{self.hold_read}', 'LineAsString', 'line String') "
            "SETTINGS max_execution_time = 0, log_queries = 0 FORMAT Null"
        )
        try:
            # The format given here becomes the default format of the HTTP replies, as in a real server.
            self.query(statements, "TabSeparated", path=str(self.data))
        except Exception as error:
            self.error = error

    def shut_down(self):
        os.close(self.hold_write)
        self.join(SHUTDOWN_DEADLINE_S)


def wait_until_it_answers(engine, base, stop):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + START_DEADLINE_S
    while engine.is_alive() and not stop.is_set() and time.monotonic() < deadline:
        try:
            opener.open(base + "/ping", timeout=5).close()
            return True
        except OSError:
            time.sleep(0.01)
    return False


def main():
    arguments = argparse.ArgumentParser(description="a ClickHouse server for tests and demos")
    arguments.add_argument("--dir", type=Path, required=True)
    arguments.add_argument("--http-port", type=int, required=True)
    arguments.add_argument("--parent", type=int, help="die when this process dies")
    options = arguments.parse_args()
    user, password = os.environ["FERRY_CLICKHOUSE_USER"], os.environ.pop("FERRY_CLICKHOUSE_PASSWORD")
    if options.parent:
        leash.tie_to(options.parent)
    refuse_taken_port(options.http_port)
    directory = options.dir.resolve()

    # Importing chdb opens a throw-away engine that reads ./config.xml: do it where there is none.
    os.chdir(Path(__file__).resolve().parent)
    from chdb import _chdb

    write_config(directory, options.http_port, user, password)
    os.chdir(directory)

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    engine = Engine(_chdb.query, directory / "data")
    engine.start()
    base = f"http://127.0.0.1:{options.http_port}"
    answered = wait_until_it_answers(engine, base, stop)
    if answered:
        print(f"READY {base}", flush=True)
        while engine.is_alive() and not stop.wait(0.2):
            pass
    engine.shut_down()
    if engine.error or not answered:
        print(f"clickhouse: {engine.error or 'did not answer in time'}", file=sys.stderr, flush=True)
    # The library's own exit handlers crash now and then after its engine is gone.
    os._exit(0 if answered and not engine.error else 1)


if __name__ == "__main__":
    main()
