"""grpc - sends queries on to upstream servers over gRPC.

Upstreams are CoreDNS's or kdns's `grpc://` listeners. All else is as with `forward`: policies, probes, two tries for an
upstream.

## Syntax

    grpc FROM TO... {
        except NAMES...
        tls [CA] | [CERT KEY] | [CERT KEY CA]
        tls_servername NAME
        policy random|round_robin|sequential
        fallthrough [ZONES...]
    }

* FROM is the zone whose names are sent on; TO are up to 15 upstreams: `IP[:PORT]` (port 53), `grpc://IP[:PORT]` (443),
  a file like /etc/resolv.conf, or a host name.
* `except`: names below these go on to the next plugin.
* `tls`, `tls_servername`: certificates, and the name to verify. Without both, upstreams are asked unencrypted.
* `policy`: in which order upstreams are asked, as with `forward`.
* `fallthrough`: names (in ZONES) that do not exist go on to the next plugin.

## Examples

~~~ corefile
.:1053 {
    grpc . 127.0.0.1:5301 {
        policy sequential
    }
}
~~~

## Metrics

Those of `forward`, with `proxy_name="grpc"`.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Final

from kdns.corefile import CorefileError, Directive, ServerBlock, Token
from kdns.dns import iana
from kdns.dns.answer import Answer
from kdns.dns.query import Question
from kdns.plugin import readers
from kdns.plugin.base import BlockInfo
from kdns.plugin.readers import Fallthrough
from kdns.plugins.forward import config as _config
from kdns.plugins.forward.addresses import addresses, trust
from kdns.plugins.forward.config import Config
from kdns.plugins.forward.handler import Forward
from kdns.upstream.upstream import PORTS

_OPTIONS: Final = ("except", "tls", "tls_servername", "policy", "fallthrough")
_SCHEME: Final = "grpc://"


class Grpc(Forward):
    """`forward`, over gRPC."""

    name: ClassVar[str] = "grpc"

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: ServerBlock) -> Sequence[Config]:
        directive = readers.once(directives)
        lines = directive.body or ()
        for line in lines:
            if line.name.text not in _OPTIONS:
                raise readers.unknown(line, _OPTIONS)
        words = [*directive.args[:1], *(_target(word) for word in directive.args[1:])]
        passing = [line for line in lines if line.name.text == "fallthrough"]
        options = [line for line in lines if line.name.text != "fallthrough"]
        read = _config.parse(replace(directive, args=tuple(words), body=tuple(options)))
        encrypted = any(line.name.text in ("tls", "tls_servername") for line in lines)
        return [replace(read, encrypted=encrypted, fall=Fallthrough.parse(passing[-1]) if passing else Fallthrough())]

    def load(self, block: BlockInfo) -> None:
        config = self.config
        self.addresses = [replace(where, transport="grpc") for where in addresses(config, block)]
        if config.encrypted:
            try:
                self.contexts["grpc"] = trust([block.path(path) for path in config.tls], "grpc")
            except OSError as error:
                raise CorefileError(config.at, f"plugin/grpc: tls {' '.join(config.tls)}: {error}") from None

    def moves_on(self, question: Question, reply: Answer) -> bool:
        return reply.rcode == iana.NXDOMAIN and self.config.fall.falls_through(question.name)


def _target(word: Token) -> Token:
    """A word as `forward` reads it."""
    scheme, separator, _ = word.text.partition("://")
    if not separator:
        return word
    if scheme != "grpc":
        raise readers.fail(word, f'unknown scheme "{scheme}": expected grpc://, or none')
    host, port = readers.host_port(word._replace(text=word.text.removeprefix(_SCHEME)), PORTS["grpc"])
    return word._replace(text=f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
