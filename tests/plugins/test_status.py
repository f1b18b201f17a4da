"""status: the page, what it shows, and that its memory has an end."""

import asyncio
import contextlib
import http.client
import json
import random
import re
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdns import timeslice
from kdns.cli import demo
from kdns.corefile import CorefileError
from kdns.dns import iana
from kdns.dns.answer import Answer
from kdns.dns.name import from_text
from kdns.dns.query import Question
from kdns.net.http import Response
from kdns.plugin.providers import UpstreamState
from kdns.plugin.request import Request
from kdns.plugins import reload as reload_plugin
from kdns.plugins.status import merge
from kdns.plugins.status.handler import RECENT, SERIES, Config, Status
from kdns.plugins.status.history import History, Sample, Totals
from kdns.plugins.status.outages import outages
from kdns.plugins.status.shared import Shared
from kdns.plugins.status.topk import SIZE, TopK
from kdns.server import build
from kdns.testing import Server, answer, eventually, free_port, http_get
from kdns.testing.objects import namespace, pod
from tests.fixtures import Serve, Start


@pytest.fixture
def page(serve: Serve, upstream: Start) -> tuple[Server, int]:
    port = free_port()
    up = upstream(lambda query, proto: answer(query, "A 192.0.2.1"))
    server = serve(
        f".:{{port}} {{\n bind 127.0.0.1\n status 127.0.0.1:{port}\n cache 30\n hosts {{\n 192.0.2.9 host.org\n "
        f"fallthrough\n }}\n"
        f" template IN A nx.org {{\n rcode NXDOMAIN\n }}\n forward . {up.address}\n}}"
    )
    return server, port


def test_the_json_holds_what_was_asked(page: tuple[Server, int]) -> None:
    server, port = page
    for _ in range(3):
        server.ask("popular.org.")
    server.ask('we"ird<script>.org.')
    server.ask("a.nx.org.")
    server.ask("b.nx.org.")
    status, text = http_get(port, "/status.json")
    found = json.loads(text)
    assert status == 200 and found["queries"] == 6 and found["rcodes"] == {"NOERROR": 4, "NXDOMAIN": 2}
    assert found["names"][0] == ["popular.org.", 3] and ['we\\"ird<script>.org.', 1] in found["names"]
    assert (
        found["clients"] == [["127.0.0.1", 6]]
        and found["denied"] == [["nx.org.", 2]]
        and found["wasted"] == [["127.0.0.1", 2]]
    )
    assert sum(found["latency_seconds"]["counts"]) == 6 and not found["outages"] and not found["failures"]
    (upstream,) = found["upstreams"]
    assert upstream["state"] == "up" and upstream["zone"] == "." and upstream["rtt"] > 0 and not upstream["error"]
    assert 0 < upstream["answered"] <= upstream["since"]
    assert found["serves"][0]["plugins"][-1] == "forward"


def test_the_page_stayed_calm_while_every_upstream_was_dead(serve: Serve, upstream: Start) -> None:
    port, dead, other = free_port(), free_port(), free_port()
    up = upstream(lambda query, proto: answer(query, "A 192.0.2.1"))
    server = serve(
        f".:{{port}} {{\n bind 127.0.0.1\n status 127.0.0.1:{port}\n forward . 127.0.0.1:{dead}\n}}\n"
        f"a.org:{{port}} "
        f"{{\n bind 127.0.0.1\n forward a.org 127.0.0.1:{other} {up.address} {{\n policy sequential\n }}\n}}\n"
    )
    found = json.loads(http_get(port, "/status.json")[1])
    assert {each["to"]: each["state"] for each in found["upstreams"]} == {
        f"127.0.0.1:{dead}": "unused", f"127.0.0.1:{other}": "unused", up.address: "unused"}  # fmt: skip
    server.ask("x.org.")
    server.ask("x.a.org.")

    def state() -> dict[str, dict[str, Any]]:
        return {each["to"]: each for each in json.loads(http_get(port, "/status.json")[1])["upstreams"]}

    eventually(lambda: state()[f"127.0.0.1:{dead}"]["state"] == "down")
    assert "connection refused" in state()[f"127.0.0.1:{dead}"]["error"] and state()[f"127.0.0.1:{dead}"]["since"] > 0
    assert state()[f"127.0.0.1:{other}"]["state"] in ("failing", "down") and state()[up.address]["state"] == "up"
    found = json.loads(http_get(port, "/status.json")[1])
    (outage,) = [text for text in found["outages"] if "upstream" in text]
    assert outage == f"No upstream of . answers: 127.0.0.1:{dead}. Names that are forwarded to them fail."
    assert (
        found["failures"] == 1
        and found["errors"][0]["name"] == "x.org."
        and found["errors"][0]["error"].startswith("SERVFAIL: ")
    )


def test_history_is_a_day_in_bounded_memory_and_a_reload_keeps_it(serve: Serve, upstream: Start) -> None:
    history = History((0.001, 0.01))
    totals = Totals(0, 0, 0, (0, 0, 0))
    for second in range(0, 30 * 3600, 5):
        totals = Totals(second * 10, second, 0, (second * 9, second, 0))
        history.add(second, 1e9 + second, totals)
    assert len(history.fine) == 720 and len(history.coarse) == 1440
    assert history.fine[-1].queries == 10 and history.fine[-1].failures == 1 and history.coarse[-1].slow == 0.01
    assert history.coarse[-1].at - history.coarse[0].at == 1439 * 60
    port = free_port()
    text = f".:{{port}} {{\n bind 127.0.0.1\n status 127.0.0.1:{port}\n hosts {{\n 192.0.2.1 a.org\n }}\n}}\n"
    server = serve(text)
    server.ask("a.org.")
    assert server.reload(text.replace("192.0.2.1", "192.0.2.2"))
    server.ask("a.org.")
    found = json.loads(http_get(port, "/status.json")[1])
    assert found["queries"] == 2 and len(found["configuration"]) == 12
    assert set(json.loads(http_get(port, "/history.json")[1])) == {"fine", "coarse"}


def test_many_failures_in_the_last_minute_are_an_outage() -> None:
    status = Status(Config("127.0.0.1", 0))
    for second in range(0, 100, 5):
        status.ledger.queries, status.ledger.failures = second * 10, second
        status.ledger.sample(second, 1e9 + second)
    assert outages([], status.ledger.failing()) == ["10% of the last minute's answers are failures."]
    assert "has not been heard of for 61 s" in outages([[{"kind": "Service"}, 61.0]], 0.0)[0]


@pytest.mark.parametrize(("host", "status"), [
    ("127.0.0.1", 200), ("127.0.0.1:8053", 200), ("[::1]:8053", 200), ("LOCALHOST:1", 200), ("kdns.example.org", 200),
    ("Kdns.Example.Org.:80", 200),
    ("evil.example", 421), ("127.0.0.1.evil.example", 421), ("localhost.evil.example:8053", 421), ("[evil]:1", 421),
    ("a:b:c.d", 421),
])  # fmt: skip
def test_a_website_could_read_the_page_by_a_name_of_its_own_that_leads_here(
    serve: Serve, host: str, status: int
) -> None:
    port = free_port()
    serve(
        f".:{{port}} {{\n bind 127.0.0.1\n whoami\n prometheus 127.0.0.1:{port}\n"
        f" status 127.0.0.1:{port} {{\n hosts kdns.example.org\n }}\n}}"
    )
    for path, expected in (("/", status), ("/status.json", status), ("/history.json", status), ("/metrics", 200)):
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
            connection.putrequest("GET", path, skip_host=True)
            connection.putheader("Host", host)
            connection.endheaders()
            assert connection.getresponse().status == expected, path


def test_clients_are_pods_by_name_where_those_are_watched(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        yaml.safe_dump_all([namespace("shop"), pod("shop/cart-7d9f8b6c5d-x2k4p", "127.0.0.1")])
    )
    port = free_port()
    server = serve(
        f".:{{port}} {{\n bind 127.0.0.1\n status 127.0.0.1:{port}\n kubernetes cluster.local {{\n"
        f" manifests {tmp_path / 'c.yaml'}\n pods verified\n }}\n}}"
    )
    server.ask("nope.shop.svc.cluster.local.")
    found = json.loads(http_get(port, "/status.json")[1])
    assert found["clients"] == [["shop/cart-7d9f8b6c5d-x2k4p (127.0.0.1)", 1]]
    assert found["wasted"] == [["shop/cart", 1]]
    server.ask("elsewhere.org.")  # there is nobody to ask
    found = json.loads(http_get(port, "/status.json")[1])
    assert [each["client"] for each in found["errors"]] == ["shop/cart-7d9f8b6c5d-x2k4p (127.0.0.1)"]


def test_waste_is_that_of_workloads_so_that_many_pods_with_a_little_each_are_seen() -> None:
    class Names:
        def client_name(self, host: str) -> str:
            last = host.rpartition(".")[2]
            return "" if host.startswith("192.") else f"shop/cart-7d9f8b6c5d-x2k{int(last) % 10}p"

    plugin = Status(Config("127.0.0.1", 1))
    plugin.pods = [Names()]  # type: ignore[list-item]
    asked = Question(from_text("nope.shop.svc.cluster.local."), iana.A)
    server: Any = None

    def deny(client: str) -> None:
        request = Request(server, b"", 0, asked, None, b"", 0, (client, 1), None, "udp", time.monotonic())
        plugin.observe(request, Answer(iana.NXDOMAIN))

    for number in range(3000):
        deny(f"10.{number >> 8}.{number & 255}.{(2, 4, 5, 6, 7, 8, 9)[number % 7]}")
    deny("192.0.2.1")
    assert asyncio.run(plugin.state())["wasted"] == [["shop/cart", 3000], ["192.0.2.1", 1]]


@pytest.mark.parametrize(
    "text",
    ["status {\n nope\n }", "status {\n hosts\n }", "status 127.0.0.1:8053 x", "status {\n hosts a {\n b\n }\n }"],
)
def test_what_the_page_cannot_be_given_is_an_error_with_its_place(text: str) -> None:
    with pytest.raises(CorefileError) as error:
        build.build(build.read(f". {{\n {text}\n}}\n", "Corefile"))
    assert error.value.where is not None


def test_the_page_and_the_metrics_may_share_an_address(serve: Serve) -> None:
    port = free_port()
    serve(f".:{{port}} {{\n bind 127.0.0.1\n status 127.0.0.1:{port}\n prometheus 127.0.0.1:{port}\n whoami\n}}")
    for _ in range(10):  # two listeners on one port would each get some of the requests
        assert all(http_get(port, path)[0] == 200 for path in ("/", "/status.json", "/metrics"))


def test_the_page_brings_all_it_needs(page: tuple[Server, int]) -> None:
    status, text = http_get(page[1], "/")
    assert status == 200 and "Content-Security-Policy" in text and "{policy}" not in text
    assert "http://" not in text and "https://" not in text and " src=" not in text


def test_every_part_has_a_heading_a_label_and_room_for_a_keyboard(page: tuple[Server, int]) -> None:
    text = http_get(page[1], "/")[1]
    for found in re.findall(r'<section[^>]*aria-labelledby="([^"]+)"', text):
        assert f'id="{found}"' in text
    assert text.count("<section") == text.count("aria-labelledby=") and ":focus-visible" in text and 'lang="en"' in text
    assert text.count('role="alert"') == 2 and "<label>Search <input" in text
    # WCAG 2.2, 1.4.3: text has a contrast of 4.5 to 1 with what is behind it, by day and by night.
    for theme in re.findall(r":root \{([^}]*)\}", text):
        colours = dict(re.findall(r"--(\w+): (#[0-9a-f]+)", theme))
        for name in ("ink", "soft", "mark", "bad", "good"):
            for behind in ("paper", "card"):
                assert contrast(colours[name], colours[behind]) >= 4.5, (name, behind)
    assert "button, input { " in text and "border: 1px solid var(--soft)" in text  # 1.4.11: controls have 3 to 1


def contrast(one: str, other: str) -> float:
    def luminance(text: str) -> float:
        digits = text[1:] if len(text) == 7 else "".join(digit * 2 for digit in text[1:])
        parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def test_the_most_frequent_are_found_in_constant_memory() -> None:
    chance = random.Random(1)
    top = TopK()
    for i in range(200_000):
        top.add(f"hot{i % 5}" if chance.random() < 0.4 else f"cold{i}")
        assert len(top.counts) <= SIZE
    assert {key for key, _ in top.top(5)} == {f"hot{i}" for i in range(5)}
    top.fade()
    assert all(count > 0 for _, count in top.top(SIZE))


def state(port: int) -> Any:
    status, text = http_get(port, "/status.json")
    assert status == 200
    return json.loads(text)


def test_only_the_block_with_the_page_was_among_what_runs(serve: Serve) -> None:
    port = free_port()
    server = serve(
        f".:{{port}} {{\n bind 127.0.0.1\n status 127.0.0.1:{port}\n whoami\n}}\n"
        "a.org:{port} b.org:{port} {\n bind 127.0.0.1\n cache\n whoami\n}\n"
    )
    assert state(port)["serves"] == [
        {"keys": [f".:{server.port}"], "plugins": ["bind", "status", "whoami"]},
        {"keys": [f"a.org.:{server.port}", f"b.org.:{server.port}"], "plugins": ["bind", "cache", "whoami"]},
    ]


def test_a_forward_of_all_names_in_a_block_of_one_zone_was_shown_as_that_of_all_names(serve: Serve) -> None:
    port, dead = free_port(), free_port()
    many = " ".join(f"z{i}.org:{{port}}" for i in range(1000))
    server = serve(
        f".:{{port}} {{\n bind 127.0.0.1\n status 127.0.0.1:{port}\n forward a.org 127.0.0.1:{dead}\n}}\n"
        f"c.org:{{port}} d.org:{{port}} {{\n bind 127.0.0.1\n forward . 127.0.0.1:{dead}\n}}\n"
        f"{many} {{\n bind 127.0.0.1\n forward . 127.0.0.1:{dead}\n}}\n"
    )
    assert [each["zone"] for each in state(port)["upstreams"]] == [
        "a.org.", "c.org., d.org.", "z0.org., z1.org., z2.org. and 997 more"]  # fmt: skip
    server.ask("x.c.org.")
    eventually(
        lambda: (
            state(port)["outages"]
            == [f"No upstream of c.org., d.org. answers: 127.0.0.1:{dead}. Names that are forwarded to them fail."]
        )
    )


def test_the_page_knew_the_configuration_by_another_hash_than_the_log(serve: Serve, lines: list[str]) -> None:
    port = free_port()
    server = serve(f".:{{port}} {{\n bind 127.0.0.1\n status 127.0.0.1:{port}\n reload\n whoami\n}}\n")
    (hashed,) = [line.rpartition(" = ")[2] for line in lines if "SHA512" in line]
    found = state(port)
    assert hashed.startswith(found["configuration"]) and len(found["configuration"]) == 12
    assert server.reload(server.text + "b.org:{port} {\n bind 127.0.0.1\n whoami\n}\n")
    assert state(port)["configuration"] != found["configuration"]
    assert state(port)["configuration_began"] >= found["configuration_began"]


def test_a_changed_corefile_that_is_not_served_was_not_on_the_page(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload_plugin, "MIN_INTERVAL", 0.05)
    port = free_port()
    good = f".:{{port}} {{\n bind 127.0.0.1\n reload 50ms 0\n status 127.0.0.1:{port}\n whoami\n}}\n"
    server = serve(good)
    assert state(port)["outages"] == []
    server.text = good.replace("whoami", "whoami nonsense")
    eventually(lambda: state(port)["outages"])
    (outage,) = state(port)["outages"]
    assert outage.startswith("The Corefile has changed, and is not served: Corefile:5:9: ")
    server.text = good  # taken back: nothing is loaded for that
    eventually(lambda: not state(port)["outages"])
    server.text = good.replace("whoami", "whoami nonsense")
    eventually(lambda: state(port)["outages"])
    server.text = good.replace("whoami", "chaos")
    eventually(lambda: not state(port)["outages"])


def test_the_page_had_a_row_of_each_metric_for_each_server_zone_and_type(serve: Serve) -> None:
    port = free_port()
    blocks = "".join(
        f"z{i}.org:{{port}} {{\n bind 127.0.0.1\n prometheus 127.0.0.1:{port}\n cache\n whoami\n}}\n" for i in range(50)
    )
    server = serve(f".:{{port}} {{\n bind 127.0.0.1\n status 127.0.0.1:{port}\n whoami\n}}\n{blocks}")
    for i in range(50):
        for kind in ("A", "AAAA", "TXT"):
            server.ask(f"z{i}.org.", kind)
    series = state(port)["series"]
    assert all(len(series[name]) == 1 for name in ("requests", "cache_hits", "cache_misses", "cache_entries"))
    assert series["requests"][0][1] >= 150


def test_the_numbers_of_two_thousand_upstreams_were_put_together_in_one_turn_of_the_loop(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    forwards = "".join(
        f" forward z{i}.org {' '.join(f'127.0.1.{i}:{9000 + k}' for k in range(15))}\n" for i in range(1, 134)
    )
    server = serve(f".:{{port}} {{\n bind 127.0.0.1\n status 127.0.0.1:{port}\n{forwards} whoami\n}}\n")
    assert server.server.instance is not None
    (status,) = [plugin for plugin in server.server.instance.plugins if isinstance(plugin, Status)]
    monkeypatch.setattr(timeslice, "SLICE", 0.0)  # each pause is a turn, however fast the machine is
    turns = 0

    async def count() -> bytes:
        making = asyncio.ensure_future(status._data())
        nonlocal turns
        while not making.done():
            turns += 1
            await asyncio.sleep(0)
        return bytes(making.result().body)  # type: ignore[arg-type]

    found = json.loads(server.thread.run(count()))
    assert len(found["upstreams"]) == 133 * 15 and turns > 300
    # The history too: 95 KB.
    history = status.ledger.history
    server.thread.call(history.fine.extend, [Sample(i, 1.0, 0.0, 0.0, 0.001) for i in range(720)])
    server.thread.call(history.coarse.extend, [Sample(i, 1.0, 0.0, 0.0, 0.001) for i in range(1440)])
    turns = 0
    status._data = status._past  # type: ignore[method-assign]
    found = json.loads(server.thread.run(count()))
    assert len(found["fine"]) == 720 and len(found["coarse"]) == 1440 and turns > 100


def test_two_hundred_browsers_cost_what_two_hundred_replies_cost() -> None:
    now, made = 100.0, 0

    async def make() -> Response:
        nonlocal now, made
        made += 1
        await asyncio.sleep(0)
        now += 0.010  # seconds that it takes
        return Response(200, str(made).encode())

    async def run() -> None:
        nonlocal now
        shared = Shared(lambda: now)
        assert {(await each).body for each in [asyncio.ensure_future(shared.get(make)) for _ in range(200)]} == {b"1"}
        began, asked = now, 0
        while now < began + 10:  # each of 200 every 2.5 seconds
            await shared.get(make)
            asked += 1
            now += 2.5 / 200
        assert asked > 500 and made * 0.010 < 0.1 + 0.051 * (now - began), "a twentieth of the time"
        now += 10
        before = made
        for _ in range(5):
            await shared.get(make)
        assert made == before + 5, "in calm times everybody gets what is true now"

    asyncio.run(run())


def test_a_reply_that_took_long_to_make_was_shown_for_long() -> None:
    now, made = 100.0, 0

    async def make() -> Response:
        nonlocal now, made
        made += 1
        now += 0.5
        if made == 2:
            raise OSError("once")
        return Response(200, str(made).encode())

    async def run() -> None:
        nonlocal now
        shared = Shared(lambda: now)
        assert (await shared.get(make)).body == b"1"
        now += 0.98
        assert (await shared.get(make)).body == b"1"
        now += 0.03
        with pytest.raises(OSError, match="once"):
            await shared.get(make)
        now += 1.01
        assert (await shared.get(make)).body == b"3", "what fails is tried again"

    asyncio.run(run())


def test_the_history_was_sent_whole_with_every_look(serve: Serve) -> None:
    port = free_port()
    server = serve(f".:{{port}} {{\n bind 127.0.0.1\n status 127.0.0.1:{port}\n whoami\n}}\n")
    assert server.server.instance is not None
    (status,) = [plugin for plugin in server.server.instance.plugins if isinstance(plugin, Status)]
    server.thread.call(status.ledger.history.fine.extend, [Sample(i, 1.5, 0.5, 0.5, 0.001) for i in range(720)])
    recent = state(port)["recent"]
    assert len(recent) == RECENT and recent[-1] == [719, 1.5, 0.5, 0.5, 0.001]
    page = http_get(port, "/")[1]
    assert "now.recent" in page and "> 60000" in page
    assert len(page) < 24_000 and len(http_get(port, "/status.json")[1]) < 8_000


def test_the_page_of_several_workers_has_their_recent_history() -> None:
    one = [[100, 1.0, 0.0, 0.0, 0.001], [105, 2.0, 1.0, 0.0, 0.002]]
    status = Status(Config("127.0.0.1", 0))
    found = asyncio.run(status.state())
    merged = merge.states([{**found, "recent": one}, {**found, "recent": one[1:]}], SERIES, found["series"], 50)
    assert merged["recent"] == [[100, 1.0, 0.0, 0.0, 0.001], [105, 4.0, 2.0, 0.0, 0.002]]
    assert merge.failing(merged["recent"], 12) == 2 / 5


@pytest.mark.parametrize("method", ["HEAD", "POST", "DELETE", "OPTIONS"])
def test_whatever_the_method_nothing_is_changed_and_nobody_waits(page: tuple[Server, int], method: str) -> None:
    server, port = page
    for path in ("/", "/status.json", "/history.json"):
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
            connection.request(method, path)
            reply = connection.getresponse()
            assert reply.status == 200 and bool(reply.read()) == (method != "HEAD")
    assert state(port)["queries"] == 0


def test_the_demo_has_the_page_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    monkeypatch.setattr(demo, "run", lambda read, greeting: made.append(repr(read().blocks)) or 0)
    assert demo.main([]) == demo.main(["--status.port", "9000"]) == demo.main(["--status.port", "0"]) == 0
    assert "127.0.0.1:8053" in made[0] and "127.0.0.1:9000" in made[1] and "status" not in made[2]


def test_the_last_error_of_an_upstream_was_forgotten_once_it_answered_again(serve: Serve, upstream: Start) -> None:
    port, broken = free_port(), True
    up = upstream(lambda query, proto: None if broken else answer(query, "A 192.0.2.1"))
    server = serve(
        f".:{{port}} {{\n bind 127.0.0.1\n status 127.0.0.1:{port}\n forward . {up.address} {{\n health_check 50ms\n"
        " read_timeout 100ms\n }\n}"
    )
    server.ask("x.org.")
    (found,) = state(port)["upstreams"]
    assert found["state"] in ("failing", "down") and "timeout" in found["error"] and not found["answered"]
    broken = False
    eventually(lambda: state(port)["upstreams"][0]["state"] == "up")
    (found,) = state(port)["upstreams"]
    assert "timeout" in found["error"] and found["error_age"] >= found["since"] > 0


def test_an_outage_of_a_hundred_groups_of_upstreams_filled_the_window() -> None:
    down = UpstreamState("192.0.2.1:53", b"\0", "down", 5.0, 0.0, "timeout", 1.0, 0.0)
    groups = [[(down, f"z{i}.org."), (down, f"z{i}.org.")] for i in range(100)]
    said = outages([], 0.0, groups)
    assert len(said) == 4 and said[0].startswith("No upstream of z0.org. answers: ")
    assert said[3] == "So it is with 97 more groups of upstreams: see below."
