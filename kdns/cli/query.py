"""`kdns query`: asks a DNS server, for images without dig.

    kdns query [@[SCHEME://]SERVER[:PORT]] [FLAGS] NAME [TYPE] | -x ADDRESS

Over UDP (again over TCP where the reply is truncated), TCP, TLS, HTTPS (by HTTP/2 or HTTP/3), gRPC or QUIC, as flags or
the server's scheme say.
Exit code: 0 for any reply, 9 where none came, as dig's.
"""

import contextlib
import ipaddress
import sys
from collections.abc import Sequence
from typing import Final

from kdns import extras
from kdns.address import split_host_port
from kdns.cli.flags import BadFlag, Flag, Help, Value, misused, parse_among, refuse
from kdns.cli.running import result_of, run
from kdns.deadlines import Deadlines
from kdns.dns import edns, iana
from kdns.dns.answer import REPLY_EDNS, REPLY_RD, Answer
from kdns.dns.edns import Edns
from kdns.dns.errors import BadName, FormatError
from kdns.dns.message import pack_query
from kdns.dns.name import from_text
from kdns.dns.query import Question
from kdns.plugin.records import record_of
from kdns.printable import printable
from kdns.upstream import oneshot
from kdns.upstream.context import tls_context
from kdns.upstream.exchange import UpstreamError
from kdns.upstream.upstream import ALPN, PORTS, Address, Options, Trust, Upstream

FLAGS: Final = (
    Flag(("p",), 0, "port (default 53; TLS and QUIC 853; HTTPS and gRPC 443)"),
    Flag(("tcp",), False, "ask over TCP"),
    Flag(("tls",), False, "ask over TLS (RFC 7858)"),
    Flag(("https",), False, "ask over HTTPS (RFC 8484)"),
    Flag(("https3",), False, "ask over HTTPS by HTTP/3 (RFC 9114)"),
    Flag(("grpc",), False, "ask over gRPC, as CoreDNS speaks it"),
    Flag(("quic",), False, "ask over QUIC (RFC 9250)"),
    Flag(("ca",), "", "file with the authority to trust, for TLS, HTTPS, gRPC and QUIC"),
    Flag(("name",), "", "name that the server's certificate must bear (default: the server's)"),
    Flag(("x",), "", "address whose name is asked for (PTR)"),
    Flag(("do",), False, "ask for DNSSEC records"),
    Flag(("short",), False, "print the data of the answer only"),
)
HELP: Final = Help(
    "query", "kdns query [@[SCHEME://]SERVER[:PORT]] [FLAGS] NAME [TYPE] | -x ADDRESS",
    "Asks a DNS server (default: 127.0.0.1), for images without dig. A truncated reply is asked for again over TCP.",
    (
        ("kdns query @10.96.0.10 kubernetes.default.svc.cluster.local", "an address"),
        ("kdns query @10.96.0.10 -x 10.96.0.1", "the name of an address"),
        ("kdns query @tls://1.1.1.1 -name one.one.one.one example.org MX", "over TLS"),
    ),
    ((0, "a reply came, whatever it says"), (1, "the authority's file cannot be read"), (2, "a bad flag or word"),
     (9, "no reply, as dig has it")),
)  # fmt: skip
TIMEOUT: Final = 5.0  # seconds
NO_REPLY: Final = 9  # dig's exit code


def main(words: Sequence[str]) -> int:
    """Asks one question; returns the exit code."""
    try:
        values, given = parse_among(words, FLAGS)
    except BadFlag as error:
        return refuse(error, HELP, FLAGS)
    servers = [word[1:] for word in given if word.startswith("@")]
    rest = [word for word in given if not word.startswith("@")]
    try:
        question, where = _read(rest, servers[-1] if servers else "127.0.0.1", values)
    except ValueError as error:
        return misused(str(error), HELP)
    return run(_ask(question, where, values))


def _read(rest: list[str], server: str, values: dict[str, Value]) -> tuple[Question, Address]:
    if values["x"]:
        reverse = reverse_of(str(values["x"]))
        if rest or not reverse:
            raise ValueError(f'-x takes an IP address and nothing else, found "{" ".join([str(values["x"]), *rest])}"')
        rest = [reverse, "PTR"]
    if not 1 <= len(rest) <= 2:
        raise ValueError("kdns query takes a name, and a type if it is not A")
    qtype = iana.type_number(rest[1]) if len(rest) > 1 else iana.A
    if qtype is None:
        raise ValueError(f'"{rest[1]}" is not a query type')
    if qtype in (iana.AXFR, iana.IXFR):
        raise ValueError(f"{iana.type_text(qtype)} is answered in many messages, and kdns query reads one: use dig")
    try:
        name = from_text(rest[0]).lower()
    except BadName as error:
        raise ValueError(str(error)) from None
    transports = [kind for kind in ("tls", "https", "https3", "grpc", "quic") if values[kind]]
    scheme, separator, place = server.partition("://")
    if separator:
        if scheme not in PORTS:
            raise ValueError(f'unknown scheme "{scheme}": expected {", ".join(f"{known}://" for known in PORTS)}')
        # As services of DNS over HTTPS are named; there is one path.
        server = place.rstrip("/").removesuffix("/dns-query" if scheme in ("https", "https3") else "")
        transports.append(scheme)
    if len(set(transports)) > 1:
        raise ValueError(f"one transport at a time, found {' and '.join(dict.fromkeys(transports))}")
    transport = (transports or ["dns"])[0]
    host, port = split_host_port(server, PORTS[transport])
    port = int(values["p"]) or port
    return Question(name, qtype), Address(transport, host, port, str(values["name"]))


def reverse_of(text: str) -> str:
    """The reverse name of an address; nothing where the text is none."""
    try:
        return ipaddress.ip_address(text).reverse_pointer + "."
    except ValueError:
        return ""


async def _ask(question: Question, where: Address, values: dict[str, Value]) -> int:
    trust: Trust | None = None
    if where.transport != "dns":
        try:
            trust = _trust(where.transport, str(values["ca"]) or None)
        except OSError as error:
            sys.stderr.write(f"{values['ca']}{': ' if values['ca'] else ''}{error.strerror or error}\n")
            return 1
    sent = Edns(edns.UDP_SIZE, bool(values["do"]))
    query = pack_query(0, question, opt=edns.opt(do=sent.do))
    try:
        if where.transport == "dns" and not values["tcp"]:
            answer = await _over_udp(query, question, where)
            if answer.flags & iana.TC:  # again over TCP (RFC 7766, section 5); what came is better than nothing
                with contextlib.suppress(UpstreamError, OSError):
                    answer = await _over_stream(query, question, where, trust)
        else:
            answer = await _over_stream(query, question, where, trust)
    except UpstreamError as error:
        sys.stderr.write(f"{printable(str(error))}\n")
        return NO_REPLY
    except OSError as error:
        sys.stderr.write(f"{where.text}: {error.strerror or error}\n")
        return NO_REPLY
    try:
        record = record_of(answer, question, REPLY_RD | REPLY_EDNS, sent)
    except FormatError as error:
        sys.stderr.write(f"{where.text} answered {iana.rcode_text(answer.rcode)}, with what cannot be shown: {error}\n")
        return NO_REPLY
    if values["short"]:
        for rr in record.rr:
            print(printable(str(rr.rdata)))
    else:
        for line in str(record).split("\n"):
            print(printable(line))
        print(f";; SERVER: {where.transport} {where.text}")
    return 0


def _trust(transport: str, authority: str | None) -> Trust:
    """What a server is verified by: a file with authorities, or this machine's. Raises OSError."""
    if transport in ALPN:
        if lacking := extras.lacking_quic(f"{transport}://"):
            raise OSError(lacking)
        from kdns.upstream.quic import configuration

        return configuration(authority, [], ALPN[transport])
    return tls_context([authority] if authority else [], ["h2"] if transport in ("https", "grpc") else [])


async def _over_udp(query: bytes, question: Question, where: Address) -> Answer:
    """The reply over UDP; where the server seems not to know EDNS, that to the bare question (RFC 6891, section 7)."""
    answer = await oneshot.ask(query, question, where.host, where.port, timeout=TIMEOUT)
    if answer.rcode in (iana.FORMERR, iana.NOTIMP):
        with contextlib.suppress(UpstreamError):
            answer = await oneshot.ask(pack_query(0, question), question, where.host, where.port, timeout=TIMEOUT)
    return answer


async def _over_stream(query: bytes, question: Question, where: Address, trust: Trust | None) -> Answer:
    """The reply over a connection. Raises UpstreamError."""
    upstream = Upstream(where, Options(timeout=TIMEOUT, max_fails=0, force_tcp=True), "query", Deadlines(), trust)
    try:
        result = await result_of(upstream, query, question, "tcp")
    finally:
        await upstream.close()
    if type(result) is not Answer:
        raise result
    return result
