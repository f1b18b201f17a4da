"""The directive `forward`: its options and how they are read."""

import ipaddress
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from kdns import extras
from kdns.corefile import Directive, Line, Position, Token
from kdns.corefile.keys import plugin_zones
from kdns.dns import iana
from kdns.plugin import readers
from kdns.plugin.readers import Fallthrough
from kdns.upstream.upstream import ALPN, PORTS, Options

MAX_UPSTREAMS: Final = 15
_OPTIONS: Final = (
    "except", "max_fails", "max_connect_attempts", "health_check", "expire", "max_age", "max_idle_conns",
    "read_timeout",
    "force_tcp", "prefer_udp", "tls", "tls_servername", "doh_method", "policy", "max_concurrent", "next", "failover",
    "next_on_nodata", "failfast_all_unhealthy_upstreams", "source_address", "source_ports", "resolver", "client_subnet",
    "case_randomization",
)  # fmt: skip

_SCHEMES: Final = ("dns", "tls", "https", "https3", "quic")


class Target(NamedTuple):
    """A word behind FROM taken apart. `plain`: without a scheme, so it may be a file."""

    transport: str
    host: str
    port: int
    server_name: str
    plain: bool


@dataclass(frozen=True, slots=True)
class Config:
    """One directive. `targets` are words as written; `tls` the paths given; counts of 0 mean no limit."""

    zone: bytes
    targets: tuple[Token, ...]
    at: Position
    excepted: tuple[bytes, ...] = ()
    options: Options = field(default_factory=Options)
    prefer_udp: bool = False
    tls: tuple[str, ...] = ()
    policy: str = "random"
    max_concurrent: int = 0
    attempts: int | None = None
    next_rcodes: frozenset[int] = frozenset()
    next_on_nodata: bool = False
    failover: frozenset[int] = frozenset()
    failfast: bool = False
    resolver: tuple[tuple[str, int], ...] = ()
    client_subnet: bool = False
    # Of the plugin `grpc`: whether upstreams are asked over TLS, and which names that do not exist go on.
    encrypted: bool = False
    fall: Fallthrough = field(default_factory=Fallthrough)
    warnings: tuple[str, ...] = ()


def parse(directive: Directive) -> Config:
    """Reads one directive. Raises CorefileError."""
    if len(directive.args) < 2:
        raise readers.fail(directive, "expected FROM TO... after forward")
    zones = plugin_zones([directive.args[0]])
    warnings = []
    if not zones:
        raise readers.fail(directive.args[0], f'"{directive.args[0].text}" is not a zone')
    if len(zones) > 1:
        warnings.append(
            f"Unsupported CIDR notation: '{directive.args[0].text}' expands to multiple zones. Using only '{zones[0]}'."
        )
    targets = directive.args[1:]
    if len(targets) > MAX_UPSTREAMS:
        raise readers.fail(targets[MAX_UPSTREAMS], f"more than {MAX_UPSTREAMS} TOs configured: {len(targets)}")
    for word in targets:
        target(word)
    found: dict[str, object] = {}
    options: dict[str, object] = {}
    for line in directive.body or ():
        readers.no_block(line)
        _option(line, found, options)
    made = Options(**options)  # type: ignore[arg-type]
    if made.max_age and made.max_age < made.expire:
        raise readers.fail(directive, "max_age must not be less than expire")
    if made.server_name and any("%" in word.text and word.text.startswith(("tls://", "quic://")) for word in targets):
        raise readers.fail(directive, "tls_servername and a server name after % cannot both be set")
    zone = readers.wire_zones(zones[:1])
    return Config(zone[0], targets, directive.at, options=made, warnings=tuple(warnings), **found)  # type: ignore[arg-type]


def target(word: Token) -> Target:
    """Takes a word apart. Raises CorefileError."""
    scheme, separator, rest = word.text.partition("://")
    if not separator:
        # A file's name may hold colons.
        host, port = (word.text, 53) if "/" in word.text else readers.host_port(word, 53)
        if host.replace(".", "").isdecimal() and not _is_address(host):
            raise readers.fail(word, f'"{word.text}" is not an address: four numbers of 0 to 255 are (10.0.0.1)')
        return Target("dns", host, port, "", True)
    if scheme not in _SCHEMES:
        expected = ", ".join(f"{known}://" for known in _SCHEMES)
        raise readers.fail(word, f'unknown scheme "{scheme}": expected {expected}')
    if scheme in ALPN and (lacking := extras.lacking_quic(word.text)):
        raise readers.fail(word, lacking)
    if scheme in ("https", "https3") and "/" in rest.rstrip("/"):
        raise readers.fail(word, f'"{word.text}" has a path: queries go to /dns-query always')
    host, port = readers.host_port(word._replace(text=rest.rstrip("/")), PORTS[scheme])
    if host.replace(".", "").isdecimal() and not _is_address(host):
        raise readers.fail(word, f'"{word.text}" is not an address: four numbers of 0 to 255 are (10.0.0.1)')
    if scheme == "dns":
        return Target(scheme, host, port, "", False)
    host, _, server_name = host.partition("%")
    return Target(scheme, host, port, server_name, False)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _option(line: Line, found: dict[str, object], options: dict[str, object]) -> None:  # noqa: C901 - one branch an option
    name = line.name.text
    if name == "except":
        readers.arguments(line, 1, None, "names")
        found["excepted"] = (*found.get("excepted", ()), *readers.wire_zones(plugin_zones(list(line.args))))  # type: ignore[misc]
    elif name in ("force_tcp", "prefer_udp", "next_on_nodata", "client_subnet", "failfast_all_unhealthy_upstreams"):
        readers.arguments(line, 0, 0)
        if name == "force_tcp":
            options[name] = True
        else:
            found["failfast" if name.startswith("failfast") else name] = True
    elif name in ("max_fails", "max_idle_conns", "max_concurrent", "max_connect_attempts"):
        number = readers.integer(readers.one(line), 0, 0xFFFFFFFF)
        if name in ("max_fails", "max_idle_conns"):
            options[name.removesuffix("_conns")] = number
        else:
            found["attempts" if name == "max_connect_attempts" else name] = number
    elif name in ("expire", "max_age"):
        options[name] = readers.seconds(readers.one(line, "a duration"))
    elif name == "read_timeout":
        options["timeout"] = readers.seconds(readers.one(line, "a duration"), 0.001)
    elif name == "health_check":
        _health_check(line, options)
    elif name == "tls":
        found["tls"] = tuple(readers.arguments(line, 0, 3))
    elif name == "tls_servername":
        options["server_name"] = readers.one(line, "a name").text
    elif name == "policy":
        found["policy"] = readers.choice(line, ("random", "round_robin", "sequential"))
    elif name in ("next", "failover"):
        found["next_rcodes" if name == "next" else name] = _rcodes(line)
    elif name == "case_randomization":
        readers.arguments(line, 0, 0)
        options["random_case"] = True
    elif name == "source_address":
        options["source"] = readers.ip(readers.one(line, "an address"))
    elif name == "source_ports":
        readers.choice(line, ("fresh",))
        options["fresh_ports"] = True
    elif name == "resolver":
        readers.arguments(line, 1, None, "addresses")
        found["resolver"] = tuple(readers.ip_port(word, 53) for word in line.args)
    elif name == "doh_method":
        options["doh_get"] = readers.choice(line, ("GET", "POST")) == "GET"
    else:
        raise readers.unknown(line, _OPTIONS)


def _health_check(line: Line, options: dict[str, object]) -> None:
    readers.arguments(line, 1, 4, "DURATION [no_rec] [domain NAME]")
    options["interval"] = readers.seconds(line.args[0])
    rest = list(line.args[1:])
    while rest:
        word = rest.pop(0)
        if word.text == "no_rec":
            options["probe_rd"] = False
        elif word.text == "domain" and rest:
            options["probe_name"] = readers.name(rest.pop(0))
        else:
            raise readers.fail(word, f'expected no_rec or domain NAME, found "{word.text}"')


def _rcodes(line: Line) -> frozenset[int]:
    readers.arguments(line, 1, None, "response codes such as NXDOMAIN")
    out = set()
    for word in line.args:
        number = iana.rcode_number(word.text)
        if number is None:
            raise readers.fail(word, f'"{word.text}" is not a response code')
        if number == iana.NOERROR and line.name.text == "failover":
            raise readers.fail(word, "NOERROR cannot be used in failover")
        out.add(number)
    return frozenset(out)
