"""The steps that lead to a zone's version, and large zones on their way in and out: what holds the loop."""

import asyncio
import gc
import time
from pathlib import Path

import pytest

from kdns.dns.name import from_text
from kdns.store.zone import Zone
from kdns.store.zone_builder import ZoneBuilder
from kdns.store.zone_diff import Change, diff
from kdns.zonefile import history, load
from kdns.zonefile.history import Changes, History, changes_of
from kdns.zonefile.load import BrokenZone, read

ORIGIN = from_text("example.org.")


def zone(path: Path, serial: int, lines: str) -> Zone:
    path.write_text(f"$TTL 300\n@ SOA ns host {serial} 3600 300 86400 60\n@ NS ns\n{lines}")
    return read(str(path), ORIGIN).zone


def test_changes_are_told_as_they_were_found(tmp_path: Path) -> None:
    rrsig = "w RRSIG {} 13 3 300 20300101000000 20200101000000 1 @ {}\n"
    old = zone(tmp_path / "db", 1, "w A 192.0.2.1\nw A 192.0.2.2\ngone TXT x\n" + rrsig.format("A", "AAAA"))
    new = zone(tmp_path / "db", 2, "w A 192.0.2.1\nw 60 AAAA ::1\ncome MX 1 @\n" + rrsig.format("A", "BBBB"))
    found = asyncio.run(changes_of(old, new))
    assert found is not None and list(found) == diff(old, new) and all(type(each) is Change for each in found)
    assert len(found) == sum(len(rrset.rdatas) for change in found for rrset in change if rrset is not None) == 6
    assert list(found) == list(found)  # a transfer goes through them twice
    nothing = asyncio.run(changes_of(new, new))
    assert nothing is not None and not nothing


def test_more_than_a_history_holds_is_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "MAX_CHANGES", 100)
    old = zone(tmp_path / "db", 1, "")
    some = zone(tmp_path / "db", 2, "".join(f"h{i} A 192.0.2.1\n" for i in range(90)))
    many = zone(tmp_path / "db", 3, "".join(f"h{i} A 192.0.2.2\n" for i in range(200)))
    steps = History()
    steps.add(old, some, asyncio.run(changes_of(old, some)))
    assert [step.count for step in steps.since(1) or ()] == [90]
    more = asyncio.run(changes_of(some, many))
    assert more is None
    steps.add(some, many, more)
    assert steps.since(1) is None and steps.since(2) is None


def test_letting_go_of_a_large_step_held_the_loop(tmp_path: Path) -> None:
    old = zone(tmp_path / "db", 1, "")
    changes = Changes()
    for i in range(1000):
        made = [rrset._replace(owner=b"\4%04d" % j + ORIGIN) for j, rrset in enumerate(old.rrsets(), i)]
        changes.add([Change(None, rrset) for rrset in made * 30])
    assert len(changes) == 60_000
    # As objects they would be 300,000; what is let go is 1,000 strings.
    assert sum(1 for each in gc.get_referents(*gc.get_referents(changes)) if type(each) is bytes) == 1000
    began = time.thread_time()
    del changes
    assert time.thread_time() - began < 0.005


def test_a_reader_that_dies_half_way_is_named_and_what_it_gave_is_let_go_in_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "db"
    lines = "".join(f"h{i} A 192.0.2.1\nh{i} NSEC h{i + 1} A NSEC\n" for i in range(3000))
    path.write_text("$TTL 300\n@ SOA ns host 1 3600 300 86400 60\n@ NS ns\n" + lines)
    program = (
        "import sys; from kdns.zonefile import load; from kdns.dns.name import from_text\n"
        f"for said in load._said({str(path)!r}, from_text('example.org.')):\n"
        "    if said[0] == 'end': sys.exit(9)\n"
        "    piece = load.marshal.dumps(said)\n"
        "    sys.stdout.buffer.write(len(piece).to_bytes(4, 'big') + piece)\n"
    )
    monkeypatch.setattr(load, "_command", lambda *given: [load.sys.executable, "-c", program])
    builders = []

    def noted(origin: bytes) -> ZoneBuilder:
        builders.append(ZoneBuilder(origin))
        return builders[-1]

    monkeypatch.setattr(load, "ZoneBuilder", noted)
    with pytest.raises(BrokenZone, match="the process that read it has died"):
        asyncio.run(load.read_beside(str(path), ORIGIN))
    (builder,) = builders
    assert builder.count > 6000 and not len(builder.nodes) and not builder.nsec and not builder.chain
