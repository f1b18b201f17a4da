"""The web configuration file of Prometheus' exporters (YAML): TLS for /metrics, who may read them, and headers of
replies.

What it says and kdns does not do is an error that names it: a password that is silently not asked for would be worse
than none.
"""

import hashlib
import os
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

from kdns import files
from kdns.corefile import CorefileError
from kdns.net.certificates import MINIMUM, Identity, TlsFiles
from kdns.plugins.prometheus.users import Users

MAX_FILE: Final = 1 << 20  # octets; it has some lines, and two for each user
_VERSIONS: Final = {
    "TLS10": ssl.TLSVersion.TLSv1, "TLS11": ssl.TLSVersion.TLSv1_1, "TLS12": ssl.TLSVersion.TLSv1_2,
    "TLS13": ssl.TLSVersion.TLSv1_3,
}  # fmt: skip
_CLIENTS: Final = {
    "": ssl.CERT_NONE, "NoClientCert": ssl.CERT_NONE, "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}  # fmt: skip
_TLS: Final = ("cert_file", "key_file", "client_auth_type", "client_ca_file", "min_version", "max_version")
# Beside those: no text. Curves are OpenSSL's choice, whatever is preferred.
_OTHER: Final = ("prefer_server_cipher_suites", "cipher_suites", "curve_preferences")
# The names of cipher suites in Go, and OpenSSL's. Those of TLS 1.3 are always there, as with Go.
_SUITES: Final = {
    f"TLS_{exchange}_WITH_{cipher}": prefix + name
    for exchange, prefix in (("ECDHE_ECDSA", "ECDHE-ECDSA-"), ("ECDHE_RSA", "ECDHE-RSA-"), ("RSA", ""))
    for cipher, name in (
        ("AES_128_GCM_SHA256", "AES128-GCM-SHA256"), ("AES_256_GCM_SHA384", "AES256-GCM-SHA384"),
        ("CHACHA20_POLY1305_SHA256", "CHACHA20-POLY1305"), ("AES_128_CBC_SHA256", "AES128-SHA256"),
        ("AES_128_CBC_SHA", "AES128-SHA"), ("AES_256_CBC_SHA", "AES256-SHA"),
    )
    if prefix or "CHACHA20" not in cipher
}  # fmt: skip
_SUITES_13: Final = ("TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256")
# Parts of a header that an exporter lets the file set.
_HEADERS: Final = (
    "Content-Security-Policy", "Strict-Transport-Security", "X-Content-Type-Options", "X-Frame-Options",
    "X-XSS-Protection",
)  # fmt: skip


@dataclass(slots=True)
class WebConfig:
    """`identity`: None for plain HTTP. `headers` are of every reply. `users`: None where everybody may read. `digest`
    is of what the file said.
    """

    identity: Identity[ssl.SSLContext] | None = None
    headers: dict[str, str] = field(default_factory=dict)
    users: Users | None = None
    digest: str = ""


@dataclass(frozen=True)
class _Tls(TlsFiles):
    """An identity's files, and what only this file can say of TLS. `suites` are OpenSSL's names of those before 1.3."""

    maximum: ssl.TLSVersion = ssl.TLSVersion.MAXIMUM_SUPPORTED
    suites: tuple[str, ...] = ()
    ours_first: bool = True

    def context(self, alpn: Sequence[str] = ()) -> ssl.SSLContext:
        made = super().context(alpn)
        made.maximum_version = self.maximum
        if self.suites:
            made.set_ciphers(":".join(self.suites))
        if self.ours_first:
            made.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
        else:
            made.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
        return made


def read(path: str) -> WebConfig:
    """What a file says. Raises CorefileError with the path and what to change."""
    try:
        data = files.read(path, MAX_FILE)
        made = _understand(yaml.safe_load(data.decode()) or {}, os.path.dirname(path))
        made.digest = hashlib.sha256(data).hexdigest()
        return made
    except (OSError, ValueError, yaml.YAMLError) as error:
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error).partition("\n")[0]
        raise CorefileError(None, f"prometheus: the web configuration {path}: {text}") from None


def _understand(found: Any, folder: str) -> WebConfig:
    top = _mapping(found, "the file", ("tls_server_config", "http_server_config", "basic_auth_users"))
    out = WebConfig()
    users = _mapping(top.get("basic_auth_users") or {}, "basic_auth_users", None)
    if users:
        out.users = Users({str(name): str(text) for name, text in users.items()})
    tls = _mapping(top.get("tls_server_config") or {}, "tls_server_config", (*_TLS, *_OTHER))
    if tls:
        tls_files = _tls(tls, folder)
        out.identity = Identity(tls_files, tls_files.context)
    http = _mapping(top.get("http_server_config") or {}, "http_server_config", ("http2", "headers"))
    for name, value in _mapping(http.get("headers") or {}, "headers", _HEADERS).items():
        if not str(value).isprintable():
            raise ValueError(f"headers: {name} has a character that no header can have")
        out.headers[name] = str(value)
    return out


def _tls(found: dict[str, Any], folder: str) -> _Tls:
    values = {name: str(value) for name, value in found.items() if name in _TLS and value}
    paths = {
        # As with the exporters, beside the file that names it.
        name: os.path.join(folder, values[name])
        for name in ("cert_file", "key_file", "client_ca_file")
        if name in values
    }
    for name in ("cert_file", "key_file"):
        if name not in paths:
            raise ValueError(f"tls_server_config: {name} is missing")
    clients = _choice(values, "client_auth_type", _CLIENTS, ssl.CERT_NONE)
    if "client_ca_file" in paths and clients == ssl.CERT_NONE:
        raise ValueError("client_ca_file needs a client_auth_type that verifies (RequireAndVerifyClientCert)")
    if "client_ca_file" not in paths and clients != ssl.CERT_NONE:
        raise ValueError("client_auth_type needs client_ca_file")
    return _Tls(
        certificate=paths["cert_file"],
        key=paths["key_file"],
        authority=paths.get("client_ca_file", ""),
        clients=clients,
        minimum=_choice(values, "min_version", _VERSIONS, MINIMUM),
        maximum=_choice(values, "max_version", _VERSIONS, ssl.TLSVersion.MAXIMUM_SUPPORTED),
        suites=_suites(found.get("cipher_suites") or []),
        ours_first=bool(found.get("prefer_server_cipher_suites", True)),
    )


def _suites(found: Any) -> tuple[str, ...]:
    """OpenSSL's names of the suites before TLS 1.3."""
    if not isinstance(found, list):
        raise ValueError("cipher_suites is not a list")
    for name in found:
        if name not in _SUITES and name not in _SUITES_13:
            raise ValueError(f'cipher_suites: "{name}" is none of {", ".join((*_SUITES, *_SUITES_13))}')
    return tuple(_SUITES[name] for name in found if name in _SUITES)


def _mapping(found: Any, what: str, known: tuple[str, ...] | None) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise ValueError(f"{what} is not a mapping")
    for name in found:
        if known is not None and name not in known:
            raise ValueError(f"{name} is not supported by kdns (there are: {', '.join(known)})")
    return found


def _choice(values: dict[str, str], name: str, choices: dict[str, Any], default: Any) -> Any:
    if name not in values:
        return default
    if values[name] not in choices:
        raise ValueError(f'{name}: "{values[name]}" is none of {", ".join(word for word in choices if word)}')
    return choices[values[name]]
