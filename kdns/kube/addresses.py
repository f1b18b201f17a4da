"""A set of packed addresses in order: which of them lie in a range is found without a walk over all.

Addresses of each width stand in blocks of at most BLOCK, so that adding one moves a few kilobytes at most.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from typing import Final, final

BLOCK: Final = 1024  # 8 KiB of pointers to move for one address, some half a microsecond


@final
class AddressSet:
    """Packed addresses of 4 and 16 octets."""

    def __init__(self) -> None:
        self._blocks: dict[int, list[list[bytes]]] = {4: [], 16: []}

    def add(self, address: bytes) -> None:
        """Adds an address; one that is there stays."""
        blocks = self._blocks[len(address)]
        if not blocks:
            blocks.append([address])
            return
        at = self._block(blocks, address)
        block = blocks[at]
        place = bisect_left(block, address)
        if place < len(block) and block[place] == address:
            return
        insort(block, address)
        if len(block) > BLOCK:
            half = len(block) // 2
            blocks[at : at + 1] = [block[:half], block[half:]]

    def discard(self, address: bytes) -> None:
        """Removes an address, if it is there."""
        blocks = self._blocks[len(address)]
        if not blocks:
            return
        at = self._block(blocks, address)
        block = blocks[at]
        place = bisect_left(block, address)
        if place < len(block) and block[place] == address:
            del block[place]
            if not block:
                del blocks[at]

    def between(self, low: bytes, high: bytes) -> Iterator[bytes]:
        """The addresses from `low` to `high`, both of one width and included, in order."""
        blocks = self._blocks[len(low)]
        if not blocks:
            return
        for block in blocks[self._block(blocks, low) :]:
            if block[0] > high:
                return
            yield from block[bisect_left(block, low) : bisect_right(block, high)]

    def _block(self, blocks: list[list[bytes]], address: bytes) -> int:
        """The place of the block that holds an address, or would."""
        low, high = 0, len(blocks)
        while low < high:
            middle = (low + high) // 2
            if blocks[middle][0] <= address:
                low = middle + 1
            else:
                high = middle
        return max(low - 1, 0)
