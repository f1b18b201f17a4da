"""Files that are followed: what is noticed, what is not, and what holds nobody up."""

import asyncio
import errno
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from kdns import faults, files, watchfile
from kdns.watchfile import Change, Follower


def following(*paths: Path, most: int = 1000, keep: int = 1000) -> Follower:
    return Follower("the test's files", lambda: [str(path) for path in paths], most=most, keep=keep)


def changes(follower: Follower) -> list[Change]:
    return asyncio.run(follower.changes())


def said(found: list[Change]) -> list[bytes | str | None]:
    return [change.data if change.error is None else change.error.strerror for change in found]


def test_a_file_that_says_something_else_is_a_change_and_one_that_was_touched_is_none(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("one")
    follower = following(path)
    assert said(follower.look()) == [b"one"] and not follower.look()
    path.write_text("one")
    os.utime(path)
    assert not changes(follower)
    path.write_text("two")
    assert said(changes(follower)) == [b"two"] and not changes(follower)


def test_a_change_that_kept_the_time_and_size_of_a_file_was_lost(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("one")
    os.utime(path, ns=(10**18, 10**18))
    follower = following(path)
    follower.look()
    path.write_text("two")
    os.utime(path, ns=(10**18, 10**18))
    assert said(changes(follower)) == [b"two"]


def test_a_file_that_looks_the_same_is_read_once_more_where_it_was_young(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second change within the grain of the file system's clock."""
    path = tmp_path / "f"
    path.write_text("one")
    state = files.look(str(path))
    monkeypatch.setattr(files, "look", lambda path: state)
    monkeypatch.setattr(files, "_seen", lambda found: state)
    follower = following(path)
    follower.look()
    path.write_text("two")
    assert not changes(follower)
    monkeypatch.setattr(watchfile, "GRAIN", 0)
    follower.known = {path: known._replace(again=1) for path, known in follower.known.items()}
    assert said(changes(follower)) == [b"two"]


def test_a_file_that_vanishes_is_told_once_and_is_a_change_when_it_returns(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("one")
    follower = following(path)
    follower.look()
    path.unlink()
    assert said(changes(follower)) == ["No such file or directory"] and not changes(follower)
    path.write_text("one")
    assert said(changes(follower)) == [b"one"]


def test_what_is_not_followed_any_more_is_gone_and_one_that_could_never_be_read_is_forgotten(tmp_path: Path) -> None:
    path, never = tmp_path / "f", tmp_path / "never"
    path.write_text("one")
    paths = [str(path), str(never)]
    follower = Follower("files", lambda: paths, most=10, keep=10)
    assert said(follower.look()) == [b"one", "No such file or directory"]
    paths.clear()
    found = changes(follower)
    assert [change.path for change in found] == [str(path)] and isinstance(found[0].error, FileNotFoundError)
    assert not follower.known and not changes(follower)


def test_a_link_that_is_swapped_is_another_file(tmp_path: Path) -> None:
    for name in ("v1", "v2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").write_text(name)
    (tmp_path / "..data").symlink_to("v1")
    path = tmp_path / "f"
    path.symlink_to("..data/f")
    follower = following(path)
    assert said(follower.look()) == [b"v1"]
    (tmp_path / "new").symlink_to("v2")
    os.rename(tmp_path / "new", tmp_path / "..data")
    assert said(changes(follower)) == [b"v2"]


def test_a_file_that_has_become_empty_is_being_written(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("one")
    follower = following(path)
    follower.look()

    def write() -> None:
        time.sleep(0.2)
        path.write_text("two")

    path.write_text("")
    thread = threading.Thread(target=write)
    thread.start()
    found: list[Change] = []
    while not found:
        found = changes(follower)
    thread.join()
    assert said(found) == [b"two"]


def test_a_file_of_many_octets_is_not_kept_and_one_of_too_many_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"\0\xff" * 20)
    follower = following(path, most=100, keep=10)
    assert said(follower.look()) == [None]
    path.write_text("x" * 101)
    assert said(changes(follower)) == ["it is larger than 100 octets"] and not changes(follower)
    path.unlink()
    path.mkdir()
    assert said(changes(follower)) == ["Is a directory"] and not changes(follower)


def test_a_pipe_is_no_file_to_wait_for_when_others_are_followed(tmp_path: Path) -> None:
    path, pipe = tmp_path / "f", tmp_path / "pipe"
    path.write_text("one")
    follower = following(path, pipe)
    follower.look()
    os.mkfifo(pipe)
    path.write_text("two")
    began = time.monotonic()
    found = changes(follower) + changes(follower)
    assert time.monotonic() - began < files.TIMEOUT / 2
    assert b"two" in said(found) and any("it is a pipe" in str(each) for each in said(found))


def test_a_file_that_may_not_be_read_is_told_and_read_when_it_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f"
    path.write_text("one")
    follower, read = following(path), files.read_through

    def denied(path: str, most: int, keep: int, timeout: float = 0) -> files.Content:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(files, "read_through", denied)
    assert said(follower.look()) == ["Permission denied"] and not changes(follower)
    monkeypatch.setattr(files, "read_through", read)
    path.chmod(0o640)
    assert said(changes(follower)) == [b"one"]


def test_why_a_file_cannot_be_looked_at_was_always_that_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(path: str) -> files.Seen:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(files, "look", denied)
    assert [type(change.error) for change in following(tmp_path / "f").look()] == [PermissionError]


@pytest.fixture
def hung(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """A file system that hangs while its files are read, until it is told not to."""
    over, read = threading.Event(), files.read_through

    def hangs(path: str, most: int, keep: int, timeout: float = 0) -> files.Content:
        over.wait(30)
        return read(path, most, keep, timeout)

    monkeypatch.setattr(files, "read_through", hangs)
    monkeypatch.setattr(watchfile, "READING", 0.1)
    yield over.set
    over.set()


def test_a_change_that_was_read_after_all_was_lost(tmp_path: Path, hung: Callable[[], None]) -> None:
    """The thread that was given up said that the file was known, and nobody had been told of the change."""
    path = tmp_path / "f"
    path.write_text("one")
    follower = following(path)

    async def run() -> None:
        first = await follower.changes()
        assert len(first) == 1 and isinstance(first[0].error, TimeoutError)
        assert not await follower.changes()  # said once, and not begun a second time
        hung()
        async with asyncio.timeout(20):
            while not (found := await follower.changes()):
                await asyncio.sleep(0.01)
        assert said(found) == [b"one"]

    asyncio.run(run())


def test_what_was_read_elsewhere_is_gone_on_from(tmp_path: Path) -> None:
    path, none = tmp_path / "f", tmp_path / "none"
    path.write_text("one")
    follower = following(path, none)
    content = files.read_through(str(path), 10, 10)
    follower.resume([(str(path), content.seen, content.digest), (str(none), None, b"")])
    assert not changes(follower) and not changes(follower)
    none.write_text("now")
    path.write_text("two")
    found = changes(follower)
    while len(found) < 2:
        found += changes(follower)
    assert sorted(str(each) for each in said(found)) == ["b'now'", "b'two'"]


@pytest.mark.parametrize("last", [b"two", b"", None])
def test_a_change_that_could_not_be_acted_upon_was_lost(tmp_path: Path, last: bytes | None) -> None:
    """A child process that could not be started, and a new list, table or certificate waited for the change after."""
    path = tmp_path / "f"
    path.write_bytes(b"one" if last else b"")
    follower = following(path)
    follower.look()
    acted: list[list[bytes | str | None]] = []

    async def act(found: Sequence[Change]) -> None:
        acted.append(said(list(found)))
        if len(acted) == 1:
            raise OSError(errno.EAGAIN, "no more processes")

    async def run() -> None:
        following_it = asyncio.create_task(
            faults.supervise("the test", lambda: follower.follow(0.001, act), pause=0.001)
        )
        if last is None:
            path.unlink()
        else:
            path.write_bytes(last or b"three")
        async with asyncio.timeout(20):
            while len(acted) < 2:
                await asyncio.sleep(0.001)
        following_it.cancel()

    asyncio.run(run())
    assert acted[0] == acted[1]
