"""The names that a Pod's resolver tries: its search list and ndots, from its DNS policy.

Source: Kubernetes, "DNS for Services and Pods"; resolv.conf(5).
"""

from typing import Any, Final, NamedTuple

NDOTS: Final = 5  # what the kubelet writes into a Pod's resolv.conf
_PLAIN_NDOTS: Final = 1  # where nothing is written: resolv.conf(5)
MAX_SEARCH: Final = 32  # the API server takes no more


class Resolver(NamedTuple):
    """A search list as text without final dots, ndots, and what a person should know beside it."""

    search: tuple[str, ...]
    ndots: int
    note: str = ""

    def names(self, name: str) -> list[str]:
        """The names asked for, in order."""
        if name.endswith("."):
            return [name]
        listed = [f"{name}.{suffix}" for suffix in self.search]
        return [*listed, name] if name.count(".") < self.ndots else [name, *listed]


def of_namespace(namespace: str, zone: str) -> Resolver:
    """The resolver of a Pod that says nothing of DNS. The node's own search list, which comes behind, is not known
    here.
    """
    return Resolver((f"{namespace}.svc.{zone}", f"svc.{zone}", zone), NDOTS)


def of_pod(spec: dict[str, Any], namespace: str, zone: str) -> Resolver:
    """The resolver of a Pod with this spec."""
    policy = spec.get("dnsPolicy") or "ClusterFirst"
    config = spec.get("dnsConfig") if isinstance(spec.get("dnsConfig"), dict) else {}
    assert isinstance(config, dict)
    search, ndots, note = of_namespace(namespace, zone)
    if policy == "Default" or (policy == "ClusterFirst" and spec.get("hostNetwork")):
        search, ndots = (), _PLAIN_NDOTS
        why = "dnsPolicy Default" if policy == "Default" else "hostNetwork without dnsPolicy ClusterFirstWithHostNet"
        note = f"{why}: this Pod uses its node's resolv.conf, and asks the cluster's DNS only where that does"
    elif policy == "None":
        search, ndots = (), _PLAIN_NDOTS
        servers = ", ".join(str(server) for server in config.get("nameservers") or ()) or "no server"
        note = f"dnsPolicy None: this Pod asks {servers}"
    more = [str(suffix).rstrip(".") for suffix in config.get("searches") or ()]
    search = tuple(dict.fromkeys((*search, *more)))[:MAX_SEARCH]
    for option in config.get("options") or ():
        value = str(option.get("value", "")) if isinstance(option, dict) and option.get("name") == "ndots" else ""
        if value.isdecimal():
            ndots = min(int(value), 15)  # resolv.conf(5): more counts as 15
    return Resolver(search, ndots, note)
