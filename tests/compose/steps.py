"""The steps of the compose test, each a scenario that builds on what the ones before it left."""
import json
import random
import subprocess
import threading
import time
import urllib.error

from engine import run, say
from nats_client import Denied
from sites import Site, health, inspect, wait_for
from world import DATABASE, free_port, healthy

# Days of archives that each step adds.
FIRST_DAYS, BACKLOG_DAYS = 2, 60
BACKLOG_DEADLINE_S = 420


# --- what is not set ----------------------------------------------------------------------------------------------------


def missing_values_stop_with_their_name(world):
    for site, names in [
        (world.remote, ["NATS_URL", "R2_BUCKET"]), (world.remote, ["LOCAL_DATA_DIR"]), (world.local, ["R2_ENDPOINT"]),
    ]:
        kept = {name: site.settings[name] for name in names}
        site.configure(**dict.fromkeys(names, ""))
        done = site.up(check=False)
        told = done.stdout + site.logs()
        assert done.returncode != 0, "it starts without what it needs"
        for name in names:
            # Compose v2 looks for the folder first, and its default says the same.
            named = f"{name}: is not set" in told or f"{name}-is-not-set" in told
            assert named, f"{name} is not named:\n{told[-3000:]}"
        assert not site.containers("uploader") and not site.containers("puller"), "the service runs all the same"
        site.down("--volumes")
        site.configure(**kept)


# --- the way of an archive ----------------------------------------------------------------------------------------------


def archives_arrive(world):
    world.local.up()
    world.remote.up()
    healthy(world.local, "nats", "clickhouse", "puller")
    healthy(world.remote, "uploader")
    world.generate(FIRST_DAYS, "2026-01-01")
    world.compare()
    status = world.local.ops("status")
    assert "primary" in status, status
    assert "ready" in run("docker", "exec", world.local.containers("puller")[0], "puller", "healthcheck")


# --- credentials --------------------------------------------------------------------------------------------------------


def credentials_do_no_more_than_they_must(world):
    unit = "binance.spot.klines.1h.2026-01-01"
    info = "$JS.API.CONSUMER.INFO.MARKERS"
    # Who may, so that a refusal below is one of the right and not of the question.
    for role, subject in [
        ("worker", f"{info}.ingest-primary"),
        ("uploader", f"$JS.API.DIRECT.GET.MARKERS.marker.ready.{unit}"),
        ("monitor", "$JS.API.STREAM.INFO.MARKERS"),
        ("operator", "$JS.API.STREAM.INFO.MARKERS"),
    ]:
        answer = world.nats(role).request(subject)
        assert '"error"' not in answer, f"{role}: {subject}: {answer}"
    for role, subjects in {
        "worker": [
            f"marker.ready.{unit}", f"marker.replay.primary.{unit}", f"{info}.ingest-other",
            "$JS.API.CONSUMER.MSG.NEXT.MARKERS.ingest-other", "$JS.ACK.MARKERS.ingest-other.1.1.1.1.1",
            "$JS.API.CONSUMER.CREATE.MARKERS.mine", "$JS.API.CONSUMER.DELETE.MARKERS.ingest-primary",
            "$JS.API.STREAM.DELETE.MARKERS", "$JS.API.STREAM.PURGE.MARKERS", f"dead.other.{unit}",
        ],
        "uploader": [
            "$JS.API.STREAM.DELETE.MARKERS", "$JS.API.STREAM.PURGE.MARKERS", "$JS.API.STREAM.UPDATE.MARKERS",
            "$JS.API.CONSUMER.MSG.NEXT.MARKERS.ingest-primary", "$JS.API.CONSUMER.DELETE.MARKERS.ingest-primary",
            "$JS.API.CONSUMER.CREATE.MARKERS.ingest-primary", f"marker.replay.primary.{unit}", f"dead.primary.{unit}",
        ],
        "monitor": [
            f"marker.ready.{unit}", "$JS.API.STREAM.DELETE.MARKERS", "$JS.API.CONSUMER.MSG.NEXT.MARKERS.ingest-primary",
            "$JS.API.CONSUMER.PAUSE.MARKERS.ingest-primary",
        ],
        "operator": ["$JS.API.STREAM.DELETE.MARKERS", "$JS.API.STREAM.PURGE.MARKERS", "$JS.API.STREAM.SNAPSHOT.MARKERS"],
    }.items():
        for subject in subjects:
            refused(f"{role} may send to {subject}", lambda r=role, s=subject: world.nats(r).request(s))
        for subject in ["marker.>", "_INBOX.>", "_INBOX_other.>", "$JS.API.>"]:
            refused(f"{role} may listen to {subject}", lambda r=role, s=subject: world.nats(r).subscribe(s))
    for role, subject in [
        ("monitor", "$JS.API.DIRECT.GET.MARKERS"),
        ("worker", "$JS.API.DIRECT.GET.MARKERS"),
        ("uploader", "$JS.API.DIRECT.GET.MARKERS.marker.ready.a.b.c.d.e"),
    ]:
        for target in ["$JS.API.STREAM.DELETE.DEAD", "$JS.API.STREAM.PURGE.MARKERS", "$JS.API.CONSUMER.DELETE.MARKERS.ingest-primary"]:
            # The answer is empty, as those requests are.
            world.nats(role).publish(subject, target, '{"seq": 999999}' if subject.endswith("MARKERS") else "")
    time.sleep(1)
    for subject in ["$JS.API.STREAM.INFO.DEAD", "$JS.API.STREAM.INFO.MARKERS", f"{info}.ingest-primary"]:
        answer = json.loads(world.nats("monitor").request(subject))
        assert "error" not in answer, f"an answer of JetStream did what its asker may not: {answer}"
        assert "MARKERS" not in subject or answer.get("state", {}).get("messages") != 0, "the stream was emptied"
    refused("somebody without a login gets in", lambda: world.nats(None))

    world.sql("CREATE DATABASE other", "admin")
    world.sql("CREATE TABLE other.secrets (a Int8) ENGINE = MergeTree ORDER BY a", "admin")
    world.sql("INSERT INTO other.secrets VALUES (1)", "admin")
    assert world.sql(f"SELECT count() > 0 FROM {DATABASE}.klines_latest", "worker") in ("1", "true")
    for user, queries in {
        "worker": ["INSERT INTO other.secrets VALUES (2)", f"DROP TABLE {DATABASE}.klines", f"TRUNCATE TABLE {DATABASE}.archives",
                   f"ALTER TABLE {DATABASE}.klines DELETE WHERE 1", f"CREATE TABLE {DATABASE}.t (a Int8) ENGINE = Memory"],
        "reader": [f"INSERT INTO {DATABASE}.archives (symbol) VALUES ('X')", f"ALTER TABLE {DATABASE}.klines DELETE WHERE 1"],
    }.items():
        for query in ["SELECT * FROM other.secrets", "SELECT * FROM url('http://s3', 'LineAsString')",
                      "SELECT * FROM file('/etc/passwd', 'LineAsString')", *queries]:
            refused(f"{user} may {query}", lambda u=user, q=query: world.sql(q, u))
    world.sql("DROP DATABASE other", "admin")


def refused(what, attempt):
    try:
        answer = attempt()
    except Denied as denied:
        assert any(word in str(denied).lower() for word in ["violation", "closed", "no responders"]), f"{what}? {denied}"
    except urllib.error.HTTPError as error:
        text = error.read().decode()
        assert "ACCESS_DENIED" in text, f"{what}? {text}"
    else:
        raise AssertionError(f"{what}: {answer!r}")


# --- secrets ------------------------------------------------------------------------------------------------------------


def secrets_stay_secret(world):
    secrets = dict(world.token)
    for site in (world.local, world.remote):
        for file in (site.folder / "secrets").iterdir():
            if file.is_file() and file.suffix not in (".conf", ".xml") and file.name not in ("ca.pem", "nats.pem"):
                secrets[file.name] = max(file.read_text().split("\n"), key=len)
    places = {}
    for site in (world.local, world.remote):
        places[f"compose config of {site.project}"] = site.compose("config")
        places[f"the logs of {site.project}"] = site.logs()
        for name in site.containers(everything=True):
            described = inspect(name)[0]
            places[f"docker inspect {name}"] = str(described)
            places[f"the history of {name}'s image"] = run("docker", "history", "--no-trunc", described["Image"])
            assert described["HostConfig"]["ReadonlyRootfs"], f"{name}: its root file system can be written to"
            user = described["Config"]["User"].split(":")[0]
            assert user not in ("", "0", "root"), f"{name} runs as root"
            assert described["HostConfig"]["CapDrop"] == ["ALL"], f"{name} has capabilities"
            limits = described["HostConfig"]
            assert limits["Memory"] > 0 and limits["NanoCpus"] > 0, f"{name} has no limits"
    for image in ["uploader", "puller"]:
        name = world.image(image)
        labels = inspect(name)[0]["Config"]["Labels"]
        assert labels["org.opencontainers.image.version"] == "0.1.0", labels
        assert labels["org.opencontainers.image.revision"] == world.settings()["REVISION"], labels
        layers = subprocess.run(["docker", "save", name], stdout=subprocess.PIPE, check=True).stdout
        for secret, value in secrets.items():
            assert value.encode() not in layers, f"{secret} is in the image {name}"
        megabytes = inspect(name)[0]["Size"] / 1e6
        say(f"image of the {image}: {megabytes:.0f} MB")
        assert megabytes < 100, "the image has grown"
    for place, text in places.items():
        for secret, value in secrets.items():
            assert value not in text, f"{secret} is in {place}"
    # Who is given the bucket's token: nobody but those that use it.
    for site in (world.local, world.remote):
        for name in site.containers(everything=True):
            has_token = any("r2_secret_access_key" in mount["Destination"] for mount in inspect(name)[0]["Mounts"])
            service = inspect(name)[0]["Config"]["Labels"]["com.docker.compose.service"]
            assert has_token == (service.removesuffix("-check") in ("uploader", "puller")), f"{service}: {has_token}"
    ports = inspect(world.local.containers("nats")[0])[0]["HostConfig"]["PortBindings"]
    assert list(ports) == ["4222/tcp"], f"NATS publishes {list(ports)}"


# --- load and faults ----------------------------------------------------------------------------------------------------


def workers_come_and_go_and_servers_fall(world):
    local, remote = world.local, world.remote
    uploader = remote.containers("uploader")[0]
    stop = threading.Event()
    kills = []

    def kill_workers():
        while not stop.wait(4):
            victim = random.choice(local.containers("puller") or [None])
            if victim:
                run("docker", "kill", victim, check=False)
                kills.append(victim)
                # Killed by hand it would stay down: the restart policy is for those that die by themselves.
                run("docker", "start", victim, check=False)

    world.generate(BACKLOG_DAYS, "2026-02-01")
    wait_for("the first units of the backlog", lambda: int(world.sql(f"SELECT uniq(period) FROM {DATABASE}.archives")) > 4)
    local.up("--scale", "puller=4")
    assert len(local.containers("puller")) == 4
    killer = threading.Thread(target=kill_workers)
    killer.start()
    try:
        run("docker", "network", "disconnect", remote.network(), uploader)
        cut_at = time.monotonic()
        time.sleep(10)
        local.compose("restart", "nats")
        time.sleep(10)
        run("docker", "kill", local.containers("clickhouse")[0])
        local.up("--scale", "puller=4", "clickhouse")
        healthy(local, "clickhouse")
        time.sleep(max(0, 60 - (time.monotonic() - cut_at)))
        run("docker", "network", "connect", remote.network(), uploader)
        run("docker", "kill", local.containers("nats")[0])
        local.up("--scale", "puller=4", "nats")
        healthy(local, "nats")
    finally:
        stop.set()
        killer.join()
    local.up("--scale", "puller=2")
    wait_for("two workers to be left", lambda: len(local.containers("puller")) == 2)
    world.compare(wait=BACKLOG_DEADLINE_S)
    workers = world.sql(f"SELECT uniq(worker), count() FROM {DATABASE}.archives FINAL").split()
    say(f"{len(kills)} kills; {workers[0]} starts of workers loaded {workers[1]} archives")
    assert len(kills) >= 5, "hardly anybody was killed"
    assert int(workers[0]) >= 3, "the work was not spread"
    assert '"findings": []' in world.local.ops("dead", "ls", "--json"), "there are dead letters"


def counted(world):
    """What would change if anything was sent, announced or loaded again."""
    stream = world.nats("monitor").request("$JS.API.STREAM.INFO.MARKERS")
    rows = world.sql(
        f"SELECT (SELECT count() FROM {DATABASE}.klines_latest), (SELECT count() FROM {DATABASE}.archives FINAL), "
        f"(SELECT count() FROM {DATABASE}.ingest_log WHERE outcome = 'loaded')"
    )
    return stream.split('"last_seq":')[1].split(",")[0], rows


def idle(status):
    return all(f'"{key}": 0' in status for key in ("pending", "in_flight", "retries_scheduled"))


def down_and_up_repeats_nothing(world):
    # A lease of a worker that was killed may bring a unit once more.
    wait_for("nothing to be in anybody's hands", lambda: idle(world.local.ops("status", "--json")), 180, 3)
    before = counted(world)
    world.remote.down()
    world.local.down()
    assert not world.all_containers()
    world.local.up()
    world.remote.up()
    healthy(world.local, "nats", "clickhouse", "puller")
    healthy(world.remote, "uploader")
    # A pass of the uploader, and every worker has asked for work.
    time.sleep(15)
    assert counted(world) == before, f"{before} before, {counted(world)} after"
    world.compare()


def a_new_version_takes_over(world):
    world.generate(20, "2025-10-01")
    for site in (world.local, world.remote):
        site.configure(**world.settings("0.1.1-test"))
        site.compose("build", timeout=1800)
    world.local.up("--scale", "puller=2")
    world.remote.up()
    healthy(world.local, "nats", "clickhouse", "puller")
    for site, service in [(world.local, "puller"), (world.remote, "uploader")]:
        for name in site.containers(service):
            assert inspect(name)[0]["Config"]["Labels"]["org.opencontainers.image.version"] == "0.1.1-test", name
    world.compare(wait=BACKLOG_DEADLINE_S)


def a_backup_comes_back(world):
    local = world.local
    settings = {
        **local.environment(), "COMPOSE": " ".join(world.engine.compose),
        "COMPOSE_ARGS": f"--project-name {local.project}",
    }

    def make(*arguments, **options):
        return run("make", *arguments, cwd=local.folder, env=settings, **options)

    said = make("backup")
    [backup] = (local.folder / "backups").glob("*.tar")
    say(said.strip().splitlines()[-1])
    early = make("restore", f"FROM={backup}", check=False)
    assert early.returncode != 0 and "workers are running" in early.stdout, early.stdout
    # Loaded after the backup: the stream has it still.
    world.generate(2, "2025-11-01")
    world.compare()
    local.compose("stop", "puller")
    world.sql(f"TRUNCATE TABLE {DATABASE}.klines", "admin")
    full = make("restore", f"FROM={backup}", check=False)
    assert full.returncode != 0 and "has rows" in full.stdout, full.stdout
    make("restore", f"FROM={backup}", "REPLACE=1")
    local.up()
    healthy(local, "puller")
    assert world.differences(), "the backup knows of archives that came after it"
    # Exit 1: what is not right yet is sent to the workers.
    local.ops("verify", "--fix", check=False)
    world.compare()


# --- other shapes -------------------------------------------------------------------------------------------------------


def three_servers_lose_one(world):
    """With the override file: from one server to three, one of them killed while archives arrive."""
    world.local.down("--volumes")
    world.local.files = ["docker-compose.yml", "docker-compose.cluster.yml"]
    world.local.configure(NATS_2_PORT=free_port(world.gateway), NATS_3_PORT=free_port(world.gateway))
    urls = [f"tls://{world.gateway}:{world.local.settings[name]}" for name in ("NATS_PORT", "NATS_2_PORT", "NATS_3_PORT")]
    world.remote.configure(NATS_URL=",".join(urls))
    world.local.up()
    world.remote.up()
    healthy(world.local, "nats", "nats-2", "nats-3", "clickhouse", "puller")
    answer = world.nats("monitor").request("$JS.API.STREAM.INFO.MARKERS")
    assert '"num_replicas":3' in answer, answer[:2000]
    # The new stream is empty: the bucket is enough to fill it.
    run(*world.remote.command("run", "--rm", "-T", "uploader", "reconcile", "--fix"), cwd=world.remote.folder,
        env=world.remote.environment(), stdin=subprocess.DEVNULL)
    world.compare(wait=BACKLOG_DEADLINE_S)
    run("docker", "kill", world.local.containers("nats-2")[0])
    world.generate(2, "2025-12-01")
    world.compare()
    world.local.down("--volumes")
    world.remote.down()


def the_demo_shows_rows(world):
    """In a fresh checkout whose .env says nothing of a bucket."""
    demo = Site(world.engine, world.folder / "demo", f"{world.name}demo", "demo")
    images = {name: value for name, value in world.settings().items() if name.endswith("_IMAGE")}
    demo.configure(**images, NATS_PORT=free_port("127.0.0.1"), CLICKHOUSE_PORT=free_port("127.0.0.1"))
    demo.make("secrets", "certs")
    begun = time.monotonic()
    try:
        demo.up()
        [name] = wait_for(
            "the demo to show rows",
            lambda: [name for name in demo.containers("demo-show", everything=True) if health(name) == "exited"], 180,
        )
        shown = run("docker", "logs", name)
        assert inspect(name)[0]["State"]["ExitCode"] == 0 and "BTCUSDT" in shown, shown
        say(f"rows after {time.monotonic() - begun:.0f} s")
    except Exception:
        for name in demo.containers(everything=True):
            print(f"--- {name}", run("docker", "logs", "--tail", "20", name, check=False).stdout, flush=True)
        raise
    finally:
        demo.compose("down", "--volumes", "--remove-orphans", check=False)
