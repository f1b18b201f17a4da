"""autopath: the search list of the Pod that asks, or of a file, walked on the server."""

from pathlib import Path

import dns.flags
import dns.message
import pytest
import yaml

from kdns.corefile import CorefileError
from kdns.plugins import autopath
from kdns.testing import answer, answers, block, code, data, flags, soa
from kdns.testing.objects import namespace, pod, service
from tests.fixtures import Serve, Start


def world(query: dns.message.Message, proto: str) -> dns.message.Message:
    if query.question[0].name.to_text() == "api.example.com.":
        return answer(query, "A 192.0.2.1")
    reply = soa(answer(query), zone=".")
    reply.set_rcode(3)
    return reply


def cluster(tmp_path: Path, *, pods: str = "verified") -> str:
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump_all([namespace("n1"), service("n1/web", "10.0.0.1"), pod("n1/me", "127.0.0.1")]))
    return f"kubernetes cluster.local {{\n manifests {path}\n pods {pods}\n }}"


def test_the_pods_own_list_is_walked(serve: Serve, upstream: Start, tmp_path: Path) -> None:
    server = serve(block("autopath @kubernetes", cluster(tmp_path), f"forward . {upstream(world).address}"))
    reply = server.ask("api.example.com.n1.svc.cluster.local.")
    assert answers(reply) == [
        "api.example.com. A 192.0.2.1",
        "api.example.com.n1.svc.cluster.local. CNAME api.example.com.",
    ]
    assert data(server.ask("web.n1.n1.svc.cluster.local.")) == ["10.0.0.1", "web.n1.svc.cluster.local."]
    assert data(server.ask("web.n1.svc.cluster.local.")) == ["10.0.0.1"]
    nothing = server.ask("nothing.example.com.n1.svc.cluster.local.")
    assert code(nothing) == "NXDOMAIN" and str(nothing.authority[0].name) == "cluster.local."
    assert code(server.ask("n1.svc.cluster.local.")) == "NODATA"
    assert code(server.ask("api.example.com.svc.cluster.local.")) == "NXDOMAIN"


def test_a_files_list_is_walked_for_everybody(serve: Serve, upstream: Start, tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text("search old.org\nsearch first.org second.org\nnameserver 192.0.2.1\n")
    server = serve(block(f"autopath {path}", f"forward . {upstream(world).address}"))
    assert data(server.ask("api.example.com.first.org.")) == ["192.0.2.1", "api.example.com."]
    assert code(server.ask("api.example.com.second.org.")) == "NXDOMAIN"


def test_an_answer_behind_an_alias_of_ours_is_not_authentic(serve: Serve, upstream: Start, tmp_path: Path) -> None:
    def validated(query: dns.message.Message, proto: str) -> dns.message.Message:
        reply = world(query, proto)
        reply.flags |= dns.flags.AD
        return reply

    path = tmp_path / "resolv.conf"
    path.write_text("search first.org\n")
    server = serve(block(f"autopath {path}", f"forward . {upstream(validated).address}"))
    assert "AD" in flags(server.ask("api.example.com.", want_dnssec=True))
    reply = server.ask("api.example.com.first.org.", want_dnssec=True)
    assert data(reply) == ["192.0.2.1", "api.example.com."] and "AD" not in flags(reply)


def test_a_fault_in_a_walk_is_servfail_and_not_a_reply_that_never_comes(
    serve: Serve, upstream: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text("search first.org\n")
    server = serve(block(f"autopath {path}", f"forward . {upstream(world).address}"))
    monkeypatch.setattr(autopath, "SUCCESS", None)
    assert code(server.ask("api.example.com.first.org.", timeout=4)) == "SERVFAIL"
    assert any("AttributeError" in line for line in lines)


@pytest.mark.parametrize(("line", "expected"), [
    ("autopath", "expected a file"), ("autopath /nowhere/resolv.conf", "No such file"),
    ("autopath @whoami", "no search list"),
])  # fmt: skip
def test_what_cannot_work_is_said_at_the_start(serve: Serve, line: str, expected: str) -> None:
    with pytest.raises(CorefileError, match=expected):
        serve(block(line, "whoami"))


def test_without_verified_pods_it_cannot_know_who_asks(serve: Serve, tmp_path: Path) -> None:
    with pytest.raises(CorefileError, match="pods verified"):
        serve(block("autopath @kubernetes", cluster(tmp_path, pods="insecure")))
