"""The trie against a plain model: what stands in it, what is closest, what a drop leaves."""

from hypothesis import given, settings
from hypothesis import strategies as st

from kdns.dns import iana
from kdns.dns.answer import Answer
from kdns.dns.name import from_labels, from_text, is_within, labels, parent
from kdns.dns.rrset import RRset
from kdns.store.trie import CUT, WILDCARD, Store
from kdns.store.zone import Result, Zone

names = st.lists(st.sampled_from([b"a", b"b", b"*", b"ccc"]), min_size=1, max_size=4).map(from_labels)


def record(owner: bytes, rtype: int = iana.A) -> RRset:
    return RRset(owner, rtype, 5, (b"\1\2\3\4",))


@given(st.lists(st.tuples(st.sampled_from(["put", "discard", "drop"]), names), max_size=30), names)
@settings(max_examples=300, deadline=None)
def test_it_holds_what_was_put_and_not_dropped(steps: list[tuple[str, bytes]], asked: bytes) -> None:
    store, model = Store(), set()
    for step, owner in steps:
        before = store.generation
        if step == "put":
            store.put(record(owner))
            model.add(owner)
            assert store.generation > before
        elif step == "discard":
            store.discard(owner)
            model.discard(owner)
        else:
            store.drop(owner)
            model = {each for each in model if not is_within(each, owner)}
    existing = {each[off:] for each in model for off in _offsets(each)}
    assert set(store.index) == existing
    assert {name for name, node in store.index.items() if node.rrsets} == model
    node, off = store.closest(asked)
    expected = asked
    while expected != b"\0" and expected not in existing:
        expected = parent(expected)
    assert (node.name, asked[off:]) == (expected, expected)
    for each in store.index.values():
        assert bool(each.flags & WILDCARD) == bool(each.children and b"*" in each.children)


def _offsets(name: bytes) -> list[int]:
    out, off = [], 0
    for label in labels(name):
        out.append(off)
        off += len(label) + 1
    return out


def test_an_answer_is_alive_until_its_name_changes() -> None:
    store = Store()
    one, two, three = Answer(), Answer(), Answer()
    store.add(from_text("a.org.")).keep(1, one)
    store.add(from_text("x.a.org.")).keep(1, two)
    store.add(from_text("b.org.")).keep(1, three)
    store.drop(from_text("a.org."))
    assert (one.alive, two.alive, three.alive) == (False, False, True)
    store.put(record(from_text("b.org.")))
    assert not three.alive


def test_a_zone_tells_the_five_results_apart() -> None:
    store = Store()
    zone = Zone(store, from_text("org."))
    store.put(record(from_text("a.b.org.")))
    store.put(RRset(from_text("c.org."), iana.CNAME, 5, (from_text("a.b.org."),)))
    store.put(RRset(from_text("d.org."), iana.NS, 5, (from_text("ns.d.org."),)))
    store.add(from_text("d.org."), CUT)

    def result(text: str, rtype: int = iana.A) -> Result:
        return zone.lookup(from_text(text), rtype).result

    assert result("a.b.org.") is Result.HIT
    assert result("a.b.org.", iana.MX) is result("b.org.") is result("org.") is Result.NODATA
    assert result("x.org.") is result("x.a.b.org.") is Result.NXDOMAIN
    assert result("c.org.") is Result.CNAME and result("c.org.", iana.CNAME) is Result.HIT
    assert result("d.org.") is result("x.d.org.") is Result.DELEGATION
    assert result("d.org.", iana.DS) is Result.NODATA


def test_an_answer_put_over_a_live_one_ends_the_old_ones_life() -> None:
    node = Store().add(from_text("5.1.96.10.in-addr.arpa."))
    first, second = Answer(), Answer()
    node.keep(iana.PTR, first)
    node.keep(iana.PTR, second)
    assert not first.alive and second.alive
    node.forget()
    assert not second.alive
