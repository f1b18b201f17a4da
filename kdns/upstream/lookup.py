"""Host names of a configuration, looked up by the system, or by the servers that it names for this. A name is absolute,
with or without its final dot: the search list of this machine is for its own names.
"""

import socket
from collections.abc import Sequence
from time import monotonic
from typing import Final

from kdns import files
from kdns.address import address, family_of, host_port
from kdns.dns import iana
from kdns.dns.answer import Answer
from kdns.dns.errors import BadName
from kdns.dns.message import pack_query
from kdns.dns.name import from_text
from kdns.dns.query import Question
from kdns.hostsfile import MAX_FILE, words
from kdns.upstream.exchange import matching_reply, new_id

HOSTS: Final = "/etc/hosts"
TIMEOUT: Final = 2.0  # seconds for a server's answer (CoreDNS's)
_FAMILIES: Final = {iana.A: socket.AF_INET, iana.AAAA: socket.AF_INET6}


def look_up(host: str, resolvers: Sequence[tuple[str, int]]) -> list[str]:
    """A host's addresses as text, without repeats. Waits. Raises OSError where there are none."""
    found = _from_servers(host, resolvers) if resolvers else _from_system(host)
    if not found:
        raise OSError("it has no address")
    return list(dict.fromkeys(found))


def _from_system(host: str) -> list[str]:
    bare = host.removesuffix(".")
    # The C library does not find `name.` in the file of hosts, and without the dot it would go through the search list.
    known = _from_hosts(bare)
    if known:
        return known
    try:
        return [str(entry[4][0]) for entry in socket.getaddrinfo(bare + ".", 53, type=socket.SOCK_DGRAM)]
    except UnicodeError as error:
        raise OSError(str(error)) from None


def _from_hosts(host: str) -> list[str]:
    try:
        text = files.read_text(HOSTS, MAX_FILE)
    except OSError:
        return []
    lines = [words(line) for line in text.splitlines() if host.lower() in line.lower()]
    return [found[0] for found in lines if host.lower() in (word.lower().removesuffix(".") for word in found[1:])]


def _from_servers(host: str, resolvers: Sequence[tuple[str, int]]) -> list[str]:
    """The first server's addresses that has any; where all fail, the last failure is raised."""
    try:
        name = from_text(host if host.endswith(".") else host + ".").lower()
    except BadName as error:
        raise OSError(str(error)) from None
    failure: OSError | None = None
    for server in resolvers:
        found: list[str] = []
        for rtype, family in _FAMILIES.items():
            try:
                answer = _ask(server, Question(name, rtype))
            except OSError as error:
                failure = OSError(f"{host_port(*server)}: {error.strerror or error}")
                continue
            if answer.rcode not in (iana.NOERROR, iana.NXDOMAIN):
                failure = OSError(f"{host_port(*server)}: {iana.rcode_text(answer.rcode)}")
            found += [
                socket.inet_ntop(family, data)
                for rrset in answer.answer
                if rrset.type == rtype
                for data in rrset.rdatas
            ]
        if found:
            return found
    if failure is not None:
        raise failure
    return []


def _ask(server: tuple[str, int], question: Question) -> Answer:
    """A server's reply, over TCP where it does not fit a datagram. Raises OSError."""
    qid = new_id()
    query = qid + pack_query(0, question)[2:]
    with socket.socket(family_of(server[0]), socket.SOCK_DGRAM) as sock:
        sock.connect(address(*server))
        sock.send(query)
        answer = None
        end = monotonic() + TIMEOUT
        while answer is None:
            sock.settimeout(max(end - monotonic(), 0.001))  # of all datagrams together: junk buys no time
            answer = matching_reply(sock.recv(4096), qid, question, host_port(*server))
    return _ask_over_tcp(server, query, qid, question) if answer.flags & iana.TC else answer


def _ask_over_tcp(server: tuple[str, int], query: bytes, qid: bytes, question: Question) -> Answer:
    end = monotonic() + TIMEOUT
    data = b""
    with socket.create_connection(server, TIMEOUT) as sock:
        sock.sendall(len(query).to_bytes(2, "big") + query)
        while len(data) < 2 or len(data) < 2 + int.from_bytes(data[:2], "big"):
            sock.settimeout(max(end - monotonic(), 0.001))  # of the whole reply, however slowly it comes
            part = sock.recv(65537)
            if not part:
                raise OSError("it closed the connection")
            data += part
    answer = matching_reply(data[2 : 2 + int.from_bytes(data[:2], "big")], qid, question, host_port(*server))
    if answer is None:
        raise OSError("its reply over TCP cannot be read")
    return answer
