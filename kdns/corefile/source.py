"""The text of Corefiles: read whole, bounded, and refused where it is not text."""

import errno
import io
from typing import BinaryIO, Final

from kdns import files
from kdns.corefile.errors import CorefileError, Position

# Octets of a file. A ConfigMap holds 1 MiB at most; what is larger is another file, or a device without an end.
MAX_FILE: Final = 4 << 20


def read(path: str, *, exactly: bool = False) -> str:
    """A file's text; octets that are not UTF-8 are replaced (`exactly`: an error).

    Raises OSError, also for a pipe that nobody writes to, or CorefileError.
    """
    try:
        data = files.read(path, MAX_FILE)
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise _too_large(path) from None
        raise
    return text_of(io.BytesIO(data), path, exactly=exactly)


def text_of(file: BinaryIO, name: str, *, exactly: bool = False) -> str:
    """What is left of an open file. Raises CorefileError."""
    data = file.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise _too_large(name)
    bad = data.find(b"\0")
    if bad >= 0:
        raise CorefileError(
            _place(data, bad, name), "a zero octet: this is not a text file, or it is in UTF-16 (save it as UTF-8)"
        )
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        if exactly:
            raise CorefileError(
                _place(data, error.start, name), f"octet 0x{data[error.start]:02x} is not UTF-8"
            ) from None
        return data.decode("utf-8", errors="replace")


def _too_large(name: str) -> CorefileError:
    return CorefileError(
        None, f"{name} is larger than {MAX_FILE >> 20} MiB: that is not a Corefile (a ConfigMap holds 1 MiB)"
    )


def _place(data: bytes, at: int, name: str) -> Position:
    before = data[:at]
    column = len(before[before.rfind(b"\n") + 1 :].decode("utf-8", errors="replace")) + 1
    return Position(name, before.count(b"\n") + 1, column)
