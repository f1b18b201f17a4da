"""The questions that a tool asks: those of a file or a log, or the names that a cluster's objects have.

A file has a question a line: `NAME [TYPE]` (dnsperf's form), or lines of the plugin `log` (CoreDNS's and ours, text or
JSON), in which everything else is passed over.
"""

import ipaddress
import re
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

from kdns.dns import iana
from kdns.dns.errors import BadName
from kdns.dns.name import from_text
from kdns.dns.query import Question

LARGEST: Final = 256 << 20  # octets read of a file of questions
_LOGGED: Final = re.compile(r'"([A-Z0-9]+) IN (\S+) (?:udp|tcp|dns|tls|https) ')
_TRANSFERS: Final = frozenset(("AXFR", "IXFR", "ANY"))  # not questions with one answer
# A name that no Service has: what a server says of names that do not exist is half of what can differ.
ABSENT: Final = "kdns-compare-no-such-name"


class Asked(NamedTuple):
    """A name as text with its final dot, and a type's name."""

    name: str
    type: str

    def question(self) -> Question:
        """As it is asked. Raises BadName or ValueError."""
        number = iana.type_number(self.type)
        if number is None:
            raise ValueError(f'"{self.type}" is not a query type')
        return Question(from_text(self.name).lower(), number)


def of_lines(lines: Iterable[str]) -> Iterator[Asked]:
    """The questions of a file's lines; what is none is passed over."""
    for line in lines:
        found = _LOGGED.search(line.replace('\\"', '"'))
        if found is not None:
            each = Asked(found[2], found[1])
        else:
            words = line.split()
            if not 1 <= len(words) <= 2 or words[0][0] in "#;[{":
                continue
            each = Asked(words[0].rstrip(".") + ".", (words[1] if len(words) > 1 else "A").upper())
        if each.type in _TRANSFERS:
            continue
        try:
            each.question()
        except (BadName, ValueError):
            continue
        yield each


def of_objects(objects: Iterable[dict[str, Any]], zone: str) -> Iterator[Asked]:
    """The names that Services, EndpointSlices and Namespaces have in a zone (text without a final dot), and some they
    have not.
    """
    yield from (
        Asked(f"{zone}.", "SOA"),
        Asked(f"{zone}.", "NS"),
        Asked(f"dns-version.{zone}.", "TXT"),
        Asked(f"{ABSENT}.{zone}.", "A"),
    )
    for each in objects:
        meta, kind = each.get("metadata") or {}, each.get("kind")
        name, namespace = str(meta.get("name", "")), str(meta.get("namespace") or "default")
        if kind == "Namespace":
            yield Asked(f"{ABSENT}.{name}.svc.{zone}.", "A")
            yield Asked(f"www.example.com.{name}.svc.{zone}.", "A")  # what search lists send
        elif kind == "Service":
            yield from _service(each.get("spec") or {}, f"{name}.{namespace}.svc.{zone}.")
        elif kind == "EndpointSlice":
            owner = (meta.get("labels") or {}).get("kubernetes.io/service-name")
            if owner:
                yield from _slice(each, f"{owner}.{namespace}.svc.{zone}.", f"{namespace}.pod.{zone}.")


def _service(spec: dict[str, Any], full: str) -> Iterator[Asked]:
    yield from (Asked(full, "A"), Asked(full, "AAAA"), Asked(full, "TXT"))
    for port in spec.get("ports") or ():
        if port.get("name"):
            yield Asked(f"_{port['name']}._{str(port.get('protocol', 'TCP')).lower()}.{full}", "SRV")
    yield Asked(f"{ABSENT}.{full}", "A")
    for address in spec.get("clusterIPs") or [spec.get("clusterIP")]:
        if reverse := _reverse(address):
            yield Asked(reverse, "PTR")


def _slice(each: dict[str, Any], full: str, pods: str) -> Iterator[Asked]:
    for endpoint in (each.get("endpoints") or ())[
        :3
    ]:  # a Service of thousands has the same kind of name a thousand times
        for address in (endpoint.get("addresses") or ())[:1]:
            dashed = str(address).replace(".", "-").replace(":", "-")
            label = endpoint.get("hostname") or dashed
            yield Asked(f"{label}.{full}", "AAAA" if ":" in str(address) else "A")
            yield Asked(f"{dashed}.{pods}", "AAAA" if ":" in str(address) else "A")
            if reverse := _reverse(address):
                yield Asked(reverse, "PTR")


def _reverse(address: object) -> str:
    try:
        return ipaddress.ip_address(str(address)).reverse_pointer + "."
    except ValueError:
        return ""


def sampled(found: Iterable[Asked], limit: int) -> list[Asked]:
    """Each question once, in order; of more than `limit` every so manieth."""
    once = list(dict.fromkeys(Asked(each.name.lower(), each.type) for each in found))
    if len(once) <= limit:
        return once
    return [once[at * len(once) // limit] for at in range(limit)]
