"""transfer: a cluster's zone whole, to an independent client, to dig and to knot; who is refused; NOTIFY."""

import shutil
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any

import dns.exception
import dns.message
import dns.opcode
import dns.query
import dns.rdatatype
import dns.xfr
import dns.zone
import pytest
import yaml

from kdns.corefile import CorefileError
from kdns.testing import ApiServer, Server, code, data, eventually, free_port
from kdns.testing.objects import endpoint, endpointslice, namespace, service
from tests import programs
from tests.fixtures import Serve


def block(path: Path, *more: str) -> str:
    inner = "\n ".join(more or ("transfer {\n to *\n }",))
    return (
        f".:{{port}} {{\n bind 127.0.0.1\n {inner}\n kubernetes cluster.local {{\n manifests {path}\n ttl 30\n }}\n}}"
    )


@pytest.fixture
def objects(tmp_path: Path) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump_all([
        namespace("n1"), namespace("n2"),
        service("n1/web", "10.0.0.1", "fd00::1", ports=(("http", "TCP", 80), ("", "TCP", 81))),
        service("n1/db"), endpointslice("n1/db-1", "db", endpoint("10.1.0.1", host="db-0"), endpoint("10.1.0.2")),
        service("n2/ext", external="www.example.org"), service("n2/portless", "10.0.0.9", ports=()),
        service("n2/nothing"),
        service("n2/sentinel"), endpointslice("n2/sentinel-1", "sentinel", endpoint("10.1.0.9"), ports=()),
    ]))  # fmt: skip
    return path


def fetch(server: Server, zone: str = "cluster.local.", **options: Any) -> dns.zone.Zone:
    made = dns.zone.Zone(zone, relativize=False)
    query, _ = dns.xfr.make_query(made, **options)
    dns.query.inbound_xfr("127.0.0.1", made, query, port=server.port, timeout=5, lifetime=10)
    return made


def records(zone: dns.zone.Zone) -> set[str]:
    return {
        f"{name} {dns.rdatatype.to_text(rds.rdtype)} {rd}" for name, node in zone.items() for rds in node for rd in rds
    }


def test_a_cluster_zone_is_transferred_whole(serve: Serve, objects: Path) -> None:
    found = {
        record for record in records(fetch(serve(block(objects)))) if " SOA " not in record and " NS " not in record
    }
    assert {record for record in found if "ns.dns" not in record} == {
        "web.n1.svc.cluster.local. A 10.0.0.1", "web.n1.svc.cluster.local. AAAA fd00::1",
        "web.n1.svc.cluster.local. SRV 0 100 80 web.n1.svc.cluster.local.",
        "web.n1.svc.cluster.local. SRV 0 100 81 web.n1.svc.cluster.local.",
        "_http._tcp.web.n1.svc.cluster.local. SRV 0 100 80 web.n1.svc.cluster.local.",
        "db.n1.svc.cluster.local. A 10.1.0.1", "db.n1.svc.cluster.local. A 10.1.0.2",
        "db-0.db.n1.svc.cluster.local. A 10.1.0.1",
        "10-1-0-2.db.n1.svc.cluster.local. A 10.1.0.2",
        "_http._tcp.db.n1.svc.cluster.local. SRV 0 50 80 db-0.db.n1.svc.cluster.local.",
        "_http._tcp.db.n1.svc.cluster.local. SRV 0 50 80 10-1-0-2.db.n1.svc.cluster.local.",
        "ext.n2.svc.cluster.local. CNAME www.example.org.", "portless.n2.svc.cluster.local. A 10.0.0.9",
        "sentinel.n2.svc.cluster.local. A 10.1.0.9", "10-1-0-9.sentinel.n2.svc.cluster.local. A 10.1.0.9",
    }  # fmt: skip


def test_every_transferred_record_is_what_a_query_answers(serve: Serve, objects: Path) -> None:
    server = serve(block(objects))
    for name, node in fetch(server).items():
        for rdataset in node:
            kind = dns.rdatatype.to_text(rdataset.rdtype)
            asked = {str(rd) for rd in server.ask(str(name), kind).answer[0]}
            if kind == "SRV":  # weights of bare names differ, as in CoreDNS
                assert {text.split()[2:] == text.split()[2:] for text in asked}
            else:
                assert asked == {str(rd) for rd in rdataset}, (name, kind)


def test_a_large_zone_comes_in_many_messages_while_others_are_answered(serve: Serve, api: ApiServer) -> None:
    api.put(namespace("n1"), *(service(f"n1/s{i}", f"10.0.{i // 250}.{i % 250}") for i in range(3000)))
    server = serve(
        f".:{{port}} {{\n bind 127.0.0.1\n transfer {{\n to *\n }}\n kubernetes cluster.local {{\n endpoint "
        f"{api.url}\n }}\n}}"
    )
    eventually(lambda: code(server.ask("cluster.local.", "AXFR", tcp=True)) != "SERVFAIL")
    with server.connect() as connection:
        query = dns.message.make_query("cluster.local.", "AXFR").to_wire()
        ours = dns.message.make_query("s1.n1.svc.cluster.local.", "A").to_wire()
        connection.sendall(b"".join(len(each).to_bytes(2, "big") + each for each in (query, ours)))
        stream = connection.makefile("rb")
        ids, soas = [], 0
        while soas < 2 or ours[:2] not in ids:
            frame = stream.read(int.from_bytes(stream.read(2), "big"))
            message = dns.message.from_wire(frame, one_rr_per_rrset=True)
            ids.append(frame[:2])
            soas += sum(rrset.rdtype == dns.rdatatype.SOA for rrset in message.answer)
            assert len(frame) < 30_000
    assert ids.count(query[:2]) > 10 and ids.index(ours[:2]) < 5  # it does not wait for the zone
    assert len(records(fetch(server))) > 9000


def test_a_client_that_reads_slowly_holds_nobody_and_costs_little(serve: Serve, api: ApiServer) -> None:
    api.put(namespace("n1"), *(service(f"n1/s{i}", f"10.0.{i // 250}.{i % 250}") for i in range(2000)))
    server = serve(
        f".:{{port}} {{\n bind 127.0.0.1\n transfer {{\n to *\n }}\n kubernetes cluster.local {{\n endpoint "
        f"{api.url}\n }}\n}}"
    )
    eventually(lambda: code(server.ask("cluster.local.", "AXFR", tcp=True)) != "SERVFAIL")
    query = dns.message.make_query("cluster.local.", "AXFR").to_wire()
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    slow.connect(("127.0.0.1", server.port))
    with slow:
        for _ in range(20):
            slow.sendall(len(query).to_bytes(2, "big") + query)
        for i in range(100):
            assert data(server.ask(f"s{i}.n1.svc.cluster.local."))
        listener = next(iter(server.server.listeners.values())).tcp[0]
        assert all(
            c.transport.get_write_buffer_size() < 600_000 for c in listener.connections if c.transport is not None
        )


@pytest.mark.parametrize(
    ("serial", "whole"), [(-1, True), (0, False), (1, False), (0x7FFFFFFF, False), (-0x70000000, True)]
)
def test_ixfr_gives_the_soa_to_who_has_it_and_the_zone_to_others(
    serve: Serve, objects: Path, serial: int, whole: bool
) -> None:
    server = serve(block(objects))
    ours = int(server.ask("cluster.local.", "SOA").answer[0][0].serial)
    query = dns.message.make_query("cluster.local.", "IXFR")
    query.authority.append(
        dns.rrset.from_text("cluster.local.", 0, "IN", "SOA", f". . {(ours + serial) & 0xFFFFFFFF} 0 0 0 0")
    )
    with server.connect() as connection:
        wire = query.to_wire()
        connection.sendall(len(wire).to_bytes(2, "big") + wire)
        connection.shutdown(socket.SHUT_WR)
        stream = connection.makefile("rb")
        reply = dns.message.from_wire(stream.read(int.from_bytes(stream.read(2), "big")), one_rr_per_rrset=True)
    assert (len(reply.answer) > 1) == whole and reply.answer[0].rdtype == dns.rdatatype.SOA


def test_who_may_not_is_refused(serve: Serve, objects: Path) -> None:
    server = serve(block(objects, "transfer {\n to 127.0.0.2\n }"))
    assert code(server.ask("cluster.local.", "AXFR", tcp=True)) == "REFUSED"
    made = dns.zone.Zone("cluster.local.", relativize=False)
    query, _ = dns.xfr.make_query(made)
    dns.query.inbound_xfr("127.0.0.1", made, query, port=server.port, timeout=5, source="127.0.0.2")
    assert records(made)
    assert code(server.ask("cluster.local.", "AXFR")) == "REFUSED"  # over UDP nobody may
    assert code(server.ask("web.n1.svc.cluster.local.", "AXFR", tcp=True)) == "REFUSED"  # no zone begins there
    assert code(server.ask("cluster.local.", "IXFR", tcp=True)) == "REFUSED"


def test_an_ixfr_without_a_serial_is_a_format_error(serve: Serve, objects: Path) -> None:
    assert code(serve(block(objects)).ask("cluster.local.", "IXFR", tcp=True)) == "FORMERR"


def test_before_the_first_sync_there_is_nothing_to_transfer(serve: Serve, api: ApiServer) -> None:
    api.down()
    server = serve(
        f".:{{port}} {{\n bind 127.0.0.1\n transfer {{\n to *\n }}\n kubernetes cluster.local {{\n endpoint "
        f"{api.url}\n }}\n}}"
    )
    assert code(server.ask("cluster.local.", "AXFR", tcp=True)) == "SERVFAIL"


def test_those_named_by_address_are_notified_at_start(serve: Serve, objects: Path, lines: list[str]) -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as good,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bad,
    ):
        for sock in (good, bad):
            sock.bind(("127.0.0.1", 0))
            sock.settimeout(5)
        ports = [sock.getsockname()[1] for sock in (good, bad)]
        serve(block(objects, f"transfer {{\n to 127.0.0.1:{ports[0]} 127.0.0.1:{ports[1]}\n source 127.0.0.3\n }}"))
        for sock, rcode in ((good, 0), *((bad, 5),) * 3):
            query, peer = sock.recvfrom(512)
            message = dns.message.from_wire(query)
            assert message.opcode() == dns.opcode.NOTIFY and str(message.question[0]) == "cluster.local. IN SOA"
            assert peer[0] == "127.0.0.3" and message.flags & 0x0400
            reply = dns.message.make_response(message)
            reply.set_rcode(rcode)
            sock.sendto(reply.to_wire(), peer)
    eventually(lambda: any(f"notify of cluster.local. to 127.0.0.1:{ports[1]}: REFUSED" in line for line in lines))
    assert not any(f"127.0.0.1:{ports[0]}" in line for line in lines)


@pytest.mark.skipif(shutil.which("dig") is None, reason="dig is not installed")
def test_a_notify_at_start_comes_when_the_zone_can_be_had(serve: Serve, objects: Path) -> None:
    came: list[bool] = []

    def listen(sock: socket.socket, port: int) -> None:
        message, where = sock.recvfrom(512)
        try:
            socket.create_connection(("127.0.0.1", port), 5).close()
        except OSError:
            came.append(False)
        else:
            came.append(True)
        sock.sendto(message[:2] + bytes((message[2] | 0x80,)) + message[3:], where)

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(20)
        port = free_port()
        thread = threading.Thread(target=listen, args=(sock, port))
        thread.start()
        serve(block(objects, f"transfer {{\n to 127.0.0.1:{sock.getsockname()[1]}\n }}"), port=port)
        thread.join(20)
    assert came == [True]


def test_dig_reads_the_zone(serve: Serve, objects: Path) -> None:
    server = serve(block(objects))
    words = ["dig", "@127.0.0.1", "-p", str(server.port), "axfr", "cluster.local"]
    text = subprocess.run(words, capture_output=True, text=True, timeout=90, check=True).stdout
    assert "XFR size" in text and "web.n1.svc.cluster.local. 30" in text


@programs.needs("knotd")
def test_knot_takes_the_zone_as_a_secondary(serve: Serve, objects: Path, tmp_path: Path) -> None:
    server = serve(block(objects))

    def words(port: int) -> list[str]:
        (tmp_path / "knot.conf").write_text(
            f"server:\n  listen: 127.0.0.1@{port}\n  rundir: {tmp_path}\ndatabase:\n  storage: {tmp_path}/db\n"
            f"remote:\n  - id: kdns\n    address: 127.0.0.1@{server.port}\ntemplate:\n  - id: default\n"
            f"    storage: {tmp_path}\nzone:\n  - domain: cluster.local\n    master: kdns\n"
        )
        return ["knotd", "-c", str(tmp_path / "knot.conf")]

    with programs.running(tmp_path / "knot", words) as program:

        def asked() -> bool:
            query = dns.message.make_query("web.n1.svc.cluster.local.", "A")
            try:
                return data(dns.query.udp(query, "127.0.0.1", port=program.port, timeout=1)) == ["10.0.0.1"]
            except (OSError, dns.exception.Timeout):
                return False

        program.until(asked)


@pytest.mark.parametrize(("options", "expected"), [
    ("transfer", "needs `to`"), ("transfer {\n to\n }", "expected * or addresses"),
    ("transfer {\n to 10.0.0.0/8\n }", "expected an IP address"),
    ("transfer {\n to ns.example.org\n }", "expected an IP address"),
    ("transfer {\n to *\n what\n }", "unknown property"),
    ("transfer {\n to 127.0.0.1:99999\n }", "is not a port"),
    ("transfer {\n to *\n source x\n }", "expected an IP address"),
])  # fmt: skip
def test_bad_transfers_are_named(serve: Serve, objects: Path, options: str, expected: str) -> None:
    with pytest.raises(CorefileError, match=r"Corefile:\d+:\d+") as caught:
        serve(block(objects, options))
    assert expected in str(caught.value)
