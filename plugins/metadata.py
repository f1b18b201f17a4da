"""metadata - lets plugins tell each other about a query.

## Syntax

    metadata [ZONES...]

* ZONES are the names it works for; the block's zones if there are none.

Labels are `plugin/what`. They are worked out only where somebody reads them: `log` (`{/kubernetes/namespace}`), `view`
(`metadata('kubernetes/namespace')`), `template` (`{{ .Meta "view/name" }}`) and `rewrite edns0 local`
(`{kubernetes/client-namespace}`).

There are: `kubernetes/service`, `kubernetes/namespace`, `kubernetes/endpoint`, `kubernetes/port-name`,
`kubernetes/protocol`, `kubernetes/kind` and `kubernetes/parse-error`; of the Pod that asks, with `pods verified`,
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

from kdns.corefile import Directive
from kdns.dns.name import closest
from kdns.pipeline import Plugin, Request, setup
from kdns.pipeline.block import Block, BlockKeys
from kdns.pipeline.protocols import Labels, LabelSource


class Metadata(Plugin):
    """Gathers what the block's plugins publish."""

    name: ClassVar[str] = "metadata"
    client_dependent = False

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: BlockKeys) -> Sequence[tuple[bytes, ...]]:
        directive = setup.once(directives)
        setup.no_block(directive)
        return [setup.zone_names(directive.args, block)]

    def __init__(self, config: tuple[bytes, ...]) -> None:
        super().__init__(config)
        self.zones = config
        self.sources: list[LabelSource] = []

    def wire(self, block: Block) -> None:
        self.sources = block.all(LabelSource)  # type: ignore[type-abstract]

    def collect(self, request: Request) -> Labels:
        """All labels of a query in its zones: functions, none of them called yet."""
        found: Labels = {}
        if closest(request.question.name, self.zones) is not None:
            for source in self.sources:
                found.update(source.labels(request))
        return found

    def handle(self, request: Request) -> None:
        if request.labels is None:
            request.labels = self.collect(request)
