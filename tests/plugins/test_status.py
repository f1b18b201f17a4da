"""status: the page, what it shows, and that its memory has an end."""

import json
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from kdns.plugins.status.topk import SIZE, TopK
from kdns.testing import Server, answer, free_port, http_get
from tests.fixtures import Serve, Start


@pytest.fixture
def page(serve: Serve, upstream: Start) -> tuple[Server, int]:
    port = free_port()
    up = upstream(lambda query, proto: answer(query, "A 192.0.2.1"))
    server = serve(
        f".:{{port}} {{\n bind 127.0.0.1\n status 127.0.0.1:{port}\n cache 30\n hosts {{\n 192.0.2.9 host.org\n fallthrough\n }}\n"
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
    assert found["clients"] == [["127.0.0.1", 6]] and found["denied"] == [["nx.org.", 2]]
    assert sum(found["latency_seconds"]["counts"]) == 6 and any(count >= 2 for _, count, _ in found["upstreams"])


def test_the_page_and_the_metrics_may_share_an_address(serve: Serve) -> None:
    port = free_port()
    serve(f".:{{port}} {{\n bind 127.0.0.1\n status 127.0.0.1:{port}\n prometheus 127.0.0.1:{port}\n whoami\n}}")
    for _ in range(10):  # two listeners on one port would each get some of the requests
        assert all(http_get(port, path)[0] == 200 for path in ("/", "/status.json", "/metrics"))


def test_the_page_brings_all_it_needs(page: tuple[Server, int]) -> None:
    status, text = http_get(page[1], "/")
    assert status == 200 and "Content-Security-Policy" in text and "{policy}" not in text
    assert "http://" not in text and "https://" not in text and " src=" not in text


@pytest.mark.skipif(not any(map(shutil.which, ("chromium", "chromium-browser"))), reason="chromium is not installed")
@pytest.mark.parametrize(("width", "dark"), [(390, True), (1280, False)])
def test_a_browser_shows_it_at_phone_width_and_in_the_dark(
    page: tuple[Server, int], tmp_path: Path, width: int, dark: bool
) -> None:
    server, port = page
    for i in range(40):
        server.ask(f"name{i % 7}.org.")
    browser = shutil.which("chromium") or "chromium-browser"
    words = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={width},1400",
             f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=15000"]  # fmt: skip
    words += ["--force-dark-mode", "--enable-features=WebContentsForceDark"] if dark else []
    url = f"http://127.0.0.1:{port}/"
    dom = subprocess.run([*words, "--dump-dom", url], capture_output=True, text=True, timeout=60, check=True).stdout
    assert "name3.org." in dom and "127.0.0.1" in dom and "NOERROR" in dom and 'id="lost" role="status"' in dom
    picture = tmp_path / "page.png"
    subprocess.run([*words, f"--screenshot={picture}", url], capture_output=True, timeout=60, check=True)
    assert picture.stat().st_size > 10_000


def test_the_most_frequent_are_found_in_constant_memory() -> None:
    chance = random.Random(1)
    top = TopK()
    for i in range(200_000):
        top.add(f"hot{i % 5}" if chance.random() < 0.4 else f"cold{i}")
        assert len(top.counts) <= SIZE
    assert {key for key, _ in top.top(5)} == {f"hot{i}" for i in range(5)}
    top.fade()
    assert all(count > 0 for _, count in top.top(SIZE))
