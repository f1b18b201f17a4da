"""The table of a zone's nodes: like a dict, whose growth holds nobody."""

import random

import pytest

from kdns.store import node_table
from kdns.store.node_table import FIRST, PARTS, NodeTable
from kdns.store.zone_node import ZoneNode


def node(name: bytes) -> ZoneNode:
    return ZoneNode(name, (), 0)


@pytest.mark.interpreted("a constant is replaced")
@pytest.mark.parametrize("first", [0, 7, 1000])
def test_it_holds_what_a_dict_holds_in_its_order(monkeypatch: pytest.MonkeyPatch, first: int) -> None:
    monkeypatch.setattr(node_table, "FIRST", first)
    chance = random.Random(first)
    names = list(dict.fromkeys(chance.randbytes(chance.randrange(1, 9)) for _ in range(500)))
    table, usual = NodeTable(), dict[bytes, ZoneNode]()
    for name in names:
        usual[name] = node(name)
        table.put(name, usual[name])
    assert list(table) == names and list(table.items()) == list(usual.items()) and len(table) == len(usual)
    assert list(table.values()) == list(usual.values())
    for name in [*names, b"", b"not there"]:
        assert table.get(name) is usual.get(name) and (name in table) == (name in usual)
    with pytest.raises(KeyError):
        table[b"not there"]
    while usual:
        assert table.popitem() == usual.popitem() and len(table) == len(usual)
    with pytest.raises(KeyError):
        table.popitem()


def test_a_large_zone_held_the_loop_for_40_ms_while_its_dict_was_copied() -> None:
    table = NodeTable()
    one = node(b"")
    for i in range(FIRST + PARTS * 1000):
        table.put(b"%d" % i, one)
    # A copy takes 60 ns for each entry.
    assert len(table.first) == FIRST and max(map(len, table.parts)) < 1300
