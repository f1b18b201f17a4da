"""Asking the API: what its refusals are, and a list in pages. No body is read without an end, of octets and of time."""

import asyncio
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Final, Protocol

from kdns.kube import decode
from kdns.kube.decode import Unreadable
from kdns.kube.objects import Raw

if TYPE_CHECKING:
    import aiohttp

LIST_READ: Final = 60.0  # seconds without an octet of a page
PAGE_TIME: Final = 300.0  # seconds for all of a page: longer than any request that the API itself does not end (60)
# Octets of a page, decompressed. One of 500 Services has some 1 MB; etcd's limit for an object is 1.5 MiB.
MAX_PAGE: Final = 64 << 20


class ApiError(Exception):
    """The API refused or broke off; `code` is the HTTP status if it said one, `after` are seconds it asks to wait."""

    def __init__(self, text: str, after: float = 0.0, code: int = 0) -> None:
        super().__init__(text)
        self.after = after
        self.code = code


class Expired(ApiError):
    """410: the resourceVersion or continue token is too old."""


class TooLarge(ApiError):
    """A page is over MAX_PAGE."""


class ResourceVersionRegressed(ApiError):
    """The collection's resourceVersion is below ours: it is not the history that we know."""


class Unauthorized(ApiError):
    """401: the credentials are not, or no longer, accepted."""


class Client(Protocol):
    """The request parameters of a reflector."""

    def get(
        self, path: str, params: dict[str, str], read: float | None
    ) -> AbstractAsyncContextManager["aiohttp.ClientResponse"]: ...

    async def renew(self, *, force: bool = False) -> None: ...


async def body(response: "aiohttp.ClientResponse") -> bytes:
    """All of a page's octets. Raises TooLarge, TimeoutError, and what aiohttp raises."""
    parts = []
    size = 0
    async with asyncio.timeout(PAGE_TIME):
        async for chunk in response.content.iter_any():
            size += len(chunk)
            if size > MAX_PAGE:
                raise TooLarge(f"a page over {MAX_PAGE >> 20} MiB")
            parts.append(chunk)
    return b"".join(parts)


class Pages:
    """The pages of one consistent list (never with resourceVersion=0, which ignores the limit on many versions)."""

    def __init__(self, client: Client, kind: str, path: str, params: dict[str, str], size: int) -> None:
        """`size`: objects of a page."""
        self.client = client
        self.kind = kind
        self.path = path
        self.params = {**params, "limit": str(size)}
        self.version = ""
        self.over = False

    async def next(self) -> list[Raw | Unreadable]:
        """The next page's objects. Raises Expired where the list is too old to go on, TooLarge for a page that is."""
        async with self.client.get(self.path, self.params, LIST_READ) as response:
            meta, objects = decode.page(self.kind, await body(response))
        self.version = meta.resource_version
        self.params["continue"] = meta.go_on
        self.over = not meta.go_on
        return objects
