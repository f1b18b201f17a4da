"""The plugin contract, the request, and the pipeline that runs one through the other."""

from kdns.pipeline.outcome import DROP, Bare, Drop, Outcome, Pending, then
from kdns.pipeline.plugin import Plugin
from kdns.pipeline.request import Request

__all__ = ["DROP", "Bare", "Drop", "Outcome", "Pending", "Plugin", "Request", "then"]
