"""Faults of a cluster's DNS, found by rules over a State of its API and its servers. Pure.

Each module has rules for one part and yields Findings: what was seen, what it means for those who ask, and the next
command. What the API would not show is None in the State, and is a finding of its own.
"""

from kdns.cli import configmaps, serverneeds, servers, statuspages, waytoservers
from kdns.cli.clusterstate import State
from kdns.cli.finding import ERROR, INFO, WARNING, Finding

PARTS = (servers, configmaps, waytoservers, serverneeds, statuspages)


def diagnosed(state: State) -> list[Finding]:
    """Every finding, the gravest first."""
    rank = {ERROR: 0, WARNING: 1, INFO: 2}
    return sorted((found for part in PARTS for found in part.findings(state)), key=lambda found: rank[found.level])
