"""doctor's real queries: from a laptop through the API's port-forward, in a Pod to each upstream."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import dns.message
import pytest
from aiohttp import web

from kdns.cli import cluster, doctor, forwarding, portforward
from kdns.dns import iana
from kdns.dns.name import from_text
from kdns.dns.query import Question
from kdns.kube.access import ApiConfig
from kdns.kube.api import Client
from kdns.testing import ApiServer, answer, free_port
from tests.cli.test_doctor import GOOD, kube_dns, server, well
from tests.cli.test_tools import config_map, kubeconfig
from tests.fixtures import Serve, Start

BIG = [f"A 192.0.2.{number}" for number in range(1, 200)]


class Run(NamedTuple):
    """What a doctor said, and how it ended."""

    code: int
    findings: list[dict[str, str]]

    def of(self, part: str) -> list[tuple[str, str]]:
        return [(each["level"], each["seen"]) for each in self.findings if each["part"] == part]


@pytest.fixture
def run(
    api: ApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[[], Run]:
    """A doctor on a laptop, with time enough for a machine that is busy."""
    monkeypatch.setattr(doctor, "TIMEOUT", 60.0)

    def look() -> Run:
        code = doctor.main(["--kubeconfig", kubeconfig(tmp_path, here=api.url), "--json"])
        return Run(code, json.loads(capsys.readouterr().out)["findings"])

    return look


def host_of(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


def asked_by_pods(*addresses: str) -> dict[str, tuple[str, int]]:
    return {f"kube-system/coredns-{name}:53": host_of(each) for name, each in zip("ab", addresses, strict=False)}


def test_from_a_laptop_the_servers_were_not_asked(api: ApiServer, upstream: Start, run: Callable[[], Run]) -> None:
    """They are, through the API; an answer that comes in many pieces is put together."""
    api.put(*well())
    up = upstream(lambda query, proto: answer(query, *BIG))
    api.forwards = asked_by_pods(up.address, up.address)
    done = run()
    assert done.code == 0 and done.of("queries") == [
        ("info", "4 of 4 queries were answered, over TCP through the API")
    ]  # fmt: skip
    assert up.protos == ["tcp"] * 4
    assert {path.partition("?")[0] for path in api.requests if "portforward" in path} == {
        f"/api/v1/namespaces/kube-system/pods/coredns-{name}/portforward" for name in "ab"
    }


def test_a_server_that_answers_wrongly_behind_the_api_is_an_error_with_the_way_to_ask_it_again(
    api: ApiServer, upstream: Start, run: Callable[[], Run]
) -> None:
    def outside_fails(query: dns.message.Message, proto: str) -> dns.message.Message:
        reply = answer(query, "A 10.96.0.1")
        if "example" in str(query.question[0].name):
            reply = answer(query)
            reply.set_rcode(2)
        return reply

    api.put(*well())
    good = upstream(lambda query, proto: answer(query, "A 10.96.0.1"))
    api.forwards = asked_by_pods(upstream(outside_fails).address, good.address)
    done = run()
    assert done.code == 3
    assert done.of("queries")[0] == ("error", "coredns-a over the API, example.com.: SERVFAIL")
    told = next(each for each in done.findings if each["level"] == "error")
    assert told["means"] == "outside names fail"
    assert told["next"].startswith("kubectl -n kube-system port-forward coredns-a 5353:53 ")
    assert told["next"].endswith("kdns query @127.0.0.1:5353 example.com. -tcp")


def test_a_running_kdns_behind_the_api_is_asked(api: ApiServer, serve: Serve, run: Callable[[], Run]) -> None:
    running = serve(
        ".:{port} {\n bind 127.0.0.1\n hosts {\n 10.96.0.1 kubernetes.default.svc.cluster.local\n"
        " 192.0.2.1 example.com\n }\n}"
    )
    api.put(*well())
    api.forwards = {"kube-system/coredns-a:53": ("127.0.0.1", running.port)}
    done = run()
    assert done.code == 0
    assert ("info", "2 of 2 queries were answered, over TCP through the API") in done.of("queries")
    unreached = [seen for _, seen in done.of("queries") if seen.startswith("coredns-b could not be asked")]
    assert unreached and "through the API: error forwarding port 53" in unreached[0]


def test_the_port_of_the_pods_is_the_services_target_port(
    api: ApiServer, upstream: Start, run: Callable[[], Run]
) -> None:
    """OpenShift's servers listen on 5353, under a name."""
    up = upstream(lambda query, proto: answer(query, "A 10.96.0.1"))
    service = kube_dns()
    for each in service["spec"]["ports"]:
        each["targetPort"] = "dns-tcp" if each["protocol"] == "TCP" else "dns"
    pods = [server("coredns-a", "n1"), server("coredns-b", "n2")]
    for pod in pods:
        pod["spec"]["containers"][0]["ports"] = [{"name": "dns-tcp", "containerPort": 5353, "protocol": "TCP"}]
    api.put(*well(), service, *pods)
    api.forwards = {f"kube-system/coredns-{name}:5353": host_of(up.address) for name in "ab"}
    assert ("info", "4 of 4 queries were answered, over TCP through the API") in run().of("queries")


def test_who_may_not_forward_ports_is_told_the_right_it_takes(api: ApiServer, run: Callable[[], Run]) -> None:
    api.put(*well())
    api.forbidden.add("portforward")
    done = run()
    told = [each for each in done.findings if "coredns-a could not be asked through the API: 403" in each["seen"]]
    assert done.code == 0 and "create and get pods/portforward" in told[0]["next"]


def test_a_pod_that_is_not_ready_is_not_asked_through_the_api(api: ApiServer, run: Callable[[], Run]) -> None:
    api.put(*well(), server("coredns-a", "n1", False))
    run()
    assert not any("coredns-a/portforward" in path for path in api.requests)
    assert any("coredns-b/portforward" in path for path in api.requests)


@pytest.mark.parametrize(("sent", "said"), [
    ([], "ended without a reply"), (["text"], "ended without a reply"), ([b""], "ended without a reply"),
    ([b"\1\x35\0", b"\1" + b"no\xff route\n" * 200], "no� route"), ([b"\7junk", b"\0\x35\0", b"\0"], "ended without"),
    ([b"\0\x35\0", b"\0\xff\xff" + b"x" * 40], "ended without a reply"), ([b"\0\x35\0" + b"\0\3abc"], "ended without"),
    ([b"\0" + b"y" * (2 << 20)], "ended without a reply"),
])  # fmt: skip
def test_an_api_that_sends_what_is_no_connection_to_a_port_is_one_error(sent: list[Any], said: str) -> None:
    async def says(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(protocols=(portforward.PROTOCOL,))
        await socket.prepare(request)
        await socket.receive()
        for each in sent:
            await (socket.send_str(each) if isinstance(each, str) else socket.send_bytes(each))
        await socket.close()
        return socket

    assert said in asyncio.run(_refusal(says))


def test_an_api_that_speaks_another_protocol_is_one_error() -> None:
    async def says(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.receive()
        return socket

    assert "does not speak v4.channel.k8s.io" in asyncio.run(_refusal(says))


async def _refusal(says: Any) -> str:
    """What a query through such an API raises."""
    app = web.Application()
    app.router.add_get("/{path:.*}", says)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    client = Client(ApiConfig(f"http://127.0.0.1:{port}"))
    try:
        async with portforward.tunnel(client, "kube-system", "coredns-a", 53, 60.0) as open_:
            await open_.ask(Question(from_text("a.org."), iana.A))
    except portforward.NotForwarded as error:
        assert len(str(error)) <= 300
        return str(error)
    finally:
        await client.close()
        await runner.cleanup()
    raise AssertionError("it was answered")


# In a Pod.


def seen_in_a_pod(
    api: ApiServer, folder: Path, capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch, resolv: str
) -> list[dict[str, str]]:
    """The findings on upstreams of a doctor in a Pod with this resolv.conf. The test's upstreams are on the loopback,
    which in a Pod is the Pod itself.
    """
    (folder / "resolv.conf").write_text(resolv)
    patch.setattr(cluster, "access", lambda values: ApiConfig(api.url, None, "", ""))
    patch.setattr(doctor, "RESOLV_CONF", str(folder / "resolv.conf"))
    patch.setattr(forwarding, "is_loopback", lambda text: False)
    doctor.main(["--server", f"127.0.0.1:{free_port()}", "--json"])
    # Servers of the same test log to the same place.
    (said,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith('{"ok"')]
    return [each for each in json.loads(said)["findings"] if each["part"] == "upstreams"]


def test_in_a_pod_the_upstreams_of_the_corefile_were_not_asked(
    api: ApiServer,
    tmp_path: Path,
    upstream: Start,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    good = upstream(lambda query, proto: answer(query, "A 192.0.2.1"))
    dead = f"127.0.0.1:{free_port()}"
    corp = upstream(lambda query, proto: answer(query))
    text = GOOD.replace("192.0.2.53", f"{good.address} {dead}") + (
        f"corp.example:53 {{\n forward . {dead}\n}}\nb.example {{\n forward b.example {corp.address}\n}}\n"
    )
    api.put(*well(), config_map("coredns", Corefile=text))
    found = seen_in_a_pod(api, tmp_path, capsys, monkeypatch, "nameserver 10.96.0.10\nsearch svc.cluster.local\n")
    said = [(each["level"], each["seen"]) for each in found]
    assert len(found) == 3, found
    assert said[0][0] == "error" and said[0][1].startswith(f"{dead} over udp, ") and "Corefile" not in said[0][1]
    assert said[1][0] == "warning" and said[1][1].startswith(f"{dead} over udp, example.com.: ")
    assert found[1]["next"] == f"kdns query @{dead} example.com.    # from this Pod"
    assert said[2] == ("info", f"{corp.address} answered for b.example (forward, kube-system/coredns:11:2)")
    assert [str(each.question[0].name) for each in corp.queries] == ["b.example."]


@pytest.mark.parametrize("search", ["", "search c.internal google.internal\n"])
def test_in_a_pod_with_the_nodes_resolv_conf_its_servers_were_not_asked(
    search: str,
    api: ApiServer,
    tmp_path: Path,
    upstream: Start,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    up = upstream(lambda query, proto: answer(query, "A 192.0.2.1"))
    named: list[str] = []

    def on_its_port(cls: Any, directive: Any, word: Any, parsed: Any, alone: Any = forwarding._alone) -> Any:
        named.append(word.text)
        return alone(cls, directive, word._replace(text=up.address), parsed)

    # A resolv.conf names no ports, and 53 is not ours to take.
    monkeypatch.setattr(forwarding, "_alone", on_its_port)
    api.put(*well(), config_map("coredns", Corefile=GOOD.replace("192.0.2.53", "/etc/resolv.conf")))
    found = seen_in_a_pod(api, tmp_path, capsys, monkeypatch, f"{search}nameserver 127.0.0.1\noptions ndots:5\n")
    assert [(each["level"], each["seen"]) for each in found] == [
        ("info", f"{up.address} answered for . (forward, kube-system/coredns:4:2)")
    ]
    assert set(named) == {"127.0.0.1"}


@pytest.mark.parametrize("inside", [True, False])
def test_where_the_nodes_resolv_conf_cannot_be_read_the_next_command_reads_it(
    inside: bool,
    api: ApiServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    api.put(*well(), config_map("coredns", Corefile=GOOD.replace("192.0.2.53", "/etc/resolv.conf")))
    if inside:
        resolv = "search shop.svc.cluster.local svc.cluster.local cluster.local\nnameserver 169.254.20.10\n"
        (told,) = seen_in_a_pod(api, tmp_path, capsys, monkeypatch, resolv)
    else:
        doctor.main(["--kubeconfig", kubeconfig(tmp_path, here=api.url), "--json"])
        (told,) = [each for each in json.loads(capsys.readouterr().out)["findings"] if each["part"] == "upstreams"]
    why = "this Pod's is another (its dnsPolicy)" if inside else "it cannot be read from here"
    assert told["level"] == "info"
    assert told["seen"] == (
        f"names in . go to the servers of the nodes' /etc/resolv.conf: {why} (forward, kube-system/coredns:4:2)"
    )
    assert told["next"].startswith("kubectl debug node/n1 -it --image=busybox -- cat /host/etc/resolv.conf ")


def test_from_a_laptop_the_upstreams_of_the_corefile_are_named(api: ApiServer, run: Callable[[], Run]) -> None:
    api.put(*well())
    (told,) = [each for each in run().findings if each["part"] == "upstreams"]
    assert told["seen"] == "not asked: 192.0.2.53 (forward, kube-system/coredns:4:2)"
    assert told["next"] == "run doctor in a Pod: it asks each address"
