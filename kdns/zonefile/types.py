"""Every type's rdata as a row of fields: text to octets, octets to text. What is in no row has the generic form of RFC
3597.
"""

import binascii
import socket
from collections.abc import Iterator
from typing import Final

from kdns.dns import iana
from kdns.dns.rrset import RRset
from kdns.zonefile.errors import BadRecord
from kdns.zonefile.fields import (
    Address,
    Bitmap,
    Counted,
    Encoded,
    Eui,
    Field,
    Hashed,
    Mnemonic,
    Moment,
    Name,
    Number,
    Rest,
    Seconds,
    String,
    Strings,
    Tag,
    Type,
    name_text,
)  # fmt: skip
from kdns.zonefile.odd_fields import Gateway, HostIdentity, Location, Locator, Nsap, Parameters, Prefixes, Relay
from kdns.zonefile.words import Entry, shown

_NAME: Final = Name()
_U8: Final = Number(1)
_U16: Final = Number(2)
_U32: Final = Number(4)
_STRING: Final = String()
_HEX: Final = Encoded(16)
_BASE64: Final = Encoded(64)
_ALGORITHM: Final = Mnemonic(1, {
    "RSAMD5": 1, "DH": 2, "DSA": 3, "RSASHA1": 5, "DSA-NSEC3-SHA1": 6, "RSASHA1-NSEC3-SHA1": 7, "RSASHA256": 8,
    "RSASHA512": 10,
    "ECC-GOST": 12, "ECDSAP256SHA256": 13, "ECDSAP384SHA384": 14, "ED25519": 15, "ED448": 16, "INDIRECT": 252,
    "PRIVATEDNS": 253,
    "PRIVATEOID": 254,
})  # fmt: skip
_CERTIFICATE: Final = Mnemonic(2, {
    "PKIX": 1, "SPKI": 2, "PGP": 3, "IPKIX": 4, "ISPKI": 5, "IPGP": 6, "ACPKIX": 7, "IACPKIX": 8, "URI": 253,
    "OID": 254,
})  # fmt: skip
_KEY: Final = (_U16, _U8, _ALGORITHM, _BASE64)
_DS: Final = (_U16, _ALGORITHM, _U8, _HEX)
_SVCB: Final = (_U16, _NAME, Parameters())

_ROWS: Final[dict[str, tuple[Field, ...]]] = {
    "A": (Address(socket.AF_INET),), "NS": (_NAME,), "MD": (_NAME,), "MF": (_NAME,), "CNAME": (_NAME,),
    "SOA": (_NAME, _NAME, _U32, Seconds(), Seconds(), Seconds(), Seconds()), "MB": (_NAME,), "MG": (_NAME,),
    "MR": (_NAME,),
    "PTR": (_NAME,), "HINFO": (_STRING, _STRING), "MINFO": (_NAME, _NAME), "MX": (_U16, _NAME), "TXT": (Strings(),),
    "RP": (_NAME, _NAME), "AFSDB": (_U16, _NAME), "X25": (_STRING,), "ISDN": (_STRING, Strings(0)), "RT": (_U16, _NAME),
    "KEY": (_U16, _U8, _ALGORITHM, Encoded(64, 0)),  # without a key where its flags say so (RFC 2535, section 3.1.2)
    "PX": (_U16, _NAME, _NAME), "AAAA": (Address(socket.AF_INET6),), "LOC": (Location(),),
    "SRV": (_U16, _U16, _U16, _NAME), "NAPTR": (_U16, _U16, _STRING, _STRING, _STRING, _NAME), "KX": (_U16, _NAME),
    "CERT": (_CERTIFICATE, _U16, _ALGORITHM, _BASE64), "DNAME": (_NAME,), "APL": (Prefixes(),), "DS": _DS,
    "SSHFP": (_U8, _U8, _HEX), "IPSECKEY": (_U8, Gateway(), Encoded(64, 0)),
    "RRSIG": (Type(), _ALGORITHM, _U8, _U32, Moment(), Moment(), _U16, _NAME, _BASE64), "NSEC": (_NAME, Bitmap()),
    "DNSKEY": _KEY, "DHCID": (_BASE64,), "NSEC3": (_U8, _U8, _U16, Counted(), Hashed(), Bitmap()),
    "NSEC3PARAM": (_U8, _U8, _U16, Counted()), "TLSA": (_U8, _U8, _U8, _HEX), "SMIMEA": (_U8, _U8, _U8, _HEX),
    "HIP": (HostIdentity(),), "CDS": _DS, "CDNSKEY": _KEY, "OPENPGPKEY": (_BASE64,), "CSYNC": (_U32, _U16, Bitmap()),
    "ZONEMD": (_U32, _U8, _U8, _HEX), "SVCB": _SVCB, "HTTPS": _SVCB, "SPF": (Strings(),), "EUI48": (Eui(6),),
    "EUI64": (Eui(8),), "URI": (_U16, _U16, Rest()), "CAA": (_U8, Tag(), Rest()),
    "GPOS": (_STRING, _STRING, _STRING), "NINFO": (Strings(),),
    "NID": (_U16, Locator()), "L32": (_U16, Address(socket.AF_INET)), "L64": (_U16, Locator()), "LP": (_U16, _NAME),
    "AVC": (Strings(),), "AMTRELAY": (_U8, Relay()), "RESINFO": (Strings(),), "WALLET": (Strings(),), "DLV": _DS,
    "NSAP": (Nsap(),), "NSAP-PTR": (_NAME,), "EID": (_HEX,), "NIMLOC": (_HEX,), "RKEY": _KEY, "TALINK": (_NAME, _NAME),
    "TA": _DS, "DOA": (_U32, _U32, _U8, _STRING, Encoded(64, 0)), "HHIT": (_BASE64,), "BRID": (_BASE64,),
    "DSYNC": (Type(), Mnemonic(1, {"NOTIFY": 1}), _U16, _NAME),
}  # fmt: skip
LAYOUTS: Final = {iana.TYPES[text]: row for text, row in _ROWS.items()}
# Types that are not data: of messages and of questions only.
NO_DATA: Final = frozenset((0, iana.OPT, *range(249, 256)))


def read(rtype: int, entry: Entry) -> bytes:
    """The rdata that the words left of an entry stand for. Raises BadRecord."""
    first = entry.peek()
    row = LAYOUTS.get(rtype)
    if first is not None and first.text == b"\\#" and not first.quoted:
        return _generic(rtype, entry)
    if row is None:
        at = first.at if first is not None else entry.words[-1].at
        raise BadRecord(
            at, f"type {iana.type_text(rtype)} has no text form here: write \\# LENGTH HEX (RFC 3597, section 5)"
        )
    made = b"".join([field.read(entry) for field in row])
    entry.done()
    if len(made) > 65535:
        raise BadRecord(entry.words[0].at, f"an rdata of {len(made)} octets, at most 65535 are allowed")
    return made


def _generic(rtype: int, entry: Entry) -> bytes:
    entry.next("")
    word = entry.next("a length")
    text = b"".join([entry.next("").text for _ in range(entry.left())])
    try:
        made = binascii.unhexlify(text)
    except (ValueError, binascii.Error):
        raise BadRecord(word.at, f'expected octets in hex, found "{shown(text)}"') from None
    if not word.text.isdigit() or int(word.text[:6]) != len(made):
        raise BadRecord(word.at, f'the length says "{shown(word.text)}", but {len(made)} octets follow')
    if rtype in LAYOUTS and not fits(rtype, made):
        raise BadRecord(word.at, f"these octets do not fit {iana.type_text(rtype)}")
    return made


def fits(rtype: int, data: bytes) -> bool:
    """Whether octets can be the rdata of a type."""
    row = LAYOUTS.get(rtype)
    if row is None:
        return True
    at = 0
    try:
        for field in row:
            _, at = field.show(data, at)
    except (ValueError, IndexError, KeyError, OverflowError, OSError):
        return False
    return at == len(data)


def show(rtype: int, data: bytes) -> str:
    """The text form of an rdata; the generic one where it is not well-formed or its type has none."""
    row = LAYOUTS.get(rtype)
    if row is not None:
        out = []
        at = 0
        try:
            for field in row:
                text, at = field.show(data, at)
                if text:
                    out.append(text)
        except (ValueError, IndexError, KeyError, OverflowError, OSError):
            at = -1
        if at == len(data):
            return " ".join(out)
    return f"\\# {len(data)} {data.hex()}".rstrip()


def lines(rrset: RRset) -> Iterator[str]:
    """An RRset's records as lines of a master file, names in full."""
    head = f"{name_text(rrset.owner)} {rrset.ttl} IN {iana.type_text(rrset.type)}"
    for data in rrset.rdatas:
        yield f"{head} {show(rrset.type, data)}".rstrip()
