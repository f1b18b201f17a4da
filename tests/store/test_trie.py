"""The trie against a plain model: what stands in it, what is closest, what a drop leaves."""

import gc
from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from kdns.dns import iana
from kdns.dns.answer import Answer
from kdns.dns.name import from_labels, from_text, is_within, labels, parent
from kdns.dns.rrset import RRset
from kdns.store.trie import Node, Store

names = st.lists(st.sampled_from([b"a", b"b", b"*", b"ccc"]), min_size=1, max_size=4).map(from_labels)


def record(owner: bytes, rtype: int = iana.A) -> RRset:
    return RRset(owner, rtype, 5, (b"\1\2\3\4",))


@given(st.lists(st.tuples(st.sampled_from(["put", "remove", "remove_subtree"]), names), max_size=30), names)
@settings(max_examples=300, deadline=None)
def test_it_holds_what_was_put_and_not_removed(steps: list[tuple[str, bytes]], asked: bytes) -> None:
    store, model = Store(), set()
    for step, owner in steps:
        if step == "put":
            store.put(record(owner))
            model.add(owner)
        elif step == "remove":
            store.remove(owner)
            model.discard(owner)
        else:
            store.remove_subtree(owner)
            model = {each for each in model if not is_within(each, owner)}
    existing = {each[off:] for each in model for off in _offsets(each)}
    assert set(store.index) == existing
    assert {name for name, node in store.index.items() if node.rrsets} == model
    node, off = store.closest(asked)
    expected = asked
    while expected != b"\0" and expected not in existing:
        expected = parent(expected)
    assert (node.name, asked[off:]) == (expected, expected)


@given(
    st.lists(
        st.tuples(st.sampled_from(["put", "remove", "remove type", "remove_subtree"]), names, st.integers(1, 3)),
        max_size=30,
    )
)
@settings(max_examples=150, deadline=None)
def test_each_name_holds_the_newest_rrset_of_each_type_and_what_was_said_of_it_ends(
    steps: list[tuple[str, bytes, int]],
) -> None:
    store = Store()
    model: dict[tuple[bytes, int], RRset] = {}
    for number, (step, owner, rtype) in enumerate(steps):
        said = {node.name: node.validity for node in store.index.values()}
        before = dict(model)
        if step == "put":
            model[(owner, rtype)] = record(owner, rtype)._replace(ttl=number)
            store.put(model[(owner, rtype)])
        elif step == "remove_subtree":
            model = {key: rrset for key, rrset in model.items() if not is_within(key[0], owner)}
            store.remove_subtree(owner)
        else:
            only = rtype if step == "remove type" else None
            model = {key: rrset for key, rrset in model.items() if key[0] != owner or only not in (None, key[1])}
            store.remove(owner, only)
        assert {(name, rrset.type): rrset for name, node in store.index.items() for rrset in node.rrsets} == model
        assert {node.name for node in walk(store.root)} == {b"\0", *store.index}
        assert all(store.above(node) in walk(store.root) for node in store.index.values())
        for name, validity in said.items():
            changed = {key: rrset for key, rrset in before.items() if key[0] == name} != {
                key: rrset for key, rrset in model.items() if key[0] == name
            }
            assert not validity.valid or (not changed and name in store.index)


def _offsets(name: bytes) -> list[int]:
    out, off = [], 0
    for label in labels(name):
        out.append(off)
        off += len(label) + 1
    return out


def holds(answer: Answer) -> bool:
    return answer.validity is not None and answer.validity.valid


def test_an_answer_holds_until_its_name_changes_or_goes() -> None:
    store = Store()
    one, two, three = Answer(), Answer(), Answer()
    store.add(from_text("a.org.")).put(1, one)
    store.add(from_text("x.a.org.")).put(1, two)
    store.add(from_text("b.org.")).put(1, three)
    store.remove_subtree(from_text("a.org."))
    assert [holds(answer) for answer in (one, two, three)] == [False, False, True]
    store.put(record(from_text("b.org.")))
    assert not holds(three)


def test_an_answer_put_over_another_ends_the_life_of_all_that_was_said_of_the_name() -> None:
    node = Store().add(from_text("5.1.96.10.in-addr.arpa."))
    first, other, second = Answer(), Answer(), Answer()
    node.put(iana.PTR, first)
    node.put_types((iana.PTR,), other)
    node.put(iana.PTR, second)
    assert [holds(answer) for answer in (first, other, second)] == [False, False, True]
    node.invalidate()
    assert not holds(second)


def test_a_node_that_knows_its_types_has_one_answer_for_all_others() -> None:
    node = Store().add(from_text("web.org."))
    address, nodata = Answer(), Answer()
    node.put_types((iana.A, iana.SRV), nodata)
    node.put(iana.A, address)
    assert node.find(iana.A) is address and node.find(iana.SRV) is None
    assert {node.find(qtype) for qtype in range(65536) if qtype not in (iana.A, iana.SRV)} == {nodata}


@given(st.lists(names, max_size=12), st.integers(0, 40))
def test_a_store_that_is_emptied_loses_its_newest_name_each_time_and_holds_together(
    owners: list[bytes], times: int
) -> None:
    store = Store()
    for owner in owners:
        store.put(record(owner))
        store.add(owner).put(iana.A, Answer())
    kept = [(node.name, answer) for node in store.index.values() for answer in node.answers.values()]
    left = list(store.index)
    for _ in range(min(times, len(left))):
        store.popitem()
        del left[-1]
        assert list(store.index) == left
        assert {node.name for node in walk(store.root)} == {b"\0", *left}
    assert len(store) == len(left)
    assert all(answer.validity.valid is (name in left) for name, answer in kept)


def walk(node: Node) -> Iterator[Node]:
    yield node
    for child in (node.children or {}).values():
        yield from walk(child)


def test_a_store_that_nobody_holds_is_freed_at_once() -> None:
    def nodes() -> int:
        return sum(type(each) is Node for each in gc.get_objects())

    before = nodes()
    gc.disable()
    try:
        store = Store()
        store.put(record(from_text("a.b.c.org.")))
        assert nodes() == before + 5
        del store
        assert nodes() == before
    finally:
        gc.enable()
