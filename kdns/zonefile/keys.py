"""Key files as BIND and ldns write them: `Kzone.+013+12345.key` and `.private`; keys that sign.

A key is checked when it is read: its name against its content, and by a signature whether the two halves belong
together. Times in the files (Activate, Inactive) are not looked at: a key that is named signs.
"""

import base64
import binascii
import glob
import os
import re
import time
from collections.abc import Callable, Sequence
from typing import Final, final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from kdns import files
from kdns.dns import dnssec, iana
from kdns.dns.name import to_text
from kdns.dns.rrset import RRset
from kdns.zonefile.reader import MasterFile

MAX_FILE: Final = 64 << 10  # octets; an RSA key of 4,096 bits has 4 KB
SLOW: Final = 0.002  # seconds of a signature: RSA with 2,048 bits takes half of it, with 4,096 bits twice
_TRIALS: Final = 3  # the first one prepares the key
# Bits (RFC 3110, section 3: at least 512 for RSASHA1; RFC 5702, section 2.1: 1,024 for SHA-512).
LEAST_RSA: Final = 1024
_NAMED: Final = re.compile(r"K(.+?)\.?\+(\d{3})\+(\d{5})$")
_CURVES: Final[dict[int, tuple[ec.EllipticCurve, hashes.HashAlgorithm, int]]] = {
    13: (ec.SECP256R1(), hashes.SHA256(), 32),
    14: (ec.SECP384R1(), hashes.SHA384(), 48),
}
_RSA: Final[dict[int, hashes.HashAlgorithm]] = {8: hashes.SHA256(), 10: hashes.SHA512()}
_REFUSED: Final = {
    1: "RSAMD5", 3: "DSA", 5: "RSASHA1", 6: "DSA-NSEC3-SHA1", 7: "RSASHA1-NSEC3-SHA1", 12: "ECC-GOST",
}  # fmt: skip

Sign = Callable[[bytes], bytes]


class BadKey(ValueError):
    """A key that cannot be used; the text begins with the file's path."""


@final
class Key:
    """A key pair: `owner` in lower case, the DNSKEY's `rdata`, its `tag`; `sign` makes a signature of octets.

    `slow` says whether a signature takes over two milliseconds; the library lets others run meanwhile (it gives up the
    interpreter lock), so a thread may make it.
    """

    __slots__ = ("algorithm", "flags", "owner", "path", "rdata", "sign", "slow", "tag")

    def __init__(self, owner: bytes, rdata: bytes, path: str, sign: Sign) -> None:
        self.owner = owner
        self.rdata = rdata
        self.path = path
        self.sign = sign
        self.flags = rdata[0] << 8 | rdata[1]
        self.algorithm = rdata[3]
        self.tag = dnssec.key_tag(rdata)
        self.slow = False

    @property
    def is_sep(self) -> bool:
        """Whether it is a secure entry point: a KSK or CSK."""
        return bool(self.flags & dnssec.SEP)


@final
class Roles:
    """Which of a zone's keys sign what.

    Where an algorithm has keys with and without the SEP flag, those with it sign the keys and the others sign the rest;
    else each key signs everything. It goes by algorithm, since each RRset needs a signature of every one (RFC 6840,
    section 5.11).
    """

    def __init__(self, keys: Sequence[Key]) -> None:
        self.keys = tuple(keys)
        split = {
            algorithm
            for algorithm in {key.algorithm for key in keys}
            if len({key.is_sep for key in keys if key.algorithm == algorithm}) == 2
        }
        self.for_keys = tuple([key for key in keys if key.is_sep or key.algorithm not in split])
        self.for_data = tuple([key for key in keys if not key.is_sep or key.algorithm not in split])
        self.entries = tuple([key for key in keys if key.is_sep]) or self.keys

    def signers(self, rtype: int) -> tuple[Key, ...]:
        """The keys that sign RRsets of a type. What the parent takes over is signed by keys it knows (RFC 7344)."""
        return self.for_keys if rtype in (iana.DNSKEY, dnssec.CDS, dnssec.CDNSKEY) else self.for_data

    def apex(self, zone: bytes, rtype: int, ttl: int) -> RRset:
        """A zone's DNSKEY, CDS (SHA-256) or CDNSKEY."""
        if rtype == iana.DNSKEY:
            rdatas = [key.rdata for key in self.keys]
        elif rtype == dnssec.CDNSKEY:
            rdatas = [key.rdata for key in self.entries]
        else:
            rdatas = [dnssec.digest(zone, key.rdata) for key in self.entries]
        return RRset(zone, rtype, ttl, tuple(dict.fromkeys(rdatas)))


def stem(path: str) -> str:
    """The path of a key pair without `.key` or `.private`."""
    return path.removesuffix(".key").removesuffix(".private")


def in_folder(folder: str, zone: bytes) -> list[str]:
    """The key pairs of a zone in a folder, by their names, in order. Raises OSError."""
    os.listdir(folder)  # a folder that cannot be read is an error; a pattern that finds nothing is none
    name = glob.escape(to_text(zone).rstrip(".") or ".")
    found = {stem(path) for dot in ("", ".") for path in glob.glob(f"{glob.escape(folder)}/K{name}{dot}+*.key")}
    return sorted(found)


def read(path: str) -> Key:
    """Reads a key pair; `path` may end in `.key`, `.private` or neither. Raises BadKey."""
    base = stem(path)
    owner, rdata = _public(base + ".key")
    key = Key(owner, rdata, base, _private(base + ".private", rdata))
    named = _NAMED.match(os.path.basename(base))
    if named is not None and (int(named[2]) != key.algorithm or int(named[3]) != key.tag):
        raise BadKey(f"{base}.key: the file is named for key {named[2]}+{named[3]}, it holds "
                     f"{key.algorithm:03d}+{key.tag:05d}")  # fmt: skip
    if named is not None and "%" not in named[1] and named[1].lower() != to_text(owner).rstrip("."):
        raise BadKey(f"{base}.key: the file is named for a key of {named[1]}, it holds one of {to_text(owner)}")
    key.slow = key.algorithm in _RSA and min(_timed(key.sign) for _ in range(_TRIALS)) > SLOW
    return key


def _timed(sign: Sign) -> float:
    start = time.perf_counter()
    sign(b"a trial")
    return time.perf_counter() - start


def _text(path: str) -> str:
    try:
        return files.read(path, MAX_FILE).decode("ascii")
    except UnicodeDecodeError:
        raise BadKey(f"{path}: this is not a key file") from None
    except OSError as error:
        raise BadKey(f"{path}: {error.strerror or error}") from None


def _public(path: str) -> tuple[bytes, bytes]:
    source = MasterFile(b"\0")
    source.ttl = 0
    source.ttl_said = True
    source.read_text(_text(path).encode(), path)
    fatal = next((problem for problem in source.problems if problem.fatal), None)
    if fatal is not None:
        raise BadKey(str(fatal))
    found = [(owner, data) for owner, sets in source.names.items() for data in sets.get(iana.DNSKEY, [0])[1:]]
    if len(found) != 1:
        raise BadKey(f"{path}: expected one DNSKEY record, found {len(found)}")
    owner, rdata = found[0]
    flags, algorithm = rdata[0] << 8 | rdata[1], rdata[3]
    if not flags & dnssec.ZONE_KEY or rdata[2] != 3 or flags & dnssec.REVOKED:
        raise BadKey(f"{path}: flags {flags} and protocol {rdata[2]}: expected a zone key (256 or 257, protocol 3)")
    if algorithm in _REFUSED:
        raise BadKey(f"{path}: algorithm {_REFUSED[algorithm]} must not be used for signing any more (RFC 9904): "
                     f"make an ECDSAP256SHA256 key")  # fmt: skip
    if algorithm not in _CURVES and algorithm not in _RSA and algorithm not in (15, 16):
        raise BadKey(f"{path}: algorithm {algorithm} is not known: 8, 10, 13, 14, 15 and 16 are")
    return owner.lower(), bytes(rdata)


def _private(path: str, rdata: bytes) -> Sign:
    fields: dict[str, str] = {}
    for line in _text(path).splitlines():
        name, colon, value = line.partition(":")
        if colon:
            fields[name.strip().lower()] = value.strip()
    if not fields.get("private-key-format", "").startswith("v1."):
        raise BadKey(f"{path}: expected a line Private-key-format: v1.3")
    algorithm = rdata[3]
    if fields.get("algorithm", "").split(" ")[0] != str(algorithm):
        raise BadKey(f"{path}: a key of algorithm {fields.get('algorithm', 'unknown')}, its .key file holds one of "
                     f"{algorithm}")  # fmt: skip
    try:
        sign, public = _make(algorithm, fields)
    except KeyError as error:
        raise BadKey(f"{path}: the field {error.args[0]} is missing") from None
    except (ValueError, binascii.Error, UnsupportedAlgorithm, InvalidSignature) as error:
        raise BadKey(f"{path}: no private key of algorithm {algorithm}: {error}") from None
    if public != rdata[4:]:
        raise BadKey(f"{path}: this private key does not belong to the public one in its .key file")
    return sign


def _make(algorithm: int, fields: dict[str, str]) -> tuple[Sign, bytes]:
    """What signs, and the public key as a DNSKEY has it."""

    def field(name: str) -> bytes:
        return base64.b64decode(fields[name.lower()], validate=True)

    if algorithm in _CURVES:
        curve, hashed, size = _CURVES[algorithm]
        pair = ec.derive_private_key(int.from_bytes(field("PrivateKey"), "big"), curve)
        numbers = pair.public_key().public_numbers()
        scheme = ec.ECDSA(hashed)

        def sign_ec(data: bytes) -> bytes:
            r, s = decode_dss_signature(pair.sign(data, scheme))
            return r.to_bytes(size, "big") + s.to_bytes(size, "big")  # RFC 6605, section 4

        return sign_ec, numbers.x.to_bytes(size, "big") + numbers.y.to_bytes(size, "big")
    if algorithm in _RSA:
        hashed = _RSA[algorithm]
        numbers_of = {name: int.from_bytes(field(name), "big") for name in (
            "Prime1", "Prime2", "PrivateExponent", "Exponent1", "Exponent2", "Coefficient", "PublicExponent", "Modulus"
        )}  # fmt: skip
        p, q, d, dp, dq, coefficient, e, n = numbers_of.values()
        key = rsa.RSAPrivateNumbers(p, q, d, dp, dq, coefficient, rsa.RSAPublicNumbers(e, n)).private_key()
        if key.key_size < LEAST_RSA:
            raise ValueError(f"{key.key_size} bits, at least {LEAST_RSA} are needed")
        exponent = e.to_bytes((e.bit_length() + 7) // 8, "big")
        # RFC 3110, section 2.
        head = bytes((len(exponent),)) if len(exponent) < 256 else b"\0" + len(exponent).to_bytes(2, "big")
        public = head + exponent + n.to_bytes((n.bit_length() + 7) // 8, "big")
        return lambda data: key.sign(data, padding.PKCS1v15(), hashed), public
    if algorithm == 15:
        edwards = ed25519.Ed25519PrivateKey.from_private_bytes(field("PrivateKey"))
        return edwards.sign, edwards.public_key().public_bytes_raw()
    longer = ed448.Ed448PrivateKey.from_private_bytes(field("PrivateKey"))
    return longer.sign, longer.public_key().public_bytes_raw()
