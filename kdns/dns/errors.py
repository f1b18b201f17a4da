"""Errors of names and messages."""


class BadName(ValueError):
    """A text or wire form that is not a domain name (RFC 1035, section 2.3.4)."""


class FormatError(ValueError):
    """A message that does not follow the wire format; a client gets FORMERR, an upstream's is dropped."""
