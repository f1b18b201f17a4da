"""From the words behind `forward FROM` to upstreams' addresses: files are read and names looked up here."""

import ipaddress
import os

from kdns import files
from kdns.corefile import Token
from kdns.dns.resolvconf import MAX_RESOLV_CONF, nameservers
from kdns.plugin import readers
from kdns.plugin.base import BlockInfo
from kdns.plugins.forward.config import Config, target
from kdns.upstream.context import tls_context
from kdns.upstream.lookup import look_up
from kdns.upstream.upstream import ALPN, Address, Trust


def addresses(config: Config, block: BlockInfo) -> list[Address]:
    """The upstreams' addresses, without repeats. Reads resolv.conf files and looks host names up. Raises
    CorefileError.
    """
    out: dict[tuple[str, str, int], Address] = {}
    for word in config.targets:
        for where in _target(word, config, block):
            out.setdefault((where.transport, where.host, where.port), where)
    if not out:
        raise readers.fail(config.targets[0], "no valid upstream addresses found")
    return list(out.values())


def _target(word: Token, config: Config, block: BlockInfo) -> list[Address]:
    where = target(word)
    bare, _, zone = where.host.partition("%")
    try:
        ipaddress.ip_address(bare)
        return [Address(where.transport, where.host if zone else bare, where.port, where.server_name)]
    except ValueError:
        pass
    if where.plain:
        path = block.path(word.text)
        if os.path.isfile(path):
            return [Address("dns", host, 53) for host in _nameservers(path, word)]
        if "/" in word.text:
            raise readers.fail(word, f'"{word.text}" is neither an address nor a file that can be read')
    try:
        found = look_up(where.host, config.resolver)
    except OSError as error:
        text = f'"{word.text}" is neither an address nor a file, and it cannot be resolved: {error.strerror or error}'
        raise readers.fail(word, text) from None
    server_name = where.server_name or (where.host if where.transport != "dns" else "")
    return [Address(where.transport, host, where.port, server_name) for host in found]


def _nameservers(path: str, word: Token) -> list[str]:
    try:
        return nameservers(files.read_text(path, MAX_RESOLV_CONF))
    except OSError as error:
        raise readers.fail(word, f"{path}: {error.strerror or error}") from None


def trust(paths: list[str], transport: str) -> Trust:
    """What upstreams are verified by, of `tls` arguments: [CA], [CERT KEY] or [CERT KEY CA]. Raises OSError."""
    context = tls_context(paths, ["h2"] if transport in ("https", "grpc") else [])
    if transport in ALPN:
        from kdns.upstream.quic import configuration  # its library is an extra

        authority = paths[-1] if len(paths) in (1, 3) else None
        return configuration(authority, paths[:2] if len(paths) >= 2 else [], ALPN[transport])
    return context
