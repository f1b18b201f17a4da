"""Upstreams whose certificate is no good, over each encrypted transport: a query fails, the log says why, and the next
certificate heals it. The upstream is a server of ours, whose certificate is renewed while it runs.
"""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import dns.edns
import dns.message
import pytest

from kdns.net import certificates
from kdns.testing import code, data, eventually
from tests.fixtures import Serve
from tests.net.test_changes_under_load import SCHEMES, above
from tests.securepeers import NAME, Site


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setattr(certificates, "LOOK_EVERY", 0.02)
    return Site(tmp_path / "upstream")


def expired(site: Site, tmp_path: Path) -> None:
    site.issue(NAME, not_after=datetime(2020, 2, 3, tzinfo=UTC))


def not_yet_valid(site: Site, tmp_path: Path) -> None:
    site.issue(NAME, not_before=datetime(2999, 2, 3, tzinfo=UTC))


def another_name(site: Site, tmp_path: Path) -> None:
    site.issue("other.example.net")


def unknown_authority(site: Site, tmp_path: Path) -> None:
    stranger = Site(tmp_path / "stranger")
    for name in ("tls.key", "tls.crt"):
        (stranger.folder / name).replace(site.folder / name)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("spoil", "said"), [
    (expired, "has expired"), (not_yet_valid, "not (yet valid|valid yet)"),
    (another_name, "ostname mismatch, certificate is not valid for 'dns.example.net'"),
    (unknown_authority, "unable to get local issuer certificate"),
])  # fmt: skip
def test_a_bad_certificate_of_an_upstream_is_said_and_a_good_one_heals_it(
    serve: Serve, site: Site, tmp_path: Path, lines: list[str], scheme: str,
    spoil: Callable[[Site, Path], None], said: str,
) -> None:  # fmt: skip
    spoil(site, tmp_path)
    below = serve(site.block(scheme=scheme))
    server = above(serve, site, scheme, below.port)
    reply = server.ask("a.example.org.", use_edns=0)
    assert code(reply) == "SERVFAIL"
    assert [option.code for option in reply.options if isinstance(option, dns.edns.EDEOption)] == [
        dns.edns.EDECode.NETWORK_ERROR
    ]
    pattern = (
        rf"a\.example\.org\. A: dial {scheme if scheme != 'tls' else 'tcp'} .*certificate verify failed: .*({said})"
    )
    # On a busy machine the first handshake may have taken too long.
    eventually(lambda: server.ask("a.example.org.") and any(re.search(pattern, line) for line in lines))
    site.issue(NAME)
    eventually(lambda: any("has changed and is in use" in line for line in lines))
    eventually(lambda: data(server.ask("a.example.org.")) == ["192.0.2.1"])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_certificate_that_expires_does_not_end_the_connection_that_was_made_with_it(
    serve: Serve, site: Site, lines: list[str], scheme: str, tmp_path: Path
) -> None:
    below = serve(site.block(scheme=scheme))
    server = above(serve, site, scheme, below.port)
    assert data(server.ask("a.example.org.")) == ["192.0.2.1"]
    expired(site, tmp_path)
    eventually(lambda: any("has changed and is in use" in line for line in lines))
    assert data(server.ask("a.example.org.")) == ["192.0.2.1"]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_server_name_that_is_not_ascii_was_a_fault_over_quic(serve: Serve, site: Site, scheme: str) -> None:
    """Over TLS it goes out, and is verified, in its ASCII form (RFC 5890, section 2.3.2.1)."""
    site.issue("xn--bcher-kva.example.net")
    below = serve(site.block(scheme=scheme))
    server = above(serve, site, scheme, below.port, name="bücher.example.net")
    assert data(server.ask("a.example.org.")) == ["192.0.2.1"]
