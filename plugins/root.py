"""root - where relative paths of the block begin.

## Syntax

    root PATH

* Paths of `hosts`, `loadbalance weighted`, `forward tls`, `kubernetes` and others that are not absolute are joined to
  PATH. Without it they begin at the folder the server was started in. The last `root` of a block counts.

## Examples

~~~ corefile
.:1053 {
    root /etc
    hosts hosts
}
~~~
"""

import os
from collections.abc import Sequence
from typing import ClassVar

from kdns import log
from kdns.corefile import Directive, ServerBlock
from kdns.plugin import Plugin, readers
from kdns.plugin.base import BlockInfo

_log = log.plugin("root")


class Root(Plugin):
    """Sets the block's root; loaded before all others."""

    name: ClassVar[str] = "root"

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: ServerBlock) -> Sequence[str]:
        for directive in directives:
            readers.no_block(directive)
        return [readers.one(directives[-1], "a folder").text]

    def load(self, block: BlockInfo) -> None:
        if not os.path.isdir(self.config):
            _log.warning(f"Root path does not exist: {self.config}")
        block.root = self.config
