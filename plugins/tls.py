"""tls - the certificate that `tls://`, `https://`, `grpc://`, `quic://` and `https3://` listeners show.

Without it one of the first three serves unencrypted, for a proxy in front that does the encryption, and says so when it
starts. The last two, over QUIC, must have it.

## Syntax

    tls CERT KEY [CA] {
        client_auth nocert|request|verify_if_given|require_and_verify
        min_version 1.2|1.3
        keylog FILE
    }
    tls FOLDER { ... }

* CERT is a file with the server's certificate and the authorities' between it and the root; KEY its private key,
  without a password. Both in PEM form; relative paths begin at `root`.
* FOLDER (kdns only) holds `tls.crt`, `tls.key` and perhaps `ca.crt`: a Kubernetes Secret as it is mounted.
* `client_auth` says whether clients must show a certificate. `nocert` (default) and `request`: certificates are
  ignored; `verify_if_given`: a certificate that is shown must be valid; `require_and_verify`: a valid one is required.
  CA holds the authorities to verify by; without CA, this machine's are used.
* `min_version` (kdns only): the least version of TLS; default 1.2.
* `keylog` writes the secrets of all connections, but those over QUIC, to FILE, so that Wireshark can read what was
  sent. For finding faults only. A file that is not there is made for this user alone.

The files are looked at every second, and read again when they have changed: new handshakes use the new
certificate, and open connections stay open. Bad files are an error at start; later, the previous certificate stays in
use, and a line in the log says why.

A listener for `tls://` offers the protocol `dot` (ALPN). CoreDNS's `require` accepts any certificate unverified, which
keeps no one out: kdns refuses it.

## Several certificates

Server blocks on the same address and port share a listener, and each may have a certificate of its own. A client gets
the one for the server name that it sends (SNI): whose DNS names (subjectAltName) have it, else one with a wildcard for
its first label. Clients that send no name, or one that no certificate is for, get the first block's. The name chooses
the certificate and nothing else: every client may ask all blocks of the listener.

So what is asked of clients is one for the listener: blocks whose `client_auth`, CA or `min_version` differ are an
error. The last block's `keylog` counts for all.

## Examples

~~~ corefile
tls://.:1853 {
    tls tls.crt tls.key
    whoami
}
~~~

Two certificates on one port; the folder `lab` is a mounted Secret:

~~~ corefile
tls://.:2853 {
    tls tls.crt tls.key
    whoami
}
tls://lab.example:2853 {
    tls lab
    whoami
}
~~~

## Metrics

* `kdns_tls_handshakes_total{server,result}` - `ok`, `failed`, `timeout`, or `evicted`: of more than 500 at a time, the
  one that its client stalled for longest.
* `kdns_tls_half_open_connections{server}` - connections whose handshake is not over.
* `kdns_tls_reloads_total{result}` - certificates read again, `ok` or `failed`.
* `kdns_tls_certificate_expires_timestamp_seconds{file}` - when a certificate in use expires.
"""

import os
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import ClassVar, Final

from kdns.corefile import CorefileError, Directive, Position, ServerBlock
from kdns.net.certificates import MINIMUM, BadCertificate, TlsFiles
from kdns.plugin import Plugin, readers
from kdns.plugin.base import BlockInfo, ListenerOptions

_OPTIONS: Final = ("client_auth", "min_version", "keylog")
_CLIENTS: Final = {
    "nocert": ssl.CERT_NONE, "request": ssl.CERT_NONE, "verify_if_given": ssl.CERT_OPTIONAL,
    "require_and_verify": ssl.CERT_REQUIRED,
}  # fmt: skip
_VERSIONS: Final = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


@dataclass(frozen=True, slots=True)
class Config:
    """The directive as written; one path is a folder."""

    paths: tuple[str, ...]
    at: Position
    clients: ssl.VerifyMode = ssl.CERT_NONE
    minimum: ssl.TLSVersion = MINIMUM
    keylog: str = ""


class Tls(Plugin):
    """Gives its listener an identity."""

    name: ClassVar[str] = "tls"

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: ServerBlock) -> Sequence[Config]:
        directive = readers.once(directives)
        options = [line.name.text for line in directive.body or ()]
        if not directive.args and "acme" in options:
            raise readers.fail(
                directive, "tls: kdns does not fetch certificates (ACME): use cert-manager, and name its files here"
            )
        paths = readers.arguments(directive, 1, 3, "CERT KEY [CA], or a folder with tls.crt and tls.key,")
        found: dict[str, object] = {}
        for line in directive.body or ():
            name = line.name.text
            if name == "client_auth":
                word = readers.one(line, " or ".join(_CLIENTS))
                if word.text == "require":
                    raise readers.fail(
                        word,
                        "require takes any certificate, which keeps no one out: use require_and_verify with a CA, or "
                        "nocert",
                    )
                if word.text not in _CLIENTS:
                    raise readers.fail(
                        word, f'unknown authentication type "{word.text}": expected {", ".join(_CLIENTS)}'
                    )
                found["clients"] = _CLIENTS[word.text]
            elif name == "min_version":
                found["minimum"] = _VERSIONS[readers.choice(line, tuple(_VERSIONS))]
            elif name == "keylog":
                found["keylog"] = readers.one(line, "a file").text
            else:
                raise readers.unknown(line, _OPTIONS)
        return [Config(tuple(paths), directive.at, **found)]  # type: ignore[arg-type]

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.files: TlsFiles | None = None
        self.validity = (0.0, 0.0)

    def load(self, block: BlockInfo) -> None:
        config: Config = self.config
        paths = [block.path(path) for path in config.paths]
        if len(paths) == 1:
            paths = self._mounted(paths[0])
        keylog = block.path(config.keylog) if config.keylog else ""
        certificate, key, *authority = paths
        self.files = TlsFiles(certificate, key, "".join(authority), config.clients, config.minimum, keylog)
        try:
            self.files.context()
            self.validity = self.files.validity()
        except BadCertificate as error:
            raise CorefileError(config.at, f"tls: {error}") from None

    def _mounted(self, folder: str) -> list[str]:
        """The files of a Secret's folder."""
        config: Config = self.config
        if not os.path.isdir(folder):
            raise CorefileError(
                config.at, f"tls: {folder} is not a folder: expected CERT KEY, or a folder with tls.crt and tls.key"
            )
        paths = [os.path.join(folder, name) for name in ("tls.crt", "tls.key")]
        authority = os.path.join(folder, "ca.crt")
        if config.clients != ssl.CERT_NONE and os.path.exists(authority):
            paths.append(authority)
        return paths

    def warnings(self) -> Sequence[str]:
        config: Config = self.config
        out = [f"the secrets of all connections are written to {config.keylog}"] if config.keylog else []
        begins, expires = self.validity
        if begins > time.time():
            out.append(
                f"the certificate {self._path} is not valid before {_when(begins)}: until then clients refuse it"
            )
        if 0 < expires < time.time():
            out.append(f"the certificate {self._path} expired on {_when(expires)}: clients refuse it. Renew it")
        return out

    @property
    def _path(self) -> str:
        return self.files.certificate if self.files is not None else ""

    def listener(self) -> ListenerOptions:
        return ListenerOptions(tls=() if self.files is None else (self.files,))

    @property
    def at(self) -> Position:
        config: Config = self.config
        return config.at

    @property
    def verifies(self) -> ssl.VerifyMode:
        config: Config = self.config
        return config.clients

    @property
    def asks(self) -> Mapping[str, str]:
        """What blocks that share a listener must agree on. The authority is known once folders were looked into."""
        config: Config = self.config
        modes = {mode: word for word, mode in reversed(_CLIENTS.items())}
        versions = {version: word for word, version in _VERSIONS.items()}
        authority = self.files.authority if self.files is not None and config.clients != ssl.CERT_NONE else ""
        return {
            "client_auth": modes[config.clients],
            "min_version": versions[config.minimum],
            "the CA": authority or "of this machine",
        }


def _when(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(sep=" ", timespec="minutes")
