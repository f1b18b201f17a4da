"""What is asked: a cluster of 10,000 Services, and the mixes of questions that clients really send.

Each mix is a file of questions for dnsperf with its options, and the bar: CPU a query as a ratio to the floor, for the
compiled build (and the interpreted one, where it has a bar of its own).
"""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from kdns.testing.objects import endpoint, endpointslice, namespace, service

SERVICES: Final = 10_000
NAMESPACES: Final = 20
NAMES: Final = 9_000  # of Services, and of outside names; the cache holds 9,984
COOKIE: Final = ("-E", "10:0102030405060708")
UNIQUE: Final = 600_000  # questions of a file in which none is alike: more than a server answers in a run


class Mix(NamedTuple):
    """Questions, dnsperf's options beside, and the bars. `outside`: asks for names that are forwarded or cached.

    `warm`: seconds of questions before the first run.
    """

    name: str
    file: str
    options: tuple[str, ...] = ()
    bar: float = 0.0
    interpreted: float | None = None
    outside: bool = False
    warm: float = 1


MIXES: Final = (
    Mix("cluster A hit", "hit", (), 2.2, 2.8),
    Mix("... with a COOKIE", "hit", COOKIE, 2.5, 3.2),
    Mix("... with DO", "hit", ("-D",), 2.3),
    Mix("AAAA of an IPv4-only Service", "aaaa", (), 2.3, 2.9),
    Mix("... with a COOKIE", "aaaa", COOKIE, 2.5, 3.2),
    Mix("mixed case (0x20)", "case", (), 2.3),
    Mix("9,000 names of 10,000 Services", "names", (), 3.0),
    Mix("headless, three addresses", "headless", (), 2.5),
    Mix("SRV", "srv", (), 2.3),
    Mix("PTR", "ptr", (), 2.3),
    Mix("unique NXDOMAIN", "nx", (), 2.8),
    Mix("... with a COOKIE", "nx", COOKIE, 2.9),
    Mix("www.example.com.NS.svc..., unique", "nxdeep", (), 3.6),
    Mix("TCP hit, 10 pipelining connections", "hit", ("-m", "tcp", "-c", "10"), 1.2),
    Mix("a Pod's search lists", "search", (), 3.6, outside=True),
    Mix("cached outside name", "outside", (), 2.3, outside=True),
    Mix("9,000 cached outside names", "outsides", (), 3.2, outside=True, warm=5),  # to fetch them all
    Mix("forwarded miss", "miss", (), 12.0, outside=True, warm=0),
)


def cluster() -> Iterator[dict[str, Any]]:
    """The objects: Services in namespaces, one of them headless."""
    for i in range(NAMESPACES):
        yield namespace(f"n{i}")
    for i in range(SERVICES):
        yield service(f"n{i % NAMESPACES}/s{i}", f"10.96.{i >> 8}.{i & 255}")
    yield service("n0/db")
    yield endpointslice("n0/db-1", "db", *(endpoint(f"10.244.1.{i}") for i in (1, 2, 3)))


def _mixed(chance: random.Random, text: str) -> str:
    return "".join(chance.choice((c.upper(), c)) for c in text)


def questions(folder: Path) -> dict[str, Path]:
    """The files by name."""
    chance = random.Random(1)
    zone = "svc.cluster.local"
    order = list(range(NAMES))
    chance.shuffle(order)
    # Names that Pods look up, a few of them often: what a resolver with `ndots:5` makes of each.
    pods = [int(chance.paretovariate(0.7)) % 50_000 for _ in range(40_000)]
    search = [
        f"www.o{i}.example.net{suffix} {kind}"
        for i in pods
        for suffix in (f".n{i % NAMESPACES}.{zone}", f".{zone}", ".cluster.local", "")
        for kind in ("A", "AAAA")
    ]
    texts = {
        "hit": [f"s0.n0.{zone} A"],
        "aaaa": [f"s0.n0.{zone} AAAA"],
        "case": [f"{_mixed(chance, f's0.n0.{zone}')} A" for _ in range(5_000)],
        "names": [f"s{i}.n{i % NAMESPACES}.{zone} A" for i in order],
        "headless": [f"db.n0.{zone} A"],
        "srv": [f"_http._tcp.s0.n0.{zone} SRV"],
        "ptr": ["0.0.96.10.in-addr.arpa PTR"],
        "nx": [f"x{i}y{chance.randrange(10**6)}.n{i % NAMESPACES}.{zone} A" for i in range(UNIQUE)],
        "nxdeep": [f"www.x{i}y{chance.randrange(10**6)}.com.n{i % NAMESPACES}.{zone} A" for i in range(UNIQUE)],
        "search": search,
        "outside": ["www.example.net A"],
        "outsides": [f"o{i}.example.net A" for i in order],
        "miss": [f"m{i}.example.net A" for i in range(UNIQUE)],
    }
    out = {}
    for name, lines in texts.items():
        out[name] = folder / f"{name}.txt"
        out[name].write_text("\n".join(lines) + "\n")
    return out
