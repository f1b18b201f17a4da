"""The types of the fixtures in conftest."""

from collections.abc import Callable

from kdns.testing import Server, Upstream

Serve = Callable[..., Server]  # (Corefile text, options of Server) -> a server, stopped after the test
Start = Callable[..., Upstream]  # (script, options of Upstream) -> an upstream, closed after the test
