"""Each file of the corpus goes through its harness; so does what hypothesis makes of them."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.harnesses import HARNESSES

CORPUS = Path(__file__).parent / "corpus"
FILES = sorted(path for path in CORPUS.glob("*/*"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_nothing_is_wrong_with(path: Path) -> None:
    HARNESSES[path.parent.name](path.read_bytes())


def test_each_harness_has_a_corpus() -> None:
    assert {path.parent.name for path in FILES} == set(HARNESSES)


@pytest.mark.parametrize("target", [name for name in HARNESSES if name != "http"])
def test_nor_with_what_it_becomes_on_the_way(target: str) -> None:
    seeds = [path.read_bytes() for path in FILES if path.parent.name == target]
    changes = st.lists(st.tuples(st.integers(0, 600), st.binary(max_size=3), st.integers(0, 4)), max_size=4)

    @given(st.sampled_from(seeds), changes)
    @settings(max_examples=80, deadline=None)
    def changed(seed: bytes, made: list[tuple[int, bytes, int]]) -> None:
        data = bytearray(seed)
        for at, new, gone in made:
            at %= len(data) + 1
            data[at : at + gone] = new
        HARNESSES[target](bytes(data))

    changed()
