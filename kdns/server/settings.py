"""The settings of a listener: what the plugins of all its blocks ask of it, taken together.

Law: the last block that sets an option counts, as in CoreDNS; an option that nobody sets has its default; certificates
are all kept, the first block's first.
"""

from dataclasses import fields, replace
from typing import Any, TypeVar

from kdns.plugin.base import ListenerOptions

T = TypeVar("T")


def merged(newer: ListenerOptions, older: ListenerOptions) -> ListenerOptions:
    """What `newer` sets, else what `older` has, option by option."""
    return replace(_by_field(newer, older), http=_by_field(newer.http, older.http), tls=(*older.tls, *newer.tls))


def _by_field(newer: T, older: T) -> T:
    record: Any = newer
    return type(newer)(**{each.name: getattr(newer, each.name) or getattr(older, each.name) for each in fields(record)})
