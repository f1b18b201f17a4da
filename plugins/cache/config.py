"""The directive `cache`: its options and how they are read."""

from dataclasses import dataclass, field, replace
from typing import Final

from kdns.corefile import Directive, Line, ServerBlock, Token
from kdns.corefile.keys import plugin_zones
from kdns.dns import iana
from kdns.plugin import readers

CAPACITY: Final = 9984
MAX_TTL: Final = 3600
MAX_DENIAL_TTL: Final = 1800
MIN_TTL: Final = 5
SERVFAIL: Final = 5.0
MAX_SERVFAIL: Final = 300.0


@dataclass(frozen=True, slots=True)
class Limits:
    """One of the two caches: entries, and the most and least seconds an entry lives."""

    capacity: int = CAPACITY
    most: int = MAX_TTL
    least: int = MIN_TTL


@dataclass(frozen=True, slots=True)
class Config:
    """The settings of the directive. Durations are seconds; 0 turns `prefetch`, `stale` and `servfail` off."""

    zones: tuple[bytes, ...]
    zones_text: str
    success: Limits = field(default_factory=Limits)
    denial: Limits = field(default_factory=lambda: Limits(most=MAX_DENIAL_TTL))
    prefetch: int = 0
    prefetch_gap: float = 60.0
    prefetch_part: float = 0.1
    stale: float = 0.0
    verify: bool = False
    verify_timeout: float = 0.0
    stale_ttl: int = 0
    recheck: float = 0.0
    prefer_positive: bool = False
    servfail: float = SERVFAIL
    no_success: tuple[bytes, ...] = ()
    no_denial: tuple[bytes, ...] = ()
    keepttl: bool = False
    cut: bool = False


_OPTIONS: Final = (
    "nxdomain_cut",
    "success",
    "denial",
    "prefetch",
    "serve_stale",
    "serve_stale_policy",
    "servfail",
    "disable",
    "keepttl",
)


def parse(directive: Directive, block: ServerBlock) -> Config:
    """Reads one directive. Raises CorefileError."""
    words = list(directive.args)
    success, denial = Limits(), Limits(most=MAX_DENIAL_TTL)
    if words and words[0].text.lstrip("+-").isdecimal():
        ttl = readers.integer(words.pop(0), 1)
        success, denial = replace(success, most=ttl), replace(denial, most=ttl)
    texts = readers.zones(words, block)
    config = Config(readers.wire_zones(texts), ",".join(texts), success, denial)
    for line in directive.body or ():
        config = _option(line, config)
    if config.prefer_positive and not config.stale:
        raise readers.fail(directive, "serve_stale_policy needs serve_stale")
    return config


def _option(line: Line, config: Config) -> Config:
    name = line.name.text
    if name in ("success", "denial"):
        limits = _limits(line, config.success if name == "success" else config.denial)
        return replace(config, success=limits) if name == "success" else replace(config, denial=limits)
    if name == "prefetch":
        return _prefetch(line, config)
    if name == "serve_stale":
        return _serve_stale(line, config)
    if name == "serve_stale_policy":
        word = readers.one(line, "prefer_positive")
        if word.text != "prefer_positive":
            raise readers.fail(word, f'expected prefer_positive, found "{word.text}"')
        return replace(config, prefer_positive=True)
    if name == "servfail":
        word = readers.one(line, "a duration")
        value = readers.seconds(word)
        if value > MAX_SERVFAIL:
            raise readers.fail(
                word, "caching SERVFAIL responses over 5 minutes is not permitted (RFC 2308, section 7.1)"
            )
        return replace(config, servfail=value)
    if name == "disable":
        readers.arguments(line, 1, None, "success or denial")
        kind = line.args[0]
        if kind.text not in ("success", "denial"):
            raise readers.fail(kind, f'expected success or denial, found "{kind.text}"')
        zones = readers.wire_zones(plugin_zones(list(line.args[1:]))) if len(line.args) > 1 else (b"\0",)
        return replace(config, no_success=zones) if kind.text == "success" else replace(config, no_denial=zones)
    if name == "keepttl":
        readers.arguments(line, 0, 0)
        return replace(config, keepttl=True)
    if name == "nxdomain_cut":
        readers.arguments(line, 0, 0)
        return replace(config, cut=True)
    raise readers.unknown(line, _OPTIONS)


def _limits(line: Line, limits: Limits) -> Limits:
    readers.arguments(line, 1, None, "CAPACITY [TTL [MINTTL]]")
    limits = replace(limits, capacity=max(readers.integer(line.args[0], 0), 1))
    if len(line.args) > 1:
        limits = replace(limits, most=readers.integer(line.args[1], 1))
    if len(line.args) > 2:
        limits = replace(limits, least=readers.integer(line.args[2], 0, iana.MAX_TTL))
    return limits


def _prefetch(line: Line, config: Config) -> Config:
    readers.arguments(line, 1, 3, "AMOUNT [DURATION [PERCENTAGE%]]")
    config = replace(config, prefetch=readers.integer(line.args[0], 0))
    if len(line.args) > 1:
        config = replace(config, prefetch_gap=readers.seconds(line.args[1]))
    if len(line.args) > 2:
        word = line.args[2]
        if not word.text.endswith("%"):
            raise readers.fail(word, f'expected a percentage such as 10%, found "{word.text}"')
        part = readers.integer(word._replace(text=word.text[:-1]), 10, 90)
        config = replace(config, prefetch_part=part / 100)
    return config


def _serve_stale(line: Line, config: Config) -> Config:
    readers.arguments(line, 0, 5)
    words = list(line.args)
    config = replace(config, stale=readers.seconds(words.pop(0)) if words else 3600.0)
    mode = words.pop(0) if words else None
    if mode is not None and mode.text not in ("immediate", "verify"):
        raise readers.fail(mode, f'expected immediate or verify, found "{mode.text}"')
    if mode is not None and mode.text == "verify":
        config = replace(config, verify=True, verify_timeout=readers.seconds(words.pop(0)) if words else 0.0)
    if words:
        config = replace(config, stale_ttl=_whole(words.pop(0)))
    if words:
        word = words.pop(0)
        recheck = readers.seconds(word)
        if recheck > MAX_SERVFAIL:
            raise readers.fail(word, "RECHECK is at most 5m")
        config = replace(config, recheck=recheck)
    if words:
        raise readers.fail(words[0], f'unexpected argument "{words[0].text}"')
    return config


def _whole(word: Token) -> int:
    value = readers.seconds(word)
    if value != int(value):
        raise readers.fail(word, f'expected whole seconds, found "{word.text}"')
    if value > iana.MAX_TTL:
        raise readers.fail(word, f"a TTL of {int(value)} seconds, at most {iana.MAX_TTL} are allowed")
    return int(value)
