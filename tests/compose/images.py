"""The base images that the Dockerfile and the compose file name, made from packages: no image registry is asked.

One Debian, made with debootstrap, under all of them. They have names of their own (`marketferry-test/…`), and the stack is
told by RUST_IMAGE, NATS_IMAGE and CLICKHOUSE_IMAGE, so an image of the real name is never made up.
"""
import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

from engine import ROOT, install, run, say

HERE = Path(__file__).resolve().parent
SERVERS = ROOT / "tests" / "servers"
VENV = ROOT / ".servers" / "venv"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
SUITE = "bookworm"
DEBIAN_PACKAGES = "gcc,libc6-dev,ca-certificates,busybox,python3-minimal,libpython3-stdlib"

NATS_DOCKERFILE = """FROM {debian}
COPY nats-server /usr/local/bin/
RUN ln -s /bin/busybox /usr/local/bin/wget
"""
CLICKHOUSE_DOCKERFILE = """FROM {debian}
RUN ln -s /bin/busybox /usr/local/bin/wget && mkdir /var/lib/clickhouse && chown 101:101 /var/lib/clickhouse
COPY servers /opt/servers
ENTRYPOINT ["python3", "/opt/servers/clickhouse_stand_in.py"]
"""
# The test builds with CARGO_PROFILE=dev: what is built is tried here, not how fast it runs.
RUST_DOCKERFILE = """FROM {debian}
COPY toolchain /usr/local
ENV CARGO_PROFILE_DEV_OPT_LEVEL=0 CARGO_PROFILE_DEV_DEBUG=none CARGO_INCREMENTAL=0
"""


def make():
    """Names of the images: for RUST_IMAGE, NATS_IMAGE and CLICKHOUSE_IMAGE."""
    debian = image("debian", [], make_debian)
    clickhouse_files = [HERE / "clickhouse_stand_in.py", SERVERS / "clickhouse.py", SERVERS / "leash.py"]
    pinned = SERVERS / "requirements.txt"
    return {
        "RUST_IMAGE": image("rust", [ROOT / "rust-toolchain.toml"], lambda name: make_rust(name, debian)),
        "NATS_IMAGE": image("nats", [pinned], lambda name: make_nats(name, debian)),
        "CLICKHOUSE_IMAGE": image(
            "clickhouse", [pinned, *clickhouse_files], lambda name: make_clickhouse(name, debian, clickhouse_files)
        ),
    }


def image(kind, files, make_it):
    """Made once for the same inputs."""
    digest = hashlib.sha256(Path(__file__).read_bytes() + b"".join(file.read_bytes() for file in files))
    name = f"marketferry-test/{kind}:{digest.hexdigest()[:12]}"
    if run("docker", "image", "inspect", name, check=False).returncode != 0:
        say(f"making {name}")
        make_it(name)
    return name


def make_debian(name):
    if not shutil.which("debootstrap"):
        install(["debootstrap"])
    with tempfile.TemporaryDirectory(prefix="debian-") as root:
        run("debootstrap", "--variant=minbase", f"--include={DEBIAN_PACKAGES}", SUITE, root)
        # A machine whose way out is through a proxy trusts authorities that Debian does not know.
        if CERTIFICATES.exists():
            shutil.copy(CERTIFICATES, f"{root}{CERTIFICATES}")
        tar = subprocess.Popen(["tar", "-C", root, "-c", "."], stdout=subprocess.PIPE)
        run("docker", "import", "-", name, stdin=tar.stdout)
        if tar.wait() != 0:
            raise AssertionError("tar failed")


def build(name, dockerfile, debian, fill):
    with tempfile.TemporaryDirectory(prefix="image-") as context:
        context = Path(context)
        (context / "Dockerfile").write_text(dockerfile.format(debian=debian))
        fill(context)
        run("docker", "build", "--tag", name, context)


def make_rust(name, debian):
    sysroot = Path(run("rustc", "--print", "sysroot", cwd=ROOT).strip())
    host = next(line.split()[1] for line in run("rustc", "-vV", cwd=ROOT).splitlines() if line.startswith("host:"))

    def fill(context):
        libraries = context / "toolchain" / "lib"
        shutil.copytree(sysroot / "lib" / "rustlib" / host, libraries / "rustlib" / host, symlinks=True)
        for library in (sysroot / "lib").glob("*.so*"):
            shutil.copy(library, libraries, follow_symlinks=False)
        (context / "toolchain" / "bin").mkdir()
        for program in ["cargo", "rustc"]:
            shutil.copy(sysroot / "bin" / program, context / "toolchain" / "bin")

    build(name, RUST_DOCKERFILE, debian, fill)


def make_nats(name, debian):
    build(name, NATS_DOCKERFILE, debian, lambda context: shutil.copy(VENV / "bin" / "nats-server", context))


def make_clickhouse(name, debian, files):
    def fill(context):
        servers = context / "servers"
        servers.mkdir()
        for file in files:
            shutil.copy(file, servers)
        packages = next(VENV.glob("lib/python3*/site-packages"))
        for package in packages.glob("chdb*"):
            shutil.copytree(package, servers / package.name)

    build(name, CLICKHOUSE_DOCKERFILE, debian, fill)
