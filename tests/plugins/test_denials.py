"""Denials of cluster names: true as long as they hold, for each name by itself, and counted."""

from kdns.testing import ApiServer, Server, code, data, eventually, free_port, http_get
from kdns.testing.objects import namespace, service
from tests.fixtures import Serve


def start(serve: Serve, api: ApiServer, more: str = "", inside: str = "", below: str = "") -> Server:
    api.put(namespace("n1"), service("n1/web", "10.0.0.1"))
    head = f".:{{port}} {{\n bind 127.0.0.1\n {more}\n"
    server = serve(head + f" kubernetes cluster.local {{\n endpoint {api.url}\n {inside}\n }}\n {below}\n}}\n")
    eventually(lambda: code(server.ask("x.n1.svc.cluster.local.")) in ("NXDOMAIN", "EMPTY"))
    return server


def a(server: Server, label: str) -> list[str] | str:
    reply = server.ask(f"{label}.n1.svc.cluster.local.")
    return data(reply) if reply.answer else code(reply)


def test_names_are_denied_until_they_exist(serve: Serve, api: ApiServer) -> None:
    server = start(serve, api)
    assert [a(server, label) for label in ("aa", "bb", "a-longer-one", "WEB", "web", "b" * 63)] == [
        "NXDOMAIN", "NXDOMAIN", "NXDOMAIN", ["10.0.0.1"], ["10.0.0.1"], "NXDOMAIN",
    ]  # fmt: skip
    api.put(service("n1/bb", "10.0.0.2"))
    eventually(lambda: a(server, "bb") == ["10.0.0.2"])
    assert a(server, "BB") == ["10.0.0.2"] and a(server, "cc") == "NXDOMAIN"
    api.delete("Service", "n1/bb")
    eventually(lambda: a(server, "bb") == "NXDOMAIN")
    api.delete("Namespace", "/n1")
    eventually(lambda: a(server, "web") == "NXDOMAIN")
    api.put(namespace("n1"))
    eventually(lambda: a(server, "web") == ["10.0.0.1"])


def test_denials_of_names_of_different_length_look_alike(serve: Serve, api: ApiServer) -> None:
    server = start(serve, api)
    for options in ({"use_edns": False}, {"use_edns": 0}, {"use_edns": 0, "want_dnssec": True}):
        first, second = (
            server.ask("aa.n1.svc.cluster.local.", **options),
            server.ask("Bb.n1.svc.cluster.local.", **options),
        )
        assert (first.authority, first.flags, first.edns, first.ednsflags) == (
            second.authority,
            second.flags,
            second.edns,
            second.ednsflags,
        )
        assert str(second.question[0].name) == "Bb.n1.svc.cluster.local."


def test_odd_labels_after_a_denial_are_no_denials(serve: Serve, api: ApiServer) -> None:
    server = start(serve, api)
    a(server, "aa")
    rest = b"\x02n1\x03svc\x07cluster\x05local\0\0\1\0\1"
    head = b"\0\1\1\0\0\1\0\0\0\0\0\0"
    for label in (b"", b"\x40" + b"x" * 64, b"\xc0\x0c", b"\xff" + b"y" * 255):
        reply = server.raw(head + label + rest, timeout=0.5)
        assert reply is None or reply[3] & 15 != 3 or not label


def test_a_denied_name_says_nothing_of_another_that_a_plugin_knows(serve: Serve, api: ApiServer) -> None:
    server = start(serve, api, more="hosts /nowhere {\n 192.0.2.7 bb.n1.svc.cluster.local\n fallthrough\n }")
    assert [a(server, label) for label in ("aa", "bb", "aa", "bb")] == ["NXDOMAIN", ["192.0.2.7"]] * 2
    rewritten = start(serve, api, more="rewrite name bb.n1.svc.cluster.local web.n1.svc.cluster.local")
    assert [a(rewritten, label) for label in ("aa", "bb", "aa", "bb")] == ["NXDOMAIN", ["10.0.0.1"]] * 2
    falls = start(serve, api, inside="fallthrough", below="whoami")
    assert a(falls, "aa") == "EMPTY"
    logged = start(serve, api, more="log")
    assert a(logged, "aa") == "NXDOMAIN"


def test_denials_are_counted(serve: Serve, api: ApiServer) -> None:
    port = free_port()
    server = start(serve, api, more=f"prometheus 127.0.0.1:{port}\n errors\n loadbalance")
    for i in range(50):
        assert a(server, f"x{i}") == "NXDOMAIN"
    _, text = http_get(port, "/metrics")
    label = f'plugin="errors",rcode="NXDOMAIN",server="dns://127.0.0.1:{server.port}",view="",zone="."'
    line = next(line for line in text.splitlines() if line.startswith(f"coredns_dns_responses_total{{{label}}}"))
    assert float(line.rpartition(" ")[2]) >= 50


def test_repeated_replies_are_counted_for_their_own_transport_and_family(serve: Serve, api: ApiServer) -> None:
    port = free_port()
    api.put(namespace("n1"), service("n1/web", "10.0.0.1"))
    body = f" prometheus 127.0.0.1:{port}\n errors\n kubernetes cluster.local {{\n endpoint {api.url}\n }}\n}}\n"
    server = serve(".:{port} {\n" + body)
    eventually(lambda: code(server.ask("x.n1.svc.cluster.local.")) == "NXDOMAIN" and a(server, "web") == ["10.0.0.1"])

    def counts() -> dict[tuple[str, str], float]:
        _, text = http_get(port, "/metrics")
        mark = f'server="dns://:{server.port}",type="A"'
        lines = [line for line in text.splitlines() if line.startswith("coredns_dns_requests_total") and mark in line]
        return {
            (line.split('proto="')[1][:3], line.split('family="')[1][0]): float(line.rpartition(" ")[2])
            for line in lines
        }

    before = counts()
    for i in range(5):
        for host in ("127.0.0.1", "::1"):
            for tcp in (False, True):
                assert data(server.ask("web.n1.svc.cluster.local.", host=host, tcp=tcp)) == ["10.0.0.1"]
                assert code(server.ask(f"no{i}.n1.svc.cluster.local.", host=host, tcp=tcp)) == "NXDOMAIN"
    after = counts()
    assert {way: after[way] - before.get(way, 0) for way in after} == dict.fromkeys(
        [("udp", "1"), ("udp", "2"), ("tcp", "1"), ("tcp", "2")], 10
    )
