"""Endpoints and ports as DNS names them: host name, Pod name, or their address with dashes; `_http._tcp`."""

import socket
from collections.abc import Iterator
from typing import final

from kdns.kube.cluster import ServiceState
from kdns.kube.objects import MAX_LABEL, Port, Slice


@final
class Matched:
    """Endpoints of one slice that a name stands for, and the ports it stands for. `places`: which; None: all of the
    slice.
    """

    __slots__ = ("part", "places", "ports")

    def __init__(self, part: Slice, ports: list[Port], places: list[int] | None) -> None:
        self.part = part
        self.ports = ports
        self.places = places

    def count(self) -> int:
        """How many addresses there are."""
        return len(self.part.packed) // self.part.width if self.places is None else len(self.places)

    def addresses(self) -> Iterator[tuple[int, bytes]]:
        """The addresses and their places in the slice."""
        packed, width = self.part.packed, self.part.width
        for i in range(len(packed) // width) if self.places is None else self.places:
            yield i, packed[i * width : (i + 1) * width]


@final
class EndpointView:
    """The endpoints of one Service as they are now, for look-ups by name that do not walk over all of them."""

    __slots__ = ("_named", "_zones", "entry", "has_ports", "parts", "pod_names")

    def __init__(self, entry: ServiceState, pod_names: bool) -> None:
        self.entry = entry
        self.pod_names = pod_names
        self.parts: list[Slice] = list(entry.parts())
        self.has_ports: set[tuple[str, str]] = {
            (port.name, port.protocol) for part in self.parts for port in part.ports
        }
        self._named: dict[bytes, list[tuple[Slice, int]]] | None = None
        self._zones: set[str] | None = None

    def select(self, port: str, protocol: str) -> list[Matched]:
        """All endpoints that have a port of this name and protocol; an empty word matches all."""
        if (port or protocol) and not any(
            (not port or name == port) and (not protocol or kind == protocol) for name, kind in self.has_ports
        ):
            return []
        out: list[Matched] = []
        for part in self.parts:
            ports = [p for p in part.ports if matches(p, port, protocol)]
            if ports and part.packed:
                out.append(Matched(part, ports, None))
        return out

    def endpoint(self, label: bytes, source: bytes) -> list[Matched]:
        """The endpoints that are called `label` in the cluster `source` (empty: this one)."""
        found: dict[int, Matched] = {}
        for part, i in self._by_name().get(label, ()):
            _add(found, part, i)
        address = undashed(label)
        if address is not None and dashed(address) == label:
            for part in self.parts:
                if part.width == len(address):
                    i = place_of(part, address)
                    if i >= 0 and endpoint_label(part, i, address, self.pod_names) == label:
                        _add(found, part, i)
        return [matched for matched in found.values() if matched.part.cluster.encode() == source]

    def label_of(self, address: bytes) -> bytes:
        """What the endpoint with this address is called."""
        for part in self.parts:
            if part.width == len(address):
                i = place_of(part, address)
                if i >= 0:
                    return endpoint_label(part, i, address, self.pod_names)
        return dashed(address)

    def has_zone(self, zone: str) -> bool:
        """True if any endpoint is in this topology zone."""
        known = self._zones
        if known is None:
            known = self._zones = {zone for part in self.parts for zone in part.zones or ()}
        return zone in known

    def in_zone(self, zone: str) -> list[Matched]:
        """The endpoints in a topology zone."""
        out: list[Matched] = []
        for part in self.parts:
            places = [i for i, where in enumerate(part.zones or ()) if where == zone]
            if places:
                out.append(Matched(part, list(part.ports), places))
        return out

    def _by_name(self) -> dict[bytes, list[tuple[Slice, int]]]:
        """Endpoints by host name or Pod name; those that are called by their address are not in it."""
        known = self._named
        if known is None:
            known = self._named = {}
            for part in self.parts:
                if part.names is None and (part.pods is None or not self.pod_names):
                    continue
                for i in range(len(part.packed) // part.width):
                    label = given_label(part, i, self.pod_names)
                    if label:
                        known.setdefault(label, []).append((part, i))
        return known


def _add(found: dict[int, Matched], part: Slice, i: int) -> None:
    known = found.get(id(part))
    if known is None:
        found[id(part)] = Matched(part, list(part.ports), [i])
    elif known.places is not None and i not in known.places:
        known.places.append(i)


def matches(port: Port, name: str, protocol: str) -> bool:
    """True if a port has this name and protocol; an empty word matches all."""
    return (not name or port.name == name) and (not protocol or port.protocol == protocol)


def place_of(part: Slice, address: bytes) -> int:
    """Where an address stands in a slice of its width; -1: nowhere."""
    packed, width = part.packed, part.width
    at = packed.find(address)
    while at >= 0 and at % width:
        at = packed.find(address, at + 1)
    return at // width if at >= 0 else -1


def given_label(part: Slice, i: int, pod_names: bool) -> bytes:
    """The host name of an endpoint, else its Pod's name if asked for; empty where it has neither."""
    if part.names is not None and part.names[i]:
        return part.names[i].encode()
    if pod_names and part.pods is not None and part.pods[i]:
        return part.pods[i].lower().encode()
    return b""


def endpoint_label(part: Slice, i: int, address: bytes, pod_names: bool = False) -> bytes:
    """The name of an endpoint below its Service: host name, else the Pod's name if asked for, else the dashed
    address.
    """
    return given_label(part, i, pod_names) or dashed(address)


def port_labels(port: Port) -> bytes:
    """`_http._tcp` as wire labels; empty for a port without a name, and for one whose name makes no label: a Service's
    may have 63 octets, which its underscore makes one too many."""
    labels = [f"_{part}".encode() for part in (port.name, port.protocol)]
    if not port.name or any(len(label) > MAX_LABEL for label in labels):
        return b""
    return b"".join(bytes((len(label),)) + label for label in labels)


def dashed(address: bytes) -> bytes:
    """`10-1-2-3`, `5678-abcd--1`; a label may not end in a dash, so a 0 is put behind one."""
    if len(address) == 4:
        return b"%d-%d-%d-%d" % tuple(address)
    text = socket.inet_ntop(socket.AF_INET6, address).replace(":", "-").replace(".", "-").encode()
    return text + b"0" if text.endswith(b"-") else text


def undashed(label: bytes) -> bytes | None:
    """The packed address that a dashed label stands for, or None."""
    try:
        if label.count(b"-") == 3 and b"--" not in label:
            return socket.inet_pton(socket.AF_INET, label.replace(b"-", b".").decode("ascii"))
        return socket.inet_pton(socket.AF_INET6, label.replace(b"-", b":").decode("ascii"))
    except (OSError, ValueError):
        return None
