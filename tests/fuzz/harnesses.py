"""What is fuzzed: functions that take octets and raise only where something is wrong.

Each goes the way that octets from outside go, up to what we would send or serve, and holds what comes out to what must
always be true. `python -m tests.fuzz.run TARGET` drives one by coverage; the corpus goes through all of them in the
ordinary tests.
"""

import asyncio
import functools
import socket
from collections.abc import Callable
from typing import Any, Final

from kdns import faults
from kdns.corefile import CorefileError, parse
from kdns.corefile.format import formatted
from kdns.corefile.lexer import tokens
from kdns.dns import edns, message, query, reply
from kdns.dns.answer import REPLY_EDNS, REPLY_RD, Answer
from kdns.dns.query import Question
from kdns.expression import BadExpression, EvaluationError, compile_expression
from kdns.net.http import HttpServer, Response
from kdns.plugin.runtime import Runtime
from kdns.server import build, catalog
from kdns.server.dispatch import PANICS, Dispatcher
from kdns.upstream.exchange import matching_reply
from tests.plugin.test_expressions import ENV, FUNCTIONS

# Local data, and every plugin that reads or changes queries without asking the network.
COREFILE: Final = """
.:53 {
    bind 127.0.0.1
    metadata
    nsid here
    bufsize 1232
    prometheus 127.0.0.1:0
    errors
    log . "{remote} {name} {type} {>id} {>opcode} {rcode} {size} {/view/name}"
    local
    any
    chaos kdns
    loadbalance
    rewrite stop {
        name regex (.*)\\.alias\\.org {1}.example.org
        answer auto
    }
    rewrite edns0 local set 0xffee abcd
    acl {
        block type AXFR
        filter type HINFO
    }
    limits {
        qps 1000000
        slip 1
    }
    header {
        response set ra
    }
    minimal
    template IN TXT example.org {
        answer "{{ .Name }} 60 IN TXT {{ .Name }} {{ .Type }}"
        fallthrough
    }
    hosts /nonexistent {
        192.0.2.1 a.example.org
        192.0.2.2 a.example.org
        2001:db8::1 a.example.org b.example.org
        fallthrough
    }
    cache
    whoami
}
example.net:53 {
    bind 127.0.0.1
    view odd {
        expr size() % 2 == 1 && bufsize() > 0 && !do()
    }
    dns64
    whoami
}
"""
WAYS: Final = 4


def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    loop.set_exception_handler(faults.caught)
    return loop


@functools.cache
def loop() -> asyncio.AbstractEventLoop:
    """The loop of all harnesses. It runs only where a harness waits."""
    return _loop()


@functools.cache
def _dispatcher() -> Dispatcher:
    instance = build.build(build.read(COREFILE, "fuzz", environ={}))
    instance.load()

    async def start() -> None:
        runtime = Runtime()
        for plugin in instance.plugins:
            if plugin.name not in ("prometheus", "log"):
                await plugin.start(runtime)

    loop().run_until_complete(start())
    (found,) = instance.dispatchers.values()
    return found


def dispatcher(data: bytes) -> None:
    """A query over any transport; asked twice, as the second reply may come from memory. The first octet says how it
    came.
    """
    if not data:
        return
    server, (way, octets) = _dispatcher(), (data[0] % WAYS, data[1:])
    client = ("192.0.2.9", 5353) if way % 2 == 0 else ("2001:db8::9", 5353, 0, 0)
    panics, errors = PANICS.slot()[0], faults.ERRORS.slot()[0]
    for _ in range(3):
        made = server.answer(octets, client, ("192.0.2.53", 53), way)
        assert PANICS.slot()[0] == panics and faults.ERRORS.slot()[0] == errors, "an exception was caught on the way"
        if made is None:
            continue
        assert isinstance(made, bytes), made
        assert made[:2] == octets[:2] and made[2] & 0x80 and len(made) <= (1232 if way < 2 else 65535)
        message.parse_reply(made)
    judge = server.gate
    if judge is not None:
        server.gate = lambda client, tcp: 3 if tcp else 2
        for handler in (server.judged_datagram, server.judged_message):
            short = handler(octets, client, None)
            assert short is None or (
                isinstance(short, bytes) and len(message.parse_reply(short).answer.sections[0]) == 0
            )
        server.gate = judge


_ASKED: Final = Question(b"\1a\7example\3org\0", 1)
_SENT: Final = message.pack_query(0x4142, _ASKED, opt=edns.opt(do=True))


def _records(answer: Answer) -> list[list[tuple[bytes, int, int, bytes]]]:
    """The records of each section, however they are put together to RRsets. Letter case is lost where names are
    compressed.
    """
    return [
        sorted((r.owner.lower(), r.type, r.cls, data.lower()) for r in section for data in r.rdatas)
        for section in answer.sections
    ]


def upstream(data: bytes) -> None:
    """A reply from an upstream: taken or dropped; what is taken can be given to a client, aged, and taken apart."""
    found = matching_reply(data, b"AB", _ASKED, "fuzz")
    if found is None:
        return
    question, end, opt, _ = query.parse(_SENT)
    for limit in (512, 1232, 65535):
        packed = reply.pack(found, found.rendered(_ASKED.name), _SENT, end, REPLY_RD | REPLY_EDNS, opt, limit)
        assert len(packed) <= limit
        back = message.parse_reply(packed, question)
        if limit == 65535 and not back.answer.flags & 0x0200:
            assert back.answer.rcode == found.rcode or found.rcode > 15
            assert _records(back.answer) == _records(found)
    body = found.rendered(_ASKED.name)
    assert len(body.ends) == len(body.ttls) == sum(body.counts)
    aged = found.with_body(body.with_ttl(7), 0)
    assert {rrset.ttl for section in aged.sections for rrset in section} <= {7}
    list(found.records())


def corefile(data: bytes) -> None:
    """A Corefile: read and built, or refused with its place; its neat form has the same words and is neat."""
    text = data.decode("utf-8", "replace")
    neat = formatted(text)
    assert [token.text for token in tokens(neat, "f")] == [token.text for token in tokens(text, "f")] and formatted(
        neat
    ) == neat
    if "plugin" in text:
        return  # it would run a file
    try:
        build.build(parse(text, "f", known=_known(), environ={"X": "v"}, reader=_NoDisk())).check()
    except CorefileError as error:
        assert str(error).replace("\t", " ").isprintable() and error.message  # tabs stay: see kdns.printable


@functools.cache
def _known() -> set[str]:
    """The directives there are: to look for installed packages takes longer than all else."""
    return catalog.known()


class _NoDisk:
    """A disk with nothing on it."""

    def read(self, path: str) -> str:
        raise FileNotFoundError(2, "No such file or directory", path)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *_: []

    def shown(self, path: str) -> str:
        return path


def expression(data: bytes) -> None:
    """An expression of `view` or `template`: refused, or worked out, or an error of its evaluation."""
    try:
        made = compile_expression(data.decode("utf-8", "replace"), FUNCTIONS)
    except BadExpression:
        return
    try:
        made.value(ENV)
    except EvaluationError:
        return


@functools.cache
def _http() -> HttpServer:
    server = HttpServer("127.0.0.1", 0)

    async def well() -> Response:
        return Response(200, b"OK")

    async def start() -> None:
        server.add("/health", well)
        await server.start()

    loop().run_until_complete(start())
    return server


def http(data: bytes) -> None:
    """What somebody sends to /health: replies that are HTTP, then an end; at once where nothing more will come."""
    server = _http()
    errors = faults.ERRORS.slot()[0]

    async def exchange() -> bytes:
        running = asyncio.get_running_loop()
        with socket.socket() as sock:
            sock.setblocking(False)
            await running.sock_connect(sock, ("127.0.0.1", server.port))
            await running.sock_sendall(sock, data)
            sock.shutdown(socket.SHUT_WR)
            got = b""
            try:
                async with asyncio.timeout(10):
                    while part := await running.sock_recv(sock, 65536):
                        got += part
            except ConnectionError:
                pass
            return got

    got = loop().run_until_complete(exchange())
    assert not got or got.startswith(b"HTTP/1.1 "), got[:80]
    assert b"Traceback" not in got and b"500 Internal" not in got
    assert faults.ERRORS.slot()[0] == errors, "an exception was caught on the way"


HARNESSES: Final[dict[str, Callable[[bytes], None]]] = {
    "dispatcher": dispatcher, "upstream": upstream, "corefile": corefile, "expression": expression, "http": http,
}  # fmt: skip
