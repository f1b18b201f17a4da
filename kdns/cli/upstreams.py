"""The upstreams of a cluster's DNS, for `kdns doctor`: whom the Corefile forwards to, and what they said when asked."""

from collections.abc import Iterator
from typing import Final, NamedTuple

from kdns.address import is_address
from kdns.cli.clusterstate import State
from kdns.cli.configmaps import is_loopback, served
from kdns.cli.finding import ERROR, INFO, WARNING, Finding
from kdns.corefile import CorefileError
from kdns.plugins.forward.config import target
from kdns.upstream.upstream import Address

SHOWN: Final = 10  # `forward` lines that have a finding each
_RESOLV_CONF: Final = "/etc/resolv.conf"


class Forward(NamedTuple):
    """A `forward` line: the domain it is for, where it stands, its words, and the plain addresses behind them."""

    zone: str
    at: str
    words: tuple[str, ...]
    addresses: tuple[Address, ...]


def forwards(state: State) -> list[Forward]:
    """The Corefile's `forward` lines. What stands for a file of the DNS Pods is read where this Pod has the same."""
    out = []
    for block in served(state) or ():
        for directive in block.directives.get("forward", ()):
            words = directive.args[1:]
            found: list[Address] = []
            for word in words:
                try:
                    where = target(word)
                except CorefileError:  # it has a finding of its own
                    continue
                if word.text == _RESOLV_CONF and state.nodes_resolv_conf:
                    found += [Address("dns", each, 53) for each in state.nameservers]
                elif where.transport == "dns" and is_address(where.host):
                    found.append(Address("dns", where.host, where.port))
            # A server's own address, and its Service, are findings on loops.
            askable = [each for each in found if not is_loopback(each.host) and each.host != state.address]
            zone = directive.args[0].text if directive.args else "."
            out.append(Forward(zone, str(directive.at), tuple(word.text for word in words), tuple(askable)))
    return out[:SHOWN]


def addresses(state: State) -> list[tuple[str, Address]]:
    """Whom to ask, each with the domain that it is asked for."""
    return [(forward.zone, each) for forward in forwards(state) for each in forward.addresses]


def findings(state: State) -> Iterator[Finding]:
    """What each `forward` leads to."""
    for forward in forwards(state):
        asked = {each.text: state.upstreams[each.text] for each in forward.addresses if each.text in state.upstreams}
        failed = {text: each for text, each in asked.items() if not each.answered}
        for text, each in failed.items():
            yield Finding(
                ERROR if len(failed) == len(asked) else WARNING,
                "upstreams",
                f"{text} over udp, {each.name}: {each.said} (forward, {forward.at})",
                f"names in {forward.zone} fail"
                if len(failed) == len(asked)
                else f"names in {forward.zone} are slow, or fail now and then",
                f"kdns query @{text} {each.name}    # from this Pod",
            )
        if asked and not failed:
            yield Finding(INFO, "upstreams", f"{', '.join(asked)} answered for {forward.zone} (forward, {forward.at})")
        if _RESOLV_CONF in forward.words and not state.nodes_resolv_conf:
            yield _not_read(state, forward)
        elif forward.words and not asked:
            yield Finding(
                INFO,
                "upstreams",
                f"not asked: {', '.join(forward.words)} (forward, {forward.at})",
                "",
                "run doctor in a Pod: it asks each address" if not state.inside else "",
            )


def _not_read(state: State, forward: Forward) -> Finding:
    nodes = sorted({str((each.get("spec") or {}).get("nodeName") or "") for each in state.servers} - {""})
    where = "this Pod's is another (its dnsPolicy)" if state.inside else "it cannot be read from here"
    return Finding(
        INFO,
        "upstreams",
        f"names in {forward.zone} go to the servers of the nodes' {_RESOLV_CONF}: {where} (forward, {forward.at})",
        "whether those answer is not known, but for what the servers themselves were asked",
        f"kubectl debug node/{(nodes or ['NODE'])[0]} -it --image=busybox -- cat /host{_RESOLV_CONF}    # systemd: "
        f"/host/run/systemd/resolve/resolv.conf; or run doctor in a Pod with dnsPolicy: Default",
    )
