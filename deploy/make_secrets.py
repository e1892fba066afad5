"""Makes what the stack logs in with, as files below ./secrets; what is there already stays.

    make secrets                      or: python3 deploy/make_secrets.py [--dir secrets] [--env .env]
    make secrets SIDE=remote          only the bucket's token: the login for NATS comes from the local site
    python3 deploy/make_secrets.py --renew worker.nk --renew clickhouse-reader      new ones in the place of these

For NATS an nkey a role: the seed (ROLE.nk) is the role's secret, the server has the public half only (nkeys.conf). For
ClickHouse a password a user, and their hashes (clickhouse-users.xml). The token of the bucket is taken from
R2_ACCESS_KEY_ID and R2_SECRET_ACCESS_KEY in the environment or in .env, or asked for at a terminal.

The folder is closed to everybody else; the files in it are readable, because each is mounted into a container whose user
is not this one. Needs openssl.
"""
import argparse
import base64
import binascii
import getpass
import hashlib
import os
import secrets
import subprocess
import sys
from pathlib import Path
from xml.sax.saxutils import escape

ROLES = ["uploader", "worker", "operator", "monitor"]
# What each may do. None may see another database, and only the first may change tables.
CLICKHOUSE_USERS = {
    "admin": None,
    "worker": ["GRANT SELECT, INSERT ON {database}.*"],
    "reader": ["GRANT SELECT ON {database}.*"],
}
R2 = {"r2_access_key_id": "R2_ACCESS_KEY_ID", "r2_secret_access_key": "R2_SECRET_ACCESS_KEY"}
# What the remote site has of the local one.
FROM_LOCAL = ["uploader.nk", "ca.pem"]
# The demo's own S3 server; made up like all the others.
DEMO = ["demo_access_key_id", "demo_secret_access_key"]

# An Ed25519 private key in PKCS #8 (RFC 8410) is this and the 32 bytes of the seed.
PKCS8_ED25519 = bytes.fromhex("302e020100300506032b657004220420")
# nkeys: https://docs.nats.io/running-a-nats-service/configuration/securing_nats/auth_intro/nkey_auth
NKEY_SEED, NKEY_USER = 18 << 3, 20 << 3


def read_env(path):
    """Lines NAME=value; quotes around a value are taken away, as compose does."""
    values = {}
    if path.exists():
        for line in path.read_text().splitlines():
            name, equals, value = line.strip().partition("=")
            if equals and not name.startswith("#"):
                value = value.strip()
                if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
                    value = value[1:-1]
                values[name.strip()] = value
    return {**values, **os.environ}


def write(path, text):
    """Whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.touch(mode=0o644)
    part.write_text(text)
    part.replace(path)


def nkey_text(raw):
    checked = raw + binascii.crc_hqx(raw, 0).to_bytes(2, "little")
    return base64.b32encode(checked).rstrip(b"=").decode()


def seed_text(seed):
    return nkey_text(bytes([NKEY_SEED | NKEY_USER >> 5, (NKEY_USER & 31) << 3]) + seed)


def seed_bytes(text):
    padded = text.strip() + "=" * (-len(text.strip()) % 8)
    raw = base64.b32decode(padded)
    if binascii.crc_hqx(raw[:-2], 0).to_bytes(2, "little") != raw[-2:] or len(raw) != 36:
        raise ValueError("not an nkey seed")
    return raw[2:-2]


def public_key(seed):
    command = ["openssl", "pkey", "-inform", "DER", "-pubout", "-outform", "DER"]
    der = subprocess.run(command, input=PKCS8_ED25519 + seed, stdout=subprocess.PIPE, check=True).stdout
    return nkey_text(bytes([NKEY_USER]) + der[-32:])


def nats_keys(directory):
    lines = ["# Public keys, written by `make secrets`. The seeds are in ROLE.nk."]
    for role in ROLES:
        file = directory / f"{role}.nk"
        try:
            key = public_key(seed_bytes(file.read_text()))
        except ValueError as error:
            sys.exit(f"{file}: {error}; remove it, or make a new one with --renew {file.name}")
        lines.append(f"{role.upper()}_NKEY: {key}")
    return "\n".join(lines) + "\n"


def clickhouse_users(directory, database):
    if not database.replace("_", "a").isalnum() or not database.isascii():
        sys.exit(f"CLICKHOUSE_DB: {database!r} is not a name of letters, digits and '_'")
    lines = ["<!-- Written by `make secrets`. The passwords are in clickhouse-USER. -->", "<clickhouse>"]
    # Others than the administrator may not change settings that protect the server.
    lines += ["    <profiles>", "        <marketferry_reader><readonly>2</readonly></marketferry_reader>", "    </profiles>"]
    lines += ["    <users>"]
    for user, grants in CLICKHOUSE_USERS.items():
        digest = hashlib.sha256((directory / f"clickhouse-{user}").read_text().strip().encode()).hexdigest()
        profile = "marketferry_reader" if user == "reader" else "default"
        lines += [
            f"        <{user}>",
            f"            <password_sha256_hex>{digest}</password_sha256_hex>",
            "            <networks><ip>::/0</ip></networks>",
            f"            <profile>{profile}</profile>",
            "            <quota>default</quota>",
        ]
        if grants is None:
            lines.append("            <access_management>1</access_management>")
        else:
            queries = "".join(f"<query>{escape(grant.format(database=database))}</query>" for grant in grants)
            lines.append(f"            <grants>{queries}</grants>")
        lines.append(f"        </{user}>")
    return "\n".join(lines + ["    </users>", "</clickhouse>"]) + "\n"


def r2_token(directory, env, wanted):
    for name, variable in R2.items():
        path = directory / name
        if path.exists() and name not in wanted:
            continue
        value = env.get(variable, "")
        if not value and sys.stdin.isatty():
            value = getpass.getpass(f"{variable} (nothing: later): ").strip()
        if value:
            write(path, value + "\n")
        elif not path.exists():
            print(f"not made: {path}: set {variable} in .env and run this again (the demo does without)")


def main():
    parser = argparse.ArgumentParser(description="makes the stack's secrets")
    parser.add_argument("--dir", type=Path, default=Path("secrets"))
    parser.add_argument("--env", type=Path, default=Path(".env"))
    parser.add_argument("--side", choices=["both", "local", "remote"], default="both")
    parser.add_argument("--renew", action="append", default=[], metavar="NAME", help="a file to make anew")
    options = parser.parse_args()
    directory, env = options.dir, read_env(options.env)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.chmod(0o700)

    if options.side == "remote":
        missing = [name for name in FROM_LOCAL if not (directory / name).exists()]
        r2_token(directory, env, options.renew)
        if missing:
            sys.exit(f"missing in {directory}: {', '.join(missing)}: `make remote-bundle` at the local site packs them")
        return

    made = {f"{role}.nk": lambda: seed_text(secrets.token_bytes(32)) for role in ROLES}
    made |= {f"clickhouse-{user}": lambda: secrets.token_hex(24) for user in CLICKHOUSE_USERS}
    made |= {name: lambda: secrets.token_hex(16) for name in DEMO}
    for name in options.renew:
        if name not in made and name not in R2:
            sys.exit(f"--renew {name}: there is no such secret; there are {', '.join([*made, *R2])}")
    for name, make in made.items():
        if name in options.renew or not (directory / name).exists():
            write(directory / name, make() + "\n")
            print(f"made: {directory / name}")
    write(directory / "nkeys.conf", nats_keys(directory))
    write(directory / "clickhouse-users.xml", clickhouse_users(directory, env.get("CLICKHOUSE_DB") or "marketferry"))
    r2_token(directory, env, options.renew)


if __name__ == "__main__":
    main()
