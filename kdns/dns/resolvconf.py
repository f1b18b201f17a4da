"""The lines of a resolv.conf that kdns reads (resolv.conf(5))."""

import ipaddress
from typing import Final

from kdns.dns.errors import BadName
from kdns.dns.name import from_text

MAX_RESOLV_CONF: Final = 1 << 20  # octets; the C library reads three servers and 256 characters of a search list


def nameservers(text: str) -> list[str]:
    """The addresses of its `nameserver` lines, without zone ids; lines that hold no address are left out."""
    out = []
    for line in text.splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == "nameserver":
            try:
                out.append(str(ipaddress.ip_address(words[1].partition("%")[0])))
            except ValueError:
                continue
    return out


def search_list(text: str) -> list[bytes]:
    """The names of its last `search` line as lower-cased wire names; those that no name can be are left out."""
    found: list[str] = []
    for line in text.splitlines():
        words = line.split()
        if words and words[0] == "search":
            found = words[1:]
    out = []
    for word in found:
        try:
            out.append(from_text(word).lower())
        except BadName:
            continue
    return out
