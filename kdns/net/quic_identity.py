"""What a server shows in QUIC handshakes: the certificate and key of `net.certificates`, in the form that aioquic
wants.
"""

from collections.abc import Sequence
from typing import Any, Final

from aioquic.quic.configuration import QuicConfiguration
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from kdns.net.certificates import BadCertificate, TlsFiles
from kdns.net.quic_ids import CID_OCTETS
from kdns.quicmachine import encode_certificates

# Octets that a client may send on a stream before we have read them: a DNS message with its length, or an HTTP request.
MAX_STREAM_DATA: Final = 80 << 10
MAX_DATA: Final = 128 << 10  # of all streams together: one such message, and a few hundred usual queries


def configuration(files: TlsFiles, alpn: Sequence[str]) -> QuicConfiguration:
    """A server's configuration, offering these protocols. Reads files, which may wait. Raises BadCertificate."""
    files.context(alpn)  # says better what is wrong
    made = QuicConfiguration(
        is_client=False,
        alpn_protocols=list(alpn),
        connection_id_length=CID_OCTETS,
        max_data=MAX_DATA,
        max_stream_data=MAX_STREAM_DATA,
    )
    try:
        made.load_cert_chain(files.certificate, files.key)
    except (OSError, ValueError, IndexError, TypeError) as error:
        raise BadCertificate(f"{files.certificate} and {files.key} make no identity for QUIC: {error}") from None
    key = made.private_key
    if not isinstance(key, rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey) and not (
        isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1)
    ):
        # What aioquic can sign with. With another key each handshake would fail.
        raise BadCertificate(
            f"the private key {files.key} cannot be used over QUIC: expected ECDSA on P-256 or P-384, RSA, Ed25519 or "
            f"Ed448"
        )
    encode_certificates(made)
    return made


def secret(made: QuicConfiguration) -> bytes:
    """What only those know who have the configuration's private key."""
    key: Any = made.private_key
    octets: bytes = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    return octets
