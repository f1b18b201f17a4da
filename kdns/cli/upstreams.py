"""Findings on the upstreams of a cluster's DNS: whom the Corefile forwards to, and what they said when asked."""

import re
from collections.abc import Iterator
from typing import Final

from kdns.cli.clusterstate import Asked, State
from kdns.cli.finding import ERROR, INFO, WARNING, Finding
from kdns.cli.forwarding import RESOLV_CONF, Line, lines

# What an encrypted upstream came to, as errors of TLS and QUIC say it, and what to do.
_ADVICE: Final = tuple(
    (re.compile(pattern), text)
    for pattern, text in (
        ("certificate has expired", "its certificate has expired: renew it, or correct this node's clock"),
        (
            "not (yet valid|valid yet)",
            "its certificate is not valid yet: correct the clock of who issued it, or this node's",
        ),
        (
            "ismatch",
            "its certificate is for another name: set tls_servername, or the name after %, to one that it bears",
        ),
        (
            "certificate verify failed",
            "its certificate is from an authority that is not trusted: name the authority's file with `tls`",
        ),
        ("cannot be resolved", "a server that starts looks it up, and ends where that fails: is the name right?"),
        ("alert certificate required", "it asks the servers for a certificate: `tls CERT KEY` shows it one"),
        ("wrong version number|does not speak", "what listens there speaks another protocol: is this its port?"),
    )
)


def findings(state: State) -> Iterator[Finding]:
    """What each line leads to."""
    for line in lines(state):
        tried = [each for each in state.upstreams if each.at == line.at]
        asked = [each for of_word in tried for each in of_word.asked]
        failed = [each for each in asked if not each.answered]
        for each in failed:
            yield Finding(
                ERROR if len(failed) == len(asked) else WARNING,
                "upstreams",
                f"{each.server}{' over ' * bool(each.transport)}{each.transport}, {each.name}: {each.said} ({line.at})",
                f"names in {line.zone} fail"
                if len(failed) == len(asked)
                else f"names in {line.zone} are slow, or fail now and then",
                _next(each),
            )
        if asked and not failed:
            yield Finding(
                INFO, "upstreams", f"{', '.join(each.server for each in asked)} answered for {line.zone} ({line.at})"
            )
        for of_word in tried:
            if of_word.unasked:
                yield Finding(
                    INFO,
                    "upstreams",
                    f"{of_word.word} was not asked: {of_word.unasked} ({line.at})",
                    "whether it answers the servers is not known",
                    "run doctor in a Pod that mounts what the DNS Pods mount, at the same paths",
                )
        yield from _not_asked(state, line, {of_word.word for of_word in tried})


def _not_asked(state: State, line: Line, tried: set[str]) -> Iterator[Finding]:
    unread = RESOLV_CONF in line.words and not state.nodes_resolv_conf
    if unread:
        yield _not_read(state, line)
    left = [word for word in line.words if word not in tried and not (unread and word == RESOLV_CONF)]
    if left:
        yield Finding(
            INFO,
            "upstreams",
            f"not asked: {', '.join(left)} ({line.at})",
            "",
            "run doctor in a Pod: it asks each address" if not state.inside else "",
        )


def _next(asked: Asked) -> str:
    advice = next((text for pattern, text in _ADVICE if pattern.search(asked.said)), "")
    if not asked.again:
        return advice or "does it listen there, encrypted or not as the Corefile says? its own log says more"
    return f"{asked.again}    # from this Pod{'; ' * bool(advice)}{advice}"


def _not_read(state: State, line: Line) -> Finding:
    nodes = sorted({str((each.get("spec") or {}).get("nodeName") or "") for each in state.servers} - {""})
    where = "this Pod's is another (its dnsPolicy)" if state.inside else "it cannot be read from here"
    return Finding(
        INFO,
        "upstreams",
        f"names in {line.zone} go to the servers of the nodes' {RESOLV_CONF}: {where} ({line.at})",
        "whether those answer is not known, but for what the servers themselves were asked",
        f"kubectl debug node/{(nodes or ['NODE'])[0]} -it --image=busybox -- cat /host{RESOLV_CONF}    # systemd: "
        f"/host/run/systemd/resolve/resolv.conf; or run doctor in a Pod with dnsPolicy: Default",
    )
