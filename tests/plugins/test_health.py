"""health and ready: probes, and ports that are taken."""

import socket

import pytest

from kdns.testing import (
    block,
    code,
    free_port,
    http_get,
)
from tests.fixtures import Serve


def test_health_answers_and_a_busy_port_is_fatal(serve: Serve) -> None:
    port = free_port()
    serve(block(f"health 127.0.0.1:{port}", "whoami"))
    assert http_get(port, "/health") == (200, "OK")
    assert http_get(port, "/nothing")[0] == 404
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match="another process has this port"):
            serve(block(f"health 127.0.0.1:{taken.getsockname()[1]}", "whoami"))


def test_ready_and_prometheus_on_a_busy_port_are_errors_and_not_fatal(serve: Serve, lines: list[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = serve(block(f"ready 127.0.0.1:{port}", f"prometheus 127.0.0.1:{port}", "whoami"))
        assert code(server.ask("example.org.")) == "EMPTY"
    assert sum("another process has this port" in line for line in lines) == 2
