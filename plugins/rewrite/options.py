"""EDNS options that rules give a query on its way upstream (RFC 6891, section 6.1.2)."""

import ipaddress

from kdns.dns import edns
from kdns.dns.name import to_text
from kdns.plugin import Request
from kdns.plugins.rewrite.config import Option


def apply(option: Option, request: Request) -> bool:
    """Does what a rule says; whether it fitted."""
    before = edns.options(request.added)
    there = any(code == option.code for code, _ in before) or request.has_option(option.code)
    if option.action == "unset":
        _remove(request, option.code, before)
        return there
    # What changes from client to client is added once; a constant may stand beside others.
    if option.action == "append" and there and option.variable:
        if option.code == edns.SUBNET:
            _pass_on(request, before)
        return False
    if option.action == "replace" and not there:
        return False
    data = _data(option, request)
    if data is None:
        return False
    if option.action != "append":
        _remove(request, option.code, before)
    request.added += edns.option(option.code, data)
    return True


def _remove(request: Request, code: int, before: list[tuple[int, bytes]]) -> None:
    """Takes an option out of the query, the client's own too."""
    request.added = b"".join(edns.option(c, payload) for c, payload in before if c != code)
    request.remove_option(code)


def _pass_on(request: Request, before: list[tuple[int, bytes]]) -> None:
    """Sends the client's own subnet on, unless a rule has given the query one: a query has one at most."""
    own = request.option(edns.SUBNET)
    if own is not None and all(code != edns.SUBNET for code, _ in before):
        request.added += edns.option(edns.SUBNET, own)


def _data(option: Option, request: Request) -> bytes | None:
    """An option's data for a query; None where it is not known."""
    variable = option.variable
    if not variable:
        return option.data
    question = request.question
    if variable == "qname":
        return to_text(question.name).encode()
    if variable == "qtype":
        return question.type.to_bytes(2, "big")
    if variable == "protocol":
        return request.transport.encode()
    if variable == "subnet":
        return _subnet(request, option.bits)
    if "/" in variable:
        value = request.label(variable)
        return value.encode()[:1024] if value else None
    address = request.client if variable.startswith("client") else request.local
    if address is None:
        return None
    return _packed(address[0]) if variable.endswith("_ip") else int(address[1]).to_bytes(2, "big")


def _packed(host: str) -> bytes | None:
    try:
        return ipaddress.ip_address(host.partition("%")[0]).packed
    except ValueError:
        return None


def _subnet(request: Request, bits: tuple[int, int]) -> bytes | None:
    """The client's network as an ECS option's data (RFC 7871, section 6): family, prefix length, scope 0, address."""
    packed = _packed(str(request.client[0]))
    if packed is None:
        return None
    length = bits[0] if len(packed) == 4 else bits[1]
    octets = bytearray(packed[: (length + 7) // 8])
    if length % 8:
        octets[-1] &= 0xFF << (8 - length % 8) & 0xFF
    return bytes((0, 1 if len(packed) == 4 else 2, length, 0)) + octets
