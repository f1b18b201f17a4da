"""The field Date of answers over HTTP (RFC 9110, section 6.6.1), by which caches reckon how old an answer is."""

import time
from typing import Final

_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_last = [(0, b"")]  # the second that was asked for last: there are thousands of answers in one


def date(now: float) -> bytes:
    """The date at a Unix time, as HTTP writes it (section 5.6.7): in English, whatever the locale."""
    second = int(now)
    known, made = _last[0]
    if known != second:
        at = time.gmtime(second)
        made = (
            f"{_DAYS[at.tm_wday]}, {at.tm_mday:02} {_MONTHS[at.tm_mon - 1]} {at.tm_year:04} "
            f"{at.tm_hour:02}:{at.tm_min:02}:{at.tm_sec:02} GMT"
        ).encode()
        _last[0] = second, made
    return made
