"""What is wrong now, in sentences, and whose names an upstream gets. Pure."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

from kdns.dns.name import is_within, to_text
from kdns.plugin.providers import UpstreamState

STALE: Final = 60.0  # seconds without news of the API after which it counts as away
FAILING: Final = 0.05  # part of a minute's answers that fail, above which the page says so
SHOWN: Final = 3  # zones of an upstream, and dead upstreams, by name: where the network is gone there may be a hundred
OF_ANSWERS: Final = " of the last minute's answers are failures."

# An upstream, and the zones whose names it gets, as text.
Group = Sequence[tuple[UpstreamState, str]]


def outages(ages: list[list[Any]], failing: float, groups: Sequence[Group] = (), refused: str = "") -> list[str]:
    """What is wrong; empty in good times.

    `ages`: how many seconds old the cluster's state is, the last of each row; `failing`: the part of the last minute's
    answers; `groups`: the upstreams of each plugin that has some; `refused`: why a changed Corefile is not served.
    """
    out = []
    dead = [group for group in groups if group and all(each.state in ("down", "failing") for each, _ in group)]
    for group in dead[:SHOWN]:
        names = ", ".join(each.to for each, _ in group)
        out.append(f"No upstream of {group[0][1]} answers: {names}. Names that are forwarded to them fail.")
    if len(dead) > SHOWN:
        out.append(f"So it is with {len(dead) - SHOWN} more groups of upstreams: see below.")
    if ages and (oldest := max(age for _, age in ages)) > STALE:
        out.append(f"The API has not been heard of for {int(oldest)} s: what is served of the cluster is that old.")
    if failing > FAILING:
        out.append(f"{failing:.0%}{OF_ANSWERS}")
    if refused:
        out.append(f"The Corefile has changed, and is not served: {refused}")
    return out


@lru_cache(1024)  # forwards of one server: as many as a large Corefile has
def below(zone: bytes, blocks: tuple[bytes, ...]) -> str:
    """The zones whose names an upstream gets, as text: those of `forward`, as far as they are in those of its block."""
    both = [zone] if any(is_within(zone, block) for block in blocks) else [e for e in blocks if is_within(e, zone)]
    more = f" and {len(both) - SHOWN} more" if len(both) > SHOWN else ""
    return ", ".join(map(to_text, both[:SHOWN])) + more
