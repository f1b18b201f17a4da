"""DNS over QUIC: the error codes that end its streams and connections (RFC 9250, section 4.3)."""

from typing import Final

NO_ERROR: Final = 0
INTERNAL_ERROR: Final = 1
PROTOCOL_ERROR: Final = 2
REQUEST_CANCELLED: Final = 3
EXCESSIVE_LOAD: Final = 4
