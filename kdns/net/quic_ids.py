"""The connection IDs that a QUIC listener gives out, and the tokens of stateless resets that belong to them (RFC 9000,
sections 5.1 and 10.3).

Laws: a token is told to clients of connections that are over, and to nobody else: who could have that of a connection
another process still serves could end it (section 21.11). So an ID says, to who has the key, which process gave it out,
and a process tells the tokens of its own and of those before its start. An ID that was not given out by this key has no
token, so random octets are never answered.

Theory of operation. An ID is one block of AES over random octets, the process's name and zeros, by which it is known
again; its token is the ID under another key (section 10.3.2). Keys come from the private key of the certificate, so
that a process that was started again knows those of the one before; and from the place of the port (the machine's boot,
the network namespace, address and port), for replicas show the same certificate, and they live. At one place nobody
listens but one server, which has looked (server.listeners.probe). Where it has not (-share-port) keys are random, and
end with the process.
"""

import os
from typing import Final, final

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from kdns.net import Process

CID_OCTETS: Final = 16  # a block of AES
_ZEROS: Final = bytes(4)
_BOOT: Final = "/proc/sys/kernel/random/boot_id"
_NETWORK: Final = "/proc/self/ns/net"


def place() -> str:
    """Where a port of this process is a port of its own; "" where that cannot be said."""
    try:
        with open(_BOOT, encoding="ascii") as file:
            return f"{file.read().strip()} {os.readlink(_NETWORK)}"
    except OSError:
        return ""


@final
class ConnectionIds:
    """Makes IDs with their tokens, and knows them again. `secret` and `info` make the keys."""

    def __init__(self, secret: bytes, info: str, process: Process) -> None:
        self.secret = secret
        self.process = process
        keys = HKDF(SHA256(), 64, None, f"kdns connection ids {info}".encode()).derive(secret)
        ids = Cipher(algorithms.AES(keys[:32]), modes.ECB())
        self.seal = ids.encryptor().update
        self.unseal = ids.decryptor().update
        self.token = Cipher(algorithms.AES(keys[32:]), modes.ECB()).encryptor().update

    def make(self) -> tuple[bytes, bytes]:
        """An ID that nobody has, and its token."""
        process = self.process
        made = self.seal(os.urandom(8) + process.run + process.worker.to_bytes(2, "big") + _ZEROS)
        return made, self.token(made)

    def of_the_past(self, cid: bytes) -> bytes | None:
        """The token of an ID of this process, or of one that was over when this began; None for all others."""
        if len(cid) != CID_OCTETS:
            return None
        plain = self.unseal(cid)
        process = self.process
        if plain[12:] != _ZEROS:
            return None
        if plain[8:10] == process.run and int.from_bytes(plain[10:12], "big") != process.worker:
            return None  # another worker's: it may live
        return self.token(cid)
