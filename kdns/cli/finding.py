"""One finding of `kdns doctor`."""

from typing import NamedTuple

ERROR, WARNING, INFO = "error", "warning", "info"


class Finding(NamedTuple):
    """One finding. `means` is its effect on clients; `next` a command that shows more or fixes it."""

    level: str
    part: str
    seen: str
    means: str = ""
    next: str = ""
