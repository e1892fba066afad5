"""What the steps share: both sites, the bucket between them, and how they are looked at."""
import ipaddress
import socket
import urllib.request
import uuid

from engine import ROOT, run, say
from nats_client import Client
from sites import Site, health, wait_for

DATABASE = "marketferry"


class World:
    """Both sites, and the bucket between them."""

    def __init__(self, engine, folder, base_images):
        # Whatever runs with the plain names is somebody's own.
        self.name = f"ferrytest{uuid.uuid4().hex[:6]}"
        self.engine, self.folder, self.base_images = engine, folder, base_images
        self.extra = []
        # This machine, as containers of any network see it. Not every engine says its address there; it is the first one.
        subnet = run("docker", "network", "inspect", "bridge", "-f", "{{(index .IPAM.Config 0).Subnet}}").strip()
        self.gateway = str(next(ipaddress.ip_network(subnet).hosts()))
        self.ports = {name: free_port(self.gateway) for name in ["nats", "s3"]}
        self.token = {"R2_ACCESS_KEY_ID": uuid.uuid4().hex, "R2_SECRET_ACCESS_KEY": uuid.uuid4().hex}
        self.data = folder / "archives"
        self.data.mkdir(mode=0o777)
        self.data.chmod(0o777)
        self.local = self.site("local")
        self.remote = self.site("remote")

    def site(self, profile, project=None, files=()):
        project = project or profile
        site = Site(self.engine, self.folder / project, f"{self.name}{project}", profile, files)
        site.configure(**self.settings(), CLICKHOUSE_PORT=free_port("127.0.0.1"))
        return site

    def settings(self, version="0.1.0"):
        ours = {f"{kind.upper()}_IMAGE": f"marketferry-test/{kind}" for kind in ["uploader", "puller", "demo"]}
        return {
            **self.base_images, **ours, "NATS_SERVICE_IMAGE": "marketferry-test/nats-service", "CARGO_PROFILE": "dev",
            "VERSION": version,
            "REVISION": run("git", "rev-parse", "--short", "HEAD", cwd=ROOT).strip(),
            "STORAGE_TYPE": "s3", "R2_ENDPOINT": f"http://{self.gateway}:{self.ports['s3']}", "R2_BUCKET": "ferry",
            **self.token, "NATS_BIND": self.gateway, "NATS_PORT": self.ports["nats"], "NATS_PUBLIC_HOST": self.gateway,
            "NATS_URL": f"tls://{self.gateway}:{self.ports['nats']}", "LOCAL_DATA_DIR": self.data,
            # Small steps, so that there is a backlog to share.
            "PULLER_SLOTS": 4, "PULLER_CPUS": "0.5", "LOG_LEVEL": "info",
        }

    def start(self):
        say("building the images")
        self.local.compose("build", timeout=1800)
        self.remote.compose("build", timeout=1800)
        demo = Site(self.engine, self.local.folder, self.local.project, "demo")
        demo.compose("build", "s3", timeout=1800)
        self.local.make("secrets", "certs")
        # The way the documentation tells: the local site packs what the remote one needs.
        self.local.make("remote-bundle")
        run("tar", "-xf", self.local.folder / "remote-bundle.tar", "-C", self.remote.folder)
        self.remote.make("secrets", "SIDE=remote")
        self.start_bucket()

    def start_bucket(self):
        keys = self.folder / "bucket"
        keys.mkdir()
        for name, value in self.token.items():
            (keys / name).write_text(value)
            (keys / name).chmod(0o644)
        self.extra.append(f"{self.name}-s3")
        run(
            "docker", "run", "--detach", "--name", self.extra[-1], "--publish", f"{self.gateway}:{self.ports['s3']}:9000",
            "--volume", f"{keys}:/keys:ro", self.demo_image(), "s3", "--listen=0.0.0.0:9000", "--dir=/demo", "--bucket=ferry",
            "--access-key-id-file=/keys/R2_ACCESS_KEY_ID", "--secret-access-key-file=/keys/R2_SECRET_ACCESS_KEY",
        )

    def demo_image(self):
        return self.image("demo")

    def image(self, kind):
        settings = self.settings()
        return f"{settings[f'{kind.upper()}_IMAGE']}:{settings['VERSION']}"

    def generate(self, days, first):
        run(
            "docker", "run", "--rm", "--volume", f"{self.data}:/data", self.demo_image(),
            "generate", "--data-dir=/data", f"--days={days}", f"--from={first}", "--interval=1h", "--interval=1d",
        )

    def differences(self, site=None, wait=1):
        """Nothing when ClickHouse has exactly the rows of the archives, each once, and the ledger each archive once."""
        site = site or self.local
        done = run(
            "docker", "run", "--rm", "--network", site.network(), "--volume", f"{self.data}:/data:ro",
            "--volume", f"{site.folder}/secrets/clickhouse-reader:/password:ro", self.demo_image(), "compare",
            "--data-dir=/data", "--clickhouse=http://clickhouse:8123", "--user=reader", "--password-file=/password",
            f"--database={DATABASE}", "--prefix=download", f"--wait={wait}s", check=False,
        )
        return "" if done.returncode == 0 else done.stdout or "no output"

    def compare(self, site=None, wait=120):
        differences = self.differences(site, wait)
        assert not differences, differences

    def sql(self, query, user="reader", site=None):
        site = site or self.local
        headers = {"X-ClickHouse-User": user, "X-ClickHouse-Key": site.secret(f"clickhouse-{user}")}
        url = f"http://127.0.0.1:{site.settings['CLICKHOUSE_PORT']}/"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(urllib.request.Request(url, query.encode(), headers), timeout=60) as answer:
            return answer.read().decode().strip()

    def nats(self, role):
        seed = self.local.secret(f"{role}.nk") if role else None
        return Client(self.gateway, self.ports["nats"], self.local.folder / "secrets" / "ca.pem", seed, role)

    def all_containers(self):
        return [name for site in (self.local, self.remote) for name in site.containers(everything=True)]

    def show(self):
        for name in self.all_containers() + self.extra:
            lines = run("docker", "logs", "--tail", "25", name, check=False).stdout.splitlines()
            print(f"--- {name}: {health(name)}", *lines, sep="\n    ", flush=True)

    def end(self):
        for site in (self.remote, self.local):
            site.compose("down", "--volumes", "--remove-orphans", check=False)
        for name in self.extra:
            run("docker", "rm", "--force", "--volumes", name, check=False)


def free_port(address):
    with socket.socket() as probe:
        probe.bind((address, 0))
        return probe.getsockname()[1]


def healthy(site, *services):
    def all_are():
        names = [name for service in services for name in site.containers(service)]
        return len(names) >= len(services) and all(health(name) == "healthy" for name in names)

    wait_for(f"{', '.join(services)} of {site.project} to be healthy", all_are, 180)
