"""Makes a private certificate authority and the certificate of the NATS servers, as files below ./secrets.

    make certs                        or: python3 deploy/make_certs.py [--dir secrets] [--env .env] [--days 825]

ca.pem           the authority's certificate: every client has it, on both sites
nats.pem         the servers' certificate, for the stack's own names and those of NATS_PUBLIC_HOST in .env (names or
                 addresses by which the remote site reaches NATS, with commas)
nats-key.pem     its key
ca/key.pem       the authority's key; no container gets it. Keep it elsewhere if you like: it is needed to renew only.

Run again it leaves a certificate that has these names and holds for 30 days more, and else makes a new one, signed by the
same authority. Certificates of your own: put them there under these names; they are never overwritten. Needs openssl.
"""
import argparse
import ipaddress
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from make_secrets import read_env

STACK_NAMES = ["nats", "nats-2", "nats-3", "localhost", "127.0.0.1"]
RENEW_BEFORE_S = 30 * 86400
CA_NAME = "marketferry private CA"


def openssl(*arguments, **options):
    return subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, text=True, **options).stdout


def alternative_name(name):
    try:
        return f"IP:{ipaddress.ip_address(name)}"
    except ValueError:
        if not re.fullmatch(r"(\*\.)?[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?", name):
            sys.exit(f"NATS_PUBLIC_HOST: {name!r} is neither a host name nor an address")
        return f"DNS:{name}"


def is_ours(path):
    return CA_NAME in openssl("x509", "-in", path, "-noout", "-issuer")


def names_of(path):
    text = openssl("x509", "-in", path, "-noout", "-ext", "subjectAltName")
    found = re.findall(r"(DNS|IP Address):([^\s,]+)", text)
    return {f"{'IP' if kind == 'IP Address' else kind}:{name}" for kind, name in found}


def holds(path):
    done = subprocess.run(["openssl", "x509", "-in", path, "-noout", "-checkend", str(RENEW_BEFORE_S)], capture_output=True)
    return done.returncode == 0


def make_authority(directory):
    key, certificate = directory / "ca/key.pem", directory / "ca.pem"
    if certificate.exists():
        return
    key.parent.mkdir(mode=0o700, exist_ok=True)
    openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", key)
    openssl(
        "req", "-x509", "-new", "-key", key, "-days", 3650, "-subj", f"/CN={CA_NAME}", "-out", certificate,
        "-addext", "basicConstraints=critical,CA:TRUE,pathlen:0", "-addext", "keyUsage=critical,keyCertSign,cRLSign",
    )
    certificate.chmod(0o644)
    print(f"made: {certificate}")


def make_certificate(directory, names, days):
    certificate, key, ca_key = directory / "nats.pem", directory / "nats-key.pem", directory / "ca/key.pem"
    if certificate.exists():
        if not is_ours(certificate):
            return print(f"stays: {certificate} is not signed by this authority")
        if names_of(certificate) == set(names) and holds(certificate):
            return print(f"stays: {certificate} is good, {openssl('x509', '-in', certificate, '-noout', '-enddate').strip()}")
    if not ca_key.exists():
        sys.exit(f"{ca_key} is not there: a new certificate cannot be signed. Bring it back, or put {certificate} in place")
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        scratch = Path(scratch)
        extensions = scratch / "extensions"
        extensions.write_text(
            f"subjectAltName = {','.join(names)}\nbasicConstraints = critical,CA:FALSE\n"
            "keyUsage = critical,digitalSignature\nextendedKeyUsage = serverAuth,clientAuth\n"
        )
        openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", scratch / "key")
        openssl("req", "-new", "-key", scratch / "key", "-subj", "/CN=marketferry nats", "-out", scratch / "request")
        openssl(
            "x509", "-req", "-in", scratch / "request", "-CA", directory / "ca.pem", "-CAkey", ca_key, "-CAcreateserial",
            "-CAserial", scratch / "serial", "-days", days, "-extfile", extensions, "-out", scratch / "certificate",
        )
        # The servers' user in the container is another one; the folder is closed.
        for made, place in [(scratch / "key", key), (scratch / "certificate", certificate)]:
            made.chmod(0o644)
            made.replace(place)
    print(f"made: {certificate} for {', '.join(names)}; restart nats to use it")


def main():
    parser = argparse.ArgumentParser(description="makes the stack's certificates")
    parser.add_argument("--dir", type=Path, default=Path("secrets"))
    parser.add_argument("--env", type=Path, default=Path(".env"))
    parser.add_argument("--days", type=int, default=825, help="how long the servers' certificate holds [825]")
    options = parser.parse_args()
    public = read_env(options.env).get("NATS_PUBLIC_HOST", "")
    extra = [name.strip() for name in public.split(",") if name.strip()]
    names = list(dict.fromkeys(alternative_name(name) for name in [*STACK_NAMES, *extra]))
    options.dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        make_authority(options.dir)
        make_certificate(options.dir, names, options.days)
    except FileNotFoundError:
        sys.exit("openssl is not there: install it (Debian: apt-get install openssl)")
    except subprocess.CalledProcessError as error:
        sys.exit(f"{' '.join(error.cmd)}: {error.stderr.strip()}")


if __name__ == "__main__":
    main()
