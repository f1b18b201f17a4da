"""Where an answer depends on who asks, nobody gets another's: not from the cache, and not from replies kept for
repeating.
"""

import socket
from pathlib import Path

import dns.message
import pytest
import yaml

from kdns.testing import Server, answer, block, data
from kdns.testing.objects import namespace, service
from tests.fixtures import Serve, Start

HERE, THERE = "127.0.0.1", "127.0.0.2"


def asked_from(server: Server, source: str, name: str, rtype: str = "A") -> list[str]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((source, 0))
        sock.settimeout(5)
        sock.sendto(dns.message.make_query(name, rtype).to_wire(), ("127.0.0.1", server.port))
        return data(dns.message.from_wire(sock.recv(512)))


def each_in_turn(server: Server, name: str, rtype: str = "A") -> list[list[str]]:
    """What two clients get, twice each."""
    return [asked_from(server, source, name, rtype) for source in (HERE, THERE, HERE, THERE)]


@pytest.fixture
def cluster(tmp_path: Path) -> str:
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump_all([namespace("n1"), service("n1/web", "10.0.0.1")]))
    return f"kubernetes cluster.local {{\n manifests {path}\n }}"


def test_an_option_made_of_the_clients_address_was_answered_with_another_clients_reply(
    serve: Serve, upstream: Start
) -> None:
    """The cache kept them apart; replies that are repeated without asking it did not."""

    def script(query: dns.message.Message, proto: str) -> dns.message.Message:
        return answer(query, f"A 192.0.2.{query.options[0].data[3]}")  # type: ignore[attr-defined]

    up = upstream(script)
    server = serve(block("rewrite edns0 local set 0xffee {client_ip}", "cache 30", f"forward . {up.address}"))
    assert each_in_turn(server, "x.org.") == [["192.0.2.1"], ["192.0.2.2"]] * 2 and len(up.queries) == 2


def test_a_template_for_some_clients_is_no_answer_for_others(serve: Serve, upstream: Start, cluster: str) -> None:
    up = upstream(lambda query, proto: answer(query, "A 192.0.2.9"))
    rule = "template IN A {\n expr client_ip() == '127.0.0.2'\n answer \"{{ .Name }} 60 A 192.0.2.2\"\n fallthrough\n }"
    server = serve(block("cache 30", rule, cluster, f"forward . {up.address}"))
    assert each_in_turn(server, "web.n1.svc.cluster.local.") == [["10.0.0.1"], ["192.0.2.2"]] * 2
    assert each_in_turn(server, "x.org.") == [["192.0.2.9"], ["192.0.2.2"]] * 2 and len(up.queries) == 1


def test_a_template_that_names_the_client_is_not_kept(serve: Serve) -> None:
    server = serve(block("cache 30", 'template IN A {\n answer "{{ .Name }} 60 A {{ .Remote }}"\n }'))
    assert each_in_turn(server, "x.org.") == [[HERE], [THERE]] * 2


def test_a_template_of_the_question_alone_is_the_same_for_all(serve: Serve) -> None:
    rule = "template IN A {\n match ^x\n expr name() contains 'org'\n answer \"{{ .Name }} 60 A 192.0.2.1\"\n }"
    server = serve(block("cache 30", rule))
    assert each_in_turn(server, "x.org.") == [["192.0.2.1"]] * 4


def test_a_rule_whose_label_only_some_clients_have_fits_only_theirs(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    mine = {
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": {"name": "p", "namespace": "n2"},
        "status": {"phase": "Running", "podIP": THERE},
    }
    path.write_text(yaml.safe_dump_all([
        namespace("n1"), namespace("n2"), service("n1/web", "10.0.0.1"), service("n2/web", "10.0.0.2"), mine,
    ]))  # fmt: skip
    rule = (
        "rewrite name regex ^([^.]+)[.]n1[.]svc {1}.{kubernetes/client-namespace}.svc.cluster.local metadata answer "
        "auto"
    )
    server = serve(block("metadata", rule, f"kubernetes cluster.local {{\n pods verified\n manifests {path}\n }}"))
    assert each_in_turn(server, "web.n1.svc.cluster.local.") == [["10.0.0.1"], ["10.0.0.2"]] * 2


def test_a_plugin_that_says_nothing_of_clients_sees_each_query(serve: Serve, tmp_path: Path, cluster: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from kdns.plugin import Plugin\nfrom kdns.plugin.records import answered\n\n\n"
        "class Mine(Plugin):\n    name = 'mine'\n    before = 'kubernetes'\n\n"
        "    def handle(self, request):\n"
        "        return answered(f'{request.name} 60 A 192.0.2.2') if request.client[0] == '127.0.0.2' else None\n"
    )
    server = serve(block(f"plugin {path}", cluster))
    assert each_in_turn(server, "web.n1.svc.cluster.local.") == [["10.0.0.1"], ["192.0.2.2"]] * 2
