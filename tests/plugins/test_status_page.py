"""status: the page in a headless Chromium. KDNS_PICTURES=FOLDER keeps the pictures, for the README and to look at."""

import json
import os
import random
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dns.message
import dns.name
import pytest

from kdns.plugins.status.handler import Status
from kdns.plugins.status.history import Sample
from kdns.testing import ApiServer, Server, answer, eventually, free_port, http_get
from tests.browser import Browser
from tests.fixtures import Serve, Start

SIZES = [(390, 844, True), (1280, 1000, False)]
IMAGE = b"<img src=x onerror=alert(1)>"


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    with Browser(tmp_path / "profile") as made:
        yield made


def status_of(server: Server) -> Status:
    assert server.server.instance is not None
    status, *_ = [plugin for plugin in server.server.instance.plugins if isinstance(plugin, Status)]
    return status


def fill_history(server: Server) -> None:
    """A day of history, with a bad quarter of an hour that has just ended, and a pause."""
    chance, now = random.Random(1), time.time()

    def sample(at: float) -> Sample:
        queries = 400 + 150 * random.Random(int(at // 900)).random() + 40 * chance.random()
        bad = 120 * chance.random() if 300 < now - at < 600 else 0.0
        return Sample(int(at), round(queries, 2), round(bad, 2), round(queries * 0.6, 2), 0.512 if bad else 0.001)

    history = status_of(server).ledger.history
    fine = [sample(now - 5 * back) for back in range(720, 0, -1)]
    coarse = [sample(now - 60 * back) for back in range(1440, 0, -1) if not 500 < back < 560]
    server.thread.call(history.fine.extend, fine)
    server.thread.call(history.coarse.extend, coarse)


@pytest.fixture
def shown(serve: Serve, upstream: Start, browser: Browser) -> Callable[..., tuple[Server, int]]:
    """Serves the page of a server with a live and a dead upstream, and opens it."""

    def start(width: int = 1280, height: int = 1000, dark: bool = False, more: str = "") -> tuple[Server, int]:
        port, dead = free_port(), free_port()
        up = upstream(lambda query, proto: answer(query, "A 192.0.2.1"))
        server = serve(
            f".:{{port}} {{\n bind 127.0.0.1\n status 127.0.0.1:{port}\n cache 30\n template IN A nx.org {{\n rcode "
            f"NXDOMAIN\n }}\n{more} forward . {up.address}\n}}\n"
            f"dead.org:{{port}} {{\n bind 127.0.0.1\n status 127.0.0.1:{port}\n forward . 127.0.0.1:{dead}\n}}\n"
        )
        for i in range(40):
            server.ask(f"name{i % 7}.org.")
        server.ask("a.nx.org.")
        server.ask("x.dead.org.")
        server.ask("y.org.")
        browser.look(width, height, dark=dark)
        browser.open(f"http://127.0.0.1:{port}/")
        eventually(lambda: "name3.org." in browser.text())
        return server, port

    return start


def ask(server: Server, *labels: bytes) -> None:
    """Asks for a name of any octets."""
    query = dns.message.make_query(dns.name.Name([*labels, b""]), "A").to_wire()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(10)
        sock.sendto(query, ("127.0.0.1", server.port))
        sock.recv(65_535)


def overflow(browser: Browser) -> int:
    """How many pixels the page is wider than the window."""
    return int(browser.run("document.documentElement.scrollWidth - innerWidth"))


@pytest.mark.parametrize(("width", "height", "dark"), SIZES)
def test_a_browser_shows_it_at_phone_width_and_in_the_dark(
    shown: Callable[..., tuple[Server, int]], browser: Browser, tmp_path: Path, width: int, height: int, dark: bool
) -> None:
    server, _ = shown(width, height, dark)
    fill_history(server)
    browser.open(browser.run("location.href"))  # the history comes with the page, and once a minute
    eventually(
        lambda: "connection refused" in browser.text() and browser.run("document.querySelector('path') !== null")
    )
    text = browser.text()
    for found in ("127.0.0.1", "NOERROR", "No upstream of dead.org. answers", "15 min", "SERVFAIL", "nx.org."):
        assert found in text, found
    assert "does not answer" not in text and overflow(browser) == 0 and not browser.said
    dark_paper = browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(18, 22, 28)"
    assert dark_paper == dark
    # The README shows the wide one whole and the phone's first screen.
    folder = Path(os.environ.get("KDNS_PICTURES") or tmp_path)
    name = f"status{'-phone' if width < 600 else ''}"
    browser.picture(folder / f"{name}.png", whole=width > 600)
    browser.picture(folder / f"{name}-whole.png")
    assert (folder / f"{name}.png").stat().st_size > 10_000


def test_what_clients_ask_for_is_text_on_the_page_and_never_markup(
    shown: Callable[..., tuple[Server, int]], browser: Browser
) -> None:
    server, port = shown(320)
    longest = [b"\xff" * 63, b"\x00" * 63, b"." * 63, b"w" * 61]  # 255 octets
    for labels in ([IMAGE, b"org"], [b'"\'&;</script>', b"org"], [b"\x00\x1b[31m\r\n", b"org"], longest,
                   [IMAGE, b"dead", b"org"], [b"xn--bcher-kva", b"org"], [b"\xe2\x80\xaeevil", b"org"],
                   [b"a", b"<b>", b"nx", b"org"]):  # fmt: skip
        for _ in range(20):
            ask(server, *labels)
    eventually(lambda: "<b>.nx.org." in browser.text())
    text = browser.text()
    for found in (
        "<img\\032src=x\\032onerror=alert\\(1\\)>.org.",
        "\\000\\027[31m\\013\\010.org.",
        "\\226\\128\\174evil",
        "xn--bcher-kva.org.",
        "\\255" * 63,
    ):
        assert found in text, found
    assert browser.run("document.querySelectorAll('img, section script, b').length") == 0
    assert overflow(browser) == 0, "the longest name made the page wider than a small phone"
    height = "document.querySelector('#names tbody th:has(.cut)').offsetHeight"
    tallest = "Math.max(...[...document.querySelectorAll('.cut')].map(each => each.offsetHeight))"
    assert browser.run(height) > 0 and browser.run(tallest) < 100, "one name took the whole window"
    browser.run("document.getElementById('all').click()")
    assert browser.run(tallest) > 300, "all of it, for whoever asks for all"
    assert not browser.said
    page = http_get(port, "/status.json")[1]
    assert page.isascii() and not any(ord(each) < 0x20 for each in page)


def test_each_control_is_reached_in_order_and_used_by_the_keyboard_alone(
    shown: Callable[..., tuple[Server, int]], browser: Browser
) -> None:
    shown()
    seen = []
    for _ in range(6):
        browser.press("Tab")
        seen.append(browser.run("document.activeElement.id || document.activeElement.textContent"))
        assert browser.run("getComputedStyle(document.activeElement).outlineStyle") == "solid", seen
        assert browser.run("document.activeElement.matches(':focus-visible')")
        assert browser.run("document.activeElement.getBoundingClientRect().height") >= 24  # WCAG 2.2, 2.5.8
    assert seen == ["search", "all", "15 min", "1 h", "6 h", "24 h"]
    browser.press("Enter")
    pressed = "[...document.querySelectorAll('#windows [aria-pressed=true]')].map(each => each.textContent).join()"
    assert browser.run(pressed) == "24 h"
    browser.run("document.getElementById('search').focus()")
    for key in "name5":
        browser.press(key)
    rows = "[...document.getElementById('names').tBodies[0].rows].map(each => each.cells[0].textContent).join()"
    eventually(lambda: browser.run(rows) == "name5.org.")
    assert browser.run("document.getElementById('fit').textContent") == "rows that fit the search: 1"


def test_a_screen_reader_finds_a_name_for_every_table_chart_and_control(
    shown: Callable[..., tuple[Server, int]], browser: Browser
) -> None:
    for width in (1280, 390):
        shown(width)
        nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
        named: dict[str, list[str]] = {}
        for node in nodes:
            if not node["ignored"]:
                named.setdefault(node["role"]["value"], []).append(node.get("name", {}).get("value", ""))
        for role in ("table", "image", "button", "searchbox", "region", "heading", "rowheader", "group"):
            assert named.get(role) and all(named[role]), (width, role, named.get(role))
        for table in ("Upstreams", "Recent errors", "Names asked most", "What runs"):
            assert table in named["table"], width
        assert "Upstream" in named["columnheader"] or width == 390
        assert len(named["image"]) == 2 and "queries/s" in named["image"][0]
        assert named["searchbox"] == ["Search"] and "name3.org." in named["rowheader"]


def test_a_redraw_took_the_selection_and_the_place_away(
    shown: Callable[..., tuple[Server, int]], browser: Browser
) -> None:
    server, _ = shown()
    browser.run("getSelection().selectAllChildren(document.querySelector('#upstreams tbody th'))")
    browser.run("document.querySelector('#windows button').focus()")
    picked = browser.run("getSelection().toString()")
    server.ask("name3.org.")
    total = int(json.loads(http_get(status_of(server).config.port, "/status.json")[1])["queries"])
    eventually(lambda: f"{total} since the start" in browser.text())
    assert picked.startswith("127.0.0.1:") and browser.run("getSelection().toString()") == picked
    assert browser.run("document.activeElement.textContent") == "15 min"


def test_an_outage_was_spoken_again_whenever_its_seconds_had_changed(
    shown: Callable[..., tuple[Server, int]], browser: Browser
) -> None:
    server, _ = shown()
    ledger = status_of(server).ledger

    def failing(part: float) -> None:
        server.thread.call(ledger.history.fine.clear)
        server.thread.call(ledger.history.fine.append, Sample(int(time.time()), 1e6, part * 1e4, 0.0, 0.001))

    spoken = "document.getElementById('spoken').textContent"
    browser.run(
        "var heard = []; new MutationObserver(() => heard.push(document.getElementById('spoken').textContent)).observe("
        "document.getElementById('spoken'), {childList: true, characterData: true, subtree: true})"
    )
    for percent in (10, 20, 30):
        failing(percent)
        eventually(lambda percent=percent: f"{percent}% of the last minute" in browser.text())  # type: ignore[misc]
    assert "10% of the last minute" in browser.run(spoken)
    assert browser.run("heard.length") == 1
    assert browser.run("document.getElementById('outage').getAttribute('role')") is None


def test_nothing_moves_by_itself(shown: Callable[..., tuple[Server, int]], browser: Browser) -> None:
    _, port = shown()
    assert browser.run("document.getAnimations().length") == 0
    page = http_get(port, "/")[1]
    assert not any(word in page for word in ("transition", "animation", "@keyframes", "scroll-behavior"))


def test_a_server_that_is_gone_is_said_to_be_gone(shown: Callable[..., tuple[Server, int]], browser: Browser) -> None:
    server, _ = shown()
    assert "does not answer" not in browser.text()
    assert server.reload(".:{port} {\n bind 127.0.0.1\n whoami\n}\n")  # nobody listens for the page any more
    eventually(lambda: "The server does not answer" in browser.text(), 20)


def test_a_dead_upstream_among_two_thousand_is_the_first_on_the_page(
    shown: Callable[..., tuple[Server, int]], browser: Browser
) -> None:
    more = "".join(
        f" forward z{i}.org {' '.join(f'127.0.1.{i}:{9000 + k}' for k in range(15))}\n" for i in range(1, 134)
    )
    server, _ = shown(more=more)
    first = "document.querySelector('#upstreams tbody tr').textContent"
    assert "connection refused" in browser.run(first)
    assert browser.run("document.getElementById('upstreams').tBodies[0].rows.length") == 100
    assert "and 1897 more" in browser.text()
    browser.run("document.getElementById('search').value = '127.0.1.133:9014'")
    browser.run("document.getElementById('search').dispatchEvent(new Event('input'))")
    assert "127.0.1.133:9014" in browser.run(first)


def test_history_has_axes_and_a_window_of_time_and_no_line_where_nothing_was_counted(
    shown: Callable[..., tuple[Server, int]], browser: Browser
) -> None:
    server, _ = shown()
    fill_history(server)
    browser.open(browser.run("location.href"))
    eventually(lambda: browser.run("document.querySelector('path') !== null"))
    points = "document.querySelector('path').getAttribute('d').split(/[ML]/).length - 1"
    parts = "document.querySelector('path').getAttribute('d').split('M').length - 1"
    span = "document.querySelector('svg').getAttribute('aria-label').match(/From (.*?) to (.*?)[.]/).slice(1).join()"
    seen = []
    for number, (most, pieces) in enumerate([(181, 1), (720, 1), (361, 1), (1381, 2)]):
        browser.run(f"document.querySelectorAll('#windows button')[{number}].click()")
        assert most - 4 <= browser.run(points) <= most, number
        assert browser.run(parts) == pieces, number
        seen.append(browser.run(span))
    assert len(set(seen)) == 4
    axis = browser.run("[...document.querySelector('svg').querySelectorAll('text')].map(each => each.textContent)")
    assert axis[:3] == ["0", "500", "1000"] and len(axis) == 3 + 5 + 3


def test_the_age_of_what_is_served_of_the_cluster_is_a_headline(serve: Serve, api: ApiServer, browser: Browser) -> None:
    port = free_port()
    serve(
        f".:{{port}} {{\n bind 127.0.0.1\n status 127.0.0.1:{port}\n kubernetes cluster.local {{\n"
        f" endpoint {api.url}\n }}\n}}\n"
    )
    browser.look(1280, 1000)
    browser.open(f"http://127.0.0.1:{port}/")
    age = "document.getElementById('age').textContent"
    eventually(lambda: browser.run(age) == "watched")
    api.down()
    eventually(lambda: browser.run(age).endswith((" ms", " s")), 40)
