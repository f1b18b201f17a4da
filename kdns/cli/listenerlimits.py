"""What a listener allows: its own limits, and those that the plugins of its blocks set. For `kdns explain`."""

import ssl
from collections.abc import Iterator
from typing import Any, Final

from kdns.dns.edns import UDP_SIZE
from kdns.net import udp
from kdns.net.certificates import Identities
from kdns.net.tcp import CLIENT_SHARE, FIRST_READ, IDLE, most_connections
from kdns.net.web_connection import MAX_STREAMS
from kdns.plugin.providers import BoundsSize, TellsLimits
from kdns.server.build import Group, Instance
from kdns.server.pending import MAX_PENDING
from kdns.server.schemes import SCHEMES

SHOWN: Final = 8  # names of a certificate that are printed


def of_listener(instance: Instance, group: Group) -> list[str]:
    """A line for each limit of a listener."""
    dispatcher = instance.dispatchers[group]
    asked = dispatcher.settings
    every = asked.connections or most_connections()
    of_client = min(asked.client_connections or max(every // CLIENT_SHARE, 1), every)
    read, idle = asked.read or FIRST_READ, asked.idle or IDLE
    out = [
        f"connections: {every}, of one client {of_client}; the first query within {read:g}s, others within {idle:g}s"
    ]
    if asked.max_queries > 0:
        out[0] += f", {asked.max_queries} queries on each"
    if group.scheme in ("https", "https3", "grpc", "quic"):
        out.append(f"requests at a time on a connection with streams: {asked.max_streams or MAX_STREAMS}")
    out += _certificates(dispatcher.identities, SCHEMES[group.scheme].quic)
    out.append(f"queries that wait for an upstream: {MAX_PENDING}, of one client {dispatcher.waiting.most_of_client}")
    if group.scheme == "dns":
        late = udp.LATE if asked.shed is None else asked.shed.age
        out.append(f"queries over UDP are dropped under overload once they have waited for {late:g}s")
    if asked.proxy is not None:
        trusted = " ".join(str(each) for each in asked.proxy.trusted) or "everybody"
        out.append(f"PROXY headers are believed from: {trusted}; of others: {asked.proxy.others}")
    return [*out, *_told(instance, group)]


def _certificates(shown: Identities[Any] | None, quic: bool) -> Iterator[str]:
    """A line for each certificate; of several also for whom it is."""
    for each in shown.all if shown is not None else ():
        # RFC 9001, section 4.2: QUIC has no version before.
        least = ssl.TLSVersion.TLSv1_3 if quic else each.files.minimum
        line = f"certificate: {each.files.certificate}, {least.name.replace('v', ' ').replace('_', '.')}+"
        if shown is not None and shown.several:
            names = [name for name, its in shown.by_name.items() if its is each]
            words = [*names[:SHOWN], *(["..."] if len(names) > SHOWN else [])]
            words += ["other names, and none"] if each is shown.all[0] else []
            line += f", for {', '.join(words) or 'nobody'}"
        yield line


def _told(instance: Instance, group: Group) -> Iterator[str]:
    """What the plugins of its blocks say, and how large the replies of those over UDP may be."""
    for block in instance.blocks:
        here = any((key.scheme, key.port) == (group.scheme, group.port) for key in block.parsed.keys)
        if here and (not group.host or group.host in block.hosts):
            for plugin in block.all(TellsLimits):
                yield from plugin.limits_told()
            if group.scheme == "dns":
                size = min([UDP_SIZE, *(plugin.udp_size for plugin in block.all(BoundsSize))])
                yield f"replies over UDP in {' '.join(str(key) for key in block.parsed.keys)}: at most {size} octets"
