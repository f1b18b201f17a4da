"""The TLS contexts of connections to others: whom they trust, and what they show and offer."""

import ssl
from collections.abc import Sequence

from kdns import files


def tls_context(
    paths: Sequence[str], alpn: Sequence[str] = (), minimum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2
) -> ssl.SSLContext:
    """A client's context of `tls` arguments: [CA], [CERT KEY] or [CERT KEY CA]; without CA this machine's are trusted.
    `alpn` are the protocols that it offers. Raises OSError.
    """
    files.check_pem(paths)
    ca = paths[-1] if len(paths) in (1, 3) else None
    context = ssl.create_default_context(cafile=ca)
    context.minimum_version = minimum
    if alpn:
        context.set_alpn_protocols(list(alpn))
    if len(paths) >= 2:
        context.load_cert_chain(paths[0], paths[1])
    return context
