"""The versions of a cluster's zones: who follows them by IXFR has what an AXFR gives; bounds; NOTIFY; peers."""

import asyncio
import gc
import random
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dns.exception
import dns.message
import dns.query
import dns.rdatatype
import dns.xfr
import dns.zone
import pytest

from kdns.dns.name import from_text
from kdns.kube.cluster import Cluster
from kdns.kube.objects import CLUSTER, HEADLESS, NAMESPACE, SERVICE, SLICE, Namespace, Port, Service, Slice, Slices
from kdns.plugins import transfer
from kdns.plugins.kubernetes import journal
from kdns.plugins.kubernetes.config import Config
from kdns.plugins.kubernetes.index import Index
from kdns.plugins.kubernetes.journal import Journal
from kdns.plugins.kubernetes.records import Records
from kdns.plugins.kubernetes.transfer import Contents, State
from kdns.testing import ApiServer, Server, data, eventually
from kdns.testing.objects import endpoint, endpointslice, namespace, service
from kdns.timeslice import TimeSlice
from kdns.zonefile import history
from tests import programs
from tests.fixtures import Serve
from tests.zones.test_transfers import TSIG
from tests.zones.xfrpeers import COMMANDS, KEYS

ZONE = "cluster.local."


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions may follow each other at once."""
    monkeypatch.setattr(journal, "PERIOD", 0.02)


@pytest.fixture
def by_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many steps each incremental transfer had."""
    told: list[int] = []
    real = transfer._told

    def counted(steps: Any) -> Iterator[Any]:
        told.append(len(steps))
        return real(steps)

    monkeypatch.setattr(transfer, "_told", counted)
    return told


def corefile(api: ApiServer, *more: str, to: str = "*", inner: str = "", kubernetes: str = "") -> str:
    lines = "\n ".join(more)
    return (
        f".:{{port}} {{\n bind 127.0.0.1\n {lines}\n transfer {{\n to {to}\n {inner}\n }}\n"
        f" kubernetes cluster.local {{\n endpoint {api.url}\n {kubernetes}\n }}\n}}"
    )


def follow(port: int, zone: dns.zone.Zone, **options: Any) -> None:
    """Brings a copy of a zone up to date: by IXFR where it has a version."""
    query, serial = dns.xfr.make_query(zone, **options)
    dns.query.inbound_xfr("127.0.0.1", zone, query, port=port, timeout=10, lifetime=20)


def fetch(port: int, **options: Any) -> dns.zone.Zone:
    zone = dns.zone.Zone(ZONE, relativize=False)
    follow(port, zone, **options)
    return zone


def records(zone: dns.zone.Zone) -> set[str]:
    return {f"{name} {ttl} {dns.rdatatype.to_text(rd.rdtype)} {rd}" for name, ttl, rd in zone.iterate_rdatas()}


def serial(zone: dns.zone.Zone) -> int:
    return int(zone.get_soa().serial)


def synced(server: Server, **options: Any) -> Server:
    """A server whose zone can be had."""

    def there() -> bool:
        try:
            return bool(records(fetch(server.port, **options)))
        except (dns.xfr.TransferError, dns.exception.DNSException):
            return False

    eventually(there)
    return server


class Changes:
    """Random changes of a cluster."""

    def __init__(self, api: ApiServer, seed: int) -> None:
        self.api = api
        self.random = random.Random(seed)
        self.count = 0
        for name in ("n0", "n1", "n2"):
            api.put(namespace(name))

    def address(self, wide: bool = False) -> str:
        number = self.random.randrange(1, 40)
        return f"fd00::{number:x}" if wide else f"10.1.0.{number}"

    def ports(self) -> tuple[tuple[str, str, int], ...]:
        every = [("http", "TCP", 80), ("dns", "UDP", 53), ("dns", "TCP", 53), ("", "TCP", 81)]
        return tuple(self.random.sample(every, self.random.randrange(0, 4)))

    def one(self) -> None:
        choose = self.random
        where = f"n{choose.randrange(1, 3)}/s{choose.randrange(5)}"
        what = choose.randrange(12)
        if what < 2:
            addresses = [self.address(wide) for wide in choose.choice([(False,), (False, True), (True,)])]
            self.api.put(service(where, *addresses, ports=self.ports()))
        elif what < 4:
            self.api.put(service(where, ports=self.ports()))
        elif what == 4:
            self.api.put(service(where, external=choose.choice(["www.example.org", "10.0.0.1", "a.example."])))
        elif what == 5:
            self._delete("Service", "services", where)
        elif what < 10:
            wide = choose.random() < 0.3
            every = [
                endpoint(self.address(wide), host=choose.choice(["", "", "db-0", "db-1"]), ready=choose.random() < 0.9)
                for _ in range(choose.randrange(0, 6))
            ]
            part = f"{where}-{choose.randrange(3)}"
            self.api.put(endpointslice(part, where.partition("/")[2], *every, ports=self.ports()))
        elif what == 10:
            self._delete("EndpointSlice", "endpointslices", f"{where}-{choose.randrange(3)}")
        elif "n2" in {key.rpartition("/")[2] for key in self.api.objects["namespaces"]}:
            self.api.delete("Namespace", "/n2")
        else:
            self.api.put(namespace("n2"))

    def _delete(self, kind: str, plural: str, key: str) -> None:
        if key in self.api.objects[plural]:
            self.api.delete(kind, key)

    def mark(self) -> str:
        """A change that shows when all before it have been seen; gives the record it makes."""
        self.count += 1
        self.api.put(service("n0/marker", f"10.9.{self.count >> 8}.{self.count & 255}"))
        self.api.put(service("n0/slices"), endpointslice("n0/slices-1", "slices", endpoint(f"10.8.0.{self.count}")))
        self.api.put(namespace(f"m{self.count}"))
        self.api.put(service(f"m{self.count}/seen", "10.7.0.1"))
        for key in ("n0/marker", f"m{self.count}/seen"):  # shown though some are ignored that have no endpoints
            self.api.put(endpointslice(f"{key}-1", key.partition("/")[2], endpoint("10.8.1.1")))
        return f"10.9.{self.count >> 8}.{self.count & 255}"


@pytest.mark.parametrize("seed", range(4))
def test_who_follows_by_ixfr_has_what_an_axfr_gives(
    serve: Serve, api: ApiServer, quick: None, by_steps: list[int], seed: int
) -> None:
    changes = Changes(api, seed)
    for _ in range(10):
        changes.one()
    server = synced(serve(corefile(api, kubernetes=("", "ignore empty_service", "endpoint_pod_names", "")[seed])))
    often, seldom = fetch(server.port), fetch(server.port)
    for turn in range(25):
        for _ in range(changes.random.randrange(1, 6)):
            changes.one()
        follow(server.port, often)  # in the midst of it
        mark, count = changes.mark(), changes.count
        wanted = {
            f"marker.n0.svc.{ZONE} 5 A {mark}", f"slices.n0.svc.{ZONE} 5 A 10.8.0.{count}",
            f"seen.m{count}.svc.{ZONE} 5 A 10.7.0.1",
        }  # fmt: skip

        def arrived(wanted: set[str] = wanted) -> bool:
            follow(server.port, often)
            whole = fetch(server.port)
            if serial(whole) == serial(often):
                assert records(often) == records(whole)
            return wanted <= records(whole)

        eventually(arrived)
        if turn % 5 == 4:
            follow(server.port, seldom)
            follow(server.port, often)
            assert records(seldom) == records(often) and serial(seldom) == serial(often)
    assert len(by_steps) > 25 and max(by_steps) > 3


def test_a_transfer_gives_the_version_of_its_serial_whatever_has_changed_since(serve: Serve, api: ApiServer) -> None:
    api.put(namespace("n1"), service("n1/web", "10.0.0.1"))
    server = synced(serve(corefile(api)))
    first = fetch(server.port)
    for i in range(2, 60):
        api.put(service("n1/web", f"10.0.0.{i}"))
        now = fetch(server.port)
        if serial(now) == serial(first):
            assert records(now) == records(first)
            assert int(server.ask(ZONE, "SOA").answer[0][0].serial) - serial(first) in (0, 1)
    eventually(lambda: data(server.ask("web.n1.svc.cluster.local.")) == ["10.0.0.59"])
    eventually(lambda: f"web.n1.svc.{ZONE} 5 A 10.0.0.59" in records(fetch(server.port)))
    assert serial(fetch(server.port)) - serial(first) < 60


def test_changes_that_change_no_record_are_no_version(
    serve: Serve, api: ApiServer, quick: None, by_steps: list[int]
) -> None:
    api.put(namespace("n1"), service("n1/web", "10.0.0.1"))
    server = synced(serve(corefile(api)))
    first = fetch(server.port)
    for i in range(5):
        api.put(endpointslice("n1/web-1", "web", endpoint(f"10.1.0.{i}")))
        eventually(lambda i=i: data(server.ask(f"10-1-0-{i}.web.n1.svc.cluster.local.")) == [f"10.1.0.{i}"])  # type: ignore[misc]
    api.put(service("n1/new", "10.0.0.2"))
    eventually(lambda: f"new.n1.svc.{ZONE} 5 A 10.0.0.2" in records(fetch(server.port)))
    follow(server.port, first)
    assert by_steps == [1]


def test_a_serial_older_than_the_journal_gets_the_whole_zone(
    serve: Serve, api: ApiServer, quick: None, by_steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "VERSIONS", 3)
    api.put(namespace("n1"), service("n1/web", "10.0.0.1"))
    server = synced(serve(corefile(api)))
    old, followed = fetch(server.port), fetch(server.port)
    for i in range(2, 8):
        api.put(service("n1/web", f"10.0.0.{i}"))
        eventually(lambda i=i: f"web.n1.svc.{ZONE} 5 A 10.0.0.{i}" in records(fetch(server.port)))  # type: ignore[misc]
        follow(server.port, followed)
    assert by_steps == [1] * 6
    follow(server.port, old)
    assert by_steps == [1] * 6 and records(old) == records(followed)


def test_a_version_that_another_replica_gave_gets_the_whole_zone(
    serve: Serve, api: ApiServer, quick: None, by_steps: list[int]
) -> None:
    api.put(namespace("n1"), service("n1/web", "10.0.0.1"))
    server = synced(serve(corefile(api)))
    ours = fetch(server.port)
    theirs = fetch(server.port)
    # Another replica has the same serial for a version without the Service.
    with theirs.writer() as txn:
        txn.delete(f"web.n1.svc.{ZONE}")
        txn.delete(f"_http._tcp.web.n1.svc.{ZONE}")
    api.put(service("n1/new", "10.0.0.2"))
    eventually(lambda: serial(fetch(server.port)) != serial(ours))
    query, _ = dns.xfr.make_query(theirs)
    dns.query.inbound_xfr("127.0.0.1", theirs, query, port=server.port, timeout=10, source="127.0.0.2")
    assert records(theirs) == records(fetch(server.port)) and not by_steps
    follow(server.port, ours)
    assert records(theirs) == records(ours) and by_steps == [1]


# The journal by itself.

ORIGIN = from_text(ZONE)
HTTP = (Port("http", "tcp", 80),)


def a_service(i: int, first: int = 10) -> Service:
    return Service("n1", f"s{i}", CLUSTER, (bytes((first, 0, i >> 8, i & 255)),), HTTP)


def slices(count: int, first: int = 0) -> Slices:
    packed = b"".join(bytes((10, 1, i >> 8, i & 255)) for i in range(first, first + count))
    return Slices("n1", f"db-{first}", "db", (Slice("db", packed, 4, None, None, HTTP),))


def versions(cluster: Cluster) -> tuple[Journal[State], list[bytes]]:
    """A journal of a cluster's zone, and what it tells."""
    told: list[bytes] = []
    index = Index(cluster, Config((ORIGIN,)), time.time)
    return Journal(index, Contents(index, Records(index)), index.forward, told.append), told


async def settled(made: Journal[State]) -> None:
    """Waits until all that has changed is in a version."""
    while made.task is not None:
        await asyncio.sleep(0.001)


class Stalls:
    """The longest that anything held the loop, in seconds of CPU; the collector does not count."""

    def __init__(self) -> None:
        self.worst = 0.0

    async def __aenter__(self) -> "Stalls":
        gc.collect()
        gc.disable()
        self.task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *error: object) -> None:
        gc.enable()
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def _watch(self) -> None:
        last = time.thread_time()
        while True:
            await asyncio.sleep(0)
            now = time.thread_time()
            self.worst = max(self.worst, now - last)
            last = now


def test_a_relist_drops_the_steps_and_never_holds_the_loop(quick: None) -> None:
    count = 10_000

    async def main() -> float:
        cluster = Cluster()
        cluster.apply(NAMESPACE, "/n1", Namespace("n1"))
        for i in range(count):
            cluster.apply(SERVICE, f"n1/s{i}", a_service(i))
        cluster.set_synced()
        made, told = versions(cluster)
        async with Stalls() as stalls:
            await made.start()
            first = made.serial
            assert len(made.table) == count and not told
            cluster.apply(SERVICE, "n1/s1", a_service(1, first=11))
            await settled(made)
            steps = made.since(ORIGIN, first)
            assert steps is not None and [step.count for step in steps] == [2] and told == [ORIGIN]
            second = made.serial
            for i in range(count):
                cluster.apply(SERVICE, f"n1/s{i}", a_service(i, first=12))
                if i % 50 == 49:
                    await asyncio.sleep(0)
            await settled(made)
            assert made.since(ORIGIN, first) is None and made.since(ORIGIN, second) is None
            assert made.serial > second and len(told) >= 2
            for at, _ in enumerate(made.whole(ORIGIN) or ()):
                if at % 100 == 0:
                    await asyncio.sleep(0)
            assert at == 3 * count
            await made.stop()
        return stalls.worst

    assert asyncio.run(main()) < 0.005


def test_a_change_while_the_first_version_was_made_had_it_made_twice_and_changed_it_under_its_serial(
    quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TimeSlice, "pause", lambda self: asyncio.sleep(0))

    async def main() -> None:
        cluster = Cluster()
        cluster.apply(NAMESPACE, "/n1", Namespace("n1"))
        for i in range(20):
            cluster.apply(SERVICE, f"n1/s{i}", a_service(i))
        cluster.set_synced()
        made, told = versions(cluster)
        starting = asyncio.create_task(made.start())
        while len(made.table) < 10:
            await asyncio.sleep(0)
        cluster.apply(SERVICE, "n1/s0", a_service(0, first=11))
        await starting
        first, contents = made.serial, dict(made.table)
        while made.serial == first:
            assert made.table == contents
            await asyncio.sleep(0)
        steps = made.since(ORIGIN, first)
        assert steps is not None and [step.count for step in steps] == [2] and told == [ORIGIN]
        await settled(made)
        await made.stop()

    asyncio.run(main())


def test_an_endpoint_of_thousands_is_a_step_of_three_records_and_never_holds_the_loop(quick: None) -> None:
    async def main() -> float:
        cluster = Cluster()
        cluster.apply(NAMESPACE, "/n1", Namespace("n1"))
        cluster.apply(SERVICE, "n1/db", Service("n1", "db", HEADLESS, (), HTTP))
        for first in range(0, 10_000, 100):
            cluster.apply(SLICE, f"n1/db-{first}", slices(100, first))
        cluster.set_synced()
        made, _ = versions(cluster)
        async with Stalls() as stalls:
            await made.start()
            first = made.serial
            cluster.apply(SLICE, "n1/db-500", slices(99, 500))
            await settled(made)
            steps = made.since(ORIGIN, first)
            assert steps is not None and [step.count for step in steps] == [3]
            second = made.serial
            # It moves to another slice: nothing is different.
            cluster.apply(SLICE, "n1/db-400", slices(101, 400))
            await settled(made)
            assert made.serial == second
            # It is in two, and leaves one of them: nothing is different either.
            cluster.apply(SLICE, "n1/db-599", slices(1, 599))
            await settled(made)
            third = made.serial
            assert [step.count for step in made.since(ORIGIN, second) or ()] == [3]
            cluster.apply(SLICE, "n1/db-500", slices(100, 500))
            await settled(made)
            cluster.apply(SLICE, "n1/db-599", None)
            await settled(made)
            assert made.serial == third
            for _ in made.whole(ORIGIN) or ():
                await asyncio.sleep(0)
            await made.stop()
        return stalls.worst

    assert asyncio.run(main()) < 0.005


def test_the_journal_is_bounded_in_versions_records_and_octets(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "MAX_CHANGES", 40)
    monkeypatch.setattr(history, "MAX_OCTETS", 4000)

    async def main() -> None:
        cluster = Cluster()
        cluster.apply(NAMESPACE, "/n1", Namespace("n1"))
        cluster.set_synced()
        made, _ = versions(cluster)
        await made.start()
        kept = made.histories[ORIGIN]
        for i in range(30):
            for j in range(i % 5 + 1):
                cluster.apply(SERVICE, f"n1/s{j}", a_service(i * 8 + j))
            await settled(made)
            assert len(kept.steps) <= 40 and kept.count <= 40 and kept.octets <= 4000
            assert kept.count == sum(step.count for step in kept.steps)
            assert kept.octets == sum(step.changes.octets for step in kept.steps)
        assert len(kept.steps) > 2
        await made.stop()

    asyncio.run(main())


def test_a_clock_that_falls_back_moves_no_serial_back(quick: None) -> None:
    async def main() -> None:
        cluster = Cluster()
        cluster.apply(NAMESPACE, "/n1", Namespace("n1"))
        cluster.set_synced()
        clock = [time.time() + 1000]
        index = Index(cluster, Config((ORIGIN,)), lambda: clock[0])
        made = Journal(index, Contents(index, Records(index)), index.forward, lambda zone: None)
        await made.start()
        serials = [made.serial]
        for i, clock[0] in enumerate((time.time(), 1.0, time.time() + 2000)):
            cluster.apply(SERVICE, "n1/s1", a_service(i))
            await settled(made)
            serials.append(made.serial)
        assert serials[0] < serials[1] < serials[2] < serials[3] and serials[2] == serials[0] + 2
        await made.stop()
        # The next one of this process does not fall behind either.
        clock[0] = 5.0
        index = Index(cluster, Config((ORIGIN,)), lambda: clock[0])
        made = Journal(index, Contents(index, Records(index)), index.forward, lambda zone: None)
        await made.start()
        assert made.serial > serials[-1]
        await made.stop()

    asyncio.run(main())


def test_without_transfer_there_are_no_versions(serve: Serve, api: ApiServer) -> None:
    api.put(namespace("n1"), service("n1/web", "10.0.0.1"))
    text = corefile(api).replace("transfer {", "transfer example.org {")
    server = serve(text)
    eventually(lambda: data(server.ask("web.n1.svc.cluster.local.")) == ["10.0.0.1"])
    assert server.server.instance is not None
    kubernetes: Any = next(each for each in server.server.instance.plugins if each.name == "kubernetes")
    assert kubernetes.journal is None and [type(each) for each in kubernetes.cluster.watchers] == [Index]


# With others.


def notifies(sock: socket.socket, seconds: float) -> int:
    """Answers the NOTIFYs of so many seconds; gives how many there were."""
    count = 0
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        sock.settimeout(left)
        try:
            message, where = sock.recvfrom(512)
        except TimeoutError:
            break
        query = dns.message.from_wire(message, keyring=KEYS)
        assert query.had_tsig and str(query.question[0]) == "cluster.local. IN SOA"
        sock.sendto(dns.message.make_response(query).to_wire(), where)
        count += 1
    return count


def test_many_changes_of_a_second_are_one_signed_notify(serve: Serve, api: ApiServer) -> None:
    api.put(namespace("n1"), service("n1/web", "10.0.0.1"))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        server = serve(corefile(api, TSIG, to=f"* 127.0.0.1:{sock.getsockname()[1]}", inner="tsig key.example."))
        signed = {"keyring": KEYS, "keyname": "key.example."}
        eventually(lambda: data(server.ask("web.n1.svc.cluster.local.")) == ["10.0.0.1"])
        notifies(sock, 1.5)  # of the start
        first = serial(fetch(server.port, **signed))
        time.sleep(1 - time.time() % 1)
        for i in range(2, 200):
            api.put(service("n1/web", f"10.0.0.{i}"))
        assert 1 <= notifies(sock, 3) <= 2  # two where the changes took their time
        assert 1 <= serial(fetch(server.port, **signed)) - first <= 5
        assert f"web.n1.svc.{ZONE} 5 A 10.0.0.199" in records(fetch(server.port, **signed))


@pytest.mark.parametrize(
    "peer", [pytest.param("bind", marks=programs.needs("named")), pytest.param("knot", marks=programs.needs("knotd"))]
)
def test_a_peer_follows_a_cluster_by_signed_notify_and_ixfr(
    serve: Serve, api: ApiServer, tmp_path: Path, peer: str
) -> None:
    api.put(
        namespace("n1"), service("n1/web", "10.0.0.1", "fd00::1"), service("n1/ext", external="www.example.org"),
        service("n1/db"), endpointslice("n1/db-1", "db", endpoint("10.1.0.1", host="db-0"), endpoint("10.1.0.2")),
        *[service(f"n1/s{i}", f"10.0.1.{i}") for i in range(100)],
    )  # fmt: skip
    signed = {"keyring": KEYS, "keyname": "key.example."}
    servers: list[Server] = []

    def words(port: int) -> list[str]:
        server = synced(serve(corefile(api, TSIG, to=f"* 127.0.0.1:{port}", inner="tsig key.example.")), **signed)
        servers.append(server)
        command = COMMANDS[peer](tmp_path / peer, port, master=server.port)
        for conf in (tmp_path / peer).glob("*.conf"):
            conf.write_text(conf.read_text().replace("example.org", "cluster.local"))
        return command

    with programs.running(tmp_path / peer, words) as program:
        server = servers[-1]

        def same() -> bool:
            try:
                return records(fetch(program.port, **signed)) == records(fetch(server.port, **signed))
            except (OSError, dns.exception.DNSException, dns.xfr.TransferError):
                return False

        program.until(same)
        # One change after another, each a kind of its own; a headless one's weights change with it.
        api.put(service("n1/web", "10.0.0.2"))
        eventually(lambda: f"web.n1.svc.{ZONE} 5 A 10.0.0.2" in records(fetch(server.port, **signed)))
        program.until(same)
        api.put(service("n1/ext", "10.0.0.3"), service("n1/s1", external="other.example."))
        api.put(endpointslice("n1/db-2", "db", endpoint("fd00::5"), endpoint("fd00::6", host="db-6")))
        api.delete("Service", "n1/s2")
        eventually(lambda: f"ext.n1.svc.{ZONE} 5 A 10.0.0.3" in records(fetch(server.port, **signed)))
        program.until(same)
        last = fetch(program.port, **signed)
        assert f"s1.n1.svc.{ZONE} 5 CNAME other.example." in records(last)
        assert f"db-6.db.n1.svc.{ZONE} 5 AAAA fd00::6" in records(last) and last.get_node(f"s2.n1.svc.{ZONE}") is None
    output = program.said().lower()
    # The whole zone, of more than 300 records, once; then what changed.
    if peer == "knot":
        assert len(re.findall(r"\] axfr, incoming, .* finished", output)) == 1, output
        assert len(re.findall(r"\] ixfr, incoming, .* finished", output)) >= 2, output
    else:
        counts = [int(found) for found in re.findall(r"transfer completed: .* (\d+) records", output)]
        assert counts[0] > 300 and len(counts) >= 3 and max(counts[1:]) < 60, output
