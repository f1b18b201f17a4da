"""An API server for benchmarks: a large cluster in finished octets, so that it costs the measured machine little.

    python -m benchmarks.bigapi PORT SERVICES ENDPOINTS PODS STREAMS

Lists in pages and streams them (STREAMS 1), and watches. `/churn?rate=R&seconds=S` sends R EndpointSlice events a
second: the slice of a Service `churnN` of one endpoint, whose address says when it was sent. `/expire` ends all
watches, and they cannot be taken up again.
"""

import asyncio
import json
import sys
import time
from typing import Any

from aiohttp import web

SLICE = 100  # endpoints in a slice, as the slice controller fills them
NAMESPACES = 50
KINDS = {"namespaces": "Namespace", "services": "Service", "endpointslices": "EndpointSlice", "pods": "Pod"}
FILLER = {"app.kubernetes.io/name": "x" * 20, "app.kubernetes.io/instance": "y" * 30}


def meta(namespace: str, name: str, version: int, **labels: str) -> dict[str, Any]:
    """Metadata with as much beside as real objects carry."""
    fields = [
        {"manager": "kube-controller-manager", "operation": "Update", "fieldsV1": {"f:metadata": {"f:labels": {}}}}
    ]
    return {"name": name, "namespace": namespace, "resourceVersion": str(version), "uid": f"{version:036d}",
            "labels": {**labels, **FILLER}, "managedFields": fields}  # fmt: skip


def ip(base: int, i: int) -> str:
    return f"{base}.{i >> 16 & 255}.{i >> 8 & 255}.{i & 255}"


def objects(services: int, endpoints: int, pods: int) -> dict[str, list[dict[str, Any]]]:
    """A cluster of so many Services and endpoints; endpoints go to the first Services, a slice each."""
    out: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    out["namespaces"] = [{"metadata": {"name": f"n{i}", "resourceVersion": str(i + 1)}} for i in range(NAMESPACES)]
    for i in range(services):
        spec = {"type": "ClusterIP", "clusterIP": ip(10, i), "clusterIPs": [ip(10, i)],
                "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080}]}  # fmt: skip
        out["services"].append({"metadata": meta(f"n{i % NAMESPACES}", f"s{i}", 100 + i), "spec": spec})
    for i in range(endpoints // SLICE):
        owner = f"s{i % services}"
        each = [
            {"addresses": [ip(11, i * SLICE + j)], "conditions": {"ready": True, "serving": True, "terminating": False},
             "nodeName": f"node-{j}", "zone": "zone-a",
             "targetRef": {"kind": "Pod", "namespace": f"n{i % NAMESPACES}", "name": f"{owner}-{j:05d}-abcde",
                 "uid": f"{j:036d}"}}
            for j in range(SLICE)
        ]  # fmt: skip
        head = meta(
            f"n{i % services % NAMESPACES}", f"{owner}-{i}", 200_000 + i, **{"kubernetes.io/service-name": owner}
        )
        out["endpointslices"].append({
            "metadata": head, "addressType": "IPv4", "endpoints": each,
            "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
        })  # fmt: skip
    for i in range(pods):
        out["pods"].append({
            "metadata": meta(f"n{i % NAMESPACES}", f"p{i}", 400_000 + i), "spec": {"nodeName": "node-1"},
            "status": {"phase": "Running", "podIP": ip(11, i), "podIPs": [{"ip": ip(11, i)}]},
        })  # fmt: skip
    return out


class BigApi:
    def __init__(self, services: int, endpoints: int, pods: int, streams: bool) -> None:
        self.items = {
            kind: [json.dumps(item).encode() for item in found]
            for kind, found in objects(services, endpoints, pods).items()
        }
        self.streams = streams
        self.version = 1_000_000
        self.since = 0
        self.watchers: dict[asyncio.Queue[bytes | None], str] = {}

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/churn":
            asyncio.get_running_loop().create_task(
                self.churn(float(request.query["rate"]), float(request.query["seconds"]))
            )
            return web.Response()
        if request.path == "/expire":
            self.version += 1
            self.since = self.version
            for queue in list(self.watchers):
                queue.put_nowait(None)
            return web.Response()
        kind = request.path.rpartition("/")[2]
        if kind not in self.items:
            return web.Response(status=404)
        if "watch" in request.query:
            return await self.watch(request, kind)
        limit = int(request.query.get("limit") or 0) or len(self.items[kind])
        start = int(request.query.get("continue") or 0)
        go_on = str(start + limit) if start + limit < len(self.items[kind]) else ""
        head = b'{"kind":"List","metadata":{"resourceVersion":"%d","continue":"%s"},"items":[' % (
            self.version,
            go_on.encode(),
        )
        return web.Response(
            body=head + b",".join(self.items[kind][start : start + limit]) + b"]}", content_type="application/json"
        )

    async def watch(self, request: web.Request, kind: str) -> web.StreamResponse:
        streamed = "sendInitialEvents" in request.query
        if streamed and not self.streams:
            return web.json_response({"kind": "Status", "code": 422}, status=422)
        if int(request.query.get("resourceVersion") or self.since) < self.since:
            return web.json_response({"kind": "Status", "code": 410}, status=410)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.watchers[queue] = kind
        try:
            if streamed:
                for i in range(0, len(self.items[kind]), 50):
                    part = self.items[kind][i : i + 50]
                    await response.write(b"".join(b'{"type":"ADDED","object":%s}\n' % item for item in part))
                over = (
                    '{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"%d",'
                    '"annotations":{"k8s.io/initial-events-end":"true"}}}}\n'
                )
                await response.write((over % self.version).encode())
            while (line := await queue.get()) is not None:
                await response.write(line)
        except ConnectionError:
            pass
        finally:
            self.watchers.pop(queue, None)
        return response

    async def churn(self, rate: float, seconds: float) -> None:
        began = time.monotonic()
        done = 0
        while (now := time.monotonic() - began) < seconds:
            while done < now * rate:
                self.version += 1
                name = f"churn{done % 100}"
                sent = int(time.monotonic() * 1000) & 0xFFFFFF
                head = {"name": name, "namespace": "n1", "resourceVersion": str(self.version),
                        "labels": {"kubernetes.io/service-name": name}}  # fmt: skip
                found = {
                    "metadata": head,
                    "endpoints": [{"addresses": [ip(12, sent)]}],
                    "ports": [{"name": "http", "port": 80}],
                }
                line = b'{"type":"MODIFIED","object":%s}\n' % json.dumps(found).encode()
                for queue, kind in self.watchers.items():
                    if kind == "endpointslices":
                        queue.put_nowait(line)
                done += 1
            await asyncio.sleep(0.001)


def main() -> None:
    port, services, endpoints, pods, streams = (int(word) for word in sys.argv[1:6])
    api = BigApi(services, endpoints, pods, bool(streams))
    # The Services that churn, headless, each of one endpoint.
    for i in range(100):
        spec = {
            "type": "ClusterIP",
            "clusterIP": "None",
            "clusterIPs": ["None"],
            "ports": [{"name": "http", "port": 80}],
        }
        api.items["services"].append(
            json.dumps({"metadata": meta("n1", f"churn{i}", 50_000 + i), "spec": spec}).encode()
        )
    app = web.Application()
    app.router.add_get("/{path:.*}", api.handle)
    web.run_app(app, host="127.0.0.1", port=port, print=None, access_log=None)


if __name__ == "__main__":
    main()
