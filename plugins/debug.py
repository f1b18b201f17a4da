"""debug - writes DEBUG lines, and the stack trace of each exception.

While any server block has it, lines of level DEBUG are written, and an exception in a plugin is logged with its stack
trace. The query gets SERVFAIL either way. Unlike CoreDNS, kdns keeps running.

## Syntax

    debug

## Examples

~~~ corefile
.:1053 {
    debug
    whoami
}
~~~
"""

from collections.abc import Sequence
from typing import ClassVar

from kdns import log
from kdns.corefile import Directive, ServerBlock
from kdns.plugin import Plugin, readers
from kdns.plugin.base import ListenerOptions
from kdns.plugin.runtime import Runtime

_holders: list["Debug"] = []


class Debug(Plugin):
    """Turns DEBUG lines on while it lives."""

    name: ClassVar[str] = "debug"

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: ServerBlock) -> Sequence[None]:
        for directive in directives:
            readers.bare(directive)
        return [None]

    async def start(self, runtime: Runtime) -> None:
        _holders.append(self)
        log.set_debug(True)

    async def stop(self) -> None:
        if self in _holders:
            _holders.remove(self)
        log.set_debug(bool(_holders))

    def listener(self) -> ListenerOptions:
        return ListenerOptions(debug=True)
