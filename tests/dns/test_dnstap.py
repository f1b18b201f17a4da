"""dnstap: a stream's queries, and what is no such stream, or is cut or corrupted."""

import io
import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdns.dns import dnstap
from kdns.dns.errors import FormatError
from tests.dns.dnstapfiles import CLIENT_RESPONSE, CONTENT, STOP, field, frame, message, start, stream


def reader(data: bytes, most: list[int] | None = None) -> Callable[[int], bytes]:
    file = io.BytesIO(data)

    def read(size: int) -> bytes:
        if most is not None:
            most.append(size)
        return file.read(size)

    return read


def queries(data: bytes) -> list[bytes]:
    return list(dnstap.queries(reader(data)))


def test_the_queries_of_a_stream_come_in_order_and_nothing_else_does() -> None:
    others = [
        message(b"response", CLIENT_RESPONSE),
        field(15, 2) + field(14, field(1, 5) + field(10, b"no message")),  # a type that is not MESSAGE
        field(200, b"of a later version") + field(201, 3) + field(202, bytes(8), 1) + field(203, bytes(4), 5),
    ]
    data = start() + b"".join(map(frame, [message(b"one"), *others, message(b"two", 1), message(b"update", 13)]))
    assert queries(data + STOP) == [b"one", b"two"]


def test_a_stream_that_still_grows_has_no_end_yet_and_files_may_be_joined() -> None:
    assert queries(start() + frame(message(b"one"))) == [b"one"]
    assert queries(stream(b"one") + stream(b"two")) == [b"one", b"two"]
    assert queries(start()) == queries(stream()) == []


def test_a_query_whose_message_was_left_out_is_empty() -> None:
    assert queries(start() + frame(message(None))) == [b""]


@pytest.mark.parametrize(("data", "said"), [
    (b"", "it is empty"),
    (b"\0\0", "octet 2 is the end, within a frame"),
    (b"a.org A\n", "it does not begin as Frame Streams do"),
    (bytes(40), "a control frame of 0 octets"),
    (struct.pack("!II", 0, 600) + bytes(600), "a control frame of 600 octets"),
    (struct.pack("!III", 0, 4, 3), "it begins with control frame 3, not START"),
    (struct.pack("!III", 0, 4, 2), "its START names no content type"),
    (start(b"protobuf:other.Thing"), 'it holds "protobuf:other.Thing", not dnstap'),
    (start(b"\xff\x1b[2J"), 'it holds "'),
    (start()[:-1], "within a frame"),
    (struct.pack("!IIIII", 0, 12, 2, 1, 500), "control frame cannot be read"),
    (start() + b"\xff\xff\xff\xff" + b"x" * 99, "octet 42 begins a frame of 4294967295 octets"),
    (start() + frame(message(b"one"))[:-1], "octet 100 is the end, within a frame"),
    (start() + b"\0\0", "within a frame"),
    (start() + frame(b"\x0a\xff"), "the frame at octet 42 is not a dnstap message"),
    (start() + frame(b"\xff" * 11), "not a dnstap message"),
    (start() + frame(field(14, b"\x52\x05abc") + field(15, 1)), "not a dnstap message"),
    (start() + frame(b"\x0b"), "not a dnstap message"),  # wire type 3: a group, which dnstap has none of
    (start() + frame(field(14, 5)), "not a dnstap message"),  # a number where a message must be
    (start() + frame(field(14, field(10, 5)) + field(15, 1)), "not a dnstap message"),
    (start() + frame(b"\x01abc"), "not a dnstap message"),
])  # fmt: skip
def test_what_is_no_dnstap_stream_is_said_in_one_line_with_its_place(data: bytes, said: str) -> None:
    with pytest.raises(FormatError) as raised:
        queries(data)
    assert said in str(raised.value) and str(raised.value).isprintable()


def test_what_came_whole_before_the_end_is_given_first_and_the_end_is_told_from_other_faults() -> None:
    found = dnstap.queries(reader(start() + frame(message(b"one")) + frame(message(b"two"))[:20]))
    assert next(found) == b"one"
    with pytest.raises(dnstap.Truncated):
        next(found)


def test_a_claimed_length_is_refused_before_anything_of_it_is_read() -> None:
    asked: list[int] = []
    with pytest.raises(FormatError):
        list(dnstap.queries(reader(start() + b"\x00\x10\x00\x01" + bytes(100), asked)))
    assert max(asked) <= len(CONTENT) + 12
    most = frame(field(3, bytes(dnstap.MAX_FRAME - 4)))
    assert most[:4] == b"\x00\x10\x00\x00" and queries(start() + most) == []


@given(st.binary(max_size=200))
def test_any_octets_behind_a_start_are_read_or_refused(data: bytes) -> None:
    for rest in (data, frame(data), frame(field(14, data) + field(15, 1))):
        try:
            assert all(type(each) is bytes for each in dnstap.queries(reader(start() + rest)))
        except FormatError as error:
            assert str(error).isprintable()
