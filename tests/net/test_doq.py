"""DNS over QUIC (RFC 9250): the listener, its error codes, and clients that mean it badly."""

import asyncio
import shutil
import subprocess
from pathlib import Path
from typing import Any

import dns.asyncquery
import dns.edns
import dns.message
import pytest

from kdns.testing import Server, data
from tests.fixtures import Serve
from tests.securepeers import NAME, Site


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def ask(server: Server, site: Site, name: str = "a.example.org.", **options: Any) -> dns.message.Message:
    query = dns.message.make_query(name, "A", **options)
    return asyncio.run(
        dns.asyncquery.quic(
            query, "127.0.0.1", 10, server.port, verify=str(site.authority.path), server_hostname=NAME, hostname=NAME
        )
    )


def test_kdig_asks_over_quic(serve: Serve, site: Site) -> None:
    if shutil.which("kdig") is None:
        pytest.skip("kdig is not installed")
    server = serve(site.block(scheme="quic"))
    out = subprocess.run(
        ["kdig", "@127.0.0.1", "-p", str(server.port), f"+tls-ca={site.authority.path}",
         f"+tls-hostname={NAME}", "+quic", "+padding=128", "a.example.org"],
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert "192.0.2.1" in out.stdout and "Received 468 B" in out.stdout, out.stdout + out.stderr


def test_a_query_over_quic_is_answered_with_the_id_0(serve: Serve, site: Site) -> None:
    server = serve(site.block(scheme="quic"))
    reply = ask(server, site)
    assert data(reply) == ["192.0.2.1"]
