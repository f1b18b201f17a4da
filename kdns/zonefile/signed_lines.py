"""The lines that a signed zone is full of, each read as a whole: RRSIG, NSEC, NSEC3.

All signatures of a zone are alike but for the octets at their end, and there are few different lists of types: the
parts that recur are read word by word once (`types`) and then known by their text. Reading is ten times as fast, and
gives the same records.
"""

from collections.abc import Sequence
from typing import Final, final

from kdns.dns import iana
from kdns.zonefile.errors import BadRecord
from kdns.zonefile.fields import Field, decoded, fits_hash
from kdns.zonefile.types import LAYOUTS
from kdns.zonefile.words import Word, name, split

# Groups: 1 an RRSIG up to the signer's name, 2 its signature; 3 an NSEC's next name, 4 its types; 5 an NSEC3's
# parameters, 6 its next hash, 7 its types.
_WORD: Final = rb"[-A-Za-z0-9_.*/@]++"
_BLANK: Final = rb"[ \t]++"
LINES: Final = (
    rb"RRSIG" + _BLANK + rb"((?:" + _WORD + _BLANK + rb"){8})([A-Za-z0-9+/=]++(?:[ \t]++[A-Za-z0-9+/=]++)*+)"
    rb"|NSEC" + _BLANK + rb"(" + _WORD + rb")((?:[ \t]++[A-Z0-9]++)++)"
    rb"|NSEC3" + _BLANK + rb"((?:" + _WORD + _BLANK + rb"){4})([A-Za-z0-9]++)((?:[ \t]++[A-Z0-9]++)*+)"
)  # fmt: skip
# The fields of the parts that recur.
_SIGNED: Final = LAYOUTS[iana.RRSIG][:8]
_PARAMETERS: Final = LAYOUTS[50][:4]
_TYPES: Final = LAYOUTS[iana.NSEC][1:]
_KEPT: Final = 4096  # parts kept by their text; a bound, not a tuning
_MOST: Final = 65535  # octets of an rdata


@final
class SignedLines:
    """The rdatas of such lines; names are relative to `origin`. Its methods raise BadRecord for what is wrong or odd:
    whoever reads the line word by word says what.
    """

    def __init__(self, origin: bytes) -> None:
        self.origin = origin
        self.signed: dict[bytes, bytes] = {}
        self.parameters: dict[bytes, bytes] = {}
        self.types: dict[bytes, bytes] = {}

    def rrsig(self, head: bytes, signature: bytes) -> bytes:
        """An RRSIG's rdata of its first eight words and the rest."""
        made = decoded(signature.translate(None, b" \t"), 64)
        if not made:
            raise BadRecord(0, "no signature")
        return self._whole(self._read(self.signed, head, _SIGNED) + made)

    def nsec(self, following: bytes, types: bytes) -> bytes:
        """An NSEC's rdata."""
        return self._whole(name(Word(following, 0), self.origin) + self._types(types))

    def nsec3(self, parameters: bytes, following: bytes, types: bytes) -> bytes:
        """An NSEC3's rdata."""
        made = decoded(following, 32)
        head = self._read(self.parameters, parameters, _PARAMETERS)
        if made is None or not fits_hash(head[0], len(made)):
            raise BadRecord(0, "no hash")
        return self._whole(b"".join((head, bytes((len(made),)), made, self._types(types))))

    def _types(self, text: bytes) -> bytes:
        return self._read(self.types, text, _TYPES)

    def _read(self, known: dict[bytes, bytes], text: bytes, fields: Sequence[Field]) -> bytes:
        made = known.get(text)
        if made is None:
            entry = split(text, 0, self.origin)
            made = b"".join([field.read(entry) for field in fields])
            entry.done()
            if len(known) >= _KEPT:
                known.clear()
            known[text] = made
        return made

    def _whole(self, data: bytes) -> bytes:
        if len(data) > _MOST:
            raise BadRecord(0, "too long")
        return data
