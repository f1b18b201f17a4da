"""Standard input and output as the tools find them: closed, cut off, or on a disk that is full."""

import errno
import os
import sys
from collections.abc import Callable
from typing import Final

# What writing to standard output fails with when it is none of our doing.
_FULL: Final = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO))


def open_closed() -> None:
    """Opens the null device for each of the three that was closed by whoever started us.

    Else the next file or socket that is opened gets its number, and what is meant for a terminal goes there.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free is this one: those before it were opened.
            handle = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, open(handle, mode, encoding="utf-8"))  # noqa: SIM115 - for as long as the process


def is_full(error: OSError) -> bool:
    """True if standard output cannot take more, and no file of ours is meant."""
    return error.errno in _FULL and error.filename is None


def pass_on(error: BaseException) -> None:
    """Raises an error of standard output again, for those who meet it among the errors of files."""
    if isinstance(error, OSError) and is_full(error):
        raise error


def drop_output() -> None:
    """Lets go of what could not be written, which would else be tried again at the exit."""
    sys.stdout = None


def until_closed(write: Callable[[], None]) -> None:
    """Writes to standard output; a reader that has seen enough (`| head`) ends that, and not the tool: what it found
    out is its exit code.
    """
    try:
        write()
        sys.stdout.flush()
    except BrokenPipeError:
        drop_output()


def explained(error: BaseException) -> str:
    """An error in one line; one of a file names it first."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"cannot read {os.fsdecode(error.filename)}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__
