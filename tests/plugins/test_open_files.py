"""Files that plugins hold: no more after reloads."""

import os

from kdns.testing import block
from tests.fixtures import Serve


def test_the_process_holds_no_more_files_after_plugins_were_reloaded(serve: Serve) -> None:
    server = serve(block("local", "chaos", "whoami"))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        assert server.reload(server.text)
    assert len(os.listdir("/proc/self/fd")) <= before + 1
