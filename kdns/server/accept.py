"""The accept checks: what of a query's bytes is looked at before anything else, and what is refused for it.

Order of checks (CoreDNS's; RFC 1035, section 4.1.1): shorter than a header or a response: no reply. Opcode: NOTIMP.
Counts: FORMERR. The header of nearly every query is one of 16 forms; one look-up of its ten octets behind the id does
for all of them.
"""

from typing import Final

from kdns.dns import iana, reply
from kdns.dns.answer import REPLY_CD, REPLY_RD

MORE: Final = 1 << 8  # beside REPLY_*: records are claimed behind the question


def _reply_flags() -> dict[bytes, int]:
    out = {}
    for rd in (0, 1):
        for ad in (0, 0x20):
            for cd in (0, 0x10):
                for additional in (0, 1):
                    header = bytes((rd, ad | cd, 0, 1, 0, 0, 0, 0, 0, additional))
                    out[header] = (REPLY_RD if rd else 0) | (REPLY_CD if cd else 0) | (MORE if additional else 0)
    return out


# The usual headers behind the id, and the bits that their replies repeat.
REPLY_FLAGS: Final = _reply_flags()
# Headers of queries without a question and with one more record, which may ask for a cookie (RFC 7873, section 5.4).
COOKIE_ALONE: Final = frozenset(header[:3] + b"\0" + header[4:] for header in REPLY_FLAGS if header[9])
# Types that are not data and cannot be asked for: OPT and TSIG belong to a message (RFC 6891, 6.1; RFC 8945, 4.2).
META: Final = frozenset((iana.OPT, iana.TSIG, iana.TKEY))


UPDATE: Final = 0x28  # the opcode's bits in the third octet (RFC 2136, section 2.2)


def check(data: bytes, notices: bool = False, updates: bool = False) -> bytes | None:
    """The checks of a header that is none of the usual ones: None to go on, a reply, or `b""` for none.

    `notices`: NOTIFY is let in (RFC 1996); `updates`: UPDATE, whose counts are its own (RFC 2136).
    """
    if len(data) < 12 or data[2] & 0x80:
        return b""  # a response is never answered: two servers could go on for ever
    if updates and data[2] & 0x78 == UPDATE:
        return None if data[4:6] == b"\0\1" else reply.refusal(data, iana.FORMERR, True)
    if data[2] & 0x78 and not (notices and data[2] & 0x78 == 0x20):
        return reply.refusal(data, iana.NOTIMP, True)
    if data[4:6] != b"\0\1" or data[6:8] > b"\0\1" or data[8:10] > b"\0\1" or data[10:12] > b"\0\2":
        return reply.refusal(data, iana.FORMERR, False)
    return None


def readable_question(data: bytes) -> bytes:
    """The question of a query whose rest cannot be read, or nothing."""
    off = 12
    try:
        while length := data[off]:
            if length > 63:
                return b""
            off += length + 1
    except IndexError:
        return b""
    end = off + 5
    return data[12:end] if end <= len(data) and off < 12 + 255 else b""
