"""Asking the API: what its refusals are, and a list in pages."""

from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol

import aiohttp

from kdns.kube import decode
from kdns.kube.decode import Unreadable
from kdns.kube.objects import Raw

LIST_READ: Final = 60.0  # seconds without an octet of a page


class ApiError(Exception):
    """The API refused or broke off; `code` is the HTTP status if it said one, `after` are seconds it asks to wait."""

    def __init__(self, text: str, after: float = 0.0, code: int = 0) -> None:
        super().__init__(text)
        self.after = after
        self.code = code


class Expired(ApiError):
    """410: the resourceVersion or continue token is too old."""


class ResourceVersionRegressed(ApiError):
    """The collection's resourceVersion is below ours: it is not the history that we know."""


class Unauthorized(ApiError):
    """401: the credentials are not, or no longer, accepted."""


class Client(Protocol):
    """What a reflector asks with."""

    def get(
        self, path: str, params: dict[str, str], read: float | None
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]: ...

    async def renew(self, *, force: bool = False) -> None: ...


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
        """The next page's objects. Raises Expired where the list is too old to go on."""
        async with self.client.get(self.path, self.params, LIST_READ) as response:
            body = await response.read()
        meta, objects = decode.page(self.kind, body)
        self.version = meta.resource_version
        self.params["continue"] = meta.go_on
        self.over = not meta.go_on
        return objects
