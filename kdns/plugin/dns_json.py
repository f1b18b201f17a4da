"""DNS over HTTPS in JSON: from the parameters of a URL to a query, and from a reply to text.

It is the form that Google (`/resolve`) and Cloudflare (`application/dns-json`) publish; RFC 8427 is another one, which
nobody serves. A reply's `Comment` has its extended errors (RFC 8914).
"""

import ipaddress
import json
from collections.abc import Iterator
from typing import Final
from urllib.parse import parse_qsl

from kdns.dns import edns, iana, wire
from kdns.dns.errors import BadName
from kdns.dns.message import pack_query
from kdns.dns.name import from_text, to_text
from kdns.dns.query import Question
from kdns.zonefile.types import show

MAX_PARAMETERS: Final = 20  # of a URL; there are seven
NAMES: Final = ("name", "type", "cd", "do", "edns_client_subnet")
# The prefixes of a subnet that is given as an address (RFC 7871, section 11.1).
SUBNET4: Final = 24
SUBNET6: Final = 56
_SECTIONS: Final = ("Answer", "Authority", "Additional")
_TRUE: Final = {"1": True, "true": True, "0": False, "false": False}


def query(parameters: bytes) -> bytes:
    """The query that a URL's parameters ask for: `name`, `type`, `cd`, `do`, `edns_client_subnet`; others are ignored.

    Raises ValueError, with a text for the client.
    """
    found: dict[str, str] = {}
    for key, value in parse_qsl(parameters.decode("ascii"), keep_blank_values=True, max_num_fields=MAX_PARAMETERS):
        if key in found and key in NAMES:
            raise ValueError(f"{key} is given twice")
        found[key] = value
    if not found.get("name"):
        raise ValueError("the parameter name is missing")
    if not found["name"].isascii():
        raise ValueError("name is not ASCII: write it in Punycode (xn--)")
    try:
        name = from_text(found["name"])
    except BadName as error:
        raise ValueError(str(error)) from None
    options = edns.option(edns.SUBNET, _subnet(found["edns_client_subnet"])) if "edns_client_subnet" in found else b""
    opt = edns.opt(do=_flag(found, "do"), options=options)
    # AD in a query asks for AD in the reply (RFC 6840, section 5.7).
    return pack_query(0, Question(name, _type(found.get("type", "A"))), cd=_flag(found, "cd"), ad=True, opt=opt)


def _type(text: str) -> int:
    number = int(text) if text.isascii() and text.isdecimal() and len(text) <= 5 else iana.type_number(text) or 0
    if not 0 < number <= 0xFFFF:
        raise ValueError("type is neither a type's name nor a number from 1 to 65535")
    return number


def _flag(found: dict[str, str], name: str) -> bool:
    value = _TRUE.get(found.get(name, "0").lower())
    if value is None:
        raise ValueError(f"{name} is not 1, true, 0 or false")
    return value


def _subnet(text: str) -> bytes:
    """A CLIENT-SUBNET's payload (RFC 7871, section 6)."""
    try:
        if "/" not in text:
            text += f"/{SUBNET4 if ipaddress.ip_address(text).version == 4 else SUBNET6}"
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError("edns_client_subnet is not an address or network") from None
    family = 1 if network.version == 4 else 2
    length = network.prefixlen
    return bytes((0, family, length, 0)) + network.network_address.packed[: length + 7 >> 3]


def refusal(text: str) -> bytes:
    """The body that says what is wrong with a request."""
    return json.dumps({"error": text}).encode()


def pieces(reply: bytes) -> Iterator[str]:
    """A reply as JSON, piece by piece: a record of them takes some ten microseconds. Raises FormatError."""
    budget = wire.Budget()
    flags = reply[2] << 8 | reply[3]
    counts = [reply[at] << 8 | reply[at + 1] for at in (4, 6, 8, 10)]
    off = 12
    questions = []
    for _ in range(counts[0]):
        name, off = wire.read_name(reply, off, budget)
        questions.append({"name": to_text(name), "type": reply[off] << 8 | reply[off + 1]})
        off += 4
    rcode, options = reply[3] & 15, b""
    for number, record in enumerate(wire.records(reply, off, sum(counts[1:]), wire.Budget())):
        if record.type == iana.OPT:  # it may be the last one
            rcode |= record.ttl >> 24 << 4
            options = reply[record.fixed + 10 : record.end]
        if number % 64 == 63:
            yield ""
    head: dict[str, object] = {"Status": rcode}
    for text, bit in (("TC", iana.TC), ("RD", iana.RD), ("RA", iana.RA), ("AD", iana.AD), ("CD", iana.CD)):
        head[text] = bool(flags & bit)
    head["Question"] = questions
    yield json.dumps(head)[:-1]
    for section, count in zip(_SECTIONS, counts[1:], strict=True):
        before = f', "{section}": ['
        for record in wire.records(reply, off, count, budget):
            off = record.end
            if record.type == iana.OPT:
                continue
            rdata = wire.expand_rdata(reply, record, budget)
            made = {"name": to_text(record.owner), "type": record.type, "TTL": record.ttl}
            yield before + json.dumps({**made, "data": show(record.type, rdata)})
            before = ", "
        if before == ", ":
            yield "]"
    yield "".join([f', "{name}": {json.dumps(text)}' for name, text in _said(options)]) + "}"


def _said(options: bytes) -> Iterator[tuple[str, str]]:
    """What the options of a reply's OPT add."""
    errors = []
    for code, payload in edns.options(options):
        if code == edns.EDE and len(payload) >= 2:
            text = payload[2:].decode("utf-8", "replace")
            errors.append(f"EDE {payload[0] << 8 | payload[1]}" + (f": {text}" if text else ""))
        elif code == edns.SUBNET and edns.subnet_fits(payload, in_reply=True) and payload[:2] != b"\0\0":
            size = 4 if payload[1] == 1 else 16
            address = ipaddress.ip_address(payload[4:].ljust(size, b"\0"))
            yield "edns_client_subnet", f"{address}/{payload[3]}"
    if errors:
        yield "Comment", "; ".join(errors)
