"""log: a line for each query, as CoreDNS writes it."""

import re
import time

import dns.message
import dns.rrset
import pytest

from kdns import log
from kdns.testing import (
    answer,
    block,
    soa,
)
from tests.fixtures import Serve, Start


def test_log_writes_the_line_coredns_writes(serve: Serve, lines: list[str]) -> None:
    server = serve(block("log", "whoami"))
    server.ask("Example.ORG.", "A", use_edns=0, payload=4096, want_dnssec=True, id=4711)
    found = next(line for line in lines if "example.org." in line)
    pattern = r'\[INFO\] 127\.0\.0\.1:\d+ - 4711 "A IN example\.org\. udp \d+ true 4096" NOERROR qr,aa,rd \d+ 0\.\d+s'
    assert re.fullmatch(pattern, found), found


def test_log_takes_names_formats_and_classes(serve: Serve, upstream: Start, lines: list[str]) -> None:
    def script(query: dns.message.Message, proto: str) -> dns.message.Message:
        reply = soa(answer(query))
        reply.set_rcode(3)
        return reply

    up = upstream(script)
    rules = [
        'log a.org "{type} {name} {rcode} {/x/y} {unknown} {>opcode}"',
        "log b.org {\n class error\n }",
        "log b.org",
    ]
    server = serve(block(*rules, f"forward . {up.address}"))
    for name in ("x.a.org.", "x.b.org.", "x.c.org."):
        server.ask(name)
    logged = [line for line in lines if line.startswith("[INFO] A ") or "b.org" in line or "c.org" in line]
    assert logged == ["[INFO] A x.a.org. NXDOMAIN - {unknown} 0"]


def test_with_metadata_a_line_says_what_kind_of_reply_it_was(serve: Serve, upstream: Start, lines: list[str]) -> None:
    def script(query: dns.message.Message, proto: str) -> dns.message.Message:
        kind = query.question[0].name.labels[0]
        reply = (
            answer(query, "A 10.0.0.1")
            if kind == b"yes"
            else soa(answer(query))
            if kind in (b"no", b"nx")
            else answer(query)
        )
        if kind == b"cut":
            reply.authority.append(dns.rrset.from_text("org.", 60, "IN", "NS", "ns.org."))
        reply.set_rcode({b"nx": 3, b"bad": 2, b"odd": 5}.get(kind, 0))
        return reply

    up = upstream(script)
    server = serve(block("metadata", 'log . "{name} {/log/type} {/log/class}"', f"forward . {up.address}"))
    expected = {
        "yes": "NOERROR success", "no": "NODATA denial", "nx": "NXDOMAIN denial", "bad": "SERVERERROR error",
        "odd": "OTHERERROR error", "cut": "DELEGATION success",
    }  # fmt: skip
    for name in expected:
        server.ask(f"{name}.org.")
    assert [line for line in lines if ".org." in line] == [
        f"[INFO] {name}.org. {text}" for name, text in expected.items()
    ]


def test_names_in_log_lines_are_escaped(serve: Serve, lines: list[str]) -> None:
    server = serve(block("log", "whoami"))
    server.raw(b'\0\1\1\0\0\1\0\0\0\0\0\0\x05a\n"\x00\xff\0\0\1\0\1')
    assert any(r"a\010\"\000\255." in line for line in lines)


def test_a_line_is_one_line_whatever_is_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    log.Logger().error("one\ntwo\x1b[31m")
    assert capsys.readouterr().out == "[ERROR] one\\ntwo\\x1b[31m\n"


def test_a_slow_reader_of_the_log_costs_lines_and_not_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    import io
    import threading

    gate = threading.Event()

    class Slow(io.StringIO):
        def write(self, text: str) -> int:
            gate.wait(5)
            return len(text)

    monkeypatch.setattr(log, "QUEUE_LINES", 100)
    before = log.dropped()
    log.start_writer(Slow())
    try:
        began = time.monotonic()
        for i in range(1000):
            log.Logger().info(f"line {i}")
        assert time.monotonic() - began < 4
        assert log.dropped() - before >= 700
    finally:
        gate.set()
        log.stop_writer()
