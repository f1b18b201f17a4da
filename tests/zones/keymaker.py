"""Key pairs for tests, in files as BIND writes them."""

import base64
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa

from kdns.dns.dnssec import key_tag
from kdns.dns.name import from_text

NAMES = {8: "RSASHA256", 10: "RSASHA512", 13: "ECDSAP256SHA256", 14: "ECDSAP384SHA384", 15: "ED25519", 16: "ED448"}
_CURVES: dict[int, tuple[ec.EllipticCurve, int]] = {13: (ec.SECP256R1(), 32), 14: (ec.SECP384R1(), 48)}
# A private key of P-256 for the keys that manuals name: its tag is 33130.
KNOWN = int.from_bytes(b"no secret, but a key for tests..", "big")


def _b64(number: int) -> str:
    return base64.b64encode(number.to_bytes((number.bit_length() + 7) // 8, "big")).decode()


def make(folder: Path, zone: str, algorithm: int = 13, flags: int = 257, secret: int = 0, bits: int = 2048) -> str:
    """Writes a key pair into a folder; gives its path without an ending."""
    if algorithm in _CURVES:
        curve, size = _CURVES[algorithm]
        pair = ec.derive_private_key(secret, curve) if secret else ec.generate_private_key(curve)
        numbers = pair.public_key().public_numbers()
        public = numbers.x.to_bytes(size, "big") + numbers.y.to_bytes(size, "big")
        private = pair.private_numbers().private_value.to_bytes(size, "big")
        fields = {"PrivateKey": base64.b64encode(private).decode()}
    elif algorithm in (15, 16):
        kind: Any = ed25519.Ed25519PrivateKey if algorithm == 15 else ed448.Ed448PrivateKey
        edwards = kind.generate()
        public = edwards.public_key().public_bytes_raw()
        fields = {"PrivateKey": base64.b64encode(edwards.private_bytes_raw()).decode()}
    else:
        key = rsa.generate_private_key(65537, bits)
        held = key.private_numbers()
        n, e = held.public_numbers.n, held.public_numbers.e
        public = b"\3" + e.to_bytes(3, "big") + n.to_bytes((n.bit_length() + 7) // 8, "big")
        fields = {
            "Modulus": _b64(n), "PublicExponent": _b64(e), "PrivateExponent": _b64(held.d), "Prime1": _b64(held.p),
            "Prime2": _b64(held.q), "Exponent1": _b64(held.dmp1), "Exponent2": _b64(held.dmq1),
            "Coefficient": _b64(held.iqmp),
        }  # fmt: skip
    rdata = flags.to_bytes(2, "big") + bytes((3, algorithm)) + public
    path = folder / f"K{zone}+{algorithm:03d}+{key_tag(rdata):05d}"
    text = f"; a key for tests\n{zone} IN DNSKEY {flags} 3 {algorithm} {base64.b64encode(public).decode()}\n"
    Path(f"{path}.key").write_text(text)
    lines = "".join(f"{name}: {value}\n" for name, value in fields.items())
    head = f"Private-key-format: v1.3\nAlgorithm: {algorithm} ({NAMES[algorithm]})\n"
    Path(f"{path}.private").write_text(f"{head}{lines}Created: 20261125000000\n")
    assert from_text(zone)
    return str(path)
