"""The identities of a server in a TLS handshake: certificates and keys from files, read again when they have changed.

Laws: files are never looked at on the loop, for their file system may hang; connections that are open go on; files that
cannot be read or do not belong together leave the certificate before in use, with one line in the log for each state of
the files; every error names the file and says what to do.

Theory of operation. The files are followed as all others are (kdns.watchfile), so a Secret's folder that is swapped
changes both in one step. What a handshake needs is made in a thread, and a handshake that begins takes what there is. A
context is never changed: a new one is made, for a certificate of another kind (RSA, ECDSA) or authority would only be
added to an old one. Where a listener has several certificates, the server name that a client sends (SNI, RFC 6066,
section 3) chooses one: by its exact name, then by a wildcard; the first for all others.
"""

import asyncio
import os
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Final, Generic, NamedTuple, NoReturn, TypeVar, final

from kdns import faults, files, log
from kdns.files import MAX_PEM
from kdns.metrics import MIN, Counter, Gauge
from kdns.net import x509
from kdns.watchfile import Follower

T = TypeVar("T")

MINIMUM: Final = ssl.TLSVersion.TLSv1_2  # RFC 8996 took back the versions before; it is CoreDNS's minimum too
LOOK_EVERY = 1.0  # seconds: handshakes use a new certificate at once, and three looks a second cost nothing
_CERTIFICATE: Final = x509.BEGIN
_KEY: Final = "PRIVATE KEY-----"

RELOADS: Final = Counter(
    "kdns_tls_reloads_total", "Certificates read again because their files changed, by result.", ("result",)
)
EXPIRES: Final = Gauge(
    "kdns_tls_certificate_expires_timestamp_seconds",
    "When a certificate in use expires (Unix time), by its file.",
    ("file",),
    across=MIN,
)

_log = log.plugin("tls")


class BadCertificate(ValueError):
    """Files that make no identity; the text names the file and says what to do."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """The files of a server's identity, and what it asks of clients.

    `authority` is a file with the certificates by which clients are verified; "": this machine's. `clients` is whether
    they are asked for a certificate. `keylog` is a file for the secrets of connections; "": none.
    """

    certificate: str
    key: str
    authority: str = ""
    clients: ssl.VerifyMode = ssl.CERT_NONE
    minimum: ssl.TLSVersion = MINIMUM
    keylog: str = ""

    def paths(self) -> list[str]:
        """The files that are read."""
        return [path for path in (self.certificate, self.key, self.authority) if path]

    def context(self, alpn: Sequence[str] = ()) -> ssl.SSLContext:
        """A server's context, offering these protocols. Raises BadCertificate."""
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.minimum_version = self.minimum
        # A client may not make a server do a handshake's work again and again on one connection (CVE-2011-1473).
        made.options |= ssl.OP_NO_RENEGOTIATION
        if alpn:
            made.set_alpn_protocols(list(alpn))
        _read(self.certificate, _CERTIFICATE, "certificate")
        _read(self.key, _KEY, "private key")
        try:
            made.load_cert_chain(self.certificate, self.key, password=lambda: _locked(self.key))
        except ssl.SSLError as error:
            raise BadCertificate(_why(self, error)) from None
        if self.clients != ssl.CERT_NONE:
            made.verify_mode = self.clients
            self._trust(made)
        if self.keylog:
            try:
                # Others may not read what is made: with it they can read all that was sent.
                os.close(os.open(self.keylog, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o600))
                files.check_regular(self.keylog)
                made.keylog_filename = self.keylog
            except OSError as error:
                raise BadCertificate(
                    f"the key log {self.keylog} cannot be written: {error.strerror or error}"
                ) from None
        return made

    def validity(self) -> tuple[float, float]:
        """From when and until when the certificate is valid, as Unix time; zeros where that cannot be read."""
        try:
            return x509.validity(_read(self.certificate, _CERTIFICATE, "certificate"))
        except BadCertificate:
            return 0.0, 0.0

    def names(self) -> tuple[str, ...]:
        """The DNS names that the certificate is for. Raises BadCertificate."""
        return x509.names(_read(self.certificate, _CERTIFICATE, "certificate"))

    def _trust(self, context: ssl.SSLContext) -> None:
        if not self.authority:
            context.load_default_certs(ssl.Purpose.CLIENT_AUTH)
            return
        _read(self.authority, _CERTIFICATE, "authority's certificate")
        try:
            context.load_verify_locations(self.authority)
        except ssl.SSLError:
            raise BadCertificate(
                f"the authority's certificate {self.authority} cannot be read: expected certificates in PEM form"
            ) from None


@final
class Identity(Generic[T]):
    """What a server shows in handshakes: `current`, made of files by `make`, and made again from `start` to `stop`.

    When the certificate expires is shown from `start` to `stop`, as long as any identity has this file.
    """

    started: ClassVar[dict[str, set["Identity[Any]"]]] = {}  # by the certificate's file

    def __init__(self, files: TlsFiles, make: Callable[[], T], renewed: Callable[[], object] | None = None) -> None:
        """Reads the files, which may wait. `renewed` is called when `current` has changed. Raises BadCertificate."""
        self.files = files
        self.make = make
        self.renewed = renewed
        self.follower = Follower(f"certificate {files.certificate}", files.paths, most=MAX_PEM, keep=0)
        self.follower.look()  # before they are read: what changes meanwhile is found at the next look
        self.current, self.expires = self._made()
        self.task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to follow the files, if it does not yet."""
        if self.task is None:
            follow = partial(self.follower.follow, LOOK_EVERY, self._renew)
            self.task = asyncio.get_running_loop().create_task(faults.supervise("following a certificate", follow))
            self.started.setdefault(self.files.certificate, set()).add(self)
            self._count()

    def stop(self) -> None:
        """Follows no more."""
        if self.task is not None:
            self.task.cancel()
            self.task = None
            self.started[self.files.certificate].discard(self)
            self._count()

    def _made(self) -> tuple[T, float]:
        return self.make(), self.files.validity()[1]

    def _count(self) -> None:
        path = self.files.certificate
        if self.started[path]:
            EXPIRES.slot(path)[0] = min(each.expires for each in self.started[path])
        else:
            del self.started[path]
            EXPIRES.remove(path)

    async def _renew(self, changes: Any) -> None:
        try:
            self.current, self.expires = await files.waiting(
                f"reading certificate {self.files.certificate}", self._made
            )
        except (BadCertificate, TimeoutError) as error:
            if isinstance(error, TimeoutError):
                self.follower.forget(changes)
            RELOADS.slot("failed")[0] += 1
            _log.error(f"{error}; the previous certificate stays in use")
        else:
            RELOADS.slot("ok")[0] += 1
            self._count()
            if self.renewed is not None:
                self.renewed()
            _log.info(f"{self.files.certificate} has changed and is in use")


class Shown(NamedTuple, Generic[T]):
    """What handshakes with one certificate need, and the DNS names that it is for."""

    made: T
    names: tuple[str, ...]


@final
class Identities(Generic[T]):
    """What a listener shows: an identity for each of its certificates, whose server name chooses between them."""

    def __init__(self, files: Sequence[TlsFiles], make: Callable[[TlsFiles], T]) -> None:
        """Reads the files, which may wait. Raises BadCertificate."""
        self.files = tuple(files)
        self.make = make
        self.all = [Identity(each, partial(self._shown, each), self._index) for each in files]
        self.by_name: dict[str, Identity[Shown[T]]] = {}
        self._index()

    @property
    def several(self) -> bool:
        """True if there is a choice."""
        return len(self.all) > 1

    @property
    def first(self) -> T:
        """What is shown to clients that name no server, or one that no certificate is for."""
        return self.all[0].current.made

    def choose(self, name: str | None) -> T:
        """What is shown to a client that names a server: its own certificate before that of a wildcard, which stands
        for one label (RFC 9525, section 6.3).
        """
        key = (name or "").lower()
        found = self.by_name.get(key)
        if found is None and (dot := key.find(".")) > 0:
            found = self.by_name.get(f"*{key[dot:]}")
        return self.first if found is None else found.current.made

    def unused(self) -> list[str]:
        """The files of certificates that are shown to nobody: those before them are for all of their names."""
        used = {id(self.all[0]), *map(id, self.by_name.values())}
        return [each.files.certificate for each in self.all if id(each) not in used]

    def start(self) -> None:
        """Begins to follow the files."""
        for each in self.all:
            each.start()

    def stop(self) -> None:
        """Follows them no more."""
        for each in self.all:
            each.stop()

    def _shown(self, files: TlsFiles) -> Shown[T]:
        return Shown(self.make(files), files.names() if len(self.files) > 1 else ())

    def _index(self) -> None:
        by_name: dict[str, Identity[Shown[T]]] = {}
        for each in self.all:
            for name in each.current.names:
                by_name.setdefault(name, each)
        self.by_name = by_name


def _read(path: str, mark: str, what: str) -> str:
    """The text of a file that holds what it should in PEM form. Raises BadCertificate."""
    try:
        # OpenSSL reads it after us.
        found = files.read_regular(path, MAX_PEM).decode("ascii", errors="replace")
    except files.NotRegular:
        raise BadCertificate(f"the {what} {path} is not a regular file") from None
    except FileNotFoundError:
        raise BadCertificate(f"the {what} {path} does not exist") from None
    except OSError as error:
        hint = ": the user that kdns runs as must be able to read it" if isinstance(error, PermissionError) else ""
        raise BadCertificate(f"the {what} {path} cannot be read: {error.strerror or error}{hint}") from None
    if mark not in found:
        raise BadCertificate(f'{path} holds no {what} in PEM form: expected a line with "{mark}"')
    return found


def _locked(path: str) -> NoReturn:
    raise BadCertificate(
        f"the private key {path} is encrypted, and a server cannot ask for its password: store the key without one"
    )


def _why(files: TlsFiles, error: ssl.SSLError) -> str:
    """What OpenSSL says of a certificate and a key, in words."""
    reason = error.reason or str(error)
    # The last: the key is of another type, and there is no certificate for those.
    if reason in ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"):
        return (
            f"the private key {files.key} is not that of the certificate {files.certificate}, the first in its file: "
            f"renew both together"
        )
    if reason.endswith(("KEY_TOO_SMALL", "MD_TOO_WEAK")):
        return (
            f"the certificate {files.certificate} is too weak for this machine's OpenSSL ({reason}): use a longer key, "
            f"or SHA-256"
        )
    return (
        f"the certificate {files.certificate} and the private key {files.key} cannot be read ({reason}): expected PEM "
        f"files"
    )
