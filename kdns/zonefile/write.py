"""A zone kept in a master file that is whole at any moment.

A file is written beside its place, synced, and renamed into it; then its folder is synced. Whoever reads it, also after
a crash, finds the old version or the new one. Lines are made in turns on the loop, and a thread waits for the disk.
"""

import asyncio
import os
from typing import Final

from kdns import files
from kdns.store.zone import Zone
from kdns.timeslice import TimeSlice
from kdns.zonefile.types import lines

_CHUNK: Final = 1 << 18  # octets handed to the thread at a time: few enough hops, and no large zone as one text


async def save(path: str, zone: Zone, head: str = "") -> None:
    """Keeps a zone in a file, under a first line of comment. Raises OSError; then the file is what it was."""
    new = path + ".new"
    zone.readers += 1  # it is not taken apart meanwhile
    try:
        file = await asyncio.to_thread(os.open, new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            turn = TimeSlice()
            parts = [f"; {head}\n"] if head else []
            size = 0
            for rrset in zone.rrsets():
                for line in lines(rrset):
                    parts.append(line + "\n")
                    size += len(line)
                if size > _CHUNK:
                    await asyncio.to_thread(write_all, file, "".join(parts).encode())
                    parts.clear()
                    size = 0
                await turn.pause()
            await asyncio.to_thread(_last, file, "".join(parts).encode())
        finally:
            os.close(file)
    finally:
        zone.readers -= 1
    await asyncio.to_thread(_replace, new, path)


def write_all(file: int, data: bytes) -> None:
    """Writes all of it. Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def _last(file: int, data: bytes) -> None:
    write_all(file, data)
    os.fsync(file)


def _replace(new: str, path: str) -> None:
    """Puts a synced file into another one's place, for good. Raises OSError."""
    os.replace(new, path)
    files.sync_folder(path)
