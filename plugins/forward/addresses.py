"""From the words behind `forward FROM` to upstreams' addresses: files are read and names looked up here."""

import ipaddress
import os
import socket
import ssl

from kdns.corefile import Token
from kdns.pipeline import setup
from kdns.pipeline.block import Block
from kdns.plugins.forward.config import Config
from kdns.upstream.upstream import PORTS, Address


def addresses(config: Config, block: Block) -> list[Address]:
    """The upstreams' addresses, without repeats. Reads resolv.conf files and looks host names up. Raises CorefileError."""
    out: dict[tuple[str, str, int], Address] = {}
    for word in config.targets:
        for where in _target(word, config, block):
            out.setdefault((where.transport, where.host, where.port), where)
    if not out:
        raise setup.fail(config.targets[0], "no valid upstream addresses found")
    return list(out.values())


def _target(word: Token, config: Config, block: Block) -> list[Address]:
    text = word.text
    transport = "dns"
    scheme, separator, rest = text.partition("://")
    if separator:
        if scheme not in PORTS:
            raise setup.fail(word, f'unknown scheme "{scheme}": expected dns://, tls:// or https://')
        if scheme == "https" and "/" in rest.rstrip("/"):
            raise setup.fail(word, f'"{text}" has a path: queries go to /dns-query always')
        rest = rest.rstrip("/")
        transport, text = scheme, rest
    host, port = _host_and_port(text, PORTS[transport])
    server_name = ""
    if transport != "dns" and "%" in host:
        host, _, server_name = host.partition("%")
    bare, _, zone = host.partition("%")
    try:
        ipaddress.ip_address(bare)
        return [Address(transport, host if zone else bare, port, server_name)]
    except ValueError:
        pass
    if not separator:
        path = block.path(text)
        if os.path.isfile(path):
            return [Address("dns", host, 53) for host in _nameservers(path, word)]
        if "/" in text:
            raise setup.fail(word, f'"{text}" is neither an address nor a file that can be read')
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError) as error:
        raise setup.fail(word, f'"{text}" is no address and no file, and it cannot be resolved: {error}') from None
    return [Address(transport, str(entry[4][0]), port, server_name or (host if transport != "dns" else "")) for entry in found]


def _host_and_port(text: str, default: int) -> tuple[str, int]:
    if text.startswith("["):
        host, _, port = text[1:].partition("]")
        return host, int(port[1:]) if port[1:].isdecimal() else default
    if text.count(":") == 1:
        host, _, port = text.partition(":")
        if port.isdecimal() and int(port) <= 65535:
            return host, int(port)
    return text, default


def _nameservers(path: str, word: Token) -> list[str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = file.read().splitlines()
    except OSError as error:
        raise setup.fail(word, f"{path}: {error.strerror or error}") from None
    out = []
    for line in lines:
        words = line.split()
        if len(words) > 1 and words[0] == "nameserver":
            host = words[1].partition("%")[0]
            try:
                out.append(str(ipaddress.ip_address(host)))
            except ValueError:
                continue
    return out


def tls_context(paths: list[str], transport: str) -> ssl.SSLContext:
    """The TLS context of `tls` arguments: [CA], [CERT KEY] or [CERT KEY CA]. Raises OSError."""
    ca = paths[-1] if len(paths) in (1, 3) else None
    context = ssl.create_default_context(cafile=ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if transport == "https":
        context.set_alpn_protocols(["h2"])
    if len(paths) >= 2:
        context.load_cert_chain(paths[0], paths[1])
    return context
