"""Reading directives: the argument types that CoreDNS's plugins share, with errors that carry a place."""

import ipaddress
import re
from collections.abc import Sequence
from typing import Any, Final

from kdns.address import split_host_port
from kdns.corefile import CorefileError, Directive, Line, ServerBlock, Token
from kdns.corefile.errors import did_you_mean
from kdns.corefile.keys import plugin_zones
from kdns.dns import tsig
from kdns.dns.errors import BadName
from kdns.dns.name import closest, from_text, is_within
from kdns.dns.translation import LENGTHS
from kdns.regex import BadRegex, compile_regex

_UNITS: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_MOST_SECONDS: Final = 2.0**63 * 1e-9  # Go's durations are nanoseconds of 64 bits: 292 years
_PART: Final = re.compile(r"([0-9]*\.?[0-9]*)(ns|us|µs|μs|ms|s|m|h)")


def fail(at: Line | Token, message: str) -> CorefileError:
    """An error at a line or a word."""
    return CorefileError(at.at, message)


def once(directives: Sequence[Directive]) -> Directive:
    """The one directive of its name in the block. Raises CorefileError at the second."""
    if len(directives) > 1:
        raise fail(directives[1], f"{directives[1].name.text} can only be used once per server block")
    return directives[0]


def no_block(line: Line) -> None:
    """Raises CorefileError if a line opens a block."""
    if line.body is not None:
        raise fail(line.body[0], f"{line.name.text} takes no block")


def bare(directive: Directive) -> None:
    """Raises CorefileError unless a directive is its name and nothing else."""
    arguments(directive, 0, 0)
    no_block(directive)


def arguments(line: Line, least: int, most: int | None = None, what: str = "") -> list[str]:
    """The texts of a line's arguments. Raises CorefileError for fewer than `least` or more than `most` (None: no
    end).
    """
    count = len(line.args)
    if count < least:
        expected = what or (f"{least} argument" + ("s" if least != 1 else ""))
        raise fail(line, f"expected {expected} after {line.name.text}" + (f", found {count}" if count else ""))
    if most is not None and count > most:
        extra = line.args[most]
        raise fail(extra, f'unexpected argument "{extra.text}": {line.name.text} takes {_some(most)}')
    return line.words()


def _some(count: int) -> str:
    return "no arguments" if count == 0 else "one argument" if count == 1 else f"at most {count} arguments"


def one(line: Line, what: str = "") -> Token:
    """A line's only argument."""
    arguments(line, 1, 1, what)
    return line.args[0]


def choice(line: Line, known: Sequence[str]) -> str:
    """A line's only argument, which is one of these words."""
    *others, last = known
    what = f"{', '.join(others)} or {last}" if others else last
    word = one(line, what)
    if word.text not in known:
        raise fail(word, f'expected {what}, found "{word.text}"')
    return word.text


def unknown(line: Line, known: Sequence[str]) -> CorefileError:
    """The error for an option that a plugin does not have."""
    hint = did_you_mean(line.name.text, known) or f" (it knows: {', '.join(sorted(known))})"
    return fail(line, f'unknown property "{line.name.text}"{hint}')


def integer(word: Token, least: int | None = None, most: int | None = None) -> int:
    """A decimal number within bounds."""
    text = word.text
    if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
        raise fail(word, f'expected a whole number, found "{text}"')
    value = int(text)
    if (least is not None and value < least) or (most is not None and value > most):
        bounds = f"at least {least}" if most is None else f"at most {most}" if least is None else f"{least} to {most}"
        raise fail(word, f"{value} is out of range: expected {bounds}")
    return value


def seconds(word: Token, least: float | None = 0.0, bare: bool = False) -> float:
    """A duration in Go's syntax (`300ms`, `1h30m`, `0`) as seconds; `bare`: a whole number counts as seconds."""
    text = word.text
    if text in ("0", "+0", "-0"):
        value = 0.0
    elif bare and text.isascii() and text.isdecimal():
        value = float(text)
    else:
        sign, rest = (-1.0, text[1:]) if text[:1] == "-" else (1.0, text.removeprefix("+"))
        at, value = 0, 0.0
        for part in _PART.finditer(rest):
            if part.start() != at or part[1] in ("", "."):
                break
            value += float(part[1]) * _UNITS[part[2]]
            at = part.end()
        if at != len(rest) or not rest:
            more = ": a unit is missing (30s, 5m)" if rest.isdecimal() else ""
            raise fail(word, f'expected a duration such as 500ms, 30s or 1h30m, found "{text}"{more}')
        value *= sign
    if abs(value) > _MOST_SECONDS:
        raise fail(word, f'the duration "{text}" is out of range')
    if least is not None and value < least:
        raise fail(word, f'the duration "{text}" is out of range: expected at least {duration_text(least)}')
    return value


def duration_text(value: float) -> str:
    """Seconds in the form Go prints: `5s`, `1m30s`, `1h0m0s`, `250ms`."""
    if value == 0:
        return "0s"
    if value < 0:
        return "-" + duration_text(-value)
    if value < 1:
        for unit, size in (("ms", 1e-3), ("µs", 1e-6)):
            if value >= size:
                return f"{round(value / size, 6):g}{unit}"
        return f"{round(value * 1e9):d}ns"
    hours, rest = divmod(value, 3600)
    minutes, secs = divmod(rest, 60)
    text = f"{round(secs, 9):g}s"
    if hours:
        return f"{int(hours)}h{int(minutes)}m{text}"
    return f"{int(minutes)}m{text}" if minutes else text


def zones(words: Sequence[Token], block: ServerBlock) -> list[str]:
    """Zone arguments, or the block's zones where there are none."""
    return plugin_zones(list(words)) if words else block.zones


def zone_names(words: Sequence[Token], block: ServerBlock) -> tuple[bytes, ...]:
    """Zone arguments as wire names, or the block's where there are none."""
    return wire_zones(zones(words, block))


def wire_zones(texts: Sequence[str]) -> tuple[bytes, ...]:
    """Zones as wire names; those that no name can be are dropped, as CoreDNS drops them."""
    out = []
    for text in texts:
        try:
            out.append(from_text(text).lower())
        except BadName:
            continue
    return tuple(out)


def name(word: Token) -> bytes:
    """A domain name as a lower-cased wire name."""
    try:
        return from_text(word.text).lower()
    except BadName as error:
        raise fail(word, str(error)) from None


def host_port(word: Token, default: int) -> tuple[str, int]:
    """A word `HOST[:PORT]` as host and port."""
    try:
        return split_host_port(word.text, default)
    except ValueError as error:
        raise fail(word, str(error)) from None


def ip(word: Token) -> str:
    """A word that is an IP address, in its one form."""
    try:
        return str(ipaddress.ip_address(word.text))
    except ValueError:
        raise fail(word, f'expected an IP address, found "{word.text}"') from None


def network(word: Token) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """An address, or a network as `10.0.0.0/8`; what is behind the prefix does not count."""
    try:
        return ipaddress.ip_network(word.text, strict=False)
    except ValueError:
        raise fail(word, f'expected an address or a network, found "{word.text}"') from None


def strict_network(word: Token) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """An address, or a network with nothing behind its prefix."""
    try:
        return ipaddress.ip_network(word.text)
    except ValueError as error:
        raise fail(word, f"{error}") from None


def count_once(line: Line, found: dict[str, int], least: int = 0) -> None:
    """Adds a line's only argument, a number of at most a million, to what was found, by the line's name."""
    name = line.name.text
    if name in found:
        raise fail(line, f"{name} is given twice")
    found[name] = integer(one(line, "a number"), least, 1_000_000)


def ip_port(word: Token, default: int) -> tuple[str, int]:
    """A word `IP[:PORT]` as address and port."""
    host, port = host_port(word, default)
    try:
        return str(ipaddress.ip_address(host)), port
    except ValueError:
        raise fail(word, f'expected an IP address, with or without a port, found "{word.text}"') from None


def translation_prefix(word: Token) -> ipaddress.IPv6Network:
    """A prefix that IPv4 addresses are embedded in (RFC 6052)."""
    try:
        network = ipaddress.IPv6Network(word.text, strict=False)
    except ValueError:
        raise fail(word, f'expected an IPv6 prefix such as 64:ff9b::/96, found "{word.text}"') from None
    if network.prefixlen not in LENGTHS:
        raise fail(word, f"a prefix of {network.prefixlen} bits: expected {', '.join(map(str, LENGTHS))}")
    return network


def tsig_algorithm(word: Token) -> bytes:
    """The algorithm of a transaction signature as its wire name."""
    text = word.text.lower().rstrip(".")
    found = from_text("hmac-md5.sig-alg.reg.int." if text == "hmac-md5" else f"{text}.")
    if found not in tsig.ALGORITHMS:
        raise fail(
            word,
            f'unknown algorithm "{word.text}": hmac-sha1, -sha224, -sha256, -sha256-128, -sha384, -sha384-192, '
            "-sha512, -sha512-256 and hmac-md5 are known",
        )
    return found


def http_address(directive: Directive, default: tuple[str, int]) -> tuple[str, int]:
    """The one argument `HOST:PORT` of a directive that serves HTTP, or its default."""
    arguments(directive, 0, 1)
    if not directive.args:
        return default
    try:
        return split_host_port(directive.args[0].text)
    except ValueError as error:
        raise fail(directive.args[0], str(error)) from None


def regex(word: Token) -> Any:
    """A compiled regular expression."""
    try:
        return compile_regex(word.text)
    except BadRegex as error:
        raise fail(word, str(error)) from None


class Fallthrough:
    """`fallthrough [ZONES...]`: which names go on to the next plugin where this one has none."""

    def __init__(self, zones: tuple[bytes, ...] | None = None) -> None:
        self.zones = zones

    @classmethod
    def parse(cls, line: Line) -> "Fallthrough":
        """From an option's line: no arguments mean every name."""
        return cls(wire_zones(plugin_zones(list(line.args))) if line.args else (b"\0",))

    def falls_through(self, name: bytes) -> bool:
        """True if this lower-cased name falls through to the next plugin."""
        return self.zones is not None and closest(name, self.zones) is not None

    def covers(self, zone: bytes) -> bool:
        """True if all names in this zone fall through."""
        return closest(zone, self.zones or ()) is not None

    def overlaps(self, zone: bytes) -> bool:
        """True if any name in this zone could fall through."""
        return any(is_within(zone, other) or is_within(other, zone) for other in self.zones or ())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Fallthrough) and self.zones == other.zones

    def __hash__(self) -> int:
        return hash(self.zones)
