"""Compact tables that are made in steps: in turns on the loop, or by a child process that prints them.

Such a table is one run of octets, with open-addressing hash tables in it.
"""

import sys
from array import array
from collections.abc import Iterator
from typing import Protocol

from kdns.timeslice import TimeSlice


class Builder(Protocol):
    """Makes a table of what it has read."""

    def link(self) -> Iterator[None]:
        """Makes its hash tables; yields where others may run."""

    def parts(self) -> list[bytes | bytearray]:
        """The table, in pieces."""


def slots(count: int) -> "array[int]":
    """An empty hash table of a power of two, at most half full."""
    return array("I", bytes(4 << max(count * 2, 1).bit_length()))


async def in_turns(builder: Builder, reading: Iterator[None]) -> bytes:
    """The table of what `reading` takes in, made while others run. Raises what reading raises."""
    turn = TimeSlice()
    for steps in (reading, builder.link()):
        for _ in steps:
            await turn.pause()
    return b"".join(builder.parts())


def finish(builder: Builder) -> bytes:
    """The table of what was read, made at once."""
    for _ in builder.link():
        pass
    return b"".join(builder.parts())


def print_table(builder: Builder) -> None:
    """The same for a child process: the table goes to its standard output, without being copied."""
    for _ in builder.link():
        pass
    for part in builder.parts():
        sys.stdout.buffer.write(part)
