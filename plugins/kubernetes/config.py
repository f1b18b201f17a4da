"""The directive `kubernetes`: its options and how they are read."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from kdns.corefile import Directive, Line, ServerBlock
from kdns.dns.reverse import is_reverse
from kdns.kube.selector import EVERYTHING, BadSelector, Selector
from kdns.kube.selector import parse as parse_selector
from kdns.plugin import readers
from kdns.plugin.readers import Fallthrough

DEFAULT_TTL: Final = 5  # seconds; CoreDNS's
MAX_TTL: Final = 3600
DEFAULT_STARTUP: Final = 5.0
DEFAULT_SNAPSHOT_AGE: Final = (
    86400.0  # seconds: what a cluster was yesterday is better than nothing, what it was last week is not
)

_OPTIONS: Final = (
    "endpoint", "tls", "kubeconfig", "manifests", "namespaces", "namespace_labels", "labels", "pods",
    "endpoint_pod_names",
    "ttl", "noendpoints", "fallthrough", "ignore", "startup_timeout", "apiserver_qps", "apiserver_burst",
    "apiserver_max_inflight", "zonal", "multicluster", "snapshot",
)  # fmt: skip
_REMOVED: Final = {
    "upstream": "it has had no effect since CoreDNS 1.5; remove the line",
    "resyncperiod": "it was removed in CoreDNS 1.5; remove the line",
    "transfer": "it is a separate plugin now: `transfer { to ... }`",
    "federation": "federation was removed in CoreDNS 1.7",
}


@dataclass(frozen=True, slots=True)
class Config:
    """Settings of one `kubernetes` directive. `zones` are lower-cased wire names; durations and TTLs are seconds."""

    zones: tuple[bytes, ...]
    endpoint: str = ""
    tls: tuple[str, str, str] | None = None
    kubeconfig: str = ""
    context: str = ""
    manifests: tuple[str, ...] = ()
    namespaces: frozenset[str] | None = None
    namespace_labels: Selector = EVERYTHING
    labels: Selector = EVERYTHING
    pods: str = "disabled"
    endpoint_pod_names: bool = False
    ttl: int = DEFAULT_TTL
    noendpoints: bool = False
    fallthrough: Fallthrough = field(default_factory=Fallthrough)
    ignore_empty: bool = False
    startup_timeout: float = DEFAULT_STARTUP
    zonal: bool = False
    multicluster: frozenset[bytes] = frozenset()
    snapshot: str = ""
    snapshot_age: float = DEFAULT_SNAPSHOT_AGE
    warnings: tuple[str, ...] = ()

    @property
    def primary(self) -> bytes:
        """The zone that PTR records point into: the first that is not a reverse zone, and none of several clusters."""
        forward = [zone for zone in self.zones if not is_reverse(zone)]
        return next((zone for zone in forward if zone not in self.multicluster), forward[0])


def parse(directives: Sequence[Directive], block: ServerBlock) -> list[Config]:
    """Reads the directive. Raises CorefileError."""
    directive = readers.once(directives)
    zones = readers.zone_names(directive.args, block)
    if not any(not is_reverse(zone) for zone in zones):
        raise readers.fail(
            directive, "kubernetes needs a zone that is not a reverse zone: non-reverse zone name must be used"
        )
    found: dict[str, object] = {}
    namespaces: list[str] = []
    warnings: list[str] = []
    for line in directive.body or ():
        _option(line, found, namespaces, warnings)
    if namespaces:
        found["namespaces"] = frozenset(namespaces)
    if namespaces and "namespace_labels" in found:
        raise readers.fail(directive, "namespaces and namespace_labels cannot both be set")
    if "multicluster" in found:
        found["multicluster"] = _known_zones(directive, zones)
    if "zonal" in found and "noendpoints" in found:
        raise readers.fail(directive, "zonal and noendpoints cannot both be set: zones are those of endpoints")
    if "snapshot" in found and "manifests" in found:
        raise readers.fail(directive, "snapshot is for what comes from the API: manifests are files already")
    sources = [name for name in ("endpoint", "kubeconfig", "manifests") if name in found]
    if "manifests" in found and len(sources) > 1:
        raise readers.fail(directive, f"manifests and {sources[0]} cannot both be set: choose where objects come from")
    return [Config(zones, warnings=tuple(warnings), **found)]  # type: ignore[arg-type]


def _option(line: Line, found: dict[str, object], namespaces: list[str], warnings: list[str]) -> None:  # noqa: C901 - one branch an option
    name = line.name.text
    readers.no_block(line)
    if name == "endpoint":
        urls = readers.arguments(line, 1, None, "the URL of the API server")
        found["endpoint"] = urls[0]
        if len(urls) > 1:
            warnings.append("multiple endpoints have been deprecated, only the first specified endpoint is used")
    elif name == "tls":
        cert, key, ca = readers.arguments(line, 3, 3, "CERT KEY CA")
        found["tls"] = (cert, key, ca)
    elif name == "kubeconfig":
        words = readers.arguments(line, 1, 2, "the path of a kubeconfig file")
        found["kubeconfig"], found["context"] = words[0], words[1] if len(words) > 1 else ""
    elif name == "manifests":
        found["manifests"] = tuple(readers.arguments(line, 1, None, "files or folders of YAML"))
    elif name == "namespaces":
        namespaces += readers.arguments(line, 1, None, "the names of namespaces")
    elif name in ("namespace_labels", "labels"):
        found[name] = _selector(line)
    elif name == "pods":
        mode = readers.one(line, "disabled, insecure or verified")
        if mode.text not in ("disabled", "insecure", "verified"):
            raise readers.fail(mode, f'expected disabled, insecure or verified, found "{mode.text}"')
        found["pods"] = mode.text
    elif name in ("endpoint_pod_names", "noendpoints", "zonal"):
        readers.arguments(line, 0, 0)
        found[name] = True
    elif name == "ttl":
        readers.arguments(line, 1, None, "a TTL in seconds")
        found["ttl"] = readers.integer(line.args[0], 0, MAX_TTL)
    elif name == "fallthrough":
        found["fallthrough"] = Fallthrough.parse(line)
    elif name == "ignore":
        if line.args and line.args[0].text != "empty_service":
            raise readers.fail(line.args[0], f'expected empty_service, found "{line.args[0].text}"')
        found["ignore_empty"] = bool(line.args)
    elif name == "startup_timeout":
        found["startup_timeout"] = readers.seconds(readers.one(line, "a duration"))
    elif name.startswith("apiserver_") and name in _OPTIONS:
        _limit(line)
    elif name == "multicluster":
        if line.args:
            found["multicluster"] = True
        else:
            warnings.append("multicluster without zones has no effect")
    elif name == "snapshot":
        words = readers.arguments(line, 1, 2, "PATH [MAX_AGE]")
        found["snapshot"] = words[0]
        if len(words) > 1:
            found["snapshot_age"] = readers.seconds(line.args[1])
    elif name in _REMOVED:
        raise readers.fail(line, f'unknown property "{name}": {_REMOVED[name]}')
    else:
        raise readers.unknown(line, _OPTIONS)


def _known_zones(directive: Directive, zones: tuple[bytes, ...]) -> frozenset[bytes]:
    """The zones behind `multicluster`; each must be one of the plugin's."""
    out = set()
    for line in directive.body or ():
        for word in line.args if line.name.text == "multicluster" else ():
            zone = readers.name(word)
            if zone not in zones:
                raise readers.fail(word, f'multicluster zone "{word.text}" is not a zone of this kubernetes directive')
            out.add(zone)
    return frozenset(out)


def _selector(line: Line) -> Selector:
    readers.arguments(line, 1, None, "a label selector")
    text = " ".join(line.words())
    try:
        return parse_selector(text)
    except BadSelector as error:
        raise readers.fail(line.args[0], str(error)) from None


def _limit(line: Line) -> None:
    word = readers.one(line)
    if line.name.text == "apiserver_qps":
        try:
            value = float(word.text)
        except ValueError:
            raise readers.fail(word, f'expected a number, found "{word.text}"') from None
        if not 0 <= value < float("inf"):
            raise readers.fail(word, f"{word.text} is out of range: expected at least 0")
    else:
        readers.integer(word, 0)
