"""Tests of plugins, over real sockets: a server, scripted upstreams, a Kubernetes API. Needs `kdns[testing]`
(dnspython).

from kdns.testing import Server, block, data

def test_it_greets() -> None:
    with Server(block("hello"), plugins=[Hello]) as server:
        assert data(server.ask("hello.example.org.", "TXT")) == ['"hello, 127.0.0.1"']
"""

from kdns.testing.apiserver import ApiServer
from kdns.testing.loop import LoopThread, eventually, free_port, http_get
from kdns.testing.server import Server, additional, answers, block, code, data, flags
from kdns.testing.upstream import Script, Upstream, answer, soa

__all__ = [
    "ApiServer", "LoopThread", "Script", "Server", "Upstream", "additional", "answer", "answers", "block", "code",
    "data", "eventually",
    "flags", "free_port", "http_get", "soa",
]  # fmt: skip
