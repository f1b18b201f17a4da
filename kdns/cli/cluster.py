"""The cluster that a tool looks at: a kubeconfig's context, as kubectl takes it, or inside a Pod its service
account.
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import msgspec

from kdns.cli.corefiles import Source, other_keys
from kdns.cli.flags import Flag, Value
from kdns.corefile import Corefile, Directive, Line, ServerBlock, Token
from kdns.kube.access import ApiConfig
from kdns.kube.paging import ApiError, body

READ: Final = 10.0  # seconds the API may take for one answer
FLAGS: Final = (
    Flag(("kubeconfig",), "", "kubeconfig file (default: $KUBECONFIG, ~/.kube/config, or the Pod's service account)"),
    Flag(("context",), "", "context of the kubeconfig (default: the current one)"),
    Flag(("dns-namespace",), "kube-system", "namespace of the cluster's DNS"),
)
_SOURCES: Final = frozenset(("endpoint", "kubeconfig", "manifests"))  # options that say where objects come from


def failures() -> tuple[type[Exception], ...]:
    """What asking the API may raise."""
    from aiohttp import ClientError  # here, for who asks nobody need not wait until it is imported

    return ApiError, ClientError, OSError, ValueError, TimeoutError


def is_configured(values: Mapping[str, Value]) -> bool:
    """True if there is a cluster to ask without more being said."""
    return bool(values["kubeconfig"] or values["context"] or _in_cluster() or _kubeconfigs())


def access(values: Mapping[str, Value]) -> ApiConfig:
    """How the cluster is reached. Raises ValueError with what is missing."""
    path, context = str(values["kubeconfig"]), str(values["context"])
    if not path and not context and _in_cluster():
        return ApiConfig.load(endpoint="", tls=None, kubeconfig="", context="")
    paths = [path] if path else _kubeconfigs()
    if not paths:
        raise ValueError(
            "no cluster is configured: name a file with --kubeconfig, or set KUBECONFIG (there is no ~/.kube/config)"
        )
    failed: ValueError | None = None
    for each in paths:  # of several files kubectl takes the first that has the context
        try:
            return ApiConfig.load(endpoint="", tls=None, kubeconfig=each, context=context)
        except ValueError as error:
            failed = failed or error
    assert failed is not None
    raise failed


def _in_cluster() -> bool:
    return bool(os.environ.get("KUBERNETES_SERVICE_HOST"))


def _kubeconfigs() -> list[str]:
    named = [path for path in os.environ.get("KUBECONFIG", "").split(os.pathsep) if path]
    usual = os.path.expanduser("~/.kube/config")
    return named or ([usual] if os.path.isfile(usual) else [])


def with_access(corefile: Corefile, config: ApiConfig) -> Corefile:
    """The Corefile with this access in each `kubernetes` that counts on a Pod's service account."""
    if not config.kubeconfig:
        return corefile
    return replace(corefile, blocks=[_block(block, config) for block in corefile.blocks])


def _block(block: ServerBlock, config: ApiConfig) -> ServerBlock:
    found = block.directives.get("kubernetes", [])
    if not found or any(line.name.text in _SOURCES for each in found for line in each.body or ()):
        return block
    first = found[0]
    words = [Token(text, first.at, first.at.line) for text in ("kubeconfig", config.kubeconfig, config.context) if text]
    line = Line(words[0], tuple(words[1:]))
    changed = [Directive(first.name, first.args, (*(first.body or ()), line)), *found[1:]]
    return replace(block, directives={**block.directives, "kubernetes": changed})


class Cluster:
    """Questions to the API. Each may raise what `failures` names."""

    def __init__(self, config: ApiConfig) -> None:
        from kdns.kube.api import Client

        self.client = Client(config)

    async def close(self) -> None:
        """Closes the session."""
        await self.client.close()

    async def get(self, path: str, **params: str) -> dict[str, Any]:
        """What a path holds."""
        async with self.client.get(path, params, READ) as response:
            return _object(await body(response))

    async def items(self, path: str, **params: str) -> list[dict[str, Any]]:
        """The items of a list, all its pages."""
        out: list[dict[str, Any]] = []
        token = ""
        while True:
            page = await self.get(path, limit="500", **({"continue": token} if token else {}), **params)
            found, meta = page.get("items") or [], page.get("metadata") or {}
            if not isinstance(found, list) or not isinstance(meta, dict) or not all(map(_is_named, found)):
                raise ValueError(f"{path} is not a list of Kubernetes' API")
            out += found
            token = str(meta.get("continue") or "")
            if not token:
                return out

    async def post(self, path: str, review: dict[str, Any]) -> dict[str, Any]:
        """What the API says to an object: for reviews, which are created to be answered and are not kept."""
        async with self.client.get(path, {}, READ, method="POST", body=review) as response:
            return _object(await body(response))

    async def corefiles(self, namespace: str) -> list[Source]:
        """The Corefiles in the ConfigMaps of a namespace, the cluster DNS's first."""
        maps = await self.items(f"/api/v1/namespaces/{namespace}/configmaps")
        data = {str(each["metadata"]["name"]): each.get("data") or {} for each in maps}
        others = {name: held for name, held in data.items() if "Corefile" not in held and "coredns" in name}
        beside = {key: text for held in others.values() for key, text in held.items()}
        holders = {key: f"{namespace}/{name}" for name, held in others.items() for key in held}
        names = sorted((name for name, held in data.items() if held.get("Corefile")), key=_rank)
        return [
            Source(f"{namespace}/{name}", data[name]["Corefile"], beside, holders, other_keys(data[name]))
            for name in names
        ]


def _object(data: bytes) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(data)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError("what answers is not Kubernetes' API: a login page, or another server?")
    return found


def _is_named(item: object) -> bool:
    meta = item.get("metadata") if isinstance(item, dict) else None
    return isinstance(meta, dict) and isinstance(meta.get("name"), str)


def _rank(name: str) -> tuple[bool, bool, str]:
    """The cluster's DNS before what else has a Corefile, such as the nodes' caches."""
    return name != "coredns", "node" in name, name


def explained(error: BaseException) -> str:
    """An error of the API in one line."""
    text = " ".join(str(error).split())
    if isinstance(error, ApiError) and "{" in text:
        # The API's Status object: its message says it.
        head, _, rest = text.partition("{")
        try:
            text = head + str(msgspec.json.decode("{" + rest).get("message", ""))
        except msgspec.DecodeError:
            text = head + rest[:100]
    return text or type(error).__name__
