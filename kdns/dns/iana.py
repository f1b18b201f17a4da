"""Numbers and mnemonics from IANA's DNS parameters registry."""

from typing import Final

A: Final = 1
NS: Final = 2
CNAME: Final = 5
SOA: Final = 6
PTR: Final = 12
HINFO: Final = 13
MX: Final = 15
TXT: Final = 16
AAAA: Final = 28
SRV: Final = 33
DNAME: Final = 39
OPT: Final = 41
DS: Final = 43
RRSIG: Final = 46
NSEC: Final = 47
DNSKEY: Final = 48
SVCB: Final = 64
HTTPS: Final = 65
TKEY: Final = 249
TSIG: Final = 250
IXFR: Final = 251
AXFR: Final = 252
ANY: Final = 255

IN: Final = 1
CH: Final = 3

NOERROR: Final = 0
FORMERR: Final = 1
SERVFAIL: Final = 2
NXDOMAIN: Final = 3
NOTIMP: Final = 4
REFUSED: Final = 5
BADVERS: Final = 16

# Header bits, as they stand in the 16-bit flag word (RFC 1035, section 4.1.1; RFC 4035, section 3).
QR: Final = 0x8000
AA: Final = 0x0400
TC: Final = 0x0200
RD: Final = 0x0100
RA: Final = 0x0080
AD: Final = 0x0020
CD: Final = 0x0010

TYPES: Final[dict[str, int]] = {
    "A": 1, "NS": 2, "MD": 3, "MF": 4, "CNAME": 5, "SOA": 6, "MB": 7, "MG": 8, "MR": 9, "NULL": 10,
    "WKS": 11, "PTR": 12, "HINFO": 13, "MINFO": 14, "MX": 15, "TXT": 16, "RP": 17, "AFSDB": 18, "X25": 19,
    "ISDN": 20, "RT": 21, "NSAP": 22, "NSAP-PTR": 23, "SIG": 24, "KEY": 25, "PX": 26, "GPOS": 27, "AAAA": 28,
    "LOC": 29, "NXT": 30, "EID": 31, "NIMLOC": 32, "SRV": 33,
    "NAPTR": 35, "KX": 36, "CERT": 37, "DNAME": 39, "OPT": 41, "APL": 42, "DS": 43, "SSHFP": 44,
    "IPSECKEY": 45, "RRSIG": 46, "NSEC": 47, "DNSKEY": 48, "DHCID": 49, "NSEC3": 50, "NSEC3PARAM": 51,
    "TLSA": 52, "SMIMEA": 53, "HIP": 55, "NINFO": 56, "RKEY": 57, "TALINK": 58, "CDS": 59,
    "CDNSKEY": 60, "OPENPGPKEY": 61, "CSYNC": 62,
    "ZONEMD": 63, "SVCB": 64, "HTTPS": 65, "DSYNC": 66, "HHIT": 67, "BRID": 68, "SPF": 99,
    "NID": 104, "L32": 105, "L64": 106, "LP": 107,
    "EUI48": 108, "EUI64": 109, "TKEY": 249,
    "TSIG": 250, "IXFR": 251, "AXFR": 252, "MAILB": 253, "MAILA": 254, "ANY": 255, "URI": 256, "CAA": 257,
    "AVC": 258, "DOA": 259, "AMTRELAY": 260, "RESINFO": 261, "WALLET": 262, "TA": 32768, "DLV": 32769,
}  # fmt: skip
CLASSES: Final[dict[str, int]] = {"IN": 1, "CS": 2, "CH": 3, "HS": 4, "NONE": 254, "ANY": 255}
RCODES: Final[dict[str, int]] = {
    "NOERROR": 0, "FORMERR": 1, "SERVFAIL": 2, "NXDOMAIN": 3, "NOTIMP": 4, "REFUSED": 5, "YXDOMAIN": 6,
    "YXRRSET": 7, "NXRRSET": 8, "NOTAUTH": 9, "NOTZONE": 10, "DSOTYPENI": 11, "BADVERS": 16, "BADKEY": 17,
    "BADTIME": 18, "BADMODE": 19, "BADNAME": 20, "BADALG": 21, "BADTRUNC": 22, "BADCOOKIE": 23,
}  # fmt: skip

_TYPE_TEXT: Final = {number: text for text, number in TYPES.items()}
_CLASS_TEXT: Final = {number: text for text, number in CLASSES.items()}
_RCODE_TEXT: Final = {number: text for text, number in RCODES.items()}


def type_text(number: int) -> str:
    """The mnemonic of a type, or TYPEn (RFC 3597, section 5)."""
    return _TYPE_TEXT.get(number) or f"TYPE{number}"


def class_text(number: int) -> str:
    """The mnemonic of a class, or CLASSn (RFC 3597, section 5)."""
    return _CLASS_TEXT.get(number) or f"CLASS{number}"


def rcode_text(number: int) -> str:
    """The mnemonic of a response code, or RCODEn."""
    return _RCODE_TEXT.get(number) or f"RCODE{number}"


def type_number(text: str) -> int | None:
    """The number of a type's mnemonic or of TYPEn, in any case; None if it is neither."""
    return _number(text.upper(), TYPES, "TYPE")


def class_number(text: str) -> int | None:
    """The number of a class's mnemonic or of CLASSn, in any case; None if it is neither."""
    return _number(text.upper(), CLASSES, "CLASS")


def rcode_number(text: str) -> int | None:
    """The number of a response code's mnemonic, in any case; None if unknown."""
    return RCODES.get(text.upper())


def _number(text: str, table: dict[str, int], prefix: str) -> int | None:
    known = table.get(text)
    if known is not None:
        return known
    digits = text.removeprefix(prefix)
    if digits != text and digits.isascii() and digits.isdecimal() and len(digits) <= 5 and int(digits) <= 0xFFFF:
        return int(digits)
    return None


# The highest TTL there is, in seconds (RFC 2181, section 8).
MAX_TTL: Final = 2**31 - 1
