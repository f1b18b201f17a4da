"""The directive `secondary`: its options and how they are read."""

from dataclasses import dataclass, field
from typing import Final

from kdns.address import is_address
from kdns.corefile import Directive, Line, ServerBlock, Token
from kdns.corefile.errors import Position
from kdns.dns import tsig
from kdns.dns.errors import BadName
from kdns.dns.name import from_text
from kdns.plugin import readers
from kdns.plugin.readers import Fallthrough
from kdns.plugins.secondary.primaries import Place, Primaries

_OPTIONS: Final = (
    "transfer", "tls", "tls_servername", "resolver", "tsig", "catalog", "directory", "fallthrough",
)  # fmt: skip
_SECURE: Final = "tls://"


@dataclass(frozen=True, slots=True)
class Config:
    """One directive: zones as wire names, primaries, the key's name and algorithm as wire names, the folder for copies
    (empty: none).
    """

    zones: tuple[bytes, ...]
    primaries: Primaries
    at: Position
    key: bytes = b""
    algorithm: bytes = tsig.SHA256
    fallthrough: Fallthrough = field(default_factory=Fallthrough)
    catalog: tuple[bytes, ...] | None = None  # what its members may be; None: it is not a catalog
    directory: str = ""


def parse(directive: Directive, block: ServerBlock) -> Config:
    """Reads one directive. Raises CorefileError."""
    places: list[Place] = []
    found: dict[str, object] = {}
    resolvers: tuple[tuple[str, int], ...] = ()
    tls: Line | None = None
    server_name: Token | None = None
    catalog: tuple[bytes, ...] | None = None
    for line in directive.body or ():
        readers.no_block(line)
        name = line.name.text
        if name == "transfer":
            readers.arguments(line, 2, None, "`from` and the primaries")
            if line.args[0].text != "from":
                raise readers.fail(
                    line.args[0],
                    f'expected `from`, found "{line.args[0].text}"; who may have the zone says the plugin transfer',
                )
            places += [_place(word) for word in line.args[1:]]
        elif name == "tls":
            readers.arguments(line, 0, 3)
            tls = line
        elif name == "tls_servername":
            server_name = readers.one(line, "a name")
        elif name == "resolver":
            readers.arguments(line, 1, None, "addresses")
            resolvers = tuple([readers.ip_port(word, 53) for word in line.args])
        elif name == "tsig":
            readers.arguments(line, 1, 2, "a key's name")
            found["key"] = readers.name(line.args[0])
            if len(line.args) == 2:
                found["algorithm"] = readers.tsig_algorithm(line.args[1])
        elif name == "fallthrough":
            found["fallthrough"] = Fallthrough.parse(line)
        elif name == "catalog":
            # Several lines add up; one without names stands for all.
            named = tuple([readers.name(word) for word in line.args])
            catalog = () if not named or catalog == () else (*(catalog or ()), *named)
        elif name == "directory":
            found["directory"] = readers.one(line, "a folder").text
        else:
            raise readers.unknown(line, _OPTIONS)
    if not places:
        raise readers.fail(directive, "secondary needs `transfer from`: the zone's primaries")
    places = _secured(places, tls, server_name)
    primaries = Primaries(tuple(dict.fromkeys(places)), resolvers, tuple(tls.words()) if tls is not None else ())
    names = readers.zone_names(directive.args, block)
    return Config(names, primaries, directive.at, catalog=catalog, **found)  # type: ignore[arg-type]


def _secured(places: list[Place], tls: Line | None, server_name: Token | None) -> list[Place]:
    """Primaries with the server name of `tls_servername`."""
    for given in (tls, server_name):
        # Who writes it believes that the zone comes over TLS.
        if given is not None and not any(place.secure for place in places):
            raise readers.fail(given, "no primary is asked over TLS: write tls://ADDRESS after `transfer from`")
    if server_name is None:
        return places
    text = server_name.text
    return [place._replace(server_name=place.server_name or text) if place.secure else place for place in places]


def _place(word: Token) -> Place:
    """A primary: `[tls://]HOST[%SERVERNAME][:PORT]`."""
    secure = word.text.startswith(_SECURE)
    if "://" in word.text and not secure:
        raise readers.fail(word, f'"{word.text}": a zone is transferred over TCP or, by {_SECURE}, over TLS')
    text = word.text.removeprefix(_SECURE)
    host, port = readers.host_port(word._replace(text=text), 853 if secure else 53)
    server_name = ""
    if secure:
        host, _, server_name = host.partition("%")
    if is_address(host):
        return Place(readers.ip(word._replace(text=host)) if "%" not in host else host, port, secure, server_name)
    try:
        from_text(host)
    except BadName:
        host = ""
    if not host or host.replace(".", "").isdecimal():
        raise readers.fail(word, f'expected an address or a host name, with or without a port, found "{word.text}"')
    return Place(host.lower(), port, secure, server_name)
