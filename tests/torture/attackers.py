"""Attackers of the encrypted transports, on the loopback network.

    python -m tests.torture.attackers NAME PORT SECONDS

Each is a process of its own. It prepares what it sends, prints `ready`, waits for a line, attacks for SECONDS, and
prints what came of it as JSON: numbers by what they count.
"""

import contextlib
import errno
import itertools
import json
import select
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection

from kdns.net.http2_frames import PREFACE, frame
from tests.keyupdates import Updater
from tests.torture.processes import framed, many_files, question

HOSTS = 4  # addresses that connections come from
FILES = 500  # files that an attacker needs besides its connections
THREADS = 4  # of an attack that has to read what comes: TLS and its socket are the interpreter's to wait for
SLOW = 500  # connections of those that send an octet at a time
HALF_OPEN = 10_000
PACE = 3_000  # a second of those, in all: what fills the receive buffer keeps others out of any server
BEGINNINGS = 1_500  # different first packets of QUIC connections: to make one takes a millisecond
STALLED = 40  # QUIC connections with stalled streams
UPDATERS = 8  # connections that change their keys
UPDATES = 1200  # times, what the first read of a server takes: to make one takes 50 µs
STREAMS = 128  # on each: what a client may have open in CoreDNS and here without asking for more

# Eight of a character whose code is long, 13 bits (RFC 7541, appendix B): nothing of 16 KiB takes longer to decode.
TILDES = int("1111111111101" * 8, 2).to_bytes(13, "big")

Counts = Counter[str]


def unverified(alpn: str) -> ssl.SSLContext:
    """The context of a client that trusts everybody."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols([alpn])
    return context


def hello(alpn: str) -> bytes:
    """The first octets of a TLS handshake."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        unverified(alpn).wrap_bio(incoming, outgoing, server_hostname="dns.example.net").do_handshake()
    return outgoing.read()


def begin(port: int, number: int) -> socket.socket:
    """A connection that is being made."""
    sock = socket.socket()
    sock.setblocking(False)
    sock.bind((f"127.0.1.{1 + number % HOSTS}", 0))
    with contextlib.suppress(BlockingIOError):
        sock.connect(("127.0.0.1", port))
    return sock


def over(sock: socket.socket) -> bool:
    """Takes what has come; True if the other side has closed."""
    try:
        while got := sock.recv(65536):
            del got
        return True
    except BlockingIOError:
        return False
    except OSError:
        return True


# TLS.


def half_open(port: int, seconds: float, start: Callable[[], None]) -> Counts:
    """Connections that begin a handshake and say nothing more: as many as there may be files, up to 10,000."""
    first = hello("dot")
    most = min(HALF_OPEN, many_files() - FILES)
    counts: Counts = Counter()
    poll = select.epoll()
    open_: dict[int, socket.socket] = {}
    start()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        while counts["begun"] < most and len(open_) < counts["answered"] + counts["closed"] + 512:
            sock = begin(port, counts["begun"])
            counts["begun"] += 1
            open_[sock.fileno()] = sock
            poll.register(sock, select.EPOLLOUT)
        for number, event in poll.poll(0.05):
            sock = open_[number]
            if event & select.EPOLLOUT:
                with contextlib.suppress(OSError):
                    sock.send(first)
                poll.modify(sock, select.EPOLLIN | select.EPOLLET)
            elif over(sock):
                counts["closed"] += 1
                poll.unregister(sock)
                del open_[number]
                sock.close()
            else:
                counts["answered"] += 1
    counts["open at the end"] = len(open_)
    return counts


def slow_handshakes(port: int, seconds: float, start: Callable[[], None]) -> Counts:
    """Connections whose handshake comes an octet at a time; who is closed comes again."""
    first = hello("dot")
    counts: Counts = Counter()
    at: dict[socket.socket, int] = {}
    start()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        while len(at) < SLOW:
            at[begin(port, counts["begun"])] = 0
            counts["begun"] += 1
        for sock, off in list(at.items()):
            try:
                sock.send(first[off : off + 1])
                at[sock] = off + 1
                counts["octets"] += 1
            except BlockingIOError:
                pass
            except OSError as error:
                if error.errno != errno.ENOTCONN:
                    del at[sock]
                    sock.close()
                    counts["closed"] += 1
        time.sleep(0.05)
    return counts


def renegotiation(port: int, seconds: float, start: Callable[[], None]) -> Counts:
    """Clients of TLS 1.2 that want to begin the handshake anew, again and again."""
    words = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-tls1_2"]
    counts: Counts = Counter()
    start()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(subprocess.TimeoutExpired):
            done = subprocess.run(words, input="R\n" * 20, capture_output=True, text=True, timeout=3, check=False)
            counts["connections"] += "Cipher is" in done.stdout and "Cipher is (NONE)" not in done.stdout
            counts["asked"] += done.stdout.count("RENEGOTIATING") + done.stderr.count("RENEGOTIATING")
            counts["refused"] += "no renegotiation" in done.stderr
    return counts


def changes_of_keys(port: int, seconds: float, start: Callable[[], None]) -> Counts:
    """Connections of TLS 1.3 on which nothing is said but that the keys change, 1,200 times at once on each."""
    counts: Counts = Counter()
    start()
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() < end:
            peers = []
            with contextlib.suppress(OSError):
                for i in range(UPDATERS):
                    host = f"127.0.1.{1 + i % HOSTS}"
                    peers.append(Updater(port, unverified("dot"), Path(folder), "dns.example.net", host))
            made = [peer.updates(UPDATES, answered=i % 2 == 0) for i, peer in enumerate(peers)]
            for peer, octets in zip(peers, made, strict=True):
                with contextlib.suppress(OSError):
                    peer.sock.sendall(octets)
                    counts["changes"] += UPDATES
            for peer in peers:
                peer.sock.close()
            counts["connections"] += len(peers)
    return counts


# HTTP.


def length(size: int, flag: int = 0) -> bytes:
    """The length of a string (RFC 7541, section 5.2); `flag` 0x80: in Huffman's code."""
    if size < 127:
        return bytes((flag | size,))
    out, size = bytes((flag | 127,)), size - 127
    while size >= 128:
        out, size = out + bytes((size & 127 | 128,)), size >> 7
    return out + bytes((size,))


def field(name: bytes, value: bytes) -> bytes:
    """A field that is put into no table (section 6.2.2)."""
    return b"\0" + length(len(name)) + name + length(len(value)) + value


def head(method: bytes, path: bytes, *more: bytes) -> bytes:
    """The fields of a request."""
    kind = field(b"content-type", b"application/dns-message")
    return b"".join((
        field(b":method", method), field(b":scheme", b"https"), field(b":authority", b"dns.example.net"),
        field(b":path", path), kind, *more,
    ))  # fmt: skip


def resets(number: int) -> Iterator[bytes]:
    """Requests that are taken back at once (CVE-2023-44487), for names that only a mute upstream knows."""
    fields = head(b"POST", b"/dns-query")
    for i in range(4_000):
        query = question(f"r{number}-{i}.outside.example.", 0)
        stream = 2 * i + 1
        yield frame(1, 4, stream, fields) + frame(0, 1, stream, query) + frame(3, 0, stream, b"\0\0\0\x08")


def continuations(number: int) -> Iterator[bytes]:
    """Fields without an end: large pieces, small ones, empty ones."""
    yield frame(1, 0, 1, head(b"GET", b"/dns-query"))
    piece = (field(b"x", b"y" * 16_000), field(b"x", b"y"), b"")[number % 3]
    for _ in range(1_000):
        yield frame(9, 0, 1, piece) * 4


def settings(number: int) -> Iterator[bytes]:
    """SETTINGS that change a window, each to be acknowledged."""
    for i in range(2_000):
        yield frame(4, 0, 0, b"\0\4" + (65_535 + i).to_bytes(4, "big")) * 10


def pings(number: int) -> Iterator[bytes]:
    """PINGs, each to be answered."""
    for _ in range(2_000):
        yield frame(6, 0, 0, b"12345678") * 10


def large_fields(number: int) -> Iterator[bytes]:
    """Requests whose fields are as long as may be, and take long to decode; every other connection: twice as long, of
    one value, of one that takes long, of many small ones, of a few octets that stand for many. Some begin with new
    sizes of the table.
    """
    plain = head(b"GET", b"/dns-query?dns=AAABAAABAAAAAAAAAm4xB2V4YW1wbGUDb3JnAAABAAE")
    room = 16_000 - len(plain)
    longest, coded = (TILDES * (octets // len(TILDES)) for octets in (8_000, room))
    allowed = plain + b"\0\1x" + length(len(longest), 0x80) + longest
    kinds = (
        plain + field(b"x", b"y" * (room - 100)), plain + b"\0\1x" + length(len(coded), 0x80) + coded,
        plain + field(b"x", b"y") * 300, plain + b"\x40\1x" + length(3_968) + b"y" * 3_968 + b"\xbe" * 3,
    )  # fmt: skip
    for i in range(500):
        block = allowed if number % 2 else kinds[(i + number) % len(kinds)]
        yield frame(1, 5, 2 * i + 1, b"\x20" * room + plain if number == i == 0 else block)


def bodies(number: int) -> Iterator[bytes]:
    """Queries of 64 KiB: an OPT record full of options."""
    query = question("n1.example.org.", 0)
    room = 65_535 - len(query) - 11
    options = b"\xfd\xe9\0\0" * (room // 4)
    query = query[:11] + b"\1" + query[12:] + b"\0\0\x29\x04\xd0\0\0\0\0" + len(options).to_bytes(2, "big") + options
    for i in range(500):
        stream = 2 * i + 1
        yield frame(1, 4, stream, head(b"POST", b"/dns-query"))
        for at in range(0, len(query), 16_384):
            yield frame(0, int(at + 16_384 >= len(query)), stream, query[at : at + 16_384])


def over_http2(pieces: Callable[[int], Iterator[bytes]]) -> Callable[[int, float, Callable[[], None]], Counts]:
    """An attack by a few connections of HTTP/2 at a time; where the server ends one, another is made."""

    def attack(port: int, seconds: float, start: Callable[[], None]) -> Counts:
        counts: Counts = Counter()
        context = unverified("h2")
        made = [list(pieces(number)) for number in range(6)]
        start()
        end = time.monotonic() + seconds

        def run(number: int) -> None:
            while time.monotonic() < end:
                with contextlib.suppress(OSError, ValueError):
                    one = Http2Attack(port, number, context, counts)
                    try:
                        one.run(made[number % len(made)], end)
                    finally:
                        one.close()
                number += THREADS

        threads = [threading.Thread(target=run, args=(number,)) for number in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return counts

    return attack


class Http2Attack:
    """One connection of HTTP/2, which reads what comes and gives all the room that it can."""

    def __init__(self, port: int, number: int, context: ssl.SSLContext, counts: Counts) -> None:
        raw = socket.create_connection(
            ("127.0.0.1", port), timeout=3, source_address=(f"127.0.1.{1 + number % HOSTS}", 0)
        )
        self.sock = context.wrap_socket(raw, server_hostname="dns.example.net")
        self.counts = counts
        self.buffer = b""
        self.room = 65_535  # octets of bodies that the server takes
        counts["connections"] += 1
        self.sock.sendall(PREFACE + frame(4, 0, 0) + frame(8, 0, 0, (1 << 30).to_bytes(4, "big")))

    def run(self, pieces: list[bytes], end: float) -> None:
        """Sends until all is sent, the time is over, or the server has had enough. Raises OSError."""
        for piece in pieces:
            size = len(piece) if piece[3] == 0 else 0
            while time.monotonic() < end and (self.room < size or select.select((self.sock,), (), (), 0)[0]):
                self.read()
            if time.monotonic() >= end:
                return
            self.room -= size
            self.sock.sendall(piece)
            self.counts["sent"] += 1

    def read(self) -> None:
        """Takes what comes. Raises OSError where the server has closed."""
        self.sock.settimeout(1)
        got = self.sock.recv(65536)
        if not got:
            raise ConnectionResetError
        buffer = self.buffer + got
        while len(buffer) >= 9 and len(buffer) >= (size := 9 + int.from_bytes(buffer[:3], "big")):
            kind, stream, payload = buffer[3], int.from_bytes(buffer[5:9], "big"), buffer[9:size]
            if kind == 7:
                self.counts[f"GOAWAY {int.from_bytes(payload[4:8], 'big')}"] += 1
            elif kind == 8 and not stream:
                self.room += int.from_bytes(payload, "big")
            elif kind == 1:
                self.counts["answers"] += 1
            buffer = buffer[size:]
        self.buffer = buffer

    def close(self) -> None:
        """Reads the farewell, and closes."""
        with contextlib.suppress(OSError, ValueError):
            for _ in range(20):
                self.read()
        self.sock.close()


def large_heads(port: int, seconds: float, start: Callable[[], None]) -> Counts:
    """Requests of HTTP/1.1 with heads of 16 KiB: a field of spaces that ends wrong, a long URL, thousands of fields."""
    counts: Counts = Counter()
    context = unverified("http/1.1")
    begins = b"GET /dns-query HTTP/1.1\r\nhost: x\r\n"
    kinds = (
        begins + b"a:" + b" " * 16_000 + b"\0\r\n\r\n", begins + b"a:x" + b" " * 16_000 + b"x\r\n\r\n",
        b"GET http://" + b"a" * 16_000 + b"# HTTP/1.1\r\nhost: x\r\n\r\n", begins + b"a:b\r\n" * 3_200 + b"\r\n",
        begins + b"a: " + b"x" * 100_000,
    )  # fmt: skip
    start()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            where = (f"127.0.1.{1 + counts['connections'] % HOSTS}", 0)
            raw = socket.create_connection(("127.0.0.1", port), timeout=3, source_address=where)
            with context.wrap_socket(raw, server_hostname="dns.example.net") as sock:
                counts["connections"] += 1
                sock.sendall(kinds[counts["connections"] % len(kinds)])
                counts[sock.recv(4096)[9:12].decode("latin-1") or "closed"] += 1
    return counts


# QUIC.


def quic(alpn: str = "doq") -> QuicConnection:
    """A client's machine."""
    made = QuicConfiguration(alpn_protocols=[alpn], verify_mode=ssl.CERT_NONE, server_name="dns.example.net")
    return QuicConnection(configuration=made)


def beginnings(port: int, seconds: float, start: Callable[[], None]) -> Counts:
    """First packets of connections from as many addresses, as if those were others': nobody there goes on, and what
    comes is counted.
    """
    packets = []
    for _ in range(BEGINNINGS):
        machine = quic()
        machine.connect(("127.0.0.1", port), 0.0)
        packets.append(machine.datagrams_to_send(0.0)[0][0])
    counts: Counts = Counter()
    poll = select.epoll()
    socks: dict[int, tuple[socket.socket, bytes]] = {}
    for number, packet in enumerate(packets):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setblocking(False)
        sock.bind((f"127.0.1.{1 + number % HOSTS}", 0))
        sock.connect(("127.0.0.1", port))
        socks[sock.fileno()] = sock, packet
        poll.register(sock, select.EPOLLIN)
    sent: Counts = Counter()
    got: Counts = Counter()
    start()
    began = time.monotonic()
    last = began + seconds - 1.0  # what comes later is counted too
    for number, (sock, packet) in itertools.cycle(socks.items()):
        now = time.monotonic()
        if now >= last:
            break
        if sent[str(number)]:  # in hundredths, of the address that got most for what it sent
            counts["most for one"] = max(counts["most for one"], 100 * got[str(number)] // sent[str(number)])
        with contextlib.suppress(OSError):
            sent[str(number)] += sock.send(packet)
            counts["packets"] += 1
        if counts["packets"] % 30 == 0:
            time.sleep(max(0.0, began + counts["packets"] / PACE - time.monotonic()))
            _take(poll, socks, got)
    while time.monotonic() < began + seconds:
        _take(poll, socks, got, 0.02)
    counts["most for one"] = max([counts["most for one"], *(100 * got[each] // sent[each] for each in sent)])
    counts["octets sent"] = sum(sent.values())
    counts["octets received"] = sum(got.values())
    return counts


def _take(poll: Any, socks: dict[int, tuple[socket.socket, bytes]], got: Counts, wait: float = 0.0) -> None:
    for number, _ in poll.poll(wait):
        with contextlib.suppress(OSError):
            while True:
                got[str(number)] += len(socks[number][0].recv(65536))


def stalled_streams(port: int, seconds: float, start: Callable[[], None]) -> Counts:
    """Connections with as many streams as may be, on each a query that does not come whole."""
    counts: Counts = Counter()
    part = framed(question("n1.example.org.", 0))[:-1]
    poll = select.epoll()
    clients: dict[int, tuple[socket.socket, QuicConnection]] = {}

    def more() -> None:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setblocking(False)
        sock.bind((f"127.0.1.{1 + counts['connections'] % HOSTS}", 0))
        sock.connect(("127.0.0.1", port))
        machine = quic()
        machine.connect(("127.0.0.1", port), time.monotonic())
        clients[sock.fileno()] = sock, machine
        poll.register(sock, select.EPOLLIN)
        counts["connections"] += 1

    start()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if len(clients) < STALLED:
            more()
        for number, _ in poll.poll(0.01):
            sock, machine = clients[number]
            with contextlib.suppress(OSError):
                while True:
                    machine.receive_datagram(sock.recv(65536), ("127.0.0.1", port), time.monotonic())
        for number, (sock, machine) in list(clients.items()):
            now = time.monotonic()
            at = machine.get_timer()
            if at is not None and at <= now:
                machine.handle_timer(now)
            while (event := machine.next_event()) is not None:
                if isinstance(event, events.HandshakeCompleted):
                    for _ in range(STREAMS):
                        _stall(machine, part, counts)
                elif isinstance(event, events.StreamReset):
                    counts["reset"] += 1
                    _stall(machine, part, counts)
                elif isinstance(event, events.ConnectionTerminated):
                    counts["closed"] += 1
                    poll.unregister(sock)
                    sock.close()
                    del clients[number]
            if number in clients:
                for data, _address in machine.datagrams_to_send(now):
                    with contextlib.suppress(OSError):
                        sock.send(data)
    return counts


def _stall(machine: QuicConnection, part: bytes, counts: Counts) -> None:
    machine.send_stream_data(machine.get_next_available_stream_id(), part)
    counts["streams"] += 1


def busy(port: int, seconds: float, start: Callable[[], None]) -> Counts:
    """Attacks nobody: what a polite client sees where an attacker only takes its own core."""
    start()
    end = time.monotonic() + seconds
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        while time.monotonic() < end:
            for _ in range(100):
                sock.sendto(b"x", sock.getsockname())
                sock.recv(1)
    return Counter()


ATTACKS: dict[str, Callable[[int, float, Callable[[], None]], Counts]] = {
    "busy": busy, "half-open": half_open, "keys": changes_of_keys, "slow": slow_handshakes,
    "renegotiation": renegotiation, "resets": over_http2(resets),
    "continuations": over_http2(continuations), "settings": over_http2(settings),
    "pings": over_http2(pings), "large-fields": over_http2(large_fields), "large-heads": large_heads,
    "bodies": over_http2(bodies), "beginnings": beginnings, "stalled-streams": stalled_streams,
}  # fmt: skip


def main(name: str, port: str, seconds: str) -> None:
    """Attacks, and prints what came of it."""
    many_files()

    def start() -> None:
        print("ready", flush=True)
        sys.stdin.readline()

    print(json.dumps(ATTACKS[name](int(port), float(seconds), start)))


if __name__ == "__main__":
    main(*sys.argv[1:])
