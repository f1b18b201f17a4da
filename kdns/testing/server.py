"""A kdns server in a test, and the replies it gives: tests talk to it over real sockets, with dnspython as the
client.
"""

import contextlib
import socket
from collections.abc import Sequence
from typing import Any, Self

import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.rdatatype

from kdns.plugin import Plugin
from kdns.server import build, catalog, lifecycle
from kdns.testing.loop import LoopThread, free_port


def block(*lines: str) -> str:
    """A server block for the root on 127.0.0.1, of these lines. `{port}` in it is the server's port."""
    return ".:{port} {\n bind 127.0.0.1\n " + "\n ".join(lines) + "\n}\n"


class Server:
    """A server of a Corefile, in a thread of its own, until `close` (or the end of a `with` block).

    `text` is the Corefile; `{port}` in it is a free port, or `port`. `plugins` are plugin classes that the Corefile may
    use as if their packages were installed. Raises CorefileError or OSError where the server cannot start.
    """

    def __init__(
        self,
        text: str,
        *,
        port: int | None = None,
        share_port: bool = False,
        host: str = "127.0.0.1",
        plugins: Sequence[type[Plugin]] = (),
    ) -> None:
        self.port = port or free_port()
        self.host = host
        self.text = text
        self.plugins = plugins
        self.thread = LoopThread()
        self.server = lifecycle.Server(self.read, share_port=share_port)
        try:
            with catalog.given(*plugins):
                self.thread.run(self.server.start(self.read()))
        except BaseException:
            self.thread.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def read(self) -> Any:
        """The Corefile as it is now, read."""
        return build.read(self.text.replace("{port}", str(self.port)), "Corefile", environ={})

    def reload(self, text: str) -> bool:
        """Serves by another Corefile; says whether that worked."""
        self.text = text
        with catalog.given(*self.plugins):
            return self.thread.run(self.server.reload())

    def close(self) -> None:
        """Stops the server at once."""
        with contextlib.suppress(RuntimeError):  # closed before
            self.thread.run(self.server.stop(drain=0))
            self.thread.close()

    # Questions.

    def ask(
        self,
        name: str,
        rtype: str | int = "A",
        *,
        tcp: bool = False,
        host: str | None = None,
        timeout: float = 5,
        **options: Any,
    ) -> dns.message.Message:
        """The reply to a question; `options` are those of dns.message.make_query."""
        query = dns.message.make_query(name, rtype, **options)  # type: ignore[arg-type]
        return self.send(query, tcp=tcp, host=host, timeout=timeout)

    def send(
        self, query: dns.message.Message, *, tcp: bool = False, host: str | None = None, timeout: float = 5
    ) -> dns.message.Message:
        """The reply to a query."""
        send = dns.query.tcp if tcp else dns.query.udp
        return send(query, host or self.host, port=self.port, timeout=timeout)

    def raw(self, data: bytes, timeout: float = 2.0) -> bytes | None:
        """Sends a datagram and returns the reply; None if there is none in time."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(timeout)
            sock.sendto(data, (self.host, self.port))
            try:
                return sock.recv(65535)
            except TimeoutError:
                return None

    def connect(self, timeout: float = 5) -> socket.socket:
        """A TCP connection to it."""
        return socket.create_connection((self.host, self.port), timeout=timeout)


def answers(reply: dns.message.Message) -> list[str]:
    """The records of the answer section as sorted text, without TTLs: `name TYPE data`."""
    return sorted(
        f"{rrset.name} {dns.rdatatype.to_text(rrset.rdtype)} {record}" for rrset in reply.answer for record in rrset
    )


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
    """The header's flags, such as `{"QR", "AA"}`."""
    return set(dns.flags.to_text(reply.flags).split())
