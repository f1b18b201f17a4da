"""bind - listens only on the given addresses.

Without it a server listens on every address. The name of an interface stands for all addresses that it has when the
configuration is loaded, including link-local IPv6 addresses.

## Syntax

    bind ADDRESS|INTERFACE... {
        except ADDRESS|INTERFACE...
    }

* Several lines add up. `except` removes addresses from its own line.

## Examples

~~~ corefile
.:1053 {
    bind 127.0.0.1 ::1
    whoami
}
~~~
"""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from kdns.corefile import CorefileError, Directive, ServerBlock, Token
from kdns.net.interfaces import addresses
from kdns.plugin import Plugin, readers
from kdns.plugin.base import BlockInfo


@dataclass(frozen=True, slots=True)
class Config:
    """Pairs of words for one line: what to listen on, and what of it not."""

    lines: tuple[tuple[tuple[Token, ...], tuple[Token, ...]], ...]


class Bind(Plugin):
    """Sets the addresses of its block."""

    name: ClassVar[str] = "bind"

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: ServerBlock) -> Sequence[Config]:
        lines = []
        for directive in directives:
            readers.arguments(directive, 1, None, "an address or the name of an interface")
            left_out: list[Token] = []
            for line in directive.body or ():
                if line.name.text != "except":
                    raise readers.unknown(line, ("except",))
                readers.arguments(line, 1, None, "an address or the name of an interface")
                left_out += line.args
            lines.append((directive.args, tuple(left_out)))
        return [Config(tuple(lines))]

    def load(self, block: BlockInfo) -> None:
        by_interface: dict[str, list[str]] = {}
        for found in addresses():
            by_interface.setdefault(found.interface, []).append(found.address)

        def expand(word: Token) -> list[str]:
            if word.text in by_interface:
                return by_interface[word.text]
            address = _literal(word.text)
            if not address:
                known = ", ".join(sorted(by_interface))
                raise readers.fail(
                    word, f'"{word.text}" is neither an IP address nor an interface of this machine ({known})'
                )
            return [address]

        hosts: list[str] = []
        for words, left_out in self.config.lines:
            without = {host for word in left_out for host in expand(word)}
            hosts += [host for word in words for host in expand(word) if host not in without]
        block.hosts = self._some(hosts)

    def named_hosts(self) -> tuple[str, ...]:
        """What it listens on, as far as that can be said without a look at this machine: an interface stands for
        itself.
        """
        hosts: list[str] = []
        for words, left_out in self.config.lines:
            without = sorted({_literal(word.text) or word.text for word in left_out})
            for word in words:
                address = _literal(word.text)
                if not address:
                    hosts.append(" except ".join((word.text, *without)))
                elif address not in without:
                    hosts.append(address)
        return self._some(hosts)

    def _some(self, hosts: list[str]) -> tuple[str, ...]:
        if not hosts:
            raise CorefileError(self.config.lines[0][0][0].at, "plugin/bind: no address is left to listen on")
        return tuple(dict.fromkeys(hosts))


def _literal(text: str) -> str:
    """An IP address in its one form, with its zone; empty for what is none."""
    bare, percent, zone = text.strip("[]").partition("%")
    try:
        return f"{ipaddress.ip_address(bare)}{percent}{zone}"
    except ValueError:
        return ""
