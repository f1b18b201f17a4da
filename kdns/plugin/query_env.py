"""The functions by which expressions of `view` and `template` read a query, as CoreDNS names them."""

import ipaddress
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from kdns.corefile import Token
from kdns.dns import iana
from kdns.dns.name import to_text
from kdns.expression import BadExpression, EvaluationError, Expression, Function, compile_expression
from kdns.plugin import readers
from kdns.plugin.request import Request


class QueryEnv(NamedTuple):
    """The environment of an expression: the query, how its labels are read, and a regular expression's groups."""

    request: Request
    label: Callable[[str], str]
    groups: Mapping[str, str] = {}


def _host(address: tuple[object, ...] | None) -> str:
    return "" if not address else str(address[0])


def _port(address: tuple[object, ...] | None) -> str:
    return "" if not address else str(address[1])


def _in_cidr(env: QueryEnv, address: str, network: str) -> bool:
    try:
        host = ipaddress.ip_address(address.partition("%")[0])
        return host in ipaddress.ip_network(network, strict=False)
    except ValueError as error:
        raise EvaluationError(str(error)) from None


def _of(kind: str, read: Callable[[Request], object]) -> Function:
    return Function((), kind, lambda env: read(env.request))


FUNCTIONS: Final[dict[str, Function]] = {
    "name": _of("string", lambda r: to_text(r.question.name)),
    "type": _of("string", lambda r: iana.type_text(r.question.type)),
    "class": _of("string", lambda r: iana.class_text(r.question.cls)),
    "client_ip": _of("string", lambda r: _host(r.client)),
    "server_ip": _of("string", lambda r: _host(r.local)),
    "port": _of("string", lambda r: _port(r.client)),
    "server_port": _of("string", lambda r: _port(r.local)),
    "proto": _of("string", lambda r: r.transport),
    "id": _of("int", lambda r: r.id),
    "opcode": _of("int", lambda r: r.opcode),
    "size": _of("int", lambda r: r.size),
    "bufsize": _of("int", lambda r: r.bufsize),
    "do": _of("bool", lambda r: r.edns is not None and r.edns.do),
    "incidr": Function(("string", "string"), "bool", _in_cidr),
    "metadata": Function(("string",), "string", lambda env, label: env.label(label)),
}
# For expressions beside a regular expression's match.
WITH_GROUPS: Final = {
    **FUNCTIONS,
    "group": Function(("any",), "string", lambda env, name: env.groups.get(str(name), "")),
}


def compiled(words: tuple[Token, ...], functions: Mapping[str, Function], names: Mapping[str, str]) -> Expression:
    """The expression that a line's words make. Raises CorefileError."""
    text = " ".join(word.text for word in words)
    try:
        return compile_expression(text, functions, names)
    except BadExpression as error:
        raise readers.fail(words[0], f"bad expression: {error}, at character {error.at + 1} of {text!r}") from None
