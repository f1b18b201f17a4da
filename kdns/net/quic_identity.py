"""The identity of a server in QUIC handshakes: that of `net.certificates`, in the form that aioquic wants."""

import ssl
from typing import Final, final

from aioquic.quic.configuration import QuicConfiguration

from kdns import log
from kdns.net.certificates import BadCertificate, Identity

# Octets that a client may send on a stream before we have read them: a DNS message with its length, or an HTTP request.
MAX_STREAM_DATA: Final = 80 << 10
MAX_DATA: Final = 128 << 10  # of all streams together: one such message, and a few hundred usual queries

_log = log.plugin("tls")


@final
class QuicIdentity:
    """A certificate and key for handshakes. `idle` is when a silent connection ends, in seconds."""

    def __init__(self, identity: Identity, idle: float) -> None:
        """Raises BadCertificate."""
        self.identity = identity
        self.idle = idle
        self.seen: ssl.SSLContext = identity.context()
        self.made = self._make()

    def configuration(self) -> QuicConfiguration:
        """The configuration for a handshake that begins now."""
        context = self.identity.context()
        if context is not self.seen:
            self.seen = context
            try:
                self.made = self._make()
            except BadCertificate as error:
                _log.error(f"{error}; the previous certificate stays in use")
        return self.made

    def _make(self) -> QuicConfiguration:
        files = self.identity.files
        made = QuicConfiguration(
            is_client=False, alpn_protocols=list(self.identity.alpn), idle_timeout=self.idle, max_data=MAX_DATA,
            max_stream_data=MAX_STREAM_DATA,
        )  # fmt: skip
        try:
            made.load_cert_chain(files.certificate, files.key)
        except (OSError, ValueError, IndexError, TypeError) as error:
            raise BadCertificate(f"{files.certificate} and {files.key} make no identity for QUIC: {error}") from None
        return made
