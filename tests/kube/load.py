"""A load of queries beside a fault: whatever happens to the API, what was there is answered, and nothing is lost."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import dns.message
import dns.rcode

from kdns.testing import Server, code, data, eventually


@contextmanager
def asking(server: Server, expected: dict[str, list[str] | str]) -> Iterator[list[str]]:
    """Asks for names without a pause while the block runs, and fails at its end if any answer was wrong or missing.

    `expected` has the data of an A answer, or a code such as NXDOMAIN, for each name below svc.cluster.local. Gives the
    list that what is wrong goes to.
    """
    wrong: list[str] = []
    stop = threading.Event()
    counts = [0]

    def run() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.connect((server.host, server.port))
            client.settimeout(10)
            while not stop.is_set():
                for name, answer in expected.items():
                    query = dns.message.make_query(f"{name}.svc.cluster.local.", "A")
                    try:
                        client.send(query.to_wire())
                        reply = dns.message.from_wire(client.recv(4096))
                    except OSError as error:
                        wrong.append(f"{name}: {error}")
                        continue
                    counts[0] += 1
                    found = data(reply) if reply.answer else code(reply)
                    if reply.id != query.id or found != answer:
                        wrong.append(f"{name}: {found}, not {answer}")

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield wrong
        # A fault may be over in no time: it has been asked through nevertheless.
        done = counts[0] + 3 * len(expected)
        eventually(lambda: wrong or counts[0] >= done)
    finally:
        stop.set()
        thread.join()
    assert not wrong, wrong[:5]
