"""What plugins find each other by: a plugin that needs a peer asks its block for a protocol, not for a name."""

from typing import Protocol, runtime_checkable


@runtime_checkable
class Readiness(Protocol):
    """A plugin that may not be ready to serve yet; /ready names it until it is."""

    name: str

    def is_ready(self) -> bool:
        """Whether it can serve."""
