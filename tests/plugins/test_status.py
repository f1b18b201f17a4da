"""status: the page, what it shows, and that its memory has an end."""

import contextlib
import http.client
import json
import os
import random
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdns.corefile import CorefileError
from kdns.dns import iana
from kdns.dns.answer import Answer
from kdns.dns.name import from_text
from kdns.dns.query import Question
from kdns.plugin.request import Request
from kdns.plugins.status.handler import Config, Status
from kdns.plugins.status.history import History, Totals
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
    assert status.outages([], status.ledger.failing()) == ["10% of the last minute's answers are failures."]
    assert "has not been heard of for 61 s" in status.outages([[{"kind": "Service"}, 61.0]], 0.0)[0]


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
    assert plugin.state()["wasted"] == [["shop/cart", 3000], ["192.0.2.1", 1]]


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
    assert (
        text.count('role="alert"') == 2 and "<label>Search <input" in text and 'svg.setAttribute("aria-label"' in text
    )
    # WCAG 2.2, 1.4.3: text has a contrast of 4.5 to 1 with what is behind it, by day and by night.
    for theme in re.findall(r":root \{([^}]*)\}", text):
        colours = dict(re.findall(r"--(\w+): (#[0-9a-f]+)", theme))
        for name in ("ink", "soft", "mark", "bad", "good"):
            for behind in ("paper", "card"):
                assert contrast(colours[name], colours[behind]) >= 4.5, (name, behind)


def contrast(one: str, other: str) -> float:
    def luminance(text: str) -> float:
        digits = text[1:] if len(text) == 7 else "".join(digit * 2 for digit in text[1:])
        parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.skipif(not any(map(shutil.which, ("chromium", "chromium-browser"))), reason="chromium is not installed")
@pytest.mark.parametrize(("width", "dark"), [(390, True), (1280, False)])
def test_a_browser_shows_it_at_phone_width_and_in_the_dark(
    serve: Serve, upstream: Start, tmp_path: Path, width: int, dark: bool
) -> None:
    port, dead = free_port(), free_port()
    up = upstream(lambda query, proto: answer(query, "A 192.0.2.1"))
    server = serve(
        f".:{{port}} {{\n bind 127.0.0.1\n status 127.0.0.1:{port}\n cache 30\n template IN A nx.org {{\n rcode "
        f"NXDOMAIN\n }}\n"
        f" forward dead.org 127.0.0.1:{dead}\n forward . {up.address}\n}}"
    )
    for i in range(40):
        server.ask(f"name{i % 7}.org.")
    server.ask("a.nx.org.")
    server.ask("x.dead.org.")
    assert server.server.instance is not None
    (status,) = [plugin for plugin in server.server.instance.plugins if isinstance(plugin, Status)]
    for second in range(5, 25, 5):  # what time would bring
        server.thread.call(status.ledger.sample, time.monotonic() + second, time.time() - 25 + second)
    browser = shutil.which("chromium") or "chromium-browser"
    words = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
        f"--window-size={width},{2400 if dark else 1620}",
             f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=12000"]  # fmt: skip
    words += ["--blink-settings=preferredColorScheme=0"] if dark else []
    url = f"http://127.0.0.1:{port}/"
    dom = subprocess.run([*words, "--dump-dom", url], capture_output=True, text=True, timeout=60, check=True).stdout
    for text in (
        "name3.org.",
        "127.0.0.1",
        "NOERROR",
        "No upstream of dead.org. answers",
        "connection refused",
        "<polyline",
        "15 min",
    ):
        assert text in dom, text
    assert re.search(r'id="lost"[^>]* hidden', dom), "it was reached"
    picture = tmp_path / "page.png"
    subprocess.run([*words, f"--screenshot={picture}", url], capture_output=True, timeout=60, check=True)
    assert picture.stat().st_size > 10_000
    if folder := os.environ.get("KDNS_PICTURES"):  # where somebody wants to look at them
        shutil.copy(picture, Path(folder) / f"status-{width}{'-dark' if dark else ''}.png")


def test_the_most_frequent_are_found_in_constant_memory() -> None:
    chance = random.Random(1)
    top = TopK()
    for i in range(200_000):
        top.add(f"hot{i % 5}" if chance.random() < 0.4 else f"cold{i}")
        assert len(top.counts) <= SIZE
    assert {key for key, _ in top.top(5)} == {f"hot{i}" for i in range(5)}
    top.fade()
    assert all(count > 0 for _, count in top.top(SIZE))
