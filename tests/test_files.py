"""A file that is replaced is the old one or the new one, whole; pipes and devices in a file's place."""

import os
from pathlib import Path

import pytest

from kdns import files


def test_a_file_is_replaced_whole_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    files.replace(str(path), [b"new ", b"octets"], 0o600)
    assert path.read_bytes() == b"new octets" and path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_that_cannot_be_replaced_is_as_it_was_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    (path / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match="folder"):
        files.replace(str(path), [b"new"], 0o600)
    assert os.listdir(tmp_path) == ["folder"] and (path / "inside").is_dir()


def test_a_pipe_that_is_not_waited_for_was_said_not_to_have_ended_within_0_s(tmp_path: Path) -> None:
    path = str(tmp_path / "pipe")
    os.mkfifo(path)
    writer = os.open(path, os.O_RDWR)
    try:
        with pytest.raises(TimeoutError, match="it is a pipe or a device, and had nothing to read"):
            files.read(path, 10, 0)
        with pytest.raises(files.NotRegular, match=r"it is not a regular file: '.*pipe'"):
            files.read_regular(path, 10)
    finally:
        os.close(writer)


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/full", "/dev/urandom"])
def test_a_device_that_never_ends_was_read_as_far_as_a_file_may_reach(path: str) -> None:
    with pytest.raises(files.NotRegular, match=f"it is a device and not a file: '{path}'"):
        files.read_through(path, 1 << 60, 0)


def test_the_device_that_is_empty_is_an_empty_file() -> None:
    assert files.read("/dev/null", 10) == b""
