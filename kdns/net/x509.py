"""What a certificate says of itself: when it is valid, and for which DNS names (RFC 5280, section 4.1).

Laws: what cannot be read says nothing: OpenSSL decides what a certificate is, and nothing here decides whom to trust.

Theory of operation. The few fields are found by walking the DER encoding, as a certificate library of its own would
cost each process 11 MiB.
"""

import re
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

BEGIN: Final = "-----BEGIN CERTIFICATE-----"
_SUBJECT_ALT_NAME: Final = b"\x06\x03\x55\x1d\x11"  # the extension's OID, 2.5.29.17
# Tags: an optional field of the certificate, and a kind of name.
_VERSION, _EXTENSIONS, _DNS_NAME, _UTC_TIME = 0xA0, 0xA3, 0x82, 0x17


def validity(pem: str) -> tuple[float, float]:
    """From when and until when the first certificate of a PEM text is valid, as Unix time; zeros where it does not
    say.
    """
    try:
        der, fields = _fields(pem)
        first, last = _elements(der, fields[3])  # behind the serial number, the signature's algorithm and the issuer
        return _time(der, first), _time(der, last)
    except (ValueError, IndexError):
        return 0.0, 0.0


def _time(der: bytes, at: int) -> float:
    text = der[_inside(der, at) : _end(der, at)].decode("ascii")
    form = "%y%m%d%H%M%SZ" if der[at] == _UTC_TIME else "%Y%m%d%H%M%SZ"
    return datetime.strptime(text, form).replace(tzinfo=UTC).timestamp()


def names(pem: str) -> tuple[str, ...]:
    """The DNS names of the first certificate of a PEM text, in lower case: its subjectAltName's alone, as the common
    name is no name of a server's any more (RFC 9525, section 6.2).
    """
    try:
        der, fields = _fields(pem)
        found: list[str] = []
        for field in fields:
            if der[field] == _EXTENSIONS:
                for extension in _elements(der, _inside(der, field)):
                    found += _alternatives(der, extension)
        return tuple(dict.fromkeys(found))
    except (ValueError, IndexError):
        return ()


def _alternatives(der: bytes, extension: int) -> list[str]:
    """The DNS names of an extension; none where it is another."""
    oid, *rest = _elements(der, extension)
    if der[oid : _end(der, oid)] != _SUBJECT_ALT_NAME:
        return []
    (content,) = rest[-1:]  # behind whether it is critical
    return [
        der[_inside(der, each) : _end(der, each)].decode("ascii").lower()
        for each in _elements(der, _inside(der, content))
        if der[each] == _DNS_NAME
    ]


def _fields(pem: str) -> tuple[bytes, list[int]]:
    """A certificate's encoding, and where its fields from the serial number on begin. Raises ValueError or
    IndexError.
    """
    found = re.search(f"{BEGIN}.*?-----END CERTIFICATE-----", pem, re.DOTALL)
    if found is None:
        raise ValueError("no certificate")
    der = ssl.PEM_cert_to_DER_cert(found[0])
    fields = list(_elements(der, _inside(der, 0)))  # Certificate { tbsCertificate { fields ... } ... }
    return der, fields[der[fields[0]] == _VERSION :]


def _elements(der: bytes, at: int) -> Iterator[int]:
    """Where the elements within the element at `at` begin."""
    end = _end(der, at)
    at = _inside(der, at)
    while at < end:
        yield at
        at = _end(der, at)


def _inside(der: bytes, at: int) -> int:
    """Where the contents of the element at `at` begin."""
    return at + 2 + (der[at + 1] & 0x7F if der[at + 1] & 0x80 else 0)


def _end(der: bytes, at: int) -> int:
    """Where the element at `at` ends."""
    begin = _inside(der, at)
    return begin + (int.from_bytes(der[at + 2 : begin], "big") if der[at + 1] & 0x80 else der[at + 1])
