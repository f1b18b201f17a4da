"""grpc: names that are sent on over gRPC, to kdns's own listener and to a peer that says what a script says."""

from pathlib import Path
from typing import Any

import pytest

from kdns.corefile import CorefileError
from kdns.testing import Server, block, code, data, eventually
from tests.cli.test_commands import kdns
from tests.fixtures import Serve
from tests.securepeers import NAME, Site


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def asking(server: Server, *options: str, more: tuple[str, ...] = ()) -> str:
    return block(
        "errors", f"grpc . grpc://127.0.0.1:{server.port} {{", *(f"  {option}" for option in options), "}", *more
    )


def test_names_are_sent_on_over_grpc_on_one_connection(serve: Serve, site: Site) -> None:
    up = serve(site.block(tls="minimal", scheme="grpc"))
    server = serve(asking(up))
    for i in range(50):
        assert data(server.ask("a.example.org.")) == ["192.0.2.1"]
        assert code(server.ask(f"x{i}.example.org.")) == "EMPTY"
    (listener,) = next(iter(up.server.listeners.values())).tcp
    assert len(listener.connections) == 1


def test_with_tls_the_upstream_is_verified_by_name(serve: Serve, site: Site, lines: list[str]) -> None:
    up = serve(site.block(scheme="grpc"))
    server = serve(asking(up, f"tls {site.authority.path}", f"tls_servername {NAME}"))
    assert data(server.ask("a.example.org.")) == ["192.0.2.1"]
    server = serve(asking(up, f"tls {site.authority.path}", "tls_servername other.example.net"))
    assert code(server.ask("a.example.org.")) == "SERVFAIL"
    assert any("dial grpc" in line and "certificate verify failed" in line for line in lines)


def test_an_upstream_that_speaks_something_else_is_an_error_that_says_so(
    serve: Serve, site: Site, lines: list[str]
) -> None:
    other = serve(site.block(tls="minimal", scheme="https"))
    server = serve(asking(other))
    assert code(server.ask("a.example.org.")) == "SERVFAIL"
    assert any("read grpc" in line and "HTTP status 404" in line for line in lines)
    dropping = serve(site.block("acl {", "  drop", "}", tls="minimal", scheme="grpc"))
    server = serve(asking(dropping))
    assert code(server.ask("a.example.org.")) == "SERVFAIL"
    assert any("gRPC status 14: no reply" in line for line in lines)


def test_names_that_do_not_exist_fall_through_where_they_may(serve: Serve, site: Site) -> None:
    denying = ("template IN ANY . {", "  match ^x[.]", "  rcode NXDOMAIN", "  fallthrough", "}")
    up = serve(site.block(*denying, tls="minimal", scheme="grpc").replace(" whoami", ""))
    server = serve(asking(up, "fallthrough example.com", "except example.net", more=("whoami",)))
    assert data(server.ask("a.example.org.")) == ["192.0.2.1"]
    assert code(server.ask("x.example.org.")) == "NXDOMAIN"
    assert [code(server.ask(name)) for name in ("x.example.com.", "x.example.net.")] == ["EMPTY", "EMPTY"]


def test_an_upstream_that_is_replaced_costs_no_query(serve: Serve, site: Site) -> None:
    text = site.block(tls="minimal", scheme="grpc")
    up = Server(text)
    server = serve(asking(up))
    assert data(server.ask("a.example.org.")) == ["192.0.2.1"]
    up.close()
    serve(text, port=up.port)
    eventually(lambda: data(server.ask("a.example.org.")) == ["192.0.2.1"])


@pytest.mark.parametrize(("words", "message"), [
    ("grpc .", "expected FROM TO"), ("grpc . tls://127.0.0.1", 'unknown scheme "tls"'),
    ("grpc . 127.0.0.1 {\n expire 5s\n }", "it knows"),
    ("grpc . 127.0.0.1\n grpc . 127.0.0.2", "only be used once"),
    ("grpc . 127.0.0.1 {\n policy x\n }", "expected random"),
    ("grpc . 127.0.0.1 {\n tls /nowhere\n }", "tls /nowhere"), ("forward . grpc://127.0.0.1", 'unknown scheme "grpc"'),
])  # fmt: skip
def test_what_is_wrong_is_an_error_with_its_place(serve: Serve, words: str, message: str) -> None:
    with pytest.raises(CorefileError, match=rf"(?s)Corefile:\d+:\d+: .*{message}"):
        serve(block(words))


def test_query_asks_over_grpc(serve: Serve, site: Site) -> None:
    up: Any = serve(site.block(scheme="grpc"))
    words = ("-ca", str(site.authority.path), "-name", NAME, "-short", "a.example.org")
    assert kdns("query", f"@grpc://127.0.0.1:{up.port}", *words).stdout == "192.0.2.1\n"
    assert kdns("query", f"@127.0.0.1:{up.port}", "-grpc", *words).stdout == "192.0.2.1\n"
