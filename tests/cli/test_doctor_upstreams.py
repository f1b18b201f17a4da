"""doctor in a Pod asks encrypted upstreams as the servers do: with their certificates, server names and time limits.

The upstreams are servers of ours with real certificates, and peers that break the protocol.
"""

import contextlib
import shlex
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dns.message
import pytest

from kdns.cli import forwarding
from kdns.testing import ApiServer, Server, answer, free_port
from tests.cli.test_commands import kdns
from tests.cli.test_doctor import GOOD, well
from tests.cli.test_doctor_queries import seen_in_a_pod
from tests.cli.test_tools import config_map
from tests.fixtures import Serve, Start
from tests.net.test_changes_under_load import SCHEMES
from tests.plugins.test_upstream_certificates import another_name, expired, not_yet_valid, unknown_authority
from tests.securepeers import NAME, Authority, Dot, Peer, Site

IN_A_POD = "nameserver 10.96.0.10\nsearch svc.cluster.local\n"
PLACE = "kube-system/coredns:4:2"
Look = Callable[[str], list[dict[str, str]]]


@pytest.fixture
def look(api: ApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Look:
    """The findings on upstreams of a doctor in a Pod of a cluster with this line `forward`, or lines from it on."""

    def found(line: str) -> list[dict[str, str]]:
        api.put(*well(), config_map("coredns", Corefile=GOOD.replace("forward . 192.0.2.53", line)))
        return seen_in_a_pod(api, tmp_path, capsys, monkeypatch, IN_A_POD)

    monkeypatch.setattr(forwarding, "LIMIT", 60.0)  # what answers on a busy machine has time
    return found


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "upstream")


@pytest.fixture
def raw() -> Iterator[Callable[[Callable[[socket.socket], None]], int]]:
    """Starts servers that do something with each connection, and close it; gives their ports."""
    listening: list[socket.socket] = []

    def start(play: Callable[[socket.socket], None]) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        listening.append(listener)

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    play(connection)

        threading.Thread(target=accept, daemon=True).start()
        return int(listener.getsockname()[1])

    yield start
    for each in listening:
        each.shutdown(socket.SHUT_RDWR)
        each.close()


def line(scheme: str, port: int, *options: str, wait: str = "") -> str:
    """A line `forward` or `grpc` to an upstream on the loopback."""
    to = f"grpc . 127.0.0.1:{port}" if scheme == "grpc" else f"forward . {scheme}://127.0.0.1:{port}"
    waiting = [] if scheme == "grpc" else [f"read_timeout {wait or '30s'}"]
    return to + " {\n" + "".join(f"  {each}\n" for each in (*waiting, *options)) + " }"


def verified(site: Site, *more: str) -> tuple[str, ...]:
    return f"tls {site.authority.path}", f"tls_servername {NAME}", *more


def serving(serve: Serve, site: Site, scheme: str, tls: str = "") -> Server:
    return serve(site.block("template IN A example.com {\n answer \"{{ .Name }} 60 A 192.0.2.7\"\n }",
                            scheme=scheme, tls=tls))  # fmt: skip


def where(scheme: str) -> str:
    return f"{'grpc' if scheme == 'grpc' else 'forward'}, {PLACE}"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_in_a_pod_an_encrypted_upstream_was_not_asked(serve: Serve, site: Site, look: Look, scheme: str) -> None:
    port = serving(serve, site, scheme).port
    assert look(line(scheme, port, *verified(site))) == [
        {"level": "info", "part": "upstreams", "means": "", "next": "",
         "seen": f"{scheme}://127.0.0.1:{port} answered for . ({where(scheme)})"}
    ]  # fmt: skip


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("spoil", "said", "advice"), [
    (expired, "certificate has expired", "its certificate has expired: "),
    (not_yet_valid, "not yet valid|not valid yet", "its certificate is not valid yet: "),
    (another_name, "ostname mismatch", "its certificate is for another name: set tls_servername"),
    (unknown_authority, "unable to get local issuer certificate", "an authority that is not trusted: name "),
])  # fmt: skip
def test_what_is_wrong_with_an_upstreams_certificate_is_one_error_with_what_to_do(
    serve: Serve, site: Site, look: Look, tmp_path: Path, scheme: str,
    spoil: Callable[[Site, Path], None], said: str, advice: str,
) -> None:  # fmt: skip
    spoil(site, tmp_path)
    port = serving(serve, site, scheme).port
    (found,) = look(line(scheme, port, *verified(site)))
    assert (found["level"], found["means"]) == ("error", "names in . fail")
    assert found["seen"].startswith(f"{scheme}://127.0.0.1:{port}, example.com.: dial ")
    assert found["seen"].endswith(f" ({where(scheme)})") and any(each in found["seen"] for each in said.split("|"))
    command, _, rest = found["next"].partition("    # from this Pod; ")
    assert command == (
        f"kdns query @{scheme}://127.0.0.1:{port} -name {NAME} -ca {site.authority.path} example.com."
    ) and advice in rest  # fmt: skip


def test_the_next_command_says_of_an_upstream_what_doctor_said(
    serve: Serve, site: Site, look: Look, tmp_path: Path
) -> None:
    another_name(site, tmp_path)
    (found,) = look(line("tls", serving(serve, site, "tls").port, *verified(site)))
    done = kdns(*shlex.split(found["next"], comments=True)[1:])
    assert done.returncode == 9 and done.stderr.strip() in found["seen"]


def closes(connection: socket.socket) -> None:
    connection.recv(65536)


def speaks_http(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


@pytest.mark.parametrize("scheme", ["tls", "https", "grpc"])
@pytest.mark.parametrize(("play", "said", "advice"), [
    (closes, "connect: the connection was closed", ""), (speaks_http, "wrong version number", "is this its port?"),
])  # fmt: skip
def test_a_handshake_that_fails_is_one_error_with_its_reason(
    site: Site, look: Look, raw: Any, scheme: str, play: Any, said: str, advice: str
) -> None:
    """A connection that the upstream closed in it was an error without a word."""
    (found,) = look(line(scheme, raw(play), *verified(site)))
    assert found["level"] == "error" and said in found["seen"] and found["next"].endswith(advice)


def wants_a_certificate(site: Site, scheme: str) -> Callable[[socket.socket], None]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(site.folder / "tls.crt", site.folder / "tls.key")
    context.load_verify_locations(site.authority.path)
    context.verify_mode = ssl.CERT_REQUIRED
    if scheme != "tls":
        context.set_alpn_protocols(["h2"])

    def play(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False) as secure:
            with contextlib.suppress(ssl.SSLError):
                secure.do_handshake()
            # Closed with octets unread, the connection would be reset, and the alert lost with it.
            while socket.socket.recv(secure, 65536):
                pass

    return play


@pytest.mark.parametrize("scheme", ["tls", "https", "grpc"])
def test_an_upstream_that_wants_a_certificate_was_said_not_to_permit_the_operation(
    serve: Serve, site: Site, look: Look, raw: Any, scheme: str
) -> None:
    """The number of an error of OpenSSL was taken for one of the system."""
    (found,) = look(line(scheme, raw(wants_a_certificate(site, scheme)), *verified(site)))
    assert found["level"] == "error" and "alert certificate required" in found["seen"]
    assert found["next"].endswith("it asks the servers for a certificate: `tls CERT KEY` shows it one")
    # And one that is shown it, as `forward` shows it.
    identity = f"{site.folder}/tls.crt {site.folder}/tls.key {site.authority.path}"
    port = serving(serve, site, scheme, f"tls {identity} {{\n client_auth require_and_verify\n }}").port
    (found,) = look(line(scheme, port, f"tls {identity}", f"tls_servername {NAME}"))
    assert found["level"] == "info" and "answered for ." in found["seen"]


@pytest.mark.parametrize("scheme", [*SCHEMES, "dns"])
def test_an_upstream_that_is_not_there_is_a_refusal(site: Site, look: Look, scheme: str) -> None:
    options = () if scheme == "dns" else verified(site)
    (found,) = look(line(scheme, free_port(), *options))
    assert found["level"] == "error" and "connection refused" in found["seen"] and "kdns query @" in found["next"]


@pytest.mark.parametrize("scheme", ["tls", "https", "quic", "https3"])
def test_an_upstream_that_says_nothing_is_given_as_long_as_forward_gives_it(
    site: Site, look: Look, raw: Any, scheme: str
) -> None:
    over = threading.Event()
    silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with silent:
        silent.bind(("127.0.0.1", 0))
        quic = scheme in ("quic", "https3")
        port = silent.getsockname()[1] if quic else raw(lambda connection: over.wait(60))
        (found,) = look(line(scheme, port, *verified(site), wait="100ms"))
    over.set()
    assert found["level"] == "error" and f"127.0.0.1:{port}: i/o timeout (" in found["seen"]


def test_an_upstream_is_asked_twice_as_forward_asks_it(look: Look, tmp_path: Path) -> None:
    authority = Authority(tmp_path)

    def loses_the_first(query: dns.message.Message) -> dns.message.Message | None:
        return answer(query, "A 192.0.2.1") if len(peer.queries) > 1 else None

    peer = Peer(authority.context(NAME), lambda owner: Dot(owner, loses_the_first))
    try:
        options = (f"tls {authority.path}", f"tls_servername {NAME}")
        (found,) = look(line("tls", peer.port, *options, wait="3s"))
    finally:
        peer.close()
    assert found["level"] == "info" and peer.names[0] == NAME
    # And with what the servers send: EDNS, which some upstreams do not answer.
    assert all(query.edns == 0 for query in peer.queries)


def test_what_an_encrypted_upstream_answers_is_said(serve: Serve, site: Site, look: Look) -> None:
    port = serve(site.block("acl {\n block\n }", scheme="tls")).port
    (found,) = look(line("tls", port, *verified(site)))
    assert found["seen"] == f"tls://127.0.0.1:{port}, example.com.: REFUSED (forward, {PLACE})"


def test_a_name_after_percent_a_root_and_another_address_are_taken_as_forward_takes_them(
    serve: Serve, site: Site, look: Look
) -> None:
    port = serving(serve, site, "tls").port
    # The DNS Pods have that address, and this Pod has not.
    text = f"forward . tls://127.0.0.1%{NAME}:{port} {{\n  tls ca.pem\n  source_address 192.0.2.9\n }}"
    (found,) = look(f"{text}\n root {site.folder}")
    assert found["level"] == "info" and found["seen"].startswith(f"tls://127.0.0.1:{port} answered for ."), found


def test_grpc_without_tls_is_asked_without_it(serve: Serve, look: Look) -> None:
    port = serve("grpc://.:{port} {\n bind 127.0.0.1\n hosts {\n 192.0.2.1 example.com\n }\n}\n").port
    (found,) = look(f"grpc . 127.0.0.1:{port}")
    assert (found["level"], found["seen"]) == ("info", f"grpc://127.0.0.1:{port} answered for . (grpc, {PLACE})")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_where_a_certificate_cannot_be_read_the_upstream_is_not_asked(site: Site, look: Look, scheme: str) -> None:
    """It is in the DNS Pods' file system. To ask without it would be to ask another question."""
    (found,) = look(line(scheme, free_port(), "tls /nowhere/ca.pem", f"tls_servername {NAME}"))
    assert found["level"] == "info" and " was not asked: plugin/" in found["seen"]
    assert "No such file or directory" in found["seen"] and "mounts what the DNS Pods mount" in found["next"]


def test_a_host_name_of_an_upstream_is_looked_up_as_forward_looks_it_up(
    serve: Serve, site: Site, look: Look, upstream: Start
) -> None:
    port = serving(serve, site, "tls").port

    def knows_one(query: dns.message.Message, proto: str) -> dns.message.Message:
        if str(query.question[0].name) != f"{NAME}.":
            reply = answer(query)
            reply.set_rcode(3)
            return reply
        return answer(query, *(["A 127.0.0.1"] if query.question[0].rdtype == 1 else []))

    resolver = f"resolver {upstream(knows_one).address}"
    options = f"{{\n  tls {site.authority.path}\n  {resolver}\n }}"
    (found,) = look(f"forward . tls://{NAME}:{port} {options}")
    assert found["seen"] == f"tls://127.0.0.1:{port} answered for . (forward, {PLACE})"
    (found,) = look(f"forward . tls://{NAME}:{port} tls://gone.example.net {options}")
    assert found["level"] == "warning" and found["seen"].startswith("tls://gone.example.net, example.com.: ")
    assert "it cannot be resolved: 127.0.0.1" in found["seen"] or "it has no address" in found["seen"]


def test_a_line_of_a_snippet_is_asked_once(serve: Serve, site: Site, look: Look) -> None:
    port = serving(serve, site, "tls").port
    options = "".join(f"  {each}\n" for each in verified(site))
    snippet = f"(up) {{\n forward . tls://127.0.0.1:{port} {{\n{options} }}\n}}\n"
    blocks = "".join(f"{zone} {{\n import up\n}}\n" for zone in ("b.org", "c.org"))
    (found,) = look(f"whoami\n}}\n{snippet}{blocks}d.org {{\n whoami")
    assert found["level"] == "info" and found["seen"].count(f"tls://127.0.0.1:{port}") == 1


@pytest.mark.parametrize("name", ["a; touch ran", "$(touch ran)", "'x"])
def test_the_words_of_a_corefile_are_quoted_in_the_next_command(
    serve: Serve, site: Site, look: Look, name: str
) -> None:
    port = serving(serve, site, "tls").port
    (found,) = look(line("tls", port, f"tls {site.authority.path}", f'tls_servername "{name}"'))
    words = shlex.split(found["next"], comments=True)
    assert found["level"] == "error" and words[:2] == ["kdns", "query"] and words[4] == name


def test_a_name_of_many_addresses_has_no_more_than_a_few_of_them_asked(site: Site, look: Look, upstream: Start) -> None:
    many = [f"A 127.0.0.{number}" for number in range(2, 250)]
    resolver = upstream(lambda query, proto: answer(query, *(many if query.question[0].rdtype == 1 else []))).address
    options = f"{{\n  tls {site.authority.path}\n  resolver {resolver}\n }}"
    assert len(look(f"forward . tls://{NAME}:{free_port()} {options}")) == forwarding.MAX_ADDRESSES


def test_an_upstream_that_is_the_servers_own_service_is_not_asked(look: Look) -> None:
    (found,) = look("grpc . 10.96.0.10")
    assert (found["level"], found["seen"]) == ("info", f"not asked: 10.96.0.10 (grpc, {PLACE})")
