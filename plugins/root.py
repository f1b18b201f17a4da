"""root - sets the folder that relative paths of a block start from.

## Syntax

    root PATH

* Relative paths of `hosts`, `loadbalance weighted`, `forward tls`, `kubernetes` and others are joined to PATH. Without
  `root` they are relative to the folder in which the server was started. If a block has several, the last one counts.

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
