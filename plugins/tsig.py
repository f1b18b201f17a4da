"""tsig - checks the signatures of queries, and signs the replies to them.

Transaction signatures (RFC 8945) prove to a server who asks, and to a client who answers, by a key that both have.

## Syntax

    tsig [ZONES...] {
        secret NAME KEY
        secrets FILE
        require TYPE...|all|none
        require_opcode OPCODE...|all|none
    }

* ZONES are the zones whose queries are checked; the block's if there are none. Queries for others are passed on as they
  are.
* `secret` is a key: its name and its secret in base64. May be given several times.
* `secrets` is a file of keys as BIND writes them (`key "name" { algorithm ...; secret "..."; };`); a relative path
  begins at `root`.
* `require` refuses queries of these types that have no signature. Default: none. `require_opcode` does so by opcode.

A query with a good signature is answered with a signed reply, a transfer message by message. A bad one is answered
NOTAUTH, with BADKEY, BADSIG or BADTIME. Keys serve all algorithms: HMAC-MD5, SHA-1, SHA-224, SHA-256, SHA-384 and
SHA-512, and the truncated SHA-256-128, SHA-384-192 and SHA-512-256. A signed reply is made for its client; it is never
repeated. Metadata: `tsig/key` is the name of the key that a query was signed with.

`secondary` and `transfer` of the same block sign with these keys.

## Examples

~~~ corefile
example.org:1053 {
    tsig {
        secret transfer.example.org. c2VjcmV0IG9mIHRoaXMgZXhhbXBsZQ==
        require AXFR IXFR
    }
    transfer {
        to *
    }
    file db.example.org
}
~~~
"""

import base64
import binascii
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Final

from kdns import files
from kdns.corefile import CorefileError, Directive, Line, ServerBlock, Token
from kdns.corefile.errors import Position
from kdns.dns import iana, tsig
from kdns.dns.errors import BadName, FormatError
from kdns.dns.name import closest, from_text, to_text
from kdns.plugin import Outcome, Plugin, RcodeOnly, Request, readers
from kdns.plugin.base import BlockInfo

MAX_FILE: Final = 1 << 20  # octets of a file of keys
_OPTIONS: Final = ("secret", "secrets", "require", "require_opcode")
_OPCODES: Final = {"QUERY": 0, "IQUERY": 1, "STATUS": 2, "NOTIFY": 4, "UPDATE": 5}
_KEY: Final = re.compile(
    r'key\s+"?([^\s"{;]+)"?\s*\{\s*(?:algorithm\s+"?[^\s";]+"?\s*;\s*)?secret\s+"?([^\s";]+)"?\s*;\s*\}\s*;?\s*'
)
_COMMENT: Final = re.compile(r"(?:#|//)[^\n]*")


@dataclass(frozen=True, slots=True)
class Config:
    """The settings of the directive: keys by wire name; the types and opcodes that must be signed (None: all)."""

    zones: tuple[bytes, ...]
    secrets: dict[bytes, bytes] = field(default_factory=dict, repr=False)
    files: tuple[tuple[str, Position], ...] = ()
    types: frozenset[int] | None = frozenset()
    opcodes: frozenset[int] | None = frozenset()


class TsigPlugin(Plugin):
    """Checks and signs."""

    name: ClassVar[str] = "tsig"
    pure = True
    meets_updates = True

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: ServerBlock) -> Sequence[Config]:
        return [_config(readers.once(directives), block)]

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.config: Config = config
        self.secrets = dict(config.secrets)

    def load(self, block: BlockInfo) -> None:
        for path, at in self.config.files:
            where = block.path(path)
            try:
                text = files.read(where, MAX_FILE).decode()
            except (OSError, UnicodeDecodeError) as error:
                raise CorefileError(at, f"tsig: {where}: {getattr(error, 'strerror', None) or error}") from None
            self._read(text, where, at)

    def _read(self, text: str, where: str, at: Position) -> None:
        text = _COMMENT.sub("", text).strip()
        place = 0
        while place < len(text):
            found = _KEY.match(text, place)
            if found is None:
                line = text.count("\n", 0, place) + 1
                raise CorefileError(
                    at, f'tsig: {where}: statement {line}: expected key "NAME" {{ algorithm ...; secret "..."; }};'
                )
            try:
                name, secret = from_text(found[1]).lower(), base64.b64decode(found[2], validate=True)
            except (BadName, binascii.Error) as error:
                raise CorefileError(at, f"tsig: {where}: key {found[1]}: {error}") from None
            if name in self.secrets:
                raise CorefileError(at, f"tsig: {where}: key {found[1]} is defined twice")
            self.secrets[name] = secret
            place = found.end()

    def tsig_key(self, name: bytes) -> bytes | None:
        """The secret of a key."""
        return self.secrets.get(name)

    def signer(self, request: Request) -> bytes:
        """The key that a query was signed with."""
        return request.slots[self.position] or b""

    def handle(self, request: Request) -> Outcome | None:
        config = self.config
        question = request.question
        if request.depth or closest(question.name, config.zones) is None:
            return None
        # What the reply cache has a key for has no TSIG (server.replycache): its header claims no more than an OPT.
        if not request.may_be_signed:
            return self._unsigned(request)
        data = request.wire
        try:
            found = tsig.find(data)
        except FormatError:
            return RcodeOnly(iana.FORMERR)
        if found is None:
            return self._unsigned(request)
        secret = self.secrets.get(found.name)
        key = tsig.Key(found.name, secret or b"", found.algorithm)
        now = time.time()
        if secret is None:
            return self._refuse(request, found, key, tsig.BADKEY)
        if found.algorithm not in tsig.ALGORITHMS:
            return self._refuse(request, found, key, tsig.BADKEY)
        try:
            tsig.check(data, found, key, now)
        except FormatError:
            return RcodeOnly(iana.FORMERR)
        except tsig.Refused as error:
            return self._refuse(request, found, key, error.error)
        signer = tsig.Signer(key, found.mac)
        if request.edns is not None and request.transport == "udp":
            # The signature of the reply takes as much room as that of the query (RFC 8945, section 5.3).
            request.edns = request.edns.with_size(request.edns.size - (len(data) - found.start))
        request.seal = lambda message: signer.sign(message, time.time())
        request.slots[self.position] = found.name
        return None

    def _unsigned(self, request: Request) -> Outcome | None:
        types, opcodes = self.config.types, self.config.opcodes
        needed = types is None or request.question.type in types or opcodes is None or request.opcode in opcodes
        return RcodeOnly(iana.REFUSED) if needed else None

    def _refuse(self, request: Request, found: tsig.Tsig, key: tsig.Key, error: int) -> Outcome:
        """NOTAUTH with the reason (RFC 8945, section 5.2): BADTIME is signed, with our time; the others are not."""

        def seal(message: bytes) -> bytes:
            if error == tsig.BADTIME:
                other = int(time.time()).to_bytes(6, "big")
                made, _ = tsig.signed(message, key, 0, found.mac, error=error, other=other, time=found.time)
                return made
            return tsig.with_record(message, key, found.time, b"", error, b"", found.original_id)

        request.seal = seal
        return RcodeOnly(tsig.NOTAUTH)

    def label(self, request: Request, name: str) -> str | None:
        """The metadata `tsig/key`: the key that a query was signed with."""
        if name != "tsig/key":
            return None
        found = request.slots[self.position] if request.block is not None else None
        return to_text(found) if found is not None else ""


def _config(directive: Directive, block: ServerBlock) -> Config:
    secrets: dict[bytes, bytes] = {}
    files: list[tuple[str, Position]] = []
    types: frozenset[int] | None = frozenset()
    opcodes: frozenset[int] | None = frozenset()
    for line in directive.body or ():
        readers.no_block(line)
        name = line.name.text
        if name == "secret":
            readers.arguments(line, 2, 2, "a name and a key")
            key = readers.name(line.args[0])
            if key in secrets:
                raise readers.fail(line.args[0], f'key "{line.args[0].text}" is defined twice')
            try:
                secrets[key] = base64.b64decode(line.args[1].text, validate=True)
            except binascii.Error:
                raise readers.fail(line.args[1], "expected a secret in base64") from None
        elif name == "secrets":
            files.append((readers.one(line, "a file").text, line.args[0].at))
        elif name == "require":
            types = _listed(line.args, types, {}, line)
        elif name == "require_opcode":
            opcodes = _listed(line.args, opcodes, _OPCODES, line)
        else:
            raise readers.unknown(line, _OPTIONS)
    return Config(readers.zone_names(directive.args, block), secrets, tuple(files), types, opcodes)


def _listed(
    words: Sequence[Token], before: frozenset[int] | None, names: dict[str, int], line: Line
) -> frozenset[int] | None:
    """What `require` lists: None for all. A list takes the place of one before, but not of `all` (as in CoreDNS)."""
    readers.arguments(line, 1, None, "types, all or none" if not names else "opcodes, all or none")
    if words[0].text.lower() in ("all", "none"):
        readers.arguments(line, 1, 1)
        return None if words[0].text.lower() == "all" else frozenset()
    out = set()
    for word in words:
        number = names.get(word.text.upper()) if names else iana.type_number(word.text)
        if number is None:
            raise readers.fail(word, f'unknown {"opcode" if names else "type"} "{word.text}"')
        out.add(number)
    return before if before is None else frozenset(out)
