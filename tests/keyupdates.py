"""A client of TLS 1.3 that changes its keys without end (RFC 8446, section 4.6.3), which no library lets one do."""

import contextlib
import socket
import ssl
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

_HANDSHAKE, _DATA = b"\x16", b"\x17"
_KEY_UPDATE = b"\x18\0\0\1"


class Updater:
    """A connection whose handshake is over. What comes is read by the library; what is sent is made here."""

    def __init__(self, port: int, context: ssl.SSLContext, folder: Path, name: str, host: str = "127.0.0.1") -> None:
        """`folder`: for the log of keys, which is the only way to them. Raises OSError."""
        path = folder / f"keys.{port}.{host}"
        path.unlink(missing_ok=True)
        context.keylog_filename = str(path)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=10, source_address=(host, 0))
        self.incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, outgoing, server_hostname=name)
        over = False
        while not over:
            try:
                self.tls.do_handshake()
                over = True
            except ssl.SSLWantReadError:
                self.sock.sendall(outgoing.read())
                self._receive()
        self.sock.sendall(outgoing.read())
        cipher = self.tls.cipher()
        assert cipher is not None and "GCM" in cipher[0], cipher
        self.hash: hashes.HashAlgorithm = hashes.SHA384() if "384" in cipher[0] else hashes.SHA256()
        self.key_octets = 32 if "256_GCM" in cipher[0] else 16
        words = [line.split() for line in path.read_text().splitlines() if line.startswith("CLIENT_TRAFFIC_SECRET_0")]
        self.secret = bytes.fromhex(words[-1][2])
        self.sent = 0  # records with the present key

    def _receive(self) -> None:
        got = self.sock.recv(65536)
        if not got:
            raise ConnectionResetError
        self.incoming.write(got)

    def _expand(self, label: bytes, octets: int) -> bytes:
        info = octets.to_bytes(2, "big") + bytes((6 + len(label),)) + b"tls13 " + label + b"\0"
        return HKDFExpand(self.hash, octets, info).derive(self.secret)

    def _record(self, payload: bytes, kind: bytes) -> bytes:
        iv = int.from_bytes(self._expand(b"iv", 12), "big") ^ self.sent
        self.sent += 1
        head = b"\x17\3\3" + (len(payload) + 17).to_bytes(2, "big")
        key = AESGCM(self._expand(b"key", self.key_octets))
        return head + key.encrypt(iv.to_bytes(12, "big"), payload + kind, head)

    def updates(self, count: int, *, answered: bool = False) -> bytes:
        """So many changes of the key, in a record each. `answered`: the other side must change its own."""
        out = []
        for _ in range(count):
            out.append(self._record(_KEY_UPDATE + bytes((answered,)), _HANDSHAKE))
            self.secret, self.sent = self._expand(b"traffic upd", self.hash.digest_size), 0
        return b"".join(out)

    def data(self, payload: bytes) -> bytes:
        """A record of the application's octets."""
        return self._record(payload, _DATA)

    def read(self, octets: int) -> bytes:
        """So many octets that the server has sent. Raises OSError."""
        got = b""
        while len(got) < octets:
            with contextlib.suppress(ssl.SSLWantReadError):
                while len(got) < octets:
                    part = self.tls.read(octets - len(got))
                    if not part:
                        raise ConnectionResetError
                    got += part
            if len(got) < octets:
                self._receive()
        return got
