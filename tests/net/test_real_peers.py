"""Other people's programs in front of kdns and behind it: stubby, dnsdist and haproxy, each as its users set
it up. Those that are not installed are skipped by name.
"""

import contextlib
import http.client
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import dns.exception
import dns.message
import dns.query
import pytest

from kdns.testing import Server, additional, code, data
from tests import programs
from tests.fixtures import Serve
from tests.programs import Program, needs
from tests.securepeers import HOSTS, NAME, Site

Run = Callable[..., Program]
CLIENT = "127.0.0.77"  # whom kdns is to see behind a proxy
WHOAMI = ".:{port} {\n bind 127.0.0.1\n errors\n proxyproto {\n allow 127.0.0.0/8\n }\n whoami\n}\n"


@pytest.fixture
def site(tmp_path: Path) -> Site:
    made = Site(tmp_path)
    pem = (tmp_path / "tls.key").read_bytes() + (tmp_path / "tls.crt").read_bytes()
    (tmp_path / "both.pem").write_bytes(pem)  # as haproxy wants it
    return made


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Starts a program with a configuration in `{file}`; `{port}` in it is the port that it is to listen on."""
    with contextlib.ExitStack() as stack:

        def start(text: str, *words: str, suffix: str = "conf") -> Program:
            folder = Path(tempfile.mkdtemp(prefix=words[0], dir=tmp_path))
            file = folder / f"{words[0]}.{suffix}"

            def command(port: int) -> list[str]:
                file.write_text(text.replace("{port}", str(port)))
                return [word.replace("{file}", str(file)) for word in words]

            return stack.enter_context(programs.running(folder, command))

        yield start


def ask(
    port: int, name: str = "a.example.org.", how: str = "udp", site: Site | None = None, source: str = "127.0.0.1"
) -> dns.message.Message:
    """A reply; raises OSError or dns.exception.DNSException where none comes."""
    query = dns.message.make_query(name, "A")
    if how == "udp":
        return dns.query.udp(query, "127.0.0.1", 2, port, source=source)
    if how == "tcp":
        return dns.query.tcp(query, "127.0.0.1", 2, port, source=source)
    assert site is not None
    if how == "tls":
        return dns.query.tls(
            query, "127.0.0.1", 2, port, source=source, ssl_context=site.client(), server_hostname=NAME
        )
    head = f"POST /dns-query HTTP/1.1\r\nhost: {NAME}\r\ncontent-type: application/dns-message\r\n"
    body = query.to_wire()
    with (
        socket.create_connection(("127.0.0.1", port), timeout=5, source_address=(source, 0)) as plain,
        site.client().wrap_socket(plain, server_hostname=NAME) as sock,
        http.client.HTTPResponse(sock) as response,
    ):
        sock.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        response.begin()
        return dns.message.from_wire(response.read())


def works(condition: Callable[[], bool]) -> Callable[[], bool]:
    """The condition; False while the program is still starting."""

    def check() -> bool:
        try:
            return condition()
        except (OSError, dns.exception.DNSException):
            return False

    return check


def seen(reply: dns.message.Message) -> str:
    """The client that `whoami` saw."""
    return next(text.split()[-1] for text in additional(reply) if " A " in text or text.startswith("A "))


# Clients of DNS over TLS.


@needs("stubby")
def test_stubby_asks_over_tls_and_verifies(serve: Serve, site: Site, run: Run) -> None:
    server = serve(site.block("log"))

    def configured(name: str) -> str:
        return f"""
resolution_type: GETDNS_RESOLUTION_STUB
dns_transport_list:
  - GETDNS_TRANSPORT_TLS
tls_authentication: GETDNS_AUTHENTICATION_REQUIRED
tls_query_padding_blocksize: 128
edns_client_subnet_private: 1
idle_timeout: 2000
tls_ca_file: "{site.authority.path}"
listen_addresses:
  - 127.0.0.1@{{port}}
upstream_recursive_servers:
  - address_data: 127.0.0.1
    tls_port: {server.port}
    tls_auth_name: "{name}"
"""

    stubby = run(configured(NAME), "stubby", "-C", "{file}", suffix="yml")
    stubby.until(works(lambda: data(ask(stubby.port)) == ["192.0.2.1"]))
    for how in ("udp", "tcp") * 10:
        assert data(ask(stubby.port, how=how)) == ["192.0.2.1"]
    mistaken = run(configured("other.example.net"), "stubby", "-C", "{file}", suffix="yml")
    mistaken.until(works(lambda: code(ask(mistaken.port)) == "SERVFAIL"))


# dnsdist.


def dnsdist(run: Run, *lines: str) -> Program:
    text = "\n".join(("setACL({'127.0.0.0/8'})", "setSecurityPollSuffix('')", *lines))
    return run(text + "\n", "dnsdist", "--supervised", "--disable-syslog", "-C", "{file}")


@needs("dnsdist")
def test_dnsdist_names_the_client_in_proxy_headers_over_udp_and_tcp(serve: Serve, run: Run, lines: list[str]) -> None:
    server = serve(WHOAMI)
    program = dnsdist(
        run, "addLocal('127.0.0.1:{port}')",
        f"newServer({{address='127.0.0.1:{server.port}', useProxyProtocol=true, checkName='a.example.org.'}})",
    )  # fmt: skip
    program.until(works(lambda: seen(ask(program.port, source=CLIENT)) == CLIENT))
    for how in ("udp", "tcp") * 10:
        assert seen(ask(program.port, how=how, source=CLIENT)) == CLIENT
    assert not any("proxyproto" in line for line in lines), lines


@needs("dnsdist")
@pytest.mark.parametrize(("scheme", "options"), [("tls", ""), ("https", ", dohPath='/dns-query'")])
def test_dnsdist_reaches_dot_and_doh_listeners(serve: Serve, site: Site, run: Run, scheme: str, options: str) -> None:
    server = serve(site.block(scheme=scheme))
    program = dnsdist(
        run, "addLocal('127.0.0.1:{port}')",
        f"newServer({{address='127.0.0.1:{server.port}', tls='openssl', caStore='{site.authority.path}',"
        f" subjectName='{NAME}', validateCertificates=true, checkName='a.example.org.'{options}}})",
    )  # fmt: skip
    program.until(works(lambda: data(ask(program.port)) == ["192.0.2.1"]))
    for how in ("udp", "tcp") * 5:
        assert data(ask(program.port, how=how)) == ["192.0.2.1"]


@needs("dnsdist")
@pytest.mark.parametrize("kind", ["tls", "https"])
def test_kdns_forwards_to_dnsdist_over_tls_and_https(serve: Serve, site: Site, run: Run, kind: str) -> None:
    behind = serve(f".:{{port}} {{\n bind 127.0.0.1\n{HOSTS}}}\n")
    files = f"'{site.folder}/tls.crt', '{site.folder}/tls.key'"
    front = "addTLSLocal" if kind == "tls" else "addDOHLocal"
    more = "" if kind == "tls" else ", '/dns-query'"
    program = dnsdist(
        run, f"{front}('127.0.0.1:{{port}}', {files}{more})",
        f"newServer({{address='127.0.0.1:{behind.port}', checkName='a.example.org.'}})",
    )  # fmt: skip
    server = serve(
        f".:{{port}} {{\n bind 127.0.0.1\n forward . {kind}://127.0.0.1:{program.port} {{\n"
        f" tls {site.authority.path}\n tls_servername {NAME}\n max_fails 0\n }}\n}}\n"
    )
    program.until(works(lambda: data(server.ask("a.example.org.")) == ["192.0.2.1"]))
    for _ in range(20):
        assert data(server.ask("a.example.org.")) == ["192.0.2.1"]


# haproxy.


def haproxy(run: Run, front: str, back: str, mode: str = "tcp") -> Program:
    """A haproxy with one front end and one server behind."""
    return run(
        f"""
global
    maxconn 200
defaults
    mode {mode}
    timeout connect 5s
    timeout client 20s
    timeout server 20s
frontend in
    bind 127.0.0.1:{{port}} {front}
    default_backend out
backend out
{back}
""",
        "haproxy", "-f", "{file}", "-db",
    )  # fmt: skip


@needs("haproxy")
@pytest.mark.parametrize("word", ["send-proxy", "send-proxy-v2", "send-proxy-v2 proxy-v2-options unique-id,crc32c"])
def test_haproxy_names_the_client_over_tcp(serve: Serve, run: Run, lines: list[str], word: str) -> None:
    server = serve(WHOAMI)
    # Its checks connect, say who they are (LOCAL) and hang up.
    program = haproxy(run, "", f"    server kdns 127.0.0.1:{server.port} {word} check inter 100ms")
    program.until(works(lambda: seen(ask(program.port, how="tcp", source=CLIENT)) == CLIENT))
    for _ in range(20):
        assert seen(ask(program.port, how="tcp", source=CLIENT)) == CLIENT
    assert not any("proxyproto" in line for line in lines), lines


@needs("haproxy")
@pytest.mark.parametrize("word", ["send-proxy", "send-proxy-v2"])
def test_haproxy_names_the_client_before_tls(serve: Serve, site: Site, run: Run, word: str) -> None:
    block = site.block("proxyproto {\n allow 127.0.0.0/8\n }").replace(HOSTS, "")
    program = haproxy(run, "", f"    server kdns 127.0.0.1:{serve(block).port} {word}")
    program.until(works(lambda: seen(ask(program.port, how="tls", site=site, source=CLIENT)) == CLIENT))
    for _ in range(10):
        assert seen(ask(program.port, how="tls", site=site, source=CLIENT)) == CLIENT


@needs("haproxy")
def test_haproxy_ends_tls_and_says_of_it_in_its_header(serve: Serve, site: Site, run: Run) -> None:
    program = haproxy(
        run, f"ssl crt {site.folder}/both.pem alpn dot",
        f"    server kdns 127.0.0.1:{serve(WHOAMI).port} send-proxy-v2-ssl-cn",
    )  # fmt: skip
    program.until(works(lambda: seen(ask(program.port, how="tls", site=site, source=CLIENT)) == CLIENT))


@needs("haproxy")
@pytest.mark.parametrize("version", ["", "proto h2"])
def test_haproxy_ends_https_and_names_the_client_in_a_field(serve: Serve, site: Site, run: Run, version: str) -> None:
    """DNS over HTTPS without TLS behind it, by HTTP/1.1 and HTTP/2."""
    block = site.block("https {\n trusted_proxies 127.0.0.0/8\n }", scheme="https", tls="errors").replace(HOSTS, "")
    program = haproxy(
        run, f"ssl crt {site.folder}/both.pem alpn h2,http/1.1",
        f"    option forwardfor\n    server kdns 127.0.0.1:{serve(block).port} {version}",
        mode="http",
    )  # fmt: skip
    program.until(works(lambda: seen(ask(program.port, how="https", site=site, source=CLIENT)) == CLIENT))
    for _ in range(10):
        assert seen(ask(program.port, how="https", site=site, source=CLIENT)) == CLIENT


@needs("haproxy")
def test_what_is_behind_haproxy_is_reached_over_proxy_headers_of_a_slow_client(serve: Serve, run: Run) -> None:
    """A query that comes octet by octet, on a connection that haproxy opened at once."""
    server: Server = serve(WHOAMI)
    program = haproxy(run, "", f"    server kdns 127.0.0.1:{server.port} send-proxy-v2")
    program.until(works(lambda: bool(additional(ask(program.port, how="tcp")))))
    wire = dns.message.make_query("a.example.org.", "A").to_wire()
    with socket.create_connection(("127.0.0.1", program.port), timeout=10, source_address=(CLIENT, 0)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for octet in len(wire).to_bytes(2, "big") + wire:
            sock.sendall(bytes([octet]))
        file = sock.makefile("rb")
        reply = dns.message.from_wire(file.read(int.from_bytes(file.read(2), "big")))
    assert seen(reply) == CLIENT
