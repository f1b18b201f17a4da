"""Zones of a secondary that are kept on the disk: served at once at the next start, never when they are not whole, and
never for longer than their expire.
"""

import asyncio
import contextlib
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dns.edns
import dns.zone
import pytest

from kdns import files, watchfile
from kdns.dns.name import from_text
from kdns.plugins.secondary import zone as _zone
from kdns.testing import Server, code, data, eventually, free_port
from kdns.zonefile import keep
from kdns.zonefile.load import read
from tests import programs
from tests.fixtures import Serve
from tests.zones import peers
from tests.zones.test_transfers import CATALOG, expected, primary, put, secondary, whole
from tests.zones.xfrpeers import notify, serial

MANY = "".join(f"h{i} A 10.0.{i >> 8}.{i & 255}\n" for i in range(3000))


@pytest.fixture
def db(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(watchfile, "SETTLE", 0.01)
    monkeypatch.setattr(_zone, "KEEPING", 0.05)
    path = tmp_path / "db.example.org"
    put(path, 1)
    return path


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The file that the copy of example.org lies in."""
    return tmp_path / "copies" / "db.example.org.copy"


def keeping(port: int, copy: Path) -> str:
    return secondary(port, inner=f"directory {copy.parent}")


def errors(server: Server) -> list[int]:
    """The extended errors of a reply for www.example.org."""
    reply = server.ask("www.example.org.", use_edns=0)
    return [int(option.code) for option in reply.options if isinstance(option, dns.edns.EDEOption)]


def kept(copy: Path, number: int) -> bool:
    return copy.exists() and f" {number} 3600 " in copy.read_text(errors="replace")


@pytest.mark.parametrize("more", ["", MANY])
def test_a_zone_is_served_at_once_after_a_restart_without_a_primary(
    serve: Serve, db: Path, copy: Path, more: str, lines: list[str]
) -> None:
    put(db, 1, more)
    with Server(primary(db)) as first, Server(keeping(first.port, copy)) as server:
        eventually(lambda: serial(server.port) == 1)
        eventually(lambda: kept(copy, 1))
        put(db, 2, more + "new A 192.0.2.9\n")
        dead = first.port
    server = serve(keeping(dead, copy))
    assert serial(server.port) == 1 and data(server.ask("x.wild.example.org.", "TXT")) == ['"wild"']
    put(db, 1, more)
    assert whole(server.port) == expected(db)
    assert any(f"Read example.org. from {copy}, serial 1, confirmed " in line for line in lines)
    put(db, 2, more + "new A 192.0.2.9\n")
    serve(primary(db), port=dead)
    eventually(lambda: serial(server.port) == 2)  # the primary gives what is newer
    eventually(lambda: kept(copy, 2))
    assert any(" by AXFR, serial 2" in line for line in lines)


def test_a_signed_zone_is_the_same_from_its_copy(serve: Serve, db: Path, copy: Path, tmp_path: Path) -> None:
    if not programs.find("dnssec-signzone"):
        pytest.skip("dnssec-signzone is not installed")
    path = peers.signed(tmp_path / "signed", "example.org.", db.read_text(), "-3", "ab", "-H", "1")
    with Server(primary(path)) as first, Server(keeping(first.port, copy)) as server:
        eventually(lambda: kept(copy, 1) or copy.exists())
        before = server.ask("nope.example.org.", want_dnssec=True, tcp=True)
        dead = first.port
    after = serve(keeping(dead, copy)).ask("nope.example.org.", want_dnssec=True, tcp=True)
    assert after.authority and [sorted(map(str, part)) for part in after.sections[1:]] == [
        sorted(map(str, part)) for part in before.sections[1:]
    ]


def test_a_copy_expires_with_its_zone_and_is_served_again_once_a_primary_is_heard(
    serve: Serve, db: Path, copy: Path, lines: list[str]
) -> None:
    with Server(primary(db)) as first, Server(keeping(first.port, copy)):
        eventually(lambda: kept(copy, 1))
        text, port = first.text, first.port
    old = time.time() - 86_401
    os.utime(copy, (old, old))
    server = serve(keeping(port, copy))
    assert errors(server) == [24]
    assert any("is expired" in line for line in lines)
    serve(text, port=port)
    eventually(lambda: serial(server.port) == 1)
    eventually(lambda: copy.stat().st_mtime > old + 1)  # the primary has confirmed it
    assert any("is served again" in line for line in lines) and not any("AXFR" in line for line in lines[-3:])


def test_a_clock_that_went_back_expires_nothing(serve: Serve, db: Path, copy: Path) -> None:
    with Server(primary(db)) as first, Server(keeping(first.port, copy)):
        eventually(lambda: kept(copy, 1))
        dead = first.port
    later = time.time() + 1_000_000
    os.utime(copy, (later, later))
    assert serial(serve(keeping(dead, copy)).port) == 1


def test_what_a_primary_confirms_is_confirmed_on_the_disk(serve: Serve, db: Path, copy: Path) -> None:
    db.write_text(db.read_text().replace("1 3600 1 86400", "1 1 1 86400"))
    first = serve(primary(db))
    serve(keeping(first.port, copy))
    eventually(copy.exists)
    old = time.time() - 1000
    time.sleep(0.1)
    os.utime(copy, (old, old))
    eventually(lambda: copy.stat().st_mtime > old + 1)


def damage(text: bytes, how: str) -> bytes:
    lines = text.splitlines(keepends=True)
    return {
        "half": text[: len(text) // 2], "a record less": b"".join(lines[:3] + lines[4:]), "empty": b"",
        "a digit": text.replace(b"192.0.2.2", b"192.0.2.7"), "no seal": b"".join(lines[:-1]),
        "more": text + b"x.example.org. 60 IN A 192.0.2.1\n", "garbage": random.Random(1).randbytes(3000),
    }[how]  # fmt: skip


@pytest.mark.parametrize("how", ["half", "a record less", "empty", "a digit", "no seal", "more", "garbage"])
def test_a_copy_that_is_not_whole_is_not_used_and_named(
    serve: Serve, db: Path, copy: Path, how: str, lines: list[str]
) -> None:
    with Server(primary(db)) as first, Server(keeping(first.port, copy)):
        eventually(lambda: kept(copy, 1))
        text, port = first.text, first.port
    copy.write_bytes(damage(copy.read_bytes(), how))
    server = serve(keeping(port, copy))
    assert code(server.ask("www.example.org.")) == "SERVFAIL"
    assert any(f"The copy of example.org. in {copy} is not used: it is not whole" in line for line in lines)
    serve(text, port=port)
    eventually(lambda: serial(server.port) == 1)
    eventually(lambda: kept(copy, 1))


def test_a_whole_copy_of_another_zone_is_not_used(serve: Serve, db: Path, copy: Path, lines: list[str]) -> None:
    with Server(primary(db)) as first, Server(keeping(first.port, copy)):
        eventually(lambda: kept(copy, 1))
        dead = first.port
    shutil.copy(copy, copy.with_name("db.example.net.copy"))
    server = serve(keeping(dead, copy).replace("example.org", "example.net"))
    assert code(server.ask("www.example.net.")) == "SERVFAIL"
    assert any("The copy of example.net." in line and "is not used" in line for line in lines)


@pytest.mark.parametrize("more", ["", MANY])
def test_a_folder_that_cannot_be_written_is_named_and_the_zone_is_served(
    serve: Serve, db: Path, lines: list[str], more: str
) -> None:
    put(db, 1, more)
    server = serve(keeping(serve(primary(db)).port, db / "copies" / "x"))
    eventually(lambda: serial(server.port) == 1)
    eventually(lambda: any("cannot be written: Not a directory" in line for line in lines))
    assert data(server.ask("www.example.org.")) == ["192.0.2.2", "192.0.2.3"]


def test_members_of_a_catalog_are_served_after_a_restart_and_what_is_removed_leaves_no_copy(
    serve: Serve, db: Path, copy: Path, tmp_path: Path
) -> None:
    cat = tmp_path / "cat"
    cat.write_text(
        CATALOG.replace("{serial} 3600", "1 1") + "a.zones PTR example.org.\nb.zones PTR 0/25.2.0.192.in-addr.arpa.\n"
    )
    served = (
        f".:{{port}} {{\n bind 127.0.0.1\n transfer {{\n to *\n }}\n file {cat} catalog.example {{\n reload 20ms\n }}\n"
        f" file {db} example.org\n file {db} 0/25.2.0.192.in-addr.arpa\n}}\n"
    )
    text = (
        f".:{{port}} {{\n bind 127.0.0.1\n secondary catalog.example {{\n transfer from 127.0.0.1:%d\n catalog\n"
        f" directory {copy.parent}\n }}\n}}\n"
    )
    other = copy.with_name("db.0%2F25.2.0.192.in-addr.arpa.copy")
    with Server(served) as first, Server(text % first.port):
        eventually(lambda: copy.exists() and other.exists() and copy.with_name("db.catalog.example.copy").exists())
        port = first.port
    server = serve(text % port)
    assert serial(server.port) == 1 and data(server.ask("www.0/25.2.0.192.in-addr.arpa."))
    serve(served, port=port)
    new = tmp_path / "cat.new"
    new.write_text(CATALOG.replace("{serial} 3600", "2 1") + "a.zones PTR example.org.\n")
    os.replace(new, cat)
    eventually(lambda: not other.exists())
    assert copy.exists()


def test_no_name_of_a_zone_leads_out_of_the_folder() -> None:
    for text in (
        "\\.\\./\\.\\./etc.",
        "a/b.",
        "\\000\\255.",
        "%2F.",
        "x" * 60 + "." + ("\\001" * 30 + ".") * 5,
        ".",
        "-rf.",
    ):
        path = Path(keep.path_of("/copies", from_text(text).lower()))
        assert path.parent == Path("/copies") and path.name.startswith("db.") and len(path.name) < 230
    names = {keep.path_of("", from_text(text)) for text in ("a/b.", "a%2fb.", "a\\%2fb.", "a.b.", "a\\.b.")}
    assert len(names) == 4  # two of them are one name


@contextlib.contextmanager
def process(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server of the folder's Corefile that writes copies as often as it can."""
    program = (
        "import sys; from kdns.plugins.secondary import zone; zone.KEEPING = 0.0\n"
        "from kdns.cli import main; sys.exit(main())"
    )
    words = [sys.executable, "-c", program, "-conf", str(folder / "Corefile")]
    with open(folder / "output", "ab") as output, subprocess.Popen(words, stdout=output, stderr=output) as running:
        try:
            yield running
        finally:
            running.kill()


def serial_kept(copy: Path) -> int:
    """The serial of a copy."""
    return dns.zone.from_file(str(copy), "example.org.").get_soa().serial


def test_a_secondary_that_is_killed_at_any_point_has_a_whole_copy(serve: Serve, db: Path, copy: Path) -> None:
    put(db, 1, MANY)
    port, chance = free_port(), random.Random(3)
    with Server(primary(db)) as first:
        (db.parent / "Corefile").write_text(keeping(first.port, copy).replace("{port}", str(port)))
        for turn in range(4):
            with process(db.parent):
                eventually(lambda: serial(port) > 0, step=0.05)
                for i in range(4):
                    put(db, 2 + turn * 4 + i, f"{MANY}new{turn} TXT {i}\n")
                    time.sleep(0.05)
                    notify(port)
                if turn == 3:  # the last of all starts from what is kept
                    eventually(lambda: copy.exists() and serial_kept(copy) > 1, timeout=60, step=0.05)
                time.sleep(chance.random() * 0.4)
                if turn == 3:  # a busy machine may have written none until now
                    eventually(copy.exists, timeout=60)
            if copy.exists():
                assert len(dns.zone.from_file(str(copy), "example.org.").nodes) > 3000
    with process(db.parent):
        eventually(lambda: serial(port) > 1, step=0.05)
        output = (db.parent / "output").read_text()
        assert "is not used" not in output and "Read example.org." in output, output


@pytest.mark.parametrize("begun", [False, True])
def test_the_copy_of_a_zone_that_was_removed_came_back_from_a_thread_that_was_writing_it(
    db: Path, copy: Path, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    """`begun`: its octets stand in the new file already."""
    ends, reached, go_on = threading.Event(), threading.Event(), threading.Event()
    made = read(str(db), from_text("example.org.")).zone

    def waits(*args: Any, **options: Any) -> object:
        reached.set()
        assert go_on.wait(20)
        return call(*args, **options)

    where, what = (files.os, "fsync") if begun else (keep.os, "makedirs")
    call: Callable[..., object] = getattr(where, what)
    monkeypatch.setattr(where, what, waits)
    placed = files.replace

    def noted(*args: Any) -> None:
        try:
            placed(*args)
        finally:
            ends.set()

    monkeypatch.setattr(files, "replace", noted)

    async def run() -> None:
        copy.parent.mkdir()
        keeping_it = asyncio.create_task(keep.keep(str(copy), made))
        await asyncio.to_thread(reached.wait)
        keeping_it.cancel()
        with pytest.raises(asyncio.CancelledError):
            await keeping_it
        removing = asyncio.create_task(keep.remove(str(copy)))
        await asyncio.to_thread(eventually, lambda: not files._threads.jobs)
        go_on.set()
        await removing
        assert await asyncio.to_thread(ends.wait, 20)

    asyncio.run(run())
    assert not list(copy.parent.iterdir())
