"""One Pod, as the API or manifests have it: for tools that want to know who asks, and how it resolves names."""

from functools import partial
from typing import Any

import msgspec

from kdns import files
from kdns.kube import manifest_file
from kdns.kube.access import ApiConfig
from kdns.watchfile import READING

READ = 10.0  # seconds the API may take
_PAGE = 100  # Pods looked at for one that runs: the API gives them by name


async def pod_object(api: ApiConfig | None, paths: tuple[str, ...], namespace: str, name: str) -> dict[str, Any] | None:
    """The Pod's mapping; None where there is no such Pod. Raises OSError, ValueError, ApiError or what aiohttp
    raises.
    """
    # A list of one: `list` is what the server's role allows, `get` is not.
    found = await _pods(api, paths, namespace, {"fieldSelector": f"metadata.name={name}"})
    return next((each for each in found if _name(each) == name), None)


async def some_pod(api: ApiConfig | None, paths: tuple[str, ...], namespace: str) -> dict[str, Any] | None:
    """The first Pod by name that runs and has an address of its own; None where there is none. Raises as
    `pod_object`.
    """
    found = await _pods(api, paths, namespace, {"fieldSelector": "status.phase=Running", "limit": str(_PAGE)})
    return min(filter(_has_address, found), key=_name, default=None)


async def _pods(
    api: ApiConfig | None, paths: tuple[str, ...], namespace: str, query: dict[str, str]
) -> list[dict[str, Any]]:
    if api is None:
        listed = await files.waiting(f"reading {' '.join(paths)}", partial(_from_files, paths), READING)
    else:
        from kdns.kube.api import Client  # here, for who reads manifests needs no HTTP
        from kdns.kube.paging import body

        client = Client(api)
        try:
            async with client.get(f"/api/v1/namespaces/{namespace}/pods", query, READ) as response:
                listed = msgspec.json.decode(await body(response)).get("items") or []
        finally:
            await client.close()
    return [each for each in listed if (_meta(each).get("namespace") or "default") == namespace]


def _from_files(paths: tuple[str, ...]) -> list[dict[str, Any]]:
    return [each.mapping for each in manifest_file.objects_of(paths) if each.kind == "Pod"]


def _has_address(pod: dict[str, Any]) -> bool:
    spec, status = pod.get("spec") or {}, pod.get("status") or {}
    return bool(status.get("podIP")) and status.get("phase", "Running") == "Running" and not spec.get("hostNetwork")


def _name(pod: dict[str, Any]) -> str:
    return str(_meta(pod).get("name", ""))


def _meta(pod: dict[str, Any]) -> dict[str, Any]:
    return pod.get("metadata") or {}
