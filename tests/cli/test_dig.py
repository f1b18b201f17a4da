"""The sample cluster as a person meets it: `dig` against `kdns demo`."""

import shutil
import signal
import subprocess
from collections.abc import Iterator

import pytest

from kdns.testing import free_port
from tests.cli.test_commands import Process

pytestmark = pytest.mark.skipif(shutil.which("dig") is None, reason="dig is not installed (bind9-dnsutils)")


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    import kdns.cli.demo as demo

    number = free_port()
    text = (
        demo.corefile()
        .replace(":8080", f":{free_port()}")
        .replace(":8181", f":{free_port()}")
        .replace(":9153", f":{free_port()}")
    )
    text = (
        text.replace("bind 127.0.0.1", "bind 127.0.0.1 ::1")
        .replace(".:1053", f".:{number}")
        .replace("/etc/resolv.conf", "127.0.0.1:9")
    )
    process = Process("-conf", "stdin", stdin=text)
    process.until("linux/")
    yield number
    assert process.end(signal.SIGINT) == 0


def dig(port: int, *words: str) -> str:
    done = subprocess.run(
        ["dig", "@::1" if "-6" in words else "@127.0.0.1", "-p", str(port), *words],
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    return done.stdout


@pytest.mark.parametrize("way", ["+notcp", "+tcp", "-6"])
@pytest.mark.parametrize(("words", "expected"), [
    ("web.shop.svc.cluster.local", ["10.96.1.5"]),
    ("web.shop.svc.cluster.local AAAA", ["fd00:10:96::15"]),
    ("kubernetes.default.svc.cluster.local", ["10.96.0.1"]),
    ("_http._tcp.web.shop.svc.cluster.local SRV", ["0 50 80 web.shop.svc.cluster.local."]),
    ("_pg._tcp.db.data.svc.cluster.local SRV", [
        "0 33 5432 10-244-2-31.db.data.svc.cluster.local.", "0 33 5432 db-0.db.data.svc.cluster.local.",
        "0 33 5432 db-1.db.data.svc.cluster.local.",
    ]),
    ("db.data.svc.cluster.local", ["10.244.1.31", "10.244.2.31", "10.244.3.31"]),
    ("db-1.db.data.svc.cluster.local", ["10.244.3.31"]),
    ("db-2.db.data.svc.cluster.local", []),
    ("peers.data.svc.cluster.local", ["10.244.1.41", "10.244.2.41"]),
    ("queue.data.svc.cluster.local AAAA", ["fd00:10:244:1::33"]),
    ("starting.data.svc.cluster.local", []),
    ("edge.shop.svc.cluster.local", ["10.96.1.7"]),
    ("admin.shop.svc.cluster.local", ["10.96.1.6"]),
    ("idle.shop.svc.cluster.local", ["10.96.1.8"]),
    ("portless.shop.svc.cluster.local", ["10.244.1.20"]),
    ("shelf.shop.svc.cluster.local", [
        "10.244.1.31", "10.244.2.31", "10.244.3.31", "db.data.svc.cluster.local.", "store.shop.svc.cluster.local.",
    ]),
    ("payments.shop.svc.cluster.local CNAME", ["api.payments.example.com."]),
    ("10-244-1-10.shop.pod.cluster.local", ["10.244.1.10"]),
    ("dns-version.cluster.local TXT", ['"1.1.0"']),
    ("-x 10.96.1.5", ["web.shop.svc.cluster.local."]),
    ("-x 10.244.1.31", ["db-0.db.data.svc.cluster.local."]),
    ("-x fd00:10:96::15", ["web.shop.svc.cluster.local."]),
])  # fmt: skip
def test_dig_gets_what_the_sample_holds(port: int, words: str, expected: list[str], way: str) -> None:
    found = dig(port, *words.split(), way, "+short").splitlines()
    assert sorted(found) == expected


def test_dig_shows_an_authoritative_answer(port: int) -> None:
    text = dig(port, "web.shop.svc.cluster.local")
    assert "status: NOERROR" in text and "flags: qr aa rd;" in text and "EDNS: version: 0, flags:; udp: 1232" in text


def test_dig_of_a_name_that_does_not_exist_shows_the_soa(port: int) -> None:
    text = dig(port, "nothing.shop.svc.cluster.local")
    assert "status: NXDOMAIN" in text and "ns.dns.cluster.local. hostmaster.cluster.local." in text


def test_a_dead_upstream_is_servfail_and_cluster_names_go_on(port: int) -> None:
    assert "status: SERVFAIL" in dig(port, "www.example.org", "+tries=1", "+timeout=8")
    assert dig(port, "web.shop.svc.cluster.local", "+short").strip() == "10.96.1.5"


def test_an_unknown_edns_version_is_badvers(port: int) -> None:
    assert "status: BADVERS" in dig(port, "web.shop.svc.cluster.local", "+edns=1", "+noednsneg")


def test_chaos_class_is_not_answered_as_if_it_were_internet(port: int) -> None:
    assert "status: NOERROR" not in dig(port, "web.shop.svc.cluster.local", "CH", "TXT", "+tries=1", "+timeout=8")
