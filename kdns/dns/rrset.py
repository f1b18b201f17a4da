"""An RRset: the records of one owner, type and class, with one TTL (RFC 2181, section 5)."""

from typing import NamedTuple

from kdns.dns import iana


class RRset(NamedTuple):
    """Immutable. `owner` and the names in `rdatas` are expanded wire names; `ttl` is in seconds."""

    owner: bytes
    type: int
    ttl: int
    rdatas: tuple[bytes, ...]
    cls: int = iana.IN


Section = tuple[RRset, ...]
