"""A zone kept in a master file that is whole at any moment.

Whoever reads it, also after a crash, finds the old version or the new one. Lines are made in turns on the loop, and a
thread waits for the disk: the whole text is in memory meanwhile, some tenth of what the zone itself needs.
"""

from functools import partial
from typing import Final

from kdns import files
from kdns.store.zone import Zone
from kdns.timeslice import TimeSlice
from kdns.zonefile.types import lines

WRITING: Final = 60.0  # seconds until a file is on the disk: a busy disk may need many, one that needs longer hangs
_CHUNK: Final = 1 << 18  # octets joined at once, far less than the loop may be held


async def save(path: str, zone: Zone, head: str = "") -> None:
    """Keeps a zone in a file, under a first line of comment. Raises OSError; then the file is what it was. After a
    TimeoutError it may yet be replaced; until that is over it is not written again (kdns.files).
    """
    zone.readers += 1  # it is not taken apart meanwhile
    try:
        turn = TimeSlice()
        texts: list[bytes] = []
        parts = [f"; {head}\n"] if head else []
        size = 0
        for rrset in zone.rrsets():
            for line in lines(rrset):
                parts.append(line + "\n")
                size += len(line)
            if size > _CHUNK:
                texts.append("".join(parts).encode())
                parts.clear()
                size = 0
            await turn.pause()
        texts.append("".join(parts).encode())
    finally:
        zone.readers -= 1
    await files.waiting(f"writing {path}", partial(files.replace, path, texts, 0o600), WRITING)
