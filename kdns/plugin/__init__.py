"""The plugin API: all that an author of a plugin reads."""

from kdns.dns.answer import Answer
from kdns.plugin.base import ListenerOptions, Plugin
from kdns.plugin.outcome import DROP, Drop, Outcome, Pending, RcodeOnly, Transfer, then
from kdns.plugin.request import ALWAYS, Request

__all__ = [
    "ALWAYS", "DROP", "Answer", "Drop", "ListenerOptions", "Outcome", "Pending", "Plugin", "RcodeOnly", "Request",
    "Transfer", "then",
]  # fmt: skip
