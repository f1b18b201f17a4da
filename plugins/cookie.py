"""cookie - gives clients server cookies, so that they can tell our replies from forged ones (RFC 7873, RFC 9018).

A client that sends a DNS cookie gets it back with a server cookie. It then knows that a reply comes from the server it
asked: an attacker who cannot see the query does not know the client's cookie. kdns answers all clients, with or without
a cookie; an old or foreign server cookie is replaced by a new one. A malformed one is FORMERR, with or without this
plugin.

## Syntax

    cookie {
        secret FILE
    }

* FILE holds secrets, one a line, each of 32 hexadecimal digits. The first makes cookies; the others are still accepted,
  so that a secret can be replaced: put the new one first, and take the old one out an hour later. It is read at each
  reload. Mount it from a Secret. Default: a random secret for each process; then a client that is sent to another
  replica gets another cookie, which costs it nothing.

It applies to the listener, so to all server blocks on the same address and port.

Cookies are as RFC 9018 has them: a version, the time, and SipHash-2-4 over both, the client's cookie and its address.
So they are good at all replicas with the same secret, also at BIND, Knot, NSD or Unbound. One is accepted for an hour
and replaced after half of it. At most 1000 new ones are made in a second; beyond, replies have none.

## Examples

~~~ corefile
.:1053 {
    cookie
    whoami
}
~~~

## Metrics

* `kdns_cookies_total{server,what}` - queries with a COOKIE option: `new` without a server cookie, `good`, `bad`, and
  those that got none because too many were new (`none`).
"""

import os
import re
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from time import time
from typing import Any, ClassVar, Final

from kdns import files
from kdns.corefile import Directive, ServerBlock, Token
from kdns.dns.siphash import siphash24
from kdns.metrics import Counter
from kdns.plugin import Plugin, readers
from kdns.plugin.base import BlockInfo, ListenerOptions
from kdns.plugin.runtime import Runtime

# RFC 9018, section 4.3: seconds for which a cookie is accepted, after which it is replaced, and that a clock of another
# replica may be ahead.
ACCEPTED: Final = 3600
RENEWED: Final = 1800
AHEAD: Final = 300
# Cookies that are remembered, in each of two generations: some 4 MB together. A client has one.
REMEMBERED: Final = 8192
# New cookies in a second: some 30 ms of it.
MOST_NEW: Final = 1000
MAX_FILE: Final = 4096  # octets: a hundred secrets

_CLIENT: Final = 8
_VERSION: Final = b"\1\0\0\0"

SEEN: Final = Counter(
    "kdns_cookies_total", "Queries with a DNS cookie, by the state of its server cookie.", ("server", "what")
)


class Cookie(Plugin):
    """Gives its listener what makes cookies."""

    name: ClassVar[str] = "cookie"
    pure = True

    def __init__(self, config: Token | None) -> None:
        super().__init__(config)
        self.secrets: list[bytes] = []

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: ServerBlock) -> Sequence[Token | None]:
        directive = readers.once(directives)
        readers.arguments(directive, 0, 0)
        found: Token | None = None
        for line in directive.body or ():
            readers.no_block(line)
            if line.name.text != "secret":
                raise readers.unknown(line, ("secret",))
            if found is not None:
                raise readers.fail(line, "secret stands twice")
            found = readers.one(line, "a file")
        return [found]

    def load(self, block: BlockInfo) -> None:
        at = self.config
        if at is None:
            self.secrets[:] = [os.urandom(16)]
            return
        path = block.path(at.text)
        try:
            text = files.read(path, MAX_FILE)
        except OSError as error:
            raise readers.fail(at, f"{path} cannot be read ({error.strerror}): give a file of secrets") from None
        words = text.split()
        good = words and all(re.fullmatch(rb"[0-9a-fA-F]{32}", word) for word in words)
        if not good:
            raise readers.fail(at, f"{path} does not hold secrets of 32 hexadecimal digits, one a line")
        self.secrets[:] = [bytes.fromhex(word.decode()) for word in words]

    async def start(self, runtime: Runtime) -> None:
        if self.config is None and runtime.link is not None:
            self.secrets[:] = [runtime.link.secret]  # a worker's cookies are good at the others

    def listener(self) -> ListenerOptions:
        return ListenerOptions(cookies=self.cookies)

    def cookies(self, label: str) -> "Cookies":
        """What makes the cookies of a listener."""
        return Cookies(self.secrets, label)


class Cookies:
    """Makes and judges the cookies of one listener."""

    def __init__(self, secrets: Sequence[bytes], label: str, clock: Callable[[], float] = time) -> None:
        self.secrets = secrets
        self.clock = clock
        # What was answered to (client's address, its option), and until when that is the answer.
        self.young: dict[tuple[str, bytes], tuple[float, bytes, list[float]]] = {}
        self.old: dict[tuple[str, bytes], tuple[float, bytes, list[float]]] = {}
        self.second = 0
        self.made = 0  # in this second
        self.new = SEEN.slot(label, "new")
        self.good = SEEN.slot(label, "good")
        self.bad = SEEN.slot(label, "bad")
        self.none = SEEN.slot(label, "none")

    def __call__(self, sent: bytes, client: tuple[Any, ...]) -> bytes:
        """The COOKIE option's payload for a reply, 24 octets; empty where there is none. `sent` is the query's, of 8 or
        16 to 40 octets.
        """
        now = self.clock()
        key = (client[0], sent)
        known = self.young.get(key) or self.old.get(key)
        if known is not None and known[0] > now:
            known[2][0] += 1
            return known[1]
        second = int(now)
        if second != self.second:
            self.second, self.made = second, 0
        if self.made >= MOST_NEW:
            self.none[0] += 1
            return b""
        self.made += 1
        host = ip_address(client[0].partition("%")[0]).packed
        own, server = sent[:_CLIENT], sent[_CLIENT:]
        stamped = self._stamp(own, server, host, second) if server else None
        count: list[float] = self.new if not server else self.bad if stamped is None else self.good
        if stamped is not None and stamped + RENEWED > now >= stamped - AHEAD:
            until, made = float(stamped + RENEWED), sent
        else:
            # It is the same for all queries of this second.
            stamp = _VERSION + (second & 0xFFFFFFFF).to_bytes(4, "big")
            until, made = float(second + 1), own + stamp + siphash24(self.secrets[0], own + stamp + host)
        count[0] += 1
        if len(self.young) >= REMEMBERED:
            self.old, self.young = self.young, {}
        self.young[key] = (until, made, count)
        return made

    def _stamp(self, own: bytes, server: bytes, host: bytes, now: int) -> int | None:
        """When a server cookie was made (Unix time), if it is ours and still accepted (RFC 9018, section 4.3)."""
        if len(server) != 16 or server[0] != 1:
            return None
        # Serial arithmetic (RFC 1982): the time has 32 bits.
        age = now - int.from_bytes(server[4:8], "big") & 0xFFFFFFFF
        if age > 0x7FFFFFFF:
            age -= 1 << 32
        if not -AHEAD <= age <= ACCEPTED:
            return None
        body = own + server[:8] + host
        # Times of comparisons tell nothing here: an answer comes either way, with a cookie that is right.
        return now - age if any(siphash24(secret, body) == server[8:] for secret in self.secrets) else None
