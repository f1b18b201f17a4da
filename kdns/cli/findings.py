"""Faults of a cluster's DNS, found by rules over a State of its API and its servers. Pure.

Each rule looks at one part and yields Findings: what was seen, what it means for those who ask, and the next
command. What the API would not show is None in the State, and is a finding of its own.
"""

from collections.abc import Callable, Iterator
from typing import Final

from kdns.cli import configmaps, serverneeds, servers, statuspages, upstreams, wayfromservers, waytoservers
from kdns.cli.clusterstate import State
from kdns.cli.finding import ERROR, INFO, WARNING, Finding


def diagnosed(state: State) -> list[Finding]:
    """Every finding, the gravest first."""
    rank = {ERROR: 0, WARNING: 1, INFO: 2}
    return sorted((found for rule in RULES for found in rule(state)), key=lambda found: rank[found.level])


RULES: Final[tuple[Callable[[State], Iterator[Finding]], ...]] = (
    *servers.RULES, *configmaps.RULES, *waytoservers.RULES, wayfromservers.findings, upstreams.findings,
    serverneeds.findings, statuspages.findings,
)  # fmt: skip
