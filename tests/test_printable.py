"""Foreign text is shown, and never obeyed: in the log, in errors, and by the tools."""

import functools
import io
import json
import unicodedata
from collections.abc import Callable
from typing import Any

import dns.message
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import pytest

from kdns import log
from kdns.printable import printable
from kdns.testing import Server, Upstream, answer, block, code
from tests.cli.test_commands import kdns

# C0 and C1 controls, bidirectional controls, line ends that are none of ASCII's, a surrogate, a zero-width space, a
# tag.
HOSTILE = "\x00\x07\x1b[31m\x7f\x85\x9b31m\x9d\u200b\u200e\u202e\u2066\u2028\u2029\ufeff\udc9b\U000e0001\r\n"
SHOWN = (
    r"\x00\x07\x1b[31m\x7f\x85\x9b31m\x9d\u200b\u200e\u202e\u2066\u2028\u2029\ufeff\udc9b\U000e0001\r\n"
)  # fmt: skip


@functools.cache
def harmful() -> frozenset[str]:
    every = map(chr, range(0x110000))
    return frozenset(c for c in every if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp"))


def harmless(text: str) -> bool:
    return harmful().isdisjoint(text)


def test_controls_of_foreign_text_reached_the_terminal() -> None:
    assert printable(HOSTILE) == SHOWN
    assert printable("grün, 緑,\tрасческа: 192.0.2.1") == "grün, 緑,\tрасческа: 192.0.2.1"
    for point in range(0x110000):
        shown = printable(chr(point))
        assert shown == "\t" or (shown.isprintable() and harmless(shown)), hex(point)


def test_a_log_line_holds_nothing_that_a_terminal_obeys(capsys: pytest.CaptureFixture[str]) -> None:
    log.Logger(f"x{HOSTILE}").error(HOSTILE)
    log.Logger().info(HOSTILE)
    assert capsys.readouterr().out == f"[ERROR] plugin/x{SHOWN}: {SHOWN}\n[INFO] {SHOWN}\n"
    log.set_json(True)
    try:
        log.Logger("x").error(HOSTILE)
        log.Logger().record({"msg": HOSTILE, "qname": HOSTILE})
    finally:
        log.set_json(False)
    out = capsys.readouterr().out
    assert out.isascii() and harmless(out)
    first, second = (json.loads(line) for line in out.splitlines())
    assert first["msg"] == second["msg"] == second["qname"] == HOSTILE


def test_lines_went_to_the_last_writers_stream_after_it_had_ended(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    log.start_writer(stream)
    log.Logger().info("one")
    log.stop_writer()
    log.Logger().info("two")
    assert stream.getvalue() == "[INFO] one\n" and capsys.readouterr().out == "[INFO] two\n"


def hostile(query: dns.message.Message, proto: str) -> Any:
    """A reply whose name and text are made for a terminal."""
    reply = answer(query)
    octets = HOSTILE.encode("utf-8", "surrogatepass")
    text = dns.rdata.from_wire(dns.rdataclass.IN, dns.rdatatype.TXT, bytes((len(octets),)) + octets, 0, len(octets) + 1)
    reply.answer.append(dns.rrset.from_rdata(query.question[0].name, 60, text))
    return reply


@pytest.mark.parametrize("words", [[], ["-short"]])
def test_query_shows_hostile_text(upstream: Callable[..., Upstream], words: list[str]) -> None:
    up = upstream(hostile)
    done = kdns("query", f"@{up.address}", *words, "a\\027[31m.org", "TXT")
    assert done.returncode == 0 and harmless(done.stdout) and "[31m" in done.stdout


def test_explain_shows_hostile_text(upstream: Callable[..., Upstream]) -> None:
    text = f".:1053 {{\n forward . {upstream(hostile).address}\n}}\n"
    done = kdns("explain", "-conf", "-", "a\\027[31m.org", "TXT", stdin=text)
    assert done.returncode == 0 and harmless(done.stdout) and "[31m" in done.stdout


def test_a_corefiles_own_words_are_shown(serve: Callable[..., Server], lines: list[str]) -> None:
    odd = "\x9b31m\u202e"
    done = kdns("check", "-", stdin=f".:53 {{\n {odd}nonsense\n}}\n")
    assert done.returncode == 1 and harmless(done.stderr) and r"\x9b31m\u202enonsense" in done.stderr
    server = serve(block(f'log . "{odd}{{name}}"', "whoami"))
    assert code(server.ask("a.org.")) == "EMPTY"
    assert any(line == r"[INFO] \x9b31m\u202ea.org." for line in lines) and harmless("\n".join(lines))
