"""Users who may read the metrics: names and bcrypt hashes of passwords (RFC 7617), from a web configuration file.

A check takes tens of milliseconds of CPU on purpose. It runs in a thread (bcrypt lets go of the interpreter's lock),
one at a time whoever asks. What was right is remembered, so that a scrape every few seconds costs nothing and waits for
no one who guesses.
"""

import asyncio
import base64
import hashlib
import re
from functools import partial
from typing import Any, Final

from kdns import files

_HASH: Final = re.compile(r"\$2[abxy]\$\d\d\$[./A-Za-z0-9]{53}", re.ASCII)
# Of nobody: a name that is not known takes as long as a wrong password.
_NOBODY: Final = b"$2b$10$OMwzFyXoi/sh55quHzuVO.I7GqILlC5GqXPPiK35OCD0hPsU7jrr6"
TIMEOUT: Final = 60.0  # seconds of a check: a hash may say that it takes days, and the process would not end before
MAX_WRONG: Final = 100  # passwords kept that were wrong: a scraper with an old one asks every few seconds


class Users:
    """Names and hashes."""

    def __init__(self, hashes: dict[str, str]) -> None:
        """Raises ValueError where a hash is none, or where there is nothing to check it with."""
        try:
            import bcrypt
        except ImportError:
            raise ValueError("basic_auth_users needs bcrypt: pip install 'kdns[auth]'") from None
        self._bcrypt: Any = bcrypt
        for name, text in hashes.items():
            if not _HASH.fullmatch(text):
                raise ValueError(f"basic_auth_users: the password of {name} is not a bcrypt hash")
        self.hashes = {name: text.encode() for name, text in hashes.items()}
        self.right: set[bytes] = set()  # as many as there are users, at most
        self.wrong: dict[bytes, None] = {}
        self.lock = asyncio.Lock()

    async def allows(self, authorization: str) -> bool:
        """True if an Authorization field is that of a user."""
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "basic":
            return False
        try:
            name, colon, password = base64.b64decode(token.strip(), validate=True).decode().partition(":")
        except ValueError:
            return False
        if not colon:
            return False
        key = hashlib.sha256(f"{len(name)}:{name}{password}".encode()).digest()
        if key in self.right:
            return True
        await self.lock.acquire()
        # Who has gone waits no more, but the check that has begun goes on, and the next one begins after it.
        return await asyncio.shield(self._check(key, name, password.encode()))

    async def _check(self, key: bytes, name: str, password: bytes) -> bool:
        """The check of one password; lets go of the lock. Raises TimeoutError."""
        try:
            if key in self.right or key in self.wrong:
                return key in self.right
            matches = partial(self._matches, password, self.hashes.get(name, _NOBODY))
            right = await files.waiting("checking a password", matches, TIMEOUT) and name in self.hashes
            if right:
                self.right.add(key)
            else:
                self.wrong[key] = None
                if len(self.wrong) > MAX_WRONG:
                    del self.wrong[next(iter(self.wrong))]
            return right
        finally:
            self.lock.release()

    def _matches(self, password: bytes, hashed: bytes) -> bool:
        try:
            return bool(self._bcrypt.checkpw(password, hashed))
        except ValueError:  # longer than bcrypt's 72 octets, or with a NUL
            return False
