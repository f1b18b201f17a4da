"""DNS over HTTPS (RFC 8484) and over gRPC: the listeners, real clients, and clients that mean it badly."""

import asyncio
import base64
import contextlib
import http.client
import json
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate, parsedate_to_datetime
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import dns.edns
import dns.message
import dns.rrset
import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, DataReceived, ResponseReceived, StreamEnded, StreamReset, TrailersReceived
from hypothesis import given
from hypothesis import strategies as st

from kdns.corefile import CorefileError
from kdns.dns import grpc
from kdns.dns.freshness import lifetime
from kdns.metrics import REGISTRY
from kdns.net import http2_frames, web_connection
from kdns.net.http_date import date
from kdns.net.web_connection import forwarded
from kdns.server import build
from kdns.testing import Server, Upstream, answer, data, eventually
from tests.fixtures import Serve
from tests.securepeers import NAME, Site

MESSAGE = "application/dns-message"


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def query(name: str = "a.example.org.", rtype: str = "A", **options: Any) -> bytes:
    made = dns.message.make_query(name, rtype, **options)
    made.id = 0
    return made.to_wire()


class Client:
    """An HTTP/2 client on the library h2, with the certificate checked. Results are (status, fields, body,
    trailers).
    """

    def __init__(self, server: Server, context: ssl.SSLContext | None) -> None:
        raw = socket.create_connection(("127.0.0.1", server.port), timeout=10)
        self.sock: socket.socket = raw
        if context is not None:
            context.set_alpn_protocols(["h2"])
            self.sock = context.wrap_socket(raw, server_hostname=NAME)
        self.http = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self.http.initiate_connection()
        self.done: dict[int, list[Any]] = {}
        self.parts: dict[int, list[Any]] = {}
        self.ended: int | None = None
        self.send()
        while self.http.outbound_flow_control_window == 65_535 and self.ended is None:
            self.read()  # what the server allows

    def send(self, extra: bytes = b"") -> None:
        self.sock.sendall(self.http.data_to_send() + extra)

    def request(self, method: str, path: str, body: bytes = b"", **fields: str) -> int:
        stream = self.http.get_next_available_stream_id()
        head = [(":method", method), (":scheme", "https"), (":authority", NAME), (":path", path)]
        head += [(name.replace("_", "-"), value) for name, value in fields.items()]
        self.http.send_headers(stream, head, end_stream=not body)
        if body:
            window = min(self.http.local_flow_control_window(stream), len(body))
            for at in range(0, window, 16384):
                self.http.send_data(stream, body[at : min(at + 16384, window)], end_stream=at + 16384 >= len(body))
        self.send()
        return stream

    def result(self, stream: int) -> tuple[str, dict[str, str], bytes, dict[str, str]]:
        while stream not in self.done and self.ended is None:
            self.read()
        if stream not in self.done:
            raise ConnectionError(f"GOAWAY {self.ended}")
        status, fields, body, trailers = self.done[stream]
        return status, fields, body, trailers

    def read(self) -> None:
        got = self.sock.recv(65536)
        if not got:
            self.ended = self.ended if self.ended is not None else -1
            return
        for event in self.http.receive_data(got):
            part = self.parts.setdefault(getattr(event, "stream_id", 0) or 0, ["", {}, b"", {}])
            if isinstance(event, ResponseReceived):
                part[1] = dict(event.headers)
                part[0] = part[1][":status"]
            elif isinstance(event, DataReceived):
                part[2] += event.data
                self.http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, TrailersReceived):
                part[3] = dict(event.headers)
            elif isinstance(event, StreamEnded):
                self.done[event.stream_id] = part
            elif isinstance(event, StreamReset) and event.stream_id not in self.done:
                self.done[event.stream_id] = [f"reset {event.error_code:d}", {}, b"", {}]
            elif isinstance(event, ConnectionTerminated):
                self.ended = int(event.error_code)
        with contextlib.suppress(OSError):
            self.send()

    def post(self, message: bytes, **fields: str) -> tuple[str, dict[str, str], bytes, dict[str, str]]:
        return self.result(self.request("POST", "/dns-query", message, content_type=MESSAGE, **fields))


@contextlib.contextmanager
def client(server: Server, site: Site | None) -> Iterator[Client]:
    made = Client(server, site.client() if site is not None else None)
    try:
        yield made
    finally:
        made.sock.close()


def http1(server: Server, site: Site | None) -> http.client.HTTPConnection:
    if site is None:
        return http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    context = site.client(check_hostname=False)
    return http.client.HTTPSConnection("127.0.0.1", server.port, context=context, timeout=10)


def says(server: Server) -> dict[str, float]:
    label = f"https://127.0.0.1:{server.port}"
    return {
        key[1]: slot[0] for key, slot in REGISTRY["coredns_dns_https_responses_total"].slots.items() if key[0] == label
    }


# Answers.


def test_posts_and_gets_are_answered_over_http2_and_http1(serve: Serve, site: Site) -> None:
    server = serve(site.block(scheme="https"))
    with client(server, site) as http:
        status, fields, body, _ = http.post(query())
        assert status == "200" and data(dns.message.from_wire(body)) == ["192.0.2.1"]
        assert fields["content-type"] == MESSAGE and fields["cache-control"] == "max-age=3600"
        encoded = base64.urlsafe_b64encode(query()).decode().rstrip("=")
        for path in (f"/dns-query?dns={encoded}", f"/dns-query?x=1&dns={encoded}&y"):
            status, _, body, _ = http.result(http.request("GET", path))
            assert status == "200" and data(dns.message.from_wire(body)) == ["192.0.2.1"]
    connection = http1(server, site)
    for method, path, sent in (("GET", f"/dns-query?dns={encoded}", None), ("POST", "/dns-query", query())):
        connection.request(method, path, body=sent, headers={"Content-Type": MESSAGE} if sent else {})
        response = connection.getresponse()
        assert response.status == 200 and response.getheader("Cache-Control") == "max-age=3600"
        assert data(dns.message.from_wire(response.read())) == ["192.0.2.1"]
    connection.close()


def said(command: list[str], expected: str) -> str:
    """What a command says until it says what is expected: curl would then try to connect to the address."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        late = threading.Timer(90, process.kill)
        late.start()
        assert process.stdout is not None
        out = ""
        for line in process.stdout:
            out += line
            if expected in line:
                break
        late.cancel()
        process.kill()
    return out


def test_kdig_dig_curl_and_nghttp_ask_over_https(serve: Serve, site: Site) -> None:
    server = serve(site.block(scheme="https"))
    port, ca = str(server.port), str(site.authority.path)
    encoded = base64.urlsafe_b64encode(query()).decode().rstrip("=")
    url = f"https://127.0.0.1:{port}/dns-query"
    commands = [
        (["kdig", "@127.0.0.1", "-p", port, f"+tls-ca={ca}", f"+tls-hostname={NAME}", "+https", "a.example.org"],
            "192.0.2.1"),
        (["kdig", "@127.0.0.1", "-p", port, f"+tls-ca={ca}", f"+tls-hostname={NAME}", "+https-get", "a.example.org"],
            "192.0.2.1"),
        (["dig", "@127.0.0.1", "-p", port, "+https", "a.example.org"], "192.0.2.1"),
        (["curl", "-sv", "--doh-insecure", "--doh-url", url, f"https://a.example.org:{port}/"], "DoH A: 192.0.2.1"),
        (["nghttp", "-nv", f"{url}?dns={encoded}"], ":status: 200"),
    ]  # fmt: skip
    ran = 0
    for command, expected in commands:
        if shutil.which(command[0]) is not None:
            assert expected in said(command, expected), command
            ran += 1
    if not ran:
        pytest.skip("no client is installed")


@pytest.mark.parametrize(("method", "path", "fields", "body", "status"), [
    ("GET", "/", {}, b"", 404), ("GET", "/dns-query/x", {}, b"", 404), ("POST", "/metrics", {}, b"x", 404),
    ("PUT", "/dns-query", {"content_type": MESSAGE}, query(), 405), ("HEAD", "/dns-query", {}, b"", 405),
    ("POST", "/dns-query", {}, query(), 415), ("POST", "/dns-query", {"content_type": "text/plain"}, query(), 415),
    ("POST", "/dns-query", {"content_type": MESSAGE}, b"x", 400),
    ("POST", "/dns-query", {"content_type": MESSAGE}, b"", 400),
    ("POST", "/dns-query", {"content_type": MESSAGE}, b"\0\0\x80" + query()[3:], 400),
    ("POST", "/dns-query", {"content_type": MESSAGE}, bytes(70_000), 413),
    ("GET", "/dns-query", {}, b"", 400), ("GET", "/dns-query?dns=", {}, b"", 400),
    ("GET", "/dns-query?dns=%%", {}, b"", 400),
    ("GET", "/dns-query?dns=AAAA&dns=AAAA", {}, b"", 400), ("GET", "/dns-query?dns=AAA+", {}, b"", 400),
])  # fmt: skip
def test_what_is_no_query_gets_its_status_over_both_versions(
    serve: Serve, site: Site, method: str, path: str, fields: dict[str, str], body: bytes, status: int
) -> None:
    server = serve(site.block(scheme="https"))
    with client(server, site) as http:
        got = http.result(http.request(method, path, body, **fields))
        assert got[0] == str(status) and (status != 405 or got[1]["allow"] == "GET, POST")
        assert http.post(query())[0] == "200"
    connection = http1(server, site)
    with contextlib.suppress(ConnectionError):
        connection.request(method, path, body=body or None, headers={k.replace("_", "-"): v for k, v in fields.items()})
    assert connection.getresponse().status == status
    connection.close()
    assert says(server)[str(status)] == 2


def test_freshness_is_that_of_the_shortest_lived_record_and_of_a_denial_that_of_its_soa(
    serve: Serve, site: Site, upstream: Any
) -> None:
    def script(asked: dns.message.Message, proto: str) -> dns.message.Message:
        reply = answer(asked, "A 192.0.2.1", ttl=300)
        reply.answer += answer(asked, "A 192.0.2.2", ttl=300).answer
        return reply

    up: Upstream = upstream(script)
    server = serve(site.block(scheme="https").replace("whoami", f"forward . {up.address}"))
    with client(server, site) as http:
        assert http.post(query("x.example."))[1]["cache-control"] == "max-age=300"
    made = dns.message.from_text(
        "id 0\nopcode QUERY\nrcode NXDOMAIN\nflags QR\n;QUESTION\nx.org. IN A\n;AUTHORITY\norg. 900 IN SOA a. b. 1 2 3 "
        "4 60\n"
    )
    assert lifetime(made.to_wire()) == 60
    made.set_rcode(2)
    assert lifetime(made.to_wire()) == 0
    assert lifetime(dns.message.make_response(dns.message.make_query("x.org", "A")).to_wire()) == 0


def test_answers_over_http_did_not_say_when_they_were_made(serve: Serve, site: Site) -> None:
    """RFC 9110, section 6.6.1: a server with a clock must, in each answer of 2xx and 4xx."""
    server = serve(site.block(tls="minimal", scheme="https"))
    found = []
    with client(server, None) as http:
        found += [http.post(query())[1]["date"], http.result(http.request("GET", "/nowhere"))[1]["date"]]
    for sent in (b"GET /nowhere HTTP/1.1\r\n" + LAST + b"\r\n", b"GET / HTTP/1.1\r\n\r\n"):
        found += [head.partition(b"date: ")[2].split(b"\r")[0].decode() for _, head, _ in exchanged(server, sent)]
    assert len(found) == 4
    assert all(abs(parsedate_to_datetime(each).timestamp() - time.time()) < 60 for each in found)


@given(st.floats(0, 2**33))
def test_a_date_is_written_as_http_has_it(now: float) -> None:
    assert date(now).decode() == date(now).decode() == formatdate(int(now), usegmt=True)


def test_a_quick_answer_overtakes_a_slow_one_and_a_reset_one_ends_alone(
    serve: Serve, site: Site, upstream: Any
) -> None:
    up: Upstream = upstream(lambda asked, proto: None)
    server = serve(site.block(scheme="https").replace("whoami", f"forward . {up.address} {{\n max_fails 0\n }}"))
    with client(server, site) as http:
        slow = http.request("POST", "/dns-query", query("slow.example."), content_type=MESSAGE)
        assert http.post(query())[0] == "200" and slow not in http.done
        http.http.reset_stream(slow)
        http.send()
        assert http.post(query())[0] == "200"


def test_a_query_that_is_dropped_is_no_response(serve: Serve, site: Site) -> None:
    server = serve(site.block("acl {", "  drop", "}", scheme="https"))
    with client(server, site) as http:
        assert http.post(query())[0] == "500"


def test_a_zone_transfer_over_https_is_not_implemented(serve: Serve, site: Site, tmp_path: Path) -> None:
    text = site.block("transfer {", "  to *", "}", scheme="https").replace(
        "whoami", "kubernetes cluster.local {\n  manifests c.yaml\n }\n whoami"
    )
    (tmp_path / "c.yaml").write_text("")
    server = serve(text.replace("manifests c.yaml", f"manifests {tmp_path}/c.yaml"))
    with client(server, site) as http:
        status, _, body, _ = http.post(query("cluster.local.", "AXFR"))
        assert status == "200" and dns.message.from_wire(body).rcode() in (4, 5)


def test_a_large_answer_waits_for_the_clients_window(serve: Serve, site: Site) -> None:
    records = "".join(f"  10.{i >> 8}.{i & 255}.1 big.example.org\n" for i in range(3000))
    server = serve(site.block(scheme="https").replace("192.0.2.1", records.strip() + "\n  192.0.2.1", 1))
    with client(server, site) as http:
        for _ in range(5):
            status, fields, body, _ = http.post(query("big.example.org."))
            assert status == "200" and len(body) == int(fields["content-length"]) > 40_000


def test_without_tls_a_proxy_in_front_may_speak_either_version_and_names_its_clients(serve: Serve, site: Site) -> None:
    more = ("https {", "  trusted_proxies 127.0.0.0/8 2001:db8::/32", "}")
    server = serve(site.block(*more, tls="minimal", scheme="https"))

    def seen(body: bytes) -> list[str]:
        found = dns.message.from_wire(body).additional
        return [str(record) for rrset in found for record in rrset if rrset.rdtype in (1, 28)]

    asked = query("who.example.")
    with client(server, None) as http:
        assert seen(http.post(asked)[2]) == ["127.0.0.1"]
        assert seen(http.post(asked, x_forwarded_for="192.0.2.9")[2]) == ["192.0.2.9"]
        assert seen(http.post(asked, x_forwarded_for="198.51.100.1, 2001:db9::7, 127.0.0.9")[2]) == ["2001:db9::7"]
    connection = http1(server, None)
    for _ in range(3):
        connection.request(
            "POST", "/dns-query", body=asked, headers={"Content-Type": MESSAGE, "X-Forwarded-For": "192.0.2.9"}
        )
        assert seen(connection.getresponse().read()) == ["192.0.2.9"]
    connection.close()


def test_of_several_fields_of_proxies_one_was_looked_at_over_http2(serve: Serve, site: Site) -> None:
    """Each proxy may add one of its own (haproxy does): the client was then the first proxy."""
    server = serve(site.block("https {", "  trusted_proxies 127.0.0.0/8", "}", tls="minimal", scheme="https"))
    for said in (["192.0.2.9", "127.0.0.9"], ["198.51.100.1", "192.0.2.9, 127.0.0.8", "127.0.0.9"]):
        with client(server, None) as http:
            stream = http.http.get_next_available_stream_id()
            target = "/dns-query?dns=" + base64.urlsafe_b64encode(query("who.example.")).rstrip(b"=").decode()
            head = [(":method", "GET"), (":scheme", "https"), (":authority", NAME), (":path", target)]
            http.http.send_headers(stream, [*head, *(("x-forwarded-for", each) for each in said)], end_stream=True)
            http.send()
            found = dns.message.from_wire(http.result(stream)[2]).additional
        assert "192.0.2.9" in [str(record) for rrset in found for record in rrset]


def test_whom_nobody_trusts_names_nobody() -> None:
    import ipaddress

    trusted = [ipaddress.ip_network("10.0.0.0/8")]
    assert forwarded(b"192.0.2.1", ("192.0.2.7", 5), trusted) == ("192.0.2.7", 5)
    assert forwarded(b"192.0.2.1, nonsense", ("10.0.0.1", 5), trusted) == ("10.0.0.1", 5)
    assert forwarded(b"192.0.2.1, 192.0.2.2, 10.0.0.2", ("10.0.0.1", 5), trusted) == ("192.0.2.2", 0)


def test_a_client_was_the_proxy_where_its_address_came_with_a_port_or_in_ipv6_form() -> None:
    """Some proxies write the port too (Azure's Application Gateway), some an IPv4 address as `::ffff:192.0.2.1`."""
    import ipaddress

    trusted = [ipaddress.ip_network("10.0.0.0/8")]
    peer = ("10.0.0.1", 5)
    for said in (b"192.0.2.1:4711", b"::ffff:192.0.2.1", b"[::ffff:192.0.2.1]:4711", b"192.0.2.1, ::ffff:10.0.0.2"):
        assert forwarded(said, peer, trusted) == ("192.0.2.1", 0)
    for said in (b"2001:db8::1", b"[2001:db8::1]", b"[2001:db8::1]:4711", b"2001:DB8::1%eth0"):
        assert forwarded(said, peer, trusted) == ("2001:db8::1", 0, 0, 0)
    for said in (b"unknown", b"_hidden:1", b"[", b"1.2.3", b"1.2.3.4:5:6", b""):
        assert forwarded(said, peer, trusted) == peer


# HTTP/1.1.


@pytest.mark.parametrize(("sent", "status"), [
    (b"GET /dns-query HTTP/2.5\r\n\r\n", b"505"), (b"nonsense\r\n\r\n", b"400"),
    (b"GET / HTTP/1.1\r\nHost: x\r\nA : b\r\n\r\n", b"400"), (b"GET / HTTP/1.1\r\nA: b\r\n\r\n", b"400"),
    (b"POST /dns-query HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", b"501"),
    (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n", b"400"),
    (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", b"400"),
    (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", b"400"),
    (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n", b"400"),
    (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1" * 300, b"400"),
    (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: " + b"x" * 17_000, b"431"),
    (b"POST / HTTP/1.1\r\nHost: x\r\nExpect: a miracle\r\nContent-Length: 5\r\n\r\n", b"417"),
    (b"POST /dns-query HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", b"400"),
    (b"POST /dns-query HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", b"400"),
    (b"GET / HTTP/1.1\r\nA: " + b"x" * 17_000, b"431"),
    (b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n", b"400"), (b"GET / HTTP/1.0\r\n\r\n", b"404"),
])  # fmt: skip
def test_a_head_that_could_be_two_things_ends_the_connection(
    serve: Serve, site: Site, sent: bytes, status: bytes
) -> None:
    server = serve(site.block(tls="minimal", scheme="https"))
    with server.connect() as sock:
        sock.sendall(sent)
        got = b"".join(iter(lambda: sock.recv(4096), b""))
        assert got.split(b" ")[1] == status


def test_pipelined_requests_are_answered_in_order_also_where_they_wait(serve: Serve, site: Site, upstream: Any) -> None:
    up: Upstream = upstream(lambda asked, proto: answer(asked, "A 192.0.2.8"))
    server = serve(site.block(tls="minimal", scheme="https").replace("whoami", f"forward . {up.address}"))
    names = [f"x{i}.example." if i % 3 else "a.example.org." for i in range(60)]
    with server.connect(10) as sock:
        for name in names:
            body = query(name)
            sock.sendall(
                b"POST /dns-query HTTP/1.1\r\nHost: x\r\nContent-Type: application/dns-message\r\n"
                b"Content-Length: %d\r\n\r\n" % len(body)
            )
            sock.sendall(body)
        file = sock.makefile("rb")
        for name in names:
            head = b"".join(iter(file.readline, b"\r\n")).lower()
            size = int(head.partition(b"content-length: ")[2].split()[0])
            assert str(dns.message.from_wire(file.read(size)).question[0].name) == name


def exchanged(server: Server, sent: bytes) -> list[tuple[bytes, bytes, bytes]]:
    """The status, head and body of each answer to what is sent, until the server closes."""
    with server.connect() as sock:
        sock.sendall(sent)
        got = b"".join(iter(lambda: sock.recv(65536), b""))
    out = []
    while got:
        head, _, got = got.partition(b"\r\n\r\n")
        head = head.lower()
        size = int(found.split(b"\r\n")[0]) if (found := head.partition(b"content-length: ")[2]) else 0
        out.append((head.split(b" ")[1], head, got[:size]))
        got = got[size:]
    return out


LAST = b"Host: x\r\nConnection: keep-alive, close\r\n"


def test_a_request_that_named_its_whole_url_was_not_found(serve: Serve, site: Site) -> None:
    """RFC 9112, section 3.2.2: a server accepts the absolute form."""
    server = serve(site.block(tls="minimal", scheme="https"))
    encoded = base64.urlsafe_b64encode(query()).rstrip(b"=")
    for where, status in (
        (b"http://dns.example", b"200"), (b"HTTPS://dns.example:8443", b"200"), (b"http://[::1]:80", b"200"),
        (b"ftp://dns.example", b"404"), (b"http://", b"404"), (b"dns.example", b"404"),
    ):  # fmt: skip
        ((got, _, body),) = exchanged(server, b"GET %s/dns-query?dns=%s HTTP/1.1\r\n%s\r\n" % (where, encoded, LAST))
        assert got == status, where
        if status == b"200":
            assert data(dns.message.from_wire(body)) == ["192.0.2.1"]
    assert exchanged(server, b"GET http://dns.example?dns=%s HTTP/1.1\r\n%s\r\n" % (encoded, LAST))[0][0] == b"404"


def chunked(body: bytes, size: int) -> bytes:
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%X;x=y\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\nA: b\r\n\r\n"


def test_a_body_in_chunks_was_refused(serve: Serve, site: Site) -> None:
    """RFC 9112, section 7.1: a recipient reads the chunked coding."""
    server = serve(site.block(tls="minimal", scheme="https"))
    kind = b"Content-Type: application/dns-message\r\nTransfer-Encoding: chunked\r\n"
    head = b"POST /dns-query HTTP/1.1\r\nHost: x\r\n" + kind
    last = b"POST /dns-query HTTP/1.1\r\n" + LAST + kind
    sent = b"".join(head + b"\r\n" + chunked(query(), size) for size in (1, 7, 1000))
    answers = exchanged(server, sent + last + b"\r\n" + chunked(query(), 5))
    assert [status for status, _, _ in answers] == [b"200"] * 4
    assert all(data(dns.message.from_wire(body)) == ["192.0.2.1"] for _, _, body in answers)
    connection = http1(server, None)
    connection.request("POST", "/dns-query", iter([query()]), {"Content-Type": MESSAGE}, encode_chunked=True)
    assert data(dns.message.from_wire(connection.getresponse().read())) == ["192.0.2.1"]
    connection.request("POST", "/dns-query", iter([bytes(40_000)] * 2), {"Content-Type": MESSAGE}, encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()


def test_a_request_behind_an_empty_line_was_refused(serve: Serve, site: Site) -> None:
    """RFC 9112, section 2.2: old clients send one behind the body of a POST."""
    server = serve(site.block(tls="minimal", scheme="https"))
    body = query("a.example.org.")
    head = b"POST /dns-query HTTP/1.1\r\nContent-Type: application/dns-message\r\nContent-Length: %d\r\n" % len(body)
    sent = head + b"Host: x\r\n\r\n" + body + b"\r\n" + head + LAST + b"\r\n" + body
    assert [(status, len(got)) for status, _, got in exchanged(server, b"\r\n" + sent)] == [(b"200", 47)] * 2
    assert [status for status, _, _ in exchanged(server, b"\r\n\r\n" + sent)] == [b"400"]


def test_who_waits_for_a_word_before_the_body_is_told_to_go_on(serve: Serve, site: Site) -> None:
    """RFC 9110, section 10.1.1: clients that sent `Expect: 100-continue` waited for a second or for ever."""
    server = serve(site.block(tls="minimal", scheme="https"))
    head = b"POST /dns-query HTTP/1.1\r\nHost: x\r\nContent-Type: application/dns-message\r\nExpect: 100-Continue\r\n"
    with server.connect() as sock:
        for body, line in ((query(), b"Content-Length: %d\r\n" % len(query())), (chunked(query(), 9), b"")):
            sock.sendall(head + (line or b"Transfer-Encoding: chunked\r\n") + b"\r\n")
            assert sock.recv(4096) == b"HTTP/1.1 100 Continue\r\n\r\n"
            sock.sendall(body)
            assert sock.recv(4096).startswith(b"HTTP/1.1 200 OK\r\n")
        sock.sendall(head + b"Content-Length: 70000\r\n\r\n")
        assert b"".join(iter(lambda: sock.recv(4096), b"")).startswith(b"HTTP/1.1 413 ")


def test_other_methods_get_no_body_and_are_told_which_there_are(serve: Serve, site: Site) -> None:
    server = serve(site.block(tls="minimal", scheme="https"))
    for line in (b"HEAD /dns-query", b"OPTIONS /dns-query", b"OPTIONS *", b"DELETE /dns-query"):
        ((status, head, body),) = exchanged(server, line + b" HTTP/1.1\r\n" + LAST + b"\r\n")
        assert status == b"405" and b"allow: get, post" in head and b"connection: close" in head and not body


# JSON, and where else the same is served.

JSON = ' https {\n json\n alt_svc "h3=\\":443\\"; ma=86400"\n }\n'


def with_json(site: Site, **options: str) -> str:
    return site.block(scheme="https", **options).replace("whoami", f"{JSON} whoami")


def test_queries_in_a_url_are_answered_in_json_over_both_versions(serve: Serve, site: Site) -> None:
    server = serve(with_json(site))
    expected = {
        "Status": 0, "TC": False, "RD": True, "RA": False, "AD": False, "CD": True,
        "Question": [{"name": "a.example.org.", "type": 1}],
        "Answer": [{"name": "a.example.org.", "type": 1, "TTL": 3600, "data": "192.0.2.1"}],
    }  # fmt: skip
    with client(server, site) as http:
        status, fields, body, _ = http.result(http.request("GET", "/resolve?name=A.example.org&cd=1&x=y"))
        assert status == "200" and json.loads(body.replace(b"A.ex", b"a.ex")) == expected and b"A.ex" in body
        assert fields["content-type"] == "application/json" and fields["cache-control"] == "max-age=3600"
        assert fields["alt-svc"] == 'h3=":443"; ma=86400'
        assert http.post(query())[1]["alt-svc"] == 'h3=":443"; ma=86400'
        for path, accept in (
            ("/dns-query?type=1&name=a.example.org.", "text/html, application/dns-json"),
            ("/dns-query?ct=application/dns-json&name=a.example.org", "*/*"),
        ):
            status, fields, body, _ = http.result(http.request("GET", path, accept=accept))
            assert status == "200" and json.loads(body)["Answer"] == expected["Answer"]
            assert fields["content-type"] == "application/dns-json"
    connection = http1(server, site)
    connection.request("GET", "/resolve?name=a.example.org&type=a&do=true&edns_client_subnet=192.0.2.7")
    response = connection.getresponse()
    assert json.loads(response.read())["Answer"] == expected["Answer"]
    assert response.getheader("Alt-Svc") == 'h3=":443"; ma=86400'
    connection.close()


@pytest.mark.parametrize(("parameters", "said"), [
    ("", "name is missing"), ("name=", "name is missing"), ("name=a&name=b", "twice"), ("name=a..b", "empty label"),
    ("name=" + "x" * 64, "label of 64"), ("name=%C3%A4.example", "Punycode"), ("name=a&type=0", "type is neither"),
    ("name=a&type=NONSENSE", "type is neither"), ("name=a&type=65536", "type is neither"), ("name=a&do=2", "do is not"),
    ("name=a&cd=yes", "cd is not"), ("name=a&edns_client_subnet=x", "not an address"),
    ("name=a&edns_client_subnet=1.2.3.4/33", "not an address"), ("&".join(["a=b"] * 30), "fields"),
])  # fmt: skip
def test_what_is_no_query_in_a_url_gets_400_and_the_reason(
    serve: Serve, site: Site, parameters: str, said: str
) -> None:
    server = serve(with_json(site, tls="minimal"))
    connection = http1(server, None)
    connection.request("GET", "/resolve?" + parameters)
    response = connection.getresponse()
    assert response.status == 400 and said in json.loads(response.read())["error"]
    connection.request("POST", "/resolve?name=a", b"x")
    response = connection.getresponse()
    assert response.status == 405 and response.getheader("Allow") == "GET" and not response.read()
    connection.close()


def test_without_the_option_nothing_is_answered_in_json(serve: Serve, site: Site) -> None:
    server = serve(site.block(tls="minimal", scheme="https"))
    connection = http1(server, None)
    for path, status in (("/resolve?name=a.example.org", 404), ("/dns-query?name=a.example.org", 400)):
        connection.request("GET", path, headers={"Accept": "application/dns-json"})
        response = connection.getresponse()
        assert response.status == status and not response.read() and response.getheader("Alt-Svc") is None
    connection.close()


def test_a_denial_and_its_extended_error_are_in_the_object(serve: Serve, site: Site, upstream: Any) -> None:
    def script(asked: dns.message.Message, proto: str) -> dns.message.Message:
        reply = dns.message.make_response(asked)
        reply.set_rcode(3)
        soa = "ns.org. admin.org. 1 2 3 4 60"
        reply.authority.append(dns.rrset.from_text("org.", 900, "IN", "SOA", soa))
        reply.use_edns(0, options=[dns.edns.EDEOption(15, "on a list")])
        return reply

    up: Upstream = upstream(script)
    server = serve(with_json(site, tls="minimal").replace("whoami", f"forward . {up.address}"))
    connection = http1(server, None)
    connection.request("GET", "/resolve?name=x.org&type=HTTPS")
    got = json.loads(connection.getresponse().read())
    assert got["Status"] == 3 and "Answer" not in got and got["Comment"] == "EDE 15: on a list"
    assert got["Authority"] == [{"name": "org.", "type": 6, "TTL": 900, "data": "ns.org. admin.org. 1 2 3 4 60"}]
    connection.close()


def test_a_large_answer_in_json_is_made_while_others_are_served(serve: Serve, site: Site, upstream: Any) -> None:
    # Made ahead: the upstream runs in this process, and must not keep the server waiting for its reply.
    addresses = dns.rrset.from_text("x.org.", 60, "IN", "A", *(f"10.0.{i >> 8}.{i & 255}" for i in range(3000)))

    def script(asked: dns.message.Message, proto: str) -> dns.message.Message:
        reply = dns.message.make_response(asked)
        reply.answer.append(addresses)
        return reply

    up: Upstream = upstream(script)
    server = serve(with_json(site, tls="minimal").replace("whoami", f"forward . {up.address} {{\n force_tcp\n }}"))
    held: list[float] = []

    async def watch() -> None:
        while True:
            began = asyncio.get_running_loop().time()
            await asyncio.sleep(0)
            held.append(asyncio.get_running_loop().time() - began)

    watching = asyncio.run_coroutine_threadsafe(watch(), server.thread.loop)
    connection = http1(server, None)
    connection.request("GET", "/resolve?name=x.org")
    got = json.loads(connection.getresponse().read())
    watching.cancel()
    assert len({each["data"] for each in got["Answer"]}) == 3000
    # In many slices: 3000 records take some 30 ms.
    assert sum(each > 0.0005 for each in held) > 5
    connection.close()


def test_curl_and_aiohttp_read_the_json(serve: Serve, site: Site) -> None:
    server = serve(with_json(site, tls="minimal"))
    url = f"http://127.0.0.1:{server.port}/resolve?name=a.example.org"

    async def fetch() -> Any:
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            return await response.json()

    assert asyncio.run(fetch())["Answer"][0]["data"] == "192.0.2.1"
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    for version in ("--http1.1", "--http2-prior-knowledge"):
        out = subprocess.run(["curl", "-s", version, url], capture_output=True, text=True, timeout=90)
        assert json.loads(out.stdout)["Answer"][0]["data"] == "192.0.2.1"


@pytest.mark.parametrize(
    "line", ["alt_svc", "alt_svc h3", 'alt_svc "h3=443"', 'alt_svc "h3=\\":443\\"; ma"', "json on", "json {\n x\n }"]
)
def test_what_is_no_option_of_https_is_said(line: str) -> None:
    with pytest.raises(CorefileError, match=r"Corefile:[34]:"):
        build.build(build.read(f"https://.:1443 {{\n https {{\n  {line}\n }}\n whoami\n}}", "Corefile"))


# HTTP/2 under attack.


def settled(http: Client) -> int:
    """The code of the GOAWAY that a connection ends with."""
    with contextlib.suppress(ConnectionError):
        while http.ended is None:
            http.read()
    assert http.ended is not None
    return http.ended


def raw(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return http2_frames.frame(kind, flags, stream, payload)


FLOODS = {
    "pings": raw(6, 0, 0, bytes(8)) * 5000, "settings": raw(4, 0, 0) * 5000,
    "window updates": raw(8, 0, 0, b"\0\0\0\1") * 5000,
    "priorities": raw(2, 0, 1, bytes(5)) * 5000,
}  # fmt: skip


@pytest.mark.parametrize("kind", FLOODS)
def test_a_flood_of_frames_that_bring_no_work_is_told_to_calm_down(serve: Serve, site: Site, kind: str) -> None:
    server = serve(site.block(scheme="https"))
    with client(server, site) as http:
        with contextlib.suppress(OSError):
            http.sock.sendall(FLOODS[kind])
        assert settled(http) in (http2_frames.ENHANCE_YOUR_CALM, -1)
    with client(server, site) as http:
        assert http.post(query())[0] == "200"


def test_requests_that_are_reset_at_once_count_until_they_are_answered_and_are_stopped(
    serve: Serve, site: Site, upstream: Any
) -> None:
    up: Upstream = upstream(lambda asked, proto: None)
    server = serve(site.block(scheme="https").replace("whoami", f"forward . {up.address} {{\n max_fails 0\n }}"))
    (listener,) = next(iter(server.server.listeners.values())).tcp
    with client(server, site) as http:
        with contextlib.suppress(OSError, ConnectionError):
            for i in range(2000):
                stream = http.request("POST", "/dns-query", query(f"s{i}.example."), content_type=MESSAGE)
                http.http.reset_stream(stream)
                http.send()
        assert settled(http) in (http2_frames.ENHANCE_YOUR_CALM, -1)
    assert len(up.queries) <= 300 * 4
    eventually(lambda: not listener.connections)


def test_more_streams_than_there_may_be_are_refused_and_the_others_answered(
    serve: Serve, site: Site, upstream: Any
) -> None:
    up: Upstream = upstream(lambda asked, proto: None)
    more = ("https {", "  max_streams 10", "}")
    server = serve(site.block(*more, scheme="https").replace("whoami", f"forward . {up.address} {{\n max_fails 0\n }}"))
    with client(server, site) as http:
        http.http.remote_settings.acknowledge()
        for i in range(9):
            http.request("POST", "/dns-query", query(f"s{i}.example."), content_type=MESSAGE)
        assert http.post(query())[0] == "200"


def test_a_header_block_without_an_end_and_one_that_is_too_large_end_the_connection(serve: Serve, site: Site) -> None:
    server = serve(site.block(scheme="https"))
    with client(server, site) as http:
        with contextlib.suppress(OSError):
            http.sock.sendall(raw(1, 0, 1, b"\x82") + raw(9, 0, 1, b"") * 5000)
        assert settled(http) in (http2_frames.ENHANCE_YOUR_CALM, -1)
    with client(server, site) as http:
        with contextlib.suppress(OSError):
            http.sock.sendall(raw(1, 0, 1, b"\x82") + raw(9, 0, 1, http2_frames.field(b"a", b"b" * 100) * 100) * 50)
        assert settled(http) in (http2_frames.ENHANCE_YOUR_CALM, -1)
    with client(server, site) as http:
        # One that is small and means much: a table's entry of 4,000 octets, again and again.
        entry = b"\x40\x01a\x7f\x81\x1e" + b"x" * 4000
        with contextlib.suppress(OSError):
            http.sock.sendall(raw(1, 4 | 1, 1, entry + b"\xbe" * 8000))
        assert settled(http) in (http2_frames.ENHANCE_YOUR_CALM, -1)


@pytest.mark.interpreted("it replaces what is compiled in")
@pytest.mark.parametrize("more", [b"\0\1a\x7f\x89\x26" + b"b" * 5000, b"\0\1a\1b" * 150], ids=["long", "many"])
def test_large_frames_were_read_four_at_a_time_before_the_clock_was_looked_at(
    serve: Serve, site: Site, monkeypatch: pytest.MonkeyPatch, more: bytes
) -> None:
    """To read fields that are long, or many, takes milliseconds, and everybody waited for four times that."""
    server = serve(site.block(tls="minimal", scheme="https"))
    handled = 0
    looks: list[int] = []

    def look() -> float:
        looks.append(handled)
        return time.monotonic()

    def count(*arguments: Any) -> Any:
        nonlocal handled
        handled += 1
        return handler(*arguments)

    monkeypatch.setattr(web_connection, "time", SimpleNamespace(monotonic=look))
    (listener,) = next(iter(server.server.listeners.values())).tcp
    handler = listener.handler
    monkeypatch.setattr(listener, "handler", count)
    path = b"/dns-query?dns=" + base64.urlsafe_b64encode(query()).rstrip(b"=")
    head = b"\x82\x87" + http2_frames.field(b":path", path) + more
    with server.connect(10) as sock:
        sock.sendall(http2_frames.PREFACE + raw(4, 0, 0) + b"".join(raw(1, 5, 2 * i + 1, head) for i in range(20)))
        eventually(lambda: handled == 20)
    assert max(after - before for before, after in pairwise(looks)) == 1


@pytest.mark.parametrize("sent", [
    b"x" * 40, raw(0, 0, 0, b"x"), raw(0, 0, 1, b"x"), raw(1, 4, 2, b"\x82"), raw(9, 4, 1, b"\x82"),
    raw(5, 4, 1, b"\x82"),
    raw(3, 0, 1, bytes(4)), raw(8, 0, 0, bytes(4)), raw(8, 0, 0, b"\x7f\xff\xff\xff"), raw(4, 0, 1), raw(4, 0, 0, b"x"),
    raw(6, 0, 0, b"x"), raw(1, 4 | 8, 1, b"\xff\x82"), raw(1, 4 | 0x20, 1, b"\x82"),
    raw(1, 4, 1, b"\xff\xff\xff\xff\xff\xff"),
    b"\xff\xff\xff\0\0\0\0\0\1", raw(1, 0, 1, b"\x82") + raw(6, 0, 0, bytes(8)),
    raw(4, 0, 0, b"\0\4\xff\xff\xff\xff"), raw(0, 8, 1, b""),
])  # fmt: skip
def test_what_breaks_the_protocol_ends_that_connection_with_a_reason(serve: Serve, site: Site, sent: bytes) -> None:
    server = serve(site.block(scheme="https"))
    with client(server, site) as other, client(server, site) as http:
        http.sock.sendall(sent)
        assert settled(http) > 0
        assert other.post(query())[0] == "200"


def test_bodies_that_do_not_end_are_bounded_by_the_window_and_the_time(serve: Serve, site: Site) -> None:
    server = serve(site.block("timeouts {", "  read 1s", "  idle 1s", "}", scheme="https"))
    (listener,) = next(iter(server.server.listeners.values())).tcp
    with client(server, site) as http:
        for _ in range(4):
            stream = http.http.get_next_available_stream_id()
            head = [(":method", "POST"), (":scheme", "https"), (":path", "/dns-query"), (":authority", NAME)]
            http.http.send_headers(stream, head)
            http.http.send_data(stream, bytes(10_000))
        http.send()
        eventually(lambda: not listener.connections)


def test_answers_that_nobody_takes_are_bounded(serve: Serve, site: Site) -> None:
    records = "".join(f"  10.{i >> 8}.{i & 255}.1 big.example.org\n" for i in range(3000))
    server = serve(site.block(scheme="https").replace("192.0.2.1", records.strip() + "\n  192.0.2.1", 1))
    with client(server, site) as http:
        http.http.update_settings({4: 0})  # a window of nothing
        http.send()
        for _ in range(20):
            with contextlib.suppress(OSError, ConnectionError):
                http.request("POST", "/dns-query", query("big.example.org."), content_type=MESSAGE)
        assert settled(http) in (http2_frames.ENHANCE_YOUR_CALM, -1)


def test_when_the_server_stops_a_client_is_told_to_go_elsewhere(serve: Serve, site: Site) -> None:
    server = serve(site.block(scheme="https"))
    with client(server, site) as http:
        assert http.post(query())[0] == "200"
        (listener,) = next(iter(server.server.listeners.values())).tcp
        server.thread.call(listener.stop_accepting)
        assert settled(http) == http2_frames.NO_ERROR


@pytest.mark.parametrize("scheme", ["https", "grpc"])
def test_a_reload_under_load_loses_no_request_and_keeps_the_connection(serve: Serve, site: Site, scheme: str) -> None:
    server = serve(site.block(scheme=scheme))
    over = threading.Event()
    failed: list[Any] = []
    done = [0]

    def ask() -> None:
        with client(server, site) as http:
            while not over.is_set():
                try:
                    if scheme == "grpc":
                        code, reply = call(http, grpc.packed(query()))
                    else:
                        code, _, reply, _ = http.post(query())
                    if code not in ("0", "200") or data(dns.message.from_wire(reply)) not in (
                        ["192.0.2.1"],
                        ["192.0.2.2"],
                    ):
                        failed.append((code, reply))
                    done[0] += 1
                except Exception as error:
                    failed.append(error)
                    return

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        for i in range(6):
            before = done[0]
            assert server.reload(site.block(scheme=scheme).replace("192.0.2.1", f"192.0.2.{1 + i % 2}"))
            eventually(lambda before=before: failed or done[0] > before + 5)
    finally:
        over.set()
        thread.join(10)
    assert not failed and done[0] > 30


# gRPC.


def call(http: Client, message: bytes, path: str = "/coredns.dns.DnsService/Query") -> tuple[str, bytes]:
    """The status of a call, and the DNS message it gave."""
    stream = http.request("POST", path, message, content_type="application/grpc", te="trailers")
    status, fields, body, trailers = http.result(stream)
    assert status == "200" and fields["content-type"] == "application/grpc"
    return (trailers or fields)["grpc-status"], grpc.unpacked(body) if body else b""


def test_a_query_over_grpc_is_answered(serve: Serve, site: Site) -> None:
    for tls in ("", "minimal"):
        server = serve(site.block(tls=tls, scheme="grpc"))
        with client(server, None if tls else site) as http:
            for _ in range(3):
                code, reply = call(http, grpc.packed(query()))
                assert code == "0" and data(dns.message.from_wire(reply)) == ["192.0.2.1"]


@pytest.mark.parametrize(("body", "code"), [
    (b"x", "3"), (b"\1\0\0\0\2\x0a\0", "12"), (b"\0\0\0\0\3\x0a\5x", "3"), (b"\0\0\0\0\2\x0a\0", "3"),
    (b"\0\0\0\0\1\x0b", "3"),
    (grpc.packed(b"\0\0\x80" + query()[3:]), "3"), (grpc.packed(bytes(65_600)), "8"),
    (b"\0\0\0\0\6" + b"\xff" * 6, "3"),
])  # fmt: skip
def test_what_is_no_query_over_grpc_is_an_outcome(serve: Serve, site: Site, body: bytes, code: str) -> None:
    server = serve(site.block(scheme="grpc"))
    with client(server, site) as http:
        assert call(http, body)[0] == code
        assert call(http, grpc.packed(query()), "/coredns.dns.DnsService/Other")[0] == "12"
        assert call(http, grpc.packed(query()))[0] == "0"


def test_fields_of_later_versions_are_passed_over() -> None:
    assert grpc.unpacked(b"\0\0\0\0\x11" + b"\x10\x96\x01\x1a\2zz\x0a\3abc\x25\0\0\0\0") == b"abc"
    for size in (0, 1, 127, 128, 16_383, 16_384, 65_535):
        assert grpc.unpacked(grpc.packed(bytes(size))) == bytes(size)


def test_an_update_over_grpc_is_not_implemented(serve: Serve, site: Site) -> None:
    server = serve(site.block(scheme="grpc"))
    update = bytearray(query())
    update[2] |= 5 << 3
    with client(server, site) as http:
        code, reply = call(http, grpc.packed(bytes(update)))
        assert code == "0" and dns.message.from_wire(reply).rcode() == 4
