"""metadata - lets plugins share facts about a query.

## Syntax

    metadata [ZONES...]

* ZONES are the zones it works for. Default: the block's zones.

Labels are named `plugin/what`. A label is computed only when it is read, by `log` (`{/kubernetes/namespace}`), `view`
(`metadata('kubernetes/namespace')`), `template` (`{{ .Meta "view/name" }}`) and `rewrite edns0 local`
(`{kubernetes/client-namespace}`).

The labels are: `kubernetes/service`, `kubernetes/namespace`, `kubernetes/endpoint`, `kubernetes/port-name`,
`kubernetes/protocol`, `kubernetes/kind` and `kubernetes/parse-error`; with `pods verified`, of the Pod that asks,
`kubernetes/client-namespace`, `kubernetes/client-pod-name` and `kubernetes/client-label/KEY`; `forward/upstream`,
`view/name`.

## Examples

~~~ corefile
.:1053 {
    metadata
    log . "{remote} {name} {/kubernetes/namespace}"
    kubernetes cluster.local {
        manifests cluster.yaml
    }
}
~~~
"""

from collections.abc import Sequence
from typing import ClassVar

from kdns.corefile import Directive, ServerBlock
from kdns.dns.name import closest
from kdns.plugin import Plugin, Request, readers
from kdns.plugin.base import BlockInfo
from kdns.plugin.providers import LabelSource


class Metadata(Plugin):
    """Gathers what the block's plugins publish."""

    name: ClassVar[str] = "metadata"
    pure = True

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: ServerBlock) -> Sequence[tuple[bytes, ...]]:
        directive = readers.once(directives)
        readers.no_block(directive)
        return [readers.zone_names(directive.args, block)]

    def __init__(self, config: tuple[bytes, ...]) -> None:
        super().__init__(config)
        self.zones = config
        self.sources: list[LabelSource] = []

    def wire(self, block: BlockInfo) -> None:
        self.sources = block.all(LabelSource)

    async def stop(self) -> None:
        self.sources = []  # some of them hold this plugin

    def value(self, request: Request, name: str) -> str:
        """A label's value for a query in its zones; empty for others, and where nobody knows it."""
        if closest(request.asked.name, self.zones) is not None:
            for source in self.sources:
                found = source.label(request, name)
                if found is not None:
                    return found
        return ""

    def handle(self, request: Request) -> None:
        if request.metadata is None:
            request.metadata = self
