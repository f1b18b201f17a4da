"""Server-block keys: `[scheme://]zone[:port]`, and CIDR keys that stand for reverse zones."""

import ipaddress
from typing import Final, NamedTuple

from kdns.corefile.errors import CorefileError
from kdns.corefile.lexer import Token

# Scheme -> default port; None: what -dns.port says.
SCHEMES: Final[dict[str, int | None]] = {
    "dns": None, "tls": 853, "quic": 853, "grpc": 443, "https": 443, "https3": 443,
}  # fmt: skip
MAX_EXPANSION: Final = (
    256  # reverse zones one prefix may stand for; the worst octet boundary (/9 of IPv4, /1 mod 8) is 128
)


class Key(NamedTuple):
    """One zone on one transport and port. `zone` is lower-cased text with its final dot."""

    scheme: str
    zone: str
    port: int
    token: Token

    def __str__(self) -> str:
        prefix = "" if self.scheme == "dns" else f"{self.scheme}://"
        return f"{prefix}{self.zone}:{self.port}"


def keys(token: Token, default_port: int) -> list[Key]:
    """The keys that one token stands for: one, or several for a CIDR prefix. Raises CorefileError."""
    text = token.text
    scheme = "dns"
    for known in SCHEMES:
        if text.startswith(f"{known}://"):
            scheme, text = known, text[len(known) + 3 :]
            break
    host, port = _split_port(text, token)
    if not host:
        raise CorefileError(token.at, f'"{token.text}" names a port and no zone; write ".:{port or 53}" for all names')
    number = port if port is not None else (SCHEMES[scheme] or default_port)
    if not 0 <= number <= 65535:
        raise CorefileError(token.at, f'port {number} in "{token.text}" is not within 0 to 65535')
    return [Key(scheme, zone, number, token) for zone in zones(host, token)]


def _split_port(text: str, token: Token) -> tuple[str, int | None]:
    head, colon, tail = text.rpartition(":")
    if not colon:
        return text, None
    if not tail:
        raise CorefileError(token.at, f'expected a port after the colon of "{token.text}"')
    if tail.isascii() and tail.isdecimal():
        # A reverse zone is written with its length (2001:db8::/32), so a number behind the last colon is a port. More
        # digits than a port has are an error however many there are.
        return head, int(tail.lstrip("0")[:6] or "0")
    return text, None


def zones(text: str, token: Token) -> list[str]:
    """The zones, lower-cased and with a final dot, that a name or a CIDR prefix stands for. Raises CorefileError."""
    if "/" in text:
        prefix = _prefix(text, token)
        if prefix is not None:
            return prefix
    zone = text.lower().rstrip(".") + "." if text.strip(".") else "."
    if len(zone) > 255:
        raise CorefileError(token.at, f"a zone of {len(zone)} characters, at most 255 are allowed")
    for label in zone[:-1].split("."):
        if len(label) > 63:
            raise CorefileError(token.at, f'label "{label[:20]}..." of {len(label)} characters, at most 63 are allowed')
        if not label and zone != ".":
            raise CorefileError(token.at, f'empty label in zone "{text}"')
    return [zone]


def _prefix(text: str, token: Token) -> list[str] | None:
    address = text.partition("/")[0]
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None
    if network.version == 6 and address[:1] in (":", "0"):
        raise CorefileError(
            token.at, f'"{text}": an IPv6 prefix that begins with ":" or "0" cannot be written as a zone'
        )
    step, width = (8, 32) if network.version == 4 else (4, 128)
    boundary = -(-network.prefixlen // step) * step
    if boundary == 0:
        return ["in-addr.arpa." if network.version == 4 else "ip6.arpa."]
    out = []
    count = 1 << (boundary - network.prefixlen)
    base = int(network.network_address) >> (width - boundary)
    for i in range(min(count, MAX_EXPANSION)):
        if network.version == 4:
            octets = (base + i).to_bytes(boundary // 8, "big")
            out.append(".".join(str(octet) for octet in reversed(octets)) + ".in-addr.arpa.")
        else:
            nibbles = f"{base + i:0{boundary // 4}x}"
            out.append(".".join(reversed(nibbles)) + ".ip6.arpa.")
    return out


def plugin_zones(words: list[Token]) -> list[str]:
    """Zone arguments of a plugin: scheme and port stripped, CIDR expanded, lower-cased, absolute; unreadable ones
    dropped.
    """
    out: list[str] = []
    for word in words:
        text = word.text
        for known in SCHEMES:
            text = text.removeprefix(f"{known}://")
        try:
            host, _ = _split_port(text, word)
            found = zones(host or ".", word)
        except CorefileError:
            continue
        out += [zone for zone in found if zone not in out]
    return out
