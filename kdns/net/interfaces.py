"""This machine's addresses, from the kernel over rtnetlink (rtnetlink(7), RTM_GETADDR)."""

import socket
import struct
from typing import Final, NamedTuple

_RTM_GETADDR: Final = 22
_NLM_REQUEST_DUMP: Final = 0x301
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2


class InterfaceAddress(NamedTuple):
    """One address: the interface's name, and the address as text; link-local IPv6 with its zone (`fe80::1%eth0`)."""

    interface: str
    address: str
    packed: bytes

    @property
    def loopback(self) -> bool:
        return self.packed[0] == 127 if len(self.packed) == 4 else self.packed == b"\0" * 15 + b"\1"

    @property
    def link_local(self) -> bool:
        return len(self.packed) == 16 and self.packed[0] == 0xFE and self.packed[1] & 0xC0 == 0x80


def addresses() -> list[InterfaceAddress]:
    """All addresses of all interfaces, in the kernel's order; empty where rtnetlink cannot be asked."""
    out: list[InterfaceAddress] = []
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
            sock.settimeout(2)
            sock.bind((0, 0))
            sock.send(struct.pack("=IHHII B3xI", 24, _RTM_GETADDR, _NLM_REQUEST_DUMP, 1, 0, 0, 0))
            while _read(sock.recv(65536), out):
                pass
    except OSError:
        return out
    return out


def _read(data: bytes, out: list[InterfaceAddress]) -> bool:
    off = 0
    while off + 16 <= len(data):
        size, kind = struct.unpack_from("=IH", data, off)
        if kind in (_NLMSG_DONE, _NLMSG_ERROR) or size < 16:
            return False
        family, _, _, _, index = struct.unpack_from("=BBBBI", data, off + 16)
        found = _attributes(data, off + 24, off + size)
        packed = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS)
        if packed is not None and family in (socket.AF_INET, socket.AF_INET6):
            try:
                name = socket.if_indextoname(index)
            except OSError:
                name = str(index)
            text = socket.inet_ntop(family, packed)
            entry = InterfaceAddress(name, text, packed)
            out.append(entry._replace(address=f"{text}%{name}") if entry.link_local else entry)
        off += (size + 3) & ~3
    return True


def _attributes(data: bytes, off: int, end: int) -> dict[int, bytes]:
    out = {}
    while off + 4 <= end:
        size, kind = struct.unpack_from("=HH", data, off)
        if size < 4:
            break
        out[kind] = data[off + 4 : off + size]
        off += (size + 3) & ~3
    return out
