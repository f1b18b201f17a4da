"""sign - signs zone files, and signs them again in time.

Takes a zone's master file, adds what DNSSEC needs (RFC 4035), and writes a signed master file for `file` or `auto` to
serve.

## Syntax

    sign DBFILE [ZONES...] {
        key file KEY...
        key directory DIR...
        directory DIR
        denial nsec|nsec3|opt-out
    }

* DBFILE is the master file; a relative path begins at `root`. ZONES are the zones it is signed for; the block's if
  there are none. The directive may be given several times.
* `key file` names key pairs as `dnssec-keygen` and `ldns-keygen` write them: `K<name>+<alg>+<id>`, with
  `.key`, `.private` or neither behind it. `key directory` takes all pairs of a zone that lie in a folder. Algorithms:
  ECDSAP256SHA256, ECDSAP384SHA384, ED25519, ED448, RSASHA256, RSASHA512. At least one must have the SEP flag
  (`dnssec-keygen -f KSK`). Of an algorithm with keys of both kinds those with the flag sign the keys, the others the
  rest. A pair that is missing or broken is an error at the start. Times in the files are not looked at.
* `directory` is where `db.<zone>signed` is written (`db.example.org.signed`). Default: /var/lib/coredns.
* `denial` is how names are proven absent: `nsec` (default), `nsec3`, or `opt-out`, which is NSEC3 without the
  delegations that have no DS. NSEC3 has no salt and no extra iterations (RFC 9276).

A zone is signed when there is no signed file, when its records, its keys or `denial` have changed (files are looked at
every 5 seconds), and again

* 6 days after the inception of its signatures, or
* 14 days before they expire.

Signatures begin 3 to 21 hours before they are made and end 32 to 37 days after it; each zone has its own times. The
serial is the time in seconds of the epoch, or one more than the last where that is not newer. At the apex DNSKEY, CDS
(SHA-256) and CDNSKEY are added; signatures, NSEC and NSEC3 that the source holds are left out.

Signing runs in a child process, whatever the zone's size; a file is put in its place whole. A source that breaks keeps
the signed file there is, until its signatures end; one line says what is wrong, and it is tried again every minute.

## Examples

~~~ corefile
example.org:1053 {
    file /var/lib/coredns/db.example.org.signed
    sign db.example.org {
        key file Kexample.org.+013+33130
    }
}
~~~
"""

import asyncio
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final
from weakref import WeakValueDictionary

from kdns import faults, files, log
from kdns.corefile import CorefileError, Directive, ServerBlock
from kdns.corefile.errors import Position
from kdns.dns.name import to_text
from kdns.plugin import Plugin, keyfiles, readers
from kdns.plugin.base import BlockInfo
from kdns.plugin.keyfiles import KeyWord
from kdns.plugin.runtime import Runtime
from kdns.watchfile import Change, Follower
from kdns.zonefile.follow import written
from kdns.zonefile.reader import MAX_OCTETS

DEFAULT_DIRECTORY: Final = "/var/lib/coredns"
LOOK: Final = 5.0  # seconds between looks at source and keys; a look costs some 20 us a file
RETRY: Final = 60.0  # seconds until a zone that could not be signed is tried again
DENIALS: Final = ("nsec", "nsec3", "opt-out")
_OPTIONS: Final = ("key", "directory", "denial")
_log = log.plugin("sign")
# Who signs a file now, by loop and path.
_turns: Final[WeakValueDictionary[tuple[asyncio.AbstractEventLoop, str], asyncio.Lock]] = WeakValueDictionary()


@dataclass(frozen=True, slots=True)
class Config:
    """One directive: a master file, its zones as wire names, key pairs, the folder for what is signed."""

    path: str
    zones: tuple[bytes, ...]
    at: Position
    keys: tuple[KeyWord, ...]
    directory: str = DEFAULT_DIRECTORY
    denial: str = "nsec"


class Signer:
    """Keeps one zone signed. `clock` gives the seconds of the epoch."""

    def __init__(
        self, source: str, origin: bytes, keys: Sequence[str], target: str, denial: str, clock: Callable[[], float]
    ) -> None:
        from kdns.zonefile import signing  # the cryptography library: loaded where something is signed

        self.signing = signing
        self.source = source
        self.origin = origin
        self.keys = tuple(keys)
        self.target = target
        self.denial = denial
        self.clock = clock
        self.jitters = (
            random.randrange(signing.INCEPTION_JITTER), random.randrange(signing.EXPIRATION_JITTER),
        )  # fmt: skip
        self.seen: tuple[str, ...] = (source,)
        self.done = signing.Done()
        self.complaint = ""
        self.again = 0.0  # when it is tried again after a failure (monotonic seconds); 0: it did not fail
        self.follower = Follower(to_text(origin), self.paths, most=MAX_OCTETS, keep=0)

    def paths(self) -> list[str]:
        """The files that it depends on."""
        return [*self.seen, *(f"{key}{end}" for key in self.keys for end in (".key", ".private"))]

    async def start(self) -> None:
        """Looks whether the zone is signed, and signs it if need be."""
        await self.follower.changes()
        if await self.sign():
            return
        if not self.complaint:
            _log.info(f'Skipping signing zone "{to_text(self.origin)}" in "{self.target}": signatures are valid')

    async def look(self) -> None:
        """Signs the zone if it is time to, or if anything has changed."""
        changes: Sequence[Change] = await self.follower.changes()
        if self.again:
            wanted = bool(changes) or time.monotonic() >= self.again
        else:
            done = self.done
            wanted = bool(changes) or bool(self.signing.due(done.inception, done.expiration, int(self.clock())))
            wanted = wanted or not await self._is_there()
        if wanted:
            await self.sign()

    async def _is_there(self) -> bool:
        try:
            return await files.waiting(f"looking at {self.target}", lambda: os.path.exists(self.target))
        except TimeoutError:
            return True  # a file system that hangs takes no file either

    async def sign(self) -> bool:
        """Has the zone signed if it is due; says whether it was. Where a reload makes another signer for the same file,
        each looks at what the other has written: the one that began first could end last, with what was before.
        """
        key = asyncio.get_running_loop(), self.target
        turn = _turns.get(key) or _turns.setdefault(key, asyncio.Lock())
        async with turn:
            return await self._sign()

    async def _sign(self) -> bool:
        name = f'"{to_text(self.origin)}"'
        now = int(self.clock())
        job = self.signing.Job(self.source, self.origin, self.keys, self.target, now, *self.jitters, self.denial)
        followed = set(self.paths())
        done = await self.signing.run_beside(job)
        self.seen = done.seen or self.seen
        # What it includes is followed from now on; what has changed meanwhile may have been read before.
        late = any(change.path in followed for change in await self.follower.changes())
        if done.error:
            self.again = time.monotonic() + RETRY
            if done.error != self.complaint:
                _log.warning(f"Error signing {name}: {done.error}; tried again every {RETRY:g} s, and when it changes")
            self.complaint = done.error
            return False
        self.again = time.monotonic() if late else 0.0
        self.complaint = ""
        self.done = done
        for warning in done.warnings if done.why else ():
            _log.warning(warning)
        if not done.why:
            return False
        tags = ",".join(map(str, done.tags))
        when = min(done.inception + self.signing.RESIGN, done.expiration - self.signing.EXPIRING)
        following = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(when))
        _log.info(
            f'Signing {name} because {done.why}. Successfully signed zone {name} in "{self.target}" with key tags '
            f'"{tags}" and {done.serial} SOA serial, elapsed {done.seconds:f}, next: {following}'
        )
        await written(self.target)
        return True


class Sign(Plugin):
    """Signs master files."""

    name: ClassVar[str] = "sign"
    pure = True
    central = True  # one process writes the files, whoever serves them

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: ServerBlock) -> Sequence[tuple[Config, ...]]:
        return [tuple(_config(directive, block) for directive in directives)]

    def __init__(self, config: tuple[Config, ...]) -> None:
        super().__init__(config)
        self.config: tuple[Config, ...] = config
        self.clock: Callable[[], float] = time.time
        self.signers: list[Signer] = []
        self.tasks: list[asyncio.Task[None]] = []

    def load(self, block: BlockInfo) -> None:
        for config in self.config:
            for zone, keys in keyfiles.load(self.name, config.keys, config.zones, block).items():
                if not any(key.is_sep for key in keys):
                    raise CorefileError(config.at, f'sign: DNSKEY in "{keys[0].path}.key" is not a CSK/KSK')
                target = os.path.join(block.path(config.directory), f"db.{to_text(zone)}signed")
                paths = [key.path for key in keys]
                self.signers.append(
                    Signer(block.path(config.path), zone, paths, target, config.denial, lambda: self.clock())
                )

    async def start(self, runtime: Runtime) -> None:
        if runtime.link is not None:
            return  # a worker: its server's first process signs
        for signer in self.signers:
            keep = faults.supervise("plugin/sign", lambda signer=signer: _keep(signer))  # type: ignore[misc]
            self.tasks.append(asyncio.create_task(keep, name="sign"))

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.tasks.clear()
        for signer in self.signers:
            del signer.follower  # it holds the signer, whose clock is this plugin's: that would be a cycle
        self.signers.clear()


async def _keep(signer: Signer) -> None:
    await signer.start()
    while True:
        await asyncio.sleep(LOOK)
        await signer.look()


def _config(directive: Directive, block: ServerBlock) -> Config:
    readers.arguments(directive, 1, None, "a zone's master file")
    keys: list[KeyWord] = []
    folder, denial = DEFAULT_DIRECTORY, DENIALS[0]
    for line in directive.body or ():
        readers.no_block(line)
        name = line.name.text
        if name == "key":
            keys += keyfiles.parse(line)
        elif name == "directory":
            folder = readers.one(line, "a folder").text
        elif name == "denial":
            denial = readers.choice(line, DENIALS)
        else:
            raise readers.unknown(line, _OPTIONS)
    if not keys:
        raise readers.fail(directive, "sign needs a key: key file K<name>+<alg>+<id>")
    path = directive.args[0]
    zones = readers.zone_names(directive.args[1:], block)
    return Config(path.text, zones, path.at, tuple(keys), folder, denial)
