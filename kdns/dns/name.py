"""Domain names in expanded wire form: `bytes`, each label behind its length, the root's zero octet at the end.

    www.Example.com.  ->  b"\\x03www\\x07Example\\x03com\\x00"

Laws: a name is at most 255 octets, a label at most 63 (RFC 1035, section 2.3.4). Names are compared in lower
case; `bytes.lower()` is safe on a whole name, because a length octet is below 0x41 ("A"). A suffix is a matter
of labels: `\\x05x\\x03com\\x00` ends with the octets of `com.`, but is not below it; only a walk over the
lengths tells.
"""

from typing import Final

from kdns.dns.errors import BadName

MAX_NAME: Final = 255  # RFC 1035, section 2.3.4; the terminating zero octet counted
MAX_LABEL: Final = 63
ROOT: Final = b"\0"
_LENGTHS: Final = tuple([bytes((size,)) for size in range(MAX_LABEL + 1)])
_PLAIN: Final = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_*/+=~!#$%&'^`{}|<>?:,[]")


def from_plain(text: str) -> bytes | None:
    """from_text in lower case for ASCII text without escapes, in a third of the time; None where it is not a name, and
    for the root.
    """
    parts = text.lower().encode().split(b".")
    if not parts[-1]:
        parts.pop()
    sizes = [len(part) for part in parts]
    if not sizes or 0 in sizes or max(sizes) > MAX_LABEL or sum(sizes) + len(sizes) >= MAX_NAME:
        return None
    return b"".join([_LENGTHS[len(part)] + part for part in parts]) + ROOT


def from_text(text: str) -> bytes:
    """The wire form of a name in presentation format (RFC 1035, section 5.1: `\\.`, `\\DDD`); a final dot may be
    missing.

    Raises BadName for an empty label, a bad escape, or a label or name that is too long.
    """
    if text in (".", ""):
        return ROOT
    out = bytearray()
    label = bytearray()
    raw = text.encode("utf-8")
    i, end = 0, len(raw)
    while i < end:
        octet = raw[i]
        i += 1
        if octet == 0x2E:
            _close(out, label, text)
        elif octet == 0x5C:
            if raw[i : i + 3].isdigit() and i + 3 <= end:
                octet = int(raw[i : i + 3])
                i += 3
                if octet > 255:
                    raise BadName(f"bad escape in name {text!r}: \\{octet} is over 255")
            elif i < end and not 0x30 <= raw[i] <= 0x39:
                octet = raw[i]
                i += 1
            else:
                raise BadName(f"bad escape in name {text!r}")
            label.append(octet)
        else:
            label.append(octet)
    if label:
        _close(out, label, text)
    out.append(0)
    if len(out) > MAX_NAME:
        raise BadName(f"name of {len(out)} octets, at most {MAX_NAME} are allowed: {text[:60]!r}...")
    return bytes(out)


def _close(out: bytearray, label: bytearray, text: str) -> None:
    if not label:
        raise BadName(f"empty label in name {text!r}")
    if len(label) > MAX_LABEL:
        raise BadName(f"label of {len(label)} octets in name {text!r}, at most {MAX_LABEL} are allowed")
    out.append(len(label))
    out += label
    label.clear()


def to_text(name: bytes) -> str:
    """The presentation format of a wire name, with its final dot; odd octets as `\\DDD`, so the text is plain ASCII."""
    parts = labels(name)
    if not parts:
        return "."
    return "".join(label_text(label) + "." for label in parts)


def label_text(label: bytes) -> str:
    """One label in presentation format: `.` and `\\` escaped, octets outside printable ASCII as `\\DDD`."""
    if _PLAIN.issuperset(label):
        return label.decode("ascii")
    out = []
    for octet in label:
        if octet in b'.\\"();@':
            out.append("\\" + chr(octet))
        elif 0x20 < octet < 0x7F:
            out.append(chr(octet))
        else:
            out.append(f"\\{octet:03d}")
    return "".join(out)


def labels(name: bytes) -> list[bytes]:
    """The labels of a well-formed wire name, leftmost first, without the root's."""
    out = []
    off = 0
    while size := name[off]:
        out.append(name[off + 1 : off + 1 + size])
        off += size + 1
    return out


def from_labels(parts: list[bytes]) -> bytes:
    """The wire name of these labels, leftmost first. Raises BadName if one or the whole is too long."""
    out = b"".join(bytes((len(part),)) + part for part in parts if len(part) <= MAX_LABEL) + ROOT
    if len(out) > MAX_NAME or any(not 0 < len(part) <= MAX_LABEL for part in parts):
        raise BadName("a label or the name is too long")
    return out


def offsets(name: bytes) -> list[int]:
    """Where each label of a well-formed wire name begins; the last entry is the root's."""
    out = [0]
    off = 0
    while size := name[off]:
        off += size + 1
        out.append(off)
    return out


def is_within(name: bytes, zone: bytes) -> bool:
    """True if a name is the zone's apex or below it; both lower-cased wire names."""
    excess = len(name) - len(zone)
    off = 0
    while off < excess:
        off += name[off] + 1
    return off == excess and name[off:] == zone


def closest(name: bytes, zones: "list[bytes] | tuple[bytes, ...]") -> bytes | None:
    """The longest of the zones that the name is in, or None; all lower-cased wire names."""
    best = None
    for zone in zones:
        if (best is None or len(zone) > len(best)) and is_within(name, zone):
            best = zone
    return best


def parent(name: bytes) -> bytes:
    """The name less its leftmost label; the root is its own parent."""
    return name[name[0] + 1 :] if name[0] else name
