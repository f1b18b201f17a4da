"""A Corefile read again: only when something has changed, by a child where it is large, and never without an end."""

import os
import threading
from functools import partial
from pathlib import Path

import pytest

from kdns import files
from kdns.corefile import CorefileError
from kdns.plugins.chaos import Chaos
from kdns.server import build, catalog, life, reading
from kdns.server.reading import CorefileOnDisk
from kdns.testing import block as server_block
from kdns.testing import data
from tests.fixtures import Serve


def on_disk(path: Path) -> CorefileOnDisk:
    return CorefileOnDisk(str(path), 53, catalog.known)


def large(count: int) -> str:
    return "".join(
        f'z{i}.example.org {{\n errors\n cache 30\n forward . 10.0.0.{i % 250} # "x"\n}}\n' for i in range(count)
    )


def test_the_corefile_was_parsed_at_every_look(tmp_path: Path) -> None:
    path = tmp_path / "Corefile"
    path.write_text("a.org {\n import more/*.conf\n import extra\n whoami\n}\n")
    (tmp_path / "more").mkdir()
    (tmp_path / "extra").write_text("errors\n")
    read = on_disk(path)
    first = read()
    assert read() is first
    for name, text in (("more/x.conf", "log\n"), ("extra", "errors\nchaos\n"), ("more/x.conf", "debug\n")):
        (tmp_path / name).write_text(text)
        now = read()
        assert now is not first and text.split()[-1] in now.blocks[0].directives
        assert read() is now
        first = now


def test_an_import_that_cannot_be_read_is_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "Corefile"
    path.write_text("a.org {\n whoami\n}\n")
    read = on_disk(path)
    read()
    path.write_text("a.org {\n whoami\n import extra\n}\n")
    for _ in range(2):
        with pytest.raises(CorefileError, match=r"Corefile:3:9: cannot import .*extra: No such file"):
            read()
    (tmp_path / "extra").write_text("errors")
    assert "errors" in read().blocks[0].directives
    path.unlink()
    with pytest.raises(CorefileError, match="cannot read the Corefile"):
        read()


def test_a_large_corefile_is_parsed_by_a_child_and_says_the_same(tmp_path: Path) -> None:
    path = tmp_path / "Corefile"
    path.write_text("a.org {\n whoami\n}\n")
    read = on_disk(path)
    read()
    text = large(400) + "import more\n"
    (tmp_path / "more").write_text("last.org {\n whoami {$HOME}\n}\n")
    assert len(text) > reading.INLINE
    path.write_text(text)
    found, expected = read(), build.read(text, str(path))
    assert (found.blocks, found.warnings, found.fingerprint) == (
        expected.blocks,
        expected.warnings,
        expected.fingerprint,
    )
    assert len(found.blocks) == 401 and read() is found
    (tmp_path / "more").write_text("other.org {\n whoami\n}\n")
    assert read().blocks[-1].zones == ["other.org."]


def test_an_error_of_a_large_corefile_has_its_place(tmp_path: Path) -> None:
    path = tmp_path / "Corefile"
    path.write_text(large(1))
    read = on_disk(path)
    read()
    path.write_text(large(400) + "b.org {\n whoamy\n}\n")
    with pytest.raises(CorefileError) as caught:
        read()
    assert caught.value.where == (str(path), 2002, 2) and "did you mean" in caught.value.message


@pytest.mark.parametrize("ends", ["raise SystemExit('out of memory')", "import time; time.sleep(60)"])
def test_a_child_that_fails_is_an_error_and_the_old_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    path = tmp_path / "Corefile"
    path.write_text(large(1))
    read = on_disk(path)
    first = read()
    program = tmp_path / "python"
    program.write_text(f"#!{reading.sys.executable}\n{ends}\n")
    program.chmod(0o755)
    monkeypatch.setattr(reading.sys, "executable", str(program))
    monkeypatch.setattr(reading, "CHILD_TIMEOUT", 0.5)
    path.write_text(large(400))
    with pytest.raises(CorefileError, match=r"failed: out of memory|took over 0.5 s"):
        read()
    assert read.last is first


def test_a_pipe_as_an_import_held_everybody_up_for_ever(
    serve: Serve, tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "read", partial(files.read, timeout=0.5))
    os.mkfifo(tmp_path / "pipe")
    hosts = "hosts /nowhere {\n 192.0.2.1 a.org\n }"
    server = serve(server_block(hosts))
    done: list[bool] = []
    thread = threading.Thread(target=lambda: done.append(server.reload(server_block(hosts, f"import {tmp_path}/pipe"))))
    thread.start()
    answered = 0
    while thread.is_alive():
        assert data(server.ask("a.org.")) == ["192.0.2.1"]
        answered += 1
    assert done == [False] and answered > 10
    assert any(": cannot import" in line and "did not end within 0.5 s" in line for line in lines)


def test_what_hung_while_a_corefile_was_loaded_failed_every_later_reload(
    serve: Serve, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()
    monkeypatch.setattr(Chaos, "load", lambda self, block: over.wait(20))
    monkeypatch.setattr(life, "LOADING", 0.3)
    hosts = "hosts /nowhere {\n 192.0.2.1 a.org\n }"
    server = serve(server_block(hosts))
    try:
        for said in ("names took over 0.3 s and was given up", "names hangs and has not ended yet"):
            assert not server.reload(server_block(hosts, "chaos"))
            assert said in lines[-1]
        monkeypatch.setattr(life, "LOADING", 20)
        assert server.reload(server_block(hosts, "any"))
        assert not over.is_set() and data(server.ask("a.org.")) == ["192.0.2.1"]
    finally:
        over.set()


def test_two_thousand_blocks_were_compared_each_with_each() -> None:
    """`*` beside an address is still found, in either order, and a zone that is there twice."""
    blocks = large(2000)
    build.build(build.read(blocks, "Corefile")).check()
    for more, said in (
        ("z7.example.org {\n whoami\n}\n", "it is already defined at Corefile:36:1"),
        ("z7.example.org {\n bind 127.0.0.1\n whoami\n}\n", "zone overlap listener capacity with"),
    ):
        with pytest.raises(CorefileError, match=said):
            build.build(build.read(blocks + more, "Corefile")).check()
