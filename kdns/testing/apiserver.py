"""A Kubernetes API server for tests: it truly lists, pages, watches, bookmarks and expires; kubectl accepts it.

Every change gets the next resourceVersion. Lists are snapshots: the pages of one list come from the same moment, and a
continue token expires with it. Watches replay what came after their resourceVersion, or 410 when that is compacted.
"""

import asyncio
import base64
import json
import socket
import ssl
from typing import Any

from aiohttp import ClientSession, web

from kdns.testing.loop import LoopThread, free_port

KINDS = {
    "namespaces": ("", "v1", "Namespace", False),
    "services": ("", "v1", "Service", True),
    "pods": ("", "v1", "Pod", True),
    "configmaps": ("", "v1", "ConfigMap", True),
    "daemonsets": ("apps", "v1", "DaemonSet", True),
    "networkpolicies": ("networking.k8s.io", "v1", "NetworkPolicy", True),
    "endpointslices": ("discovery.k8s.io", "v1", "EndpointSlice", True),
    "serviceimports": ("multicluster.x-k8s.io", "v1beta1", "ServiceImport", True),
}
# Kinds whose definitions need not be installed.
CUSTOM = {"serviceimports"}
PLURAL = {kind: plural for plural, (_, _, kind, _) in KINDS.items()}


class ApiServer:
    """Runs in a thread; the methods below may be called from the test's."""

    def __init__(self, *, tls: ssl.SSLContext | None = None, token: str = "") -> None:
        self.version = 100
        self.objects: dict[str, dict[str, dict[str, Any]]] = {plural: {} for plural in KINDS}
        self.log: list[tuple[int, str, str, dict[str, Any]]] = []
        self.compacted = 0
        self.snapshots: dict[int, list[dict[str, Any]]] = {}
        self.watchers: set[asyncio.Queue[Any]] = set()
        self.transports: set[Any] = set()
        self.requests: list[str] = []
        self.token = token
        self.fail: list[int] = []  # statuses for the next requests
        self.retry_after = ""
        self.forbidden: set[str] = set()  # plurals that nobody may list or watch, and `proxy`, `portforward`
        self.denied: set[tuple[str, str]] = set()  # (verb, resource) that access reviews say no to
        self.pages: dict[str, str] = {}  # "NAMESPACE/POD:PORT" -> the URL that its proxy leads to
        self.forwards: dict[str, tuple[str, int]] = {}  # "NAMESPACE/POD:PORT" -> where a port-forward to it leads
        self.behind = 0  # so many watches are told that this server has not seen their resourceVersion yet
        self.streams = True  # whether lists may be streamed (WatchList)
        self.installed: set[str] = {"v1beta1", "v1alpha1"}  # versions of custom kinds
        self.page_delay = 0.0
        self.bookmark_every = 0.2
        self.held: asyncio.Event | None = None
        self.thread = LoopThread()
        self.tls = tls
        self.port = free_port()
        self.runner: web.AppRunner | None = None
        self.thread.run(self._start())

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    # What tests do.

    def put(self, *objects: dict[str, Any]) -> None:
        """Creates or replaces objects."""
        self.thread.call(self._put, *objects)

    def delete(self, kind: str, key: str) -> None:
        """Deletes `namespace/name`."""
        self.thread.call(self._delete, kind, key)

    def quietly(self, *objects: dict[str, Any], delete: tuple[str, str] | None = None) -> None:
        """Changes objects without any event: what a lost watch event looks like."""
        self.thread.call(self._quietly, objects, delete)

    def compact(self) -> None:
        """Forgets all history: older resourceVersions and tokens get 410."""
        self.thread.call(self._compact)

    def restore(self, version: int, *objects: dict[str, Any]) -> None:
        """Another history: only these objects, and a resourceVersion of an older day (etcd restored from a backup)."""
        self.thread.call(self._restore, version, objects)

    def send_raw(self, plural: str, line: bytes) -> None:
        """Sends octets as a watch event of a kind."""
        self.thread.call(self._tell, (plural, "RAW", line))

    def cut(self) -> None:
        """Breaks all connections off, without an end."""
        self.thread.call(lambda: [transport.abort() for transport in list(self.transports)])

    def expire(self) -> None:
        """Ends all watches, and what they could be taken up from is forgotten."""
        self.thread.call(self._expire)

    def close_watches(self) -> None:
        """Ends all watches in the ordinary way."""
        self.thread.call(self._tell, None)

    def send_error(self, code: int = 410) -> None:
        """Sends an ERROR event to all watches."""
        status = {"kind": "Status", "code": code, "message": "too old resource version"}
        self.thread.call(self._tell, ("", "ERROR", status))

    def down(self) -> None:
        """Stops listening and cuts all connections."""
        self.thread.run(self._stop())

    def up(self) -> None:
        """Listens again on the same port."""
        self.thread.run(self._start())

    def close(self) -> None:
        self.down()
        self.thread.close()

    # The server.

    async def _start(self) -> None:
        app = web.Application()
        app.router.add_get("/{path:.*}", self._handle)
        app.router.add_post("/apis/authorization.k8s.io/v1/{review}", self._review)
        self.runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self.runner.setup()
        self.listening = socket.create_server(("127.0.0.1", self.port))
        await web.SockSite(self.runner, self.listening, ssl_context=self.tls).start()

    def _restore(self, version: int, objects: tuple[dict[str, Any], ...]) -> None:
        self.version = version
        self.log.clear()
        self.snapshots.clear()
        self.compacted = 0
        for kind in self.objects:
            self.objects[kind] = {}
        watchers, self.watchers = self.watchers, set()
        self._put(*objects)
        self.log.clear()
        self.watchers = watchers

    async def _stop(self) -> None:
        for queue in self.watchers:
            queue.put_nowait(None)
        if self.runner is not None:
            # What asyncio has accepted and not yet made a connection of when its server is closed is left open.
            asyncio.get_running_loop().remove_reader(self.listening)
            for _ in range(3):
                await asyncio.sleep(0)
            await self.runner.cleanup()
            self.runner = None

    def _tell(self, event: Any) -> None:
        for queue in self.watchers:
            queue.put_nowait(event)

    def _next(self) -> str:
        self.version += 1
        return str(self.version)

    def _put(self, *objects: dict[str, Any]) -> None:
        for obj in objects:
            plural = PLURAL[obj["kind"]]
            meta = obj["metadata"]
            if KINDS[plural][3]:
                meta.setdefault("namespace", "default")
            key = f"{meta.get('namespace', '')}/{meta['name']}"
            event = "MODIFIED" if key in self.objects[plural] else "ADDED"
            copy = json.loads(json.dumps(obj))
            copy["metadata"].update(resourceVersion=self._next(), uid=key)
            self.objects[plural][key] = copy
            self._emit(plural, event, copy)

    def _delete(self, kind: str, key: str) -> None:
        plural = PLURAL[kind]
        gone = json.loads(json.dumps(self.objects[plural].pop(key)))
        gone["metadata"]["resourceVersion"] = self._next()
        self._emit(plural, "DELETED", gone)

    def _quietly(self, objects: tuple[dict[str, Any], ...], delete: tuple[str, str] | None) -> None:
        watchers, self.watchers = self.watchers, set()
        before = list(self.log)
        self._put(*objects)
        if delete:
            self._delete(*delete)
        self.log = before
        self.watchers = watchers

    def _emit(self, plural: str, event: str, obj: dict[str, Any]) -> None:
        entry = (int(obj["metadata"]["resourceVersion"]), plural, event, obj)
        self.log.append(entry)
        for queue in self.watchers:
            queue.put_nowait((plural, event, obj))

    def _compact(self) -> None:
        self.compacted = self.version
        self.log.clear()
        self.snapshots.clear()

    def _expire(self) -> None:
        self.version += 1
        self._compact()
        for queue in self.watchers:
            queue.put_nowait(None)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        self.requests.append(request.path_qs)
        if self.held is not None:
            await self.held.wait()
        if self.fail:
            status = _status(self.fail.pop(0), "told to fail")
            if self.retry_after:
                status.headers["Retry-After"] = self.retry_after
            return status
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if self.token and (scheme.lower(), token) != ("bearer", self.token):
            return _status(401, "Unauthorized")
        discovery = _discovery(path)
        if discovery is not None:
            return web.json_response(discovery)
        words = path.strip("/").split("/")
        group_version = words[2] if words[0] == "apis" and len(words) > 2 else ""
        words = words[2:] if words[0] == "api" else words[3:]
        namespace = ""
        if len(words) >= 3 and words[0] == "namespaces":
            namespace, words = words[1], words[2:]
        if not words or words[0] not in KINDS:
            return _status(404, "the server could not find the requested resource")
        if words[0] in CUSTOM and group_version not in self.installed:
            return _status(404, "the server could not find the requested resource")
        plural = words[0]
        if plural in self.forbidden:
            return _status(403, f"{plural} is forbidden")
        if len(words) > 2:
            return await self._within(request, f"{namespace}/{words[1]}", words[2:])
        if len(words) == 2:
            key = f"{namespace}/{words[1]}"
            found = self.objects[plural].get(key)
            return web.json_response(self._full(plural, found)) if found else _status(404, f"{words[1]} not found")
        if request.query.get("watch") in ("1", "true"):
            return await self._watch(request, plural, namespace)
        if self.page_delay:
            await asyncio.sleep(self.page_delay)
        return self._list(request, plural, namespace)

    async def _within(self, request: web.Request, pod: str, words: list[str]) -> web.StreamResponse:
        """What is below a Pod."""
        if words[0] in self.forbidden:
            return _status(403, f"pods/{words[0]} is forbidden")
        if words[0] == "proxy":
            return await self._proxy(pod, "/".join(words[1:]))
        if words[0] == "portforward":
            return await self._forward(request, pod)
        return _status(404, "the server could not find the requested resource")

    async def _proxy(self, to: str, path: str) -> web.Response:
        if to not in self.pages:
            return _status(503, f"error trying to reach service: dial tcp {to}: connect: connection refused")
        async with ClientSession() as session, session.get(f"{self.pages[to]}/{path}") as response:
            return web.Response(body=await response.read(), status=response.status)

    async def _forward(self, request: web.Request, pod: str) -> web.StreamResponse:
        """A port of a Pod over a WebSocket: octets on channel 0, what went wrong on channel 1, first the port on both.

        Octets go in pieces of 100, so that whoever reads them has to put them together.
        """
        port = int(request.query["ports"])
        socket_ = web.WebSocketResponse(protocols=("v4.channel.k8s.io",))
        await socket_.prepare(request)
        for channel in (b"\0", b"\1"):
            await socket_.send_bytes(channel + port.to_bytes(2, "little"))
        try:
            reader, writer = await asyncio.open_connection(*self.forwards[f"{pod}:{port}"])
        except (KeyError, OSError):
            why = f"error forwarding port {port} to pod {pod}: failed to connect to localhost:{port}: refused"
            await socket_.send_bytes(b"\1" + why.encode())
            await socket_.close()
            return socket_

        async def back() -> None:
            while data := await reader.read(100):
                await socket_.send_bytes(b"\0" + data)
            await socket_.close()

        task = asyncio.create_task(back())
        try:
            async for message in socket_:
                writer.write(message.data[1:])
        finally:
            task.cancel()
            writer.close()
        return socket_

    async def _review(self, request: web.Request) -> web.Response:
        self.requests.append(request.path_qs)
        if request.match_info["review"] in self.forbidden:
            return _status(403, f"{request.match_info['review']} is forbidden")
        body = await request.json()
        asked = body["spec"]["resourceAttributes"]
        allowed = (asked["verb"], asked["resource"]) not in self.denied
        return web.json_response({**body, "status": {"allowed": allowed}}, status=201)

    def _full(self, plural: str, obj: dict[str, Any]) -> dict[str, Any]:
        group, version, kind, _ = KINDS[plural]
        return {"apiVersion": f"{group}/{version}".lstrip("/"), "kind": kind, **obj}

    def _list(self, request: web.Request, plural: str, namespace: str) -> web.Response:
        limit = int(request.query.get("limit") or 0)
        token = request.query.get("continue", "")
        start = 0
        if token:
            version, start = json.loads(base64.b64decode(token))
            if version not in self.snapshots:
                return _status(410, "The provided continue parameter is too old")
            items = self.snapshots[version]
        else:
            version = self.version
            items = [self.objects[plural][key] for key in sorted(self.objects[plural])]
            items = [item for item in items if _selected(item, request) and _in(item, namespace)]
            if limit and len(items) > limit:
                self.snapshots[version] = items
        page = items[start : start + limit] if limit else items
        meta: dict[str, Any] = {"resourceVersion": str(version)}
        if limit and start + limit < len(items):
            meta["continue"] = base64.b64encode(json.dumps([version, start + limit]).encode()).decode()
            meta["remainingItemCount"] = len(items) - start - limit
        group, apiversion, kind, _ = KINDS[plural]
        body = {
            "kind": f"{kind}List",
            "apiVersion": f"{group}/{apiversion}".lstrip("/"),
            "metadata": meta,
            "items": page,
        }
        response = web.json_response(body)
        if "gzip" in request.headers.get("Accept-Encoding", "") and len(items) > 10:
            response.enable_compression(web.ContentCoding.gzip)
        return response

    async def _watch(self, request: web.Request, plural: str, namespace: str) -> web.StreamResponse:
        since = int(request.query.get("resourceVersion") or 0)
        streamed = request.query.get("sendInitialEvents") == "true"
        if streamed and not self.streams:
            return _status(422, "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled")
        if since and (since > self.version or self.behind):
            self.behind = max(self.behind - 1, 0)
            status = _status(
                504, f"Timeout: Too large resource version: {since}, current: {min(since - 1, self.version)}"
            )
            status.headers["Retry-After"] = "1"
            return status
        if since and since < self.compacted:
            return _status(410, f"too old resource version: {since} ({self.compacted})")
        queue: asyncio.Queue[Any] = asyncio.Queue()
        if streamed:
            for key in sorted(self.objects[plural]):
                queue.put_nowait((plural, "ADDED", self.objects[plural][key]))
            over = {"resourceVersion": str(self.version), "annotations": {"k8s.io/initial-events-end": "true"}}
            queue.put_nowait((plural, "BOOKMARK", {"kind": KINDS[plural][2], "metadata": over}))
        else:
            for version, logged, event, obj in self.log:
                if version > since and logged == plural:
                    queue.put_nowait((plural, event, obj))
        self.watchers.add(queue)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        transport = request.transport
        self.transports.add(transport)
        try:
            await response.prepare(request)
            while True:
                try:
                    async with asyncio.timeout(self.bookmark_every):
                        entry = await queue.get()
                except TimeoutError:
                    meta = {"resourceVersion": str(self.version)}
                    entry = (plural, "BOOKMARK", {"kind": KINDS[plural][2], "metadata": meta})
                if entry is None:
                    return response
                kind, event, obj = entry
                if event == "RAW":
                    if kind == plural:
                        await response.write(obj)
                    continue
                if kind in ("", plural) and (
                    event in ("BOOKMARK", "ERROR") or (_selected(obj, request) and _in(obj, namespace))
                ):
                    shown = obj if event in ("ERROR", "BOOKMARK") else self._full(plural, obj)
                    await response.write(json.dumps({"type": event, "object": shown}).encode() + b"\n")
        except (ConnectionError, asyncio.CancelledError):
            return response
        finally:
            self.watchers.discard(queue)
            self.transports.discard(transport)


def _selected(obj: dict[str, Any], request: web.Request) -> bool:
    labels = obj["metadata"].get("labels") or {}
    for term in filter(None, request.query.get("labelSelector", "").split(",")):
        key, _, value = term.partition("=")
        if labels.get(key) != value.lstrip("="):
            return False
    for term in filter(None, request.query.get("fieldSelector", "").split(",")):
        key, _, value = term.partition("!=")
        if key == "status.phase" and obj.get("status", {}).get("phase") == value:
            return False
    return True


def _in(obj: dict[str, Any], namespace: str) -> bool:
    return not namespace or obj["metadata"].get("namespace") == namespace


def _status(code: int, message: str) -> web.Response:
    body = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "code": code}
    return web.json_response(body, status=code)


def _discovery(path: str) -> dict[str, Any] | None:
    """The reply to kubectl's first question: the resources of an API group."""
    if path == "/version":
        return {"major": "1", "minor": "32", "gitVersion": "v1.32.4"}
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        version = {"groupVersion": "discovery.k8s.io/v1", "version": "v1"}
        found = {"name": "discovery.k8s.io", "versions": [version], "preferredVersion": version}
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [found]}
    for prefix, group in (("/api/v1", ""), ("/apis/discovery.k8s.io/v1", "discovery.k8s.io")):
        if path == prefix:
            short = {"services": ["svc"], "namespaces": ["ns"], "pods": ["po"]}
            resources = [
                {
                    "name": plural,
                    "singularName": kind.lower(),
                    "namespaced": namespaced,
                    "kind": kind,
                    "verbs": ["get", "list", "watch"],
                    "shortNames": short.get(plural, []),
                }
                for plural, (owner, _, kind, namespaced) in KINDS.items()
                if owner == group
            ]
            name = f"{group}/v1".lstrip("/")
            return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": name, "resources": resources}
    return None
