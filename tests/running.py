"""A kdns server, or anything asyncio, in a thread of its own: tests talk to it over real sockets."""

import asyncio
import http.client
import itertools
import random
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.rdatatype

from kdns.server import build
from kdns.server.lifecycle import Server

T = TypeVar("T")


class LoopThread:
    """An event loop in a thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T], timeout: float = 30) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout)

    def call(self, function: Callable[..., T], *args: Any) -> T:
        async def inside() -> T:
            return function(*args)

        return self.run(inside())

    def close(self) -> None:
        async def finish() -> None:
            # What was just accepted becomes a transport first: cancelled before that, its socket would be nobody's.
            for _ in range(3):
                await asyncio.sleep(0)
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            # Connections that still had octets to send would outlive their loop.
            for _ in range(20):
                left = [
                    each for each in getattr(self.loop, "_transports", {}).values() if getattr(each, "_sock", None) is not None
                ]
                if not left:
                    break
                for transport in left:
                    transport.abort()
                await asyncio.sleep(0)
                await asyncio.sleep(0)

        self.run(finish())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(5)
        self.loop.close()


# Below every system's ephemeral ports (Linux 32768, IANA and macOS 49152 upwards): a client's own socket in the same test
# was once given the port that had been picked for a dead upstream, and the query came back to the client.
_PORTS = range(10_000, 32_000)
_candidates = itertools.cycle(_PORTS)
# Two runs on one machine begin in different places.
next(itertools.islice(_candidates, random.randrange(len(_PORTS)), None))


def free_port(host: str = "127.0.0.1") -> int:
    """A port that is free for UDP and TCP on an address, that no socket is given unasked, and not the one before."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in itertools.islice(_candidates, len(_PORTS)):
        with socket.socket(family, socket.SOCK_STREAM) as tcp, socket.socket(family, socket.SOCK_DGRAM) as udp:
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                tcp.bind((host, port))
                udp.bind((host, port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port")


def block(*lines: str) -> str:
    """A server block for the root on 127.0.0.1, of these lines."""
    return ".:{port} {\n bind 127.0.0.1\n " + "\n ".join(lines) + "\n}\n"


class Running:
    """A kdns server under test. `{port}` in the Corefile's text is a free port."""

    def __init__(self, text: str, *, port: int | None = None, share_port: bool = False, host: str = "127.0.0.1") -> None:
        self.port = port or free_port()
        self.host = host
        self.text = text
        self.thread = LoopThread()
        self.server = Server(self.read, share_port=share_port)
        try:
            self.thread.run(self.server.start(self.read()))
        except BaseException:
            self.thread.close()
            raise

    def read(self) -> Any:
        return build.read(self.text.replace("{port}", str(self.port)), "Corefile", environ={})

    def reload(self, text: str) -> bool:
        self.text = text
        return self.thread.run(self.server.reload())

    def close(self) -> None:
        self.thread.run(self.server.stop(drain=0))
        self.thread.close()

    # Questions.

    def ask(
        self, name: str, rtype: str = "A", *, tcp: bool = False, host: str | None = None, timeout: float = 5, **options: Any
    ) -> dns.message.Message:
        query = dns.message.make_query(name, rtype, **options)
        return self.send(query, tcp=tcp, host=host, timeout=timeout)

    def send(
        self, query: dns.message.Message, *, tcp: bool = False, host: str | None = None, timeout: float = 5
    ) -> dns.message.Message:
        send = dns.query.tcp if tcp else dns.query.udp
        return send(query, host or self.host, port=self.port, timeout=timeout)

    def raw(self, data: bytes, timeout: float = 2.0) -> bytes | None:
        """What comes back for a datagram; None for nothing."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(timeout)
            sock.sendto(data, (self.host, self.port))
            try:
                return sock.recv(65535)
            except TimeoutError:
                return None

    def connect(self, timeout: float = 5) -> socket.socket:
        return socket.create_connection((self.host, self.port), timeout=timeout)


def answers(reply: dns.message.Message) -> list[str]:
    """The records of the answer section as sorted text, without TTLs: `name TYPE data`."""
    return sorted(f"{rrset.name} {dns.rdatatype.to_text(rrset.rdtype)} {record}" for rrset in reply.answer for record in rrset)


def data(reply: dns.message.Message) -> list[str]:
    """The data of the answer section, sorted."""
    return sorted(str(record) for rrset in reply.answer for record in rrset)


def additional(reply: dns.message.Message) -> list[str]:
    """The records of the additional section: `name TYPE data`, sorted."""
    return sorted(
        f"{rrset.name} {dns.rdatatype.to_text(rrset.rdtype)} {record}" for rrset in reply.additional for record in rrset
    )


def code(reply: dns.message.Message) -> str:
    """The response code, `NODATA` for NOERROR with an SOA and no answer."""
    if reply.rcode() == dns.rcode.NOERROR and not reply.answer:
        return "NODATA" if reply.authority else "EMPTY"
    return dns.rcode.to_text(reply.rcode())


def flags(reply: dns.message.Message) -> set[str]:
    return set(dns.flags.to_text(reply.flags).split())


def eventually(check: Callable[[], Any], timeout: float = 20.0, step: float = 0.01) -> Any:
    """Waits until a check gives something true, and gives that."""
    end = time.monotonic() + timeout
    while True:
        found = check()
        if found:
            return found
        if time.monotonic() > end:
            raise AssertionError(f"still not true after {timeout} s: {check}")
        time.sleep(step)


def http_get(port: int, path: str) -> tuple[int, str]:
    """Status and body of a GET on the loopback."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()
