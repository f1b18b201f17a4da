"""The option `key` of the plugins that sign: which key pairs, and which of them are a zone's."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kdns.corefile import CorefileError, Line
from kdns.corefile.errors import Position
from kdns.dns.name import is_within, to_text
from kdns.plugin import readers
from kdns.plugin.base import BlockInfo

if TYPE_CHECKING:
    from kdns.zonefile.keys import Key

KINDS: Final = ("file", "directory", "aws_secretsmanager")


@dataclass(frozen=True, slots=True)
class KeyWord:
    """A key pair's path, or (`folder`) a folder of key pairs, as the Corefile names it."""

    text: str
    at: Position
    folder: bool = False


def parse(line: Line) -> list[KeyWord]:
    """Reads `key file KEY...` or `key directory DIR...`."""
    readers.arguments(line, 2, None, "file KEY..., or directory DIR")
    kind = line.args[0]
    if kind.text == "aws_secretsmanager":
        raise readers.fail(
            kind,
            "keys in AWS Secrets Manager are not read: mount them as files (the Secrets Store CSI driver does), "
            "and name those: key file KEY",
        )
    if kind.text not in KINDS:
        raise readers.fail(kind, f'expected file or directory after key, found "{kind.text}"')
    return [KeyWord(word.text, word.at, kind.text == "directory") for word in line.args[1:]]


def load(plugin: str, words: Sequence[KeyWord], zones: Sequence[bytes], block: BlockInfo) -> "dict[bytes, list[Key]]":
    """Reads the keys; gives those of each zone: its own, else all there are. Raises CorefileError."""
    from kdns.zonefile import keys  # the cryptography library: loaded where something is signed

    every: list[Key] = []
    for word in words:
        path = block.path(word.text)
        try:
            paths = [found for zone in zones for found in keys.in_folder(path, zone)] if word.folder else [path]
            if not paths:
                names = ", ".join(to_text(zone) for zone in zones)
                raise CorefileError(word.at, f"{plugin}: {path}: no keys of {names} (K<name>+<alg>+<id>.key) there")
            found = [keys.read(each) for each in paths]
        except keys.BadKey as error:
            raise CorefileError(word.at, f"{plugin}: {error}") from None
        except OSError as error:
            raise CorefileError(word.at, f"{plugin}: {path}: {error.strerror or error}") from None
        for key in found:
            if not any(is_within(zone, key.owner) for zone in zones):
                text = f"key {to_text(key.owner)} (keyid: {key.tag}) can not sign any of the zones"
                raise CorefileError(word.at, f"{plugin}: {text}")
            if all(key.rdata != other.rdata for other in every):
                every.append(key)
    # As in CoreDNS a key of one zone may sign another one; only, where a zone has keys of its own, those do.
    return {zone: [key for key in every if key.owner == zone] or every for zone in zones}
