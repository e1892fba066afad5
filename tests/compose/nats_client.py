"""Just enough of the NATS protocol to try what a login may do: TLS, an nkey, publish, subscribe, request.

Of its own, so that what is refused is refused by the server and not by a library or by the product.
"""
import base64
import json
import socket
import ssl
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "deploy"))
from make_secrets import PKCS8_ED25519, public_key, seed_bytes

TIMEOUT_S = 3


class Denied(Exception):
    """The server said so, or the subject means nothing to this login."""


class Client:
    def __init__(self, address, port, ca_file, seed, role):
        self.role = role
        plain = socket.create_connection((address, port), TIMEOUT_S)
        greeting = json.loads(self.line_of(plain).removeprefix("INFO "))
        assert greeting["tls_required"] is True, "the server lets anybody in without TLS"
        context = ssl.create_default_context(cafile=str(ca_file))
        self.socket = context.wrap_socket(plain, server_hostname=address)
        self.reader = self.socket.makefile("rb")
        login = {
            "verbose": False, "pedantic": False, "tls_required": True, "headers": True, "no_responders": True,
            "lang": "test", "version": "0", "name": f"test-{role}", "echo": True,
        }
        if seed:
            raw = seed_bytes(seed)
            login |= {"nkey": public_key(raw), "sig": sign(raw, greeting["nonce"])}
        self.send(f"CONNECT {json.dumps(login)}\r\nPING\r\n")
        while (answer := self.next()) != "PONG":
            if answer.startswith("-ERR"):
                raise Denied(answer)

    @staticmethod
    def line_of(plain):
        line = b""
        while not line.endswith(b"\r\n"):
            line += plain.recv(1)
        return line.decode().strip()

    def send(self, text):
        self.socket.sendall(text.encode())

    def next(self):
        """A line of the server; of a message, its payload."""
        line = self.reader.readline().decode().strip()
        if line.startswith(("MSG", "HMSG")):
            size = int(line.split()[-1])
            return "MSG " + self.reader.read(size + 2).decode(errors="replace").strip()
        if line == "PING":
            self.send("PONG\r\n")
            return self.next()
        if not line:
            raise Denied("the connection was closed")
        return line

    def request(self, subject, payload=""):
        """The answer; raises Denied when the server refuses to pass it on, or has nobody to pass it on to."""
        inbox = f"_INBOX_{self.role}.{uuid.uuid4().hex}"
        size = len(payload.encode())
        self.send(f"SUB {inbox} 1\r\nPUB {subject} {inbox} {size}\r\n{payload}\r\n")
        answer = self.next()
        if answer.startswith("MSG NATS/1.0 503"):
            raise Denied(f"no responders: {subject} means nothing to this login")
        if answer.startswith("-ERR"):
            raise Denied(answer)
        return answer.removeprefix("MSG ")

    def publish(self, subject, reply, payload):
        """Sends a request whose answer goes elsewhere."""
        self.send(f"PUB {subject} {reply} {len(payload.encode())}\r\n{payload}\r\nPING\r\n")
        while self.next() != "PONG":
            pass

    def subscribe(self, subject):
        self.send(f"SUB {subject} 2\r\nPING\r\n")
        answer = self.next()
        if answer.startswith("-ERR"):
            raise Denied(answer)


def sign(seed, nonce):
    """Ed25519 over the server's nonce, base64url without padding."""
    with tempfile.TemporaryDirectory() as folder:
        key, message = Path(folder, "key"), Path(folder, "nonce")
        key.write_bytes(PKCS8_ED25519 + seed)
        message.write_bytes(nonce.encode())
        command = ["openssl", "pkeyutl", "-sign", "-rawin", "-keyform", "DER", "-inkey", str(key), "-in", str(message)]
        signature = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    return base64.urlsafe_b64encode(signature).rstrip(b"=").decode()
