"""One Pod, as the API or manifests have it: for tools that want to know who asks, and how it resolves names."""

import asyncio
from typing import Any

import msgspec

from kdns.kube import manifest_file
from kdns.kube.api import ApiConfig, Client
from kdns.kube.paging import body

READ = 10.0  # seconds the API may take


async def pod_object(api: ApiConfig | None, paths: tuple[str, ...], namespace: str, name: str) -> dict[str, Any] | None:
    """The Pod's mapping; None where there is no such Pod. Raises OSError, ValueError, ApiError or what aiohttp
    raises.
    """
    if api is None:
        return await asyncio.to_thread(_from_files, paths, namespace, name)
    client = Client(api)
    try:
        # A list of one: `list` is what the server's role allows, `get` is not.
        path = f"/api/v1/namespaces/{namespace}/pods"
        async with client.get(path, {"fieldSelector": f"metadata.name={name}"}, READ) as response:
            found = msgspec.json.decode(await body(response))
    finally:
        await client.close()
    return next((item for item in found.get("items") or () if _is(item, namespace, name)), None)


def _from_files(paths: tuple[str, ...], namespace: str, name: str) -> dict[str, Any] | None:
    for each in manifest_file.objects_of(paths):
        if each.kind == "Pod" and _is(each.mapping, namespace, name):
            return each.mapping
    return None


def _is(pod: dict[str, Any], namespace: str, name: str) -> bool:
    meta = pod.get("metadata") or {}
    return meta.get("name") == name and (meta.get("namespace") or "default") == namespace
