"""The questions that a tool asks: the names that a cluster's objects have, or a list's. Files of questions are read in
questionfile.
"""

import ipaddress
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple
from zlib import crc32

from kdns.dns import iana
from kdns.dns.name import from_text
from kdns.dns.query import Question

KEPT: Final = 200_000  # different questions held while a sample is drawn: some 60 MB
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


def sampled(found: Iterable[Asked], limit: int, kept: int = KEPT) -> list[Asked]:
    """Each question once, in order; of more than `limit` every so manieth.

    No more than `kept` are held, or `limit` if that is more: of more different ones, those of every second name, every
    fourth, and so on, chosen by a checksum of the name.
    """
    once: dict[Asked, None] = {}
    share = 1
    for each in found:
        name = each.name.lower()
        if share > 1 and crc32(name.encode(errors="replace")) % share:
            continue
        once[Asked(name, each.type)] = None
        if len(once) > max(limit, kept):
            share *= 2
            once = {held: None for held in once if not crc32(held.name.encode(errors="replace")) % share}
    if len(once) <= limit:
        return list(once)
    listed = list(once)
    return [listed[at * len(listed) // limit] for at in range(limit)]
