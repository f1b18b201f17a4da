"""debug: lines of the level DEBUG."""

from kdns import log
from kdns.testing import (
    block,
)
from tests.fixtures import Serve


def test_debug_writes_debug_lines_while_it_is_there(serve: Serve, lines: list[str]) -> None:
    log.Logger().debug("before")
    server = serve(block("debug", "whoami"))
    log.Logger().debug("during")
    server.reload(block("whoami"))
    log.Logger().debug("after")
    assert [line for line in lines if line.startswith("[DEBUG]")] == ["[DEBUG] during"]
