"""Any text is read or refused with a place; nothing else happens."""

from hypothesis import given, settings
from hypothesis import strategies as st

from kdns.corefile import CorefileError, parse

words = st.sampled_from(
    ["{", "}", "(a)", "import", "a", "log", '"', "#", "\n", "\n", " ", "{$X}", "{%Y%}", ",", ".:53", "\\", '"x y"']
)


@given(st.lists(words, max_size=60).map(" ".join) | st.text(max_size=200))
@settings(max_examples=400, deadline=None)
def test_any_text_is_read_or_refused_with_its_place(text: str) -> None:
    try:
        parse(text, "f", environ={"X": "v", "Y": "{$X}"})
    except CorefileError as error:
        assert error.message and str(error).isprintable()
