"""The fixed order of plugins, and where each is found.

A query meets the plugins from top to bottom until one answers it; the answer goes back up through those above. The
order is that of CoreDNS 1.15.0, with kdns's own plugins put where they belong, and with `cache` below all local data:
what is ours is never cached. A name without a module is known but not built: using it is an error that says so. Plugins
of others come through the entry-point group `kdns.plugins` (see server.catalog).
"""

from typing import Final

_BUILT: Final = "kdns.plugins."

ORDER: Final[dict[str, str | None]] = {
    "root": "root:Root",
    "metadata": "metadata:Metadata",
    "geoip": None,
    "cancel": "cancel:Cancel",
    "proxyproto": "proxyproto:Proxyproto",
    "quic": "quic:Quic",
    "grpc_server": "grpc_server:GrpcServer",
    "https": "https:Https",
    "https3": "https3:Https3",
    "timeouts": "timeouts:Timeouts",
    "multisocket": "multisocket:Multisocket",
    "reload": "reload:Reload",
    "nsid": "nsid:Nsid",
    "cookie": "cookie:Cookie",
    "bufsize": "bufsize:Bufsize",
    "bind": "bind:Bind",
    "debug": "debug:Debug",
    "trace": None,
    "ready": "ready:Ready",
    "health": "health:Health",
    "pprof": None,
    "shed": "shed:Shed",
    "prometheus": "prometheus:Prometheus",
    "status": "status:Status",
    "errors": "errors:Errors",
    "log": "log:Log",
    "dnstap": None,
    "local": "local:Local",
    "dns64": "dns64:Dns64",
    "siit": "siit:Siit",
    "any": "any:Any",
    "chaos": "chaos:Chaos",
    "loadbalance": "loadbalance:Loadbalance",
    "tsig": "tsig:TsigPlugin",
    "rewrite": "rewrite:Rewrite",
    "autopath": "autopath:Autopath",
    "searchpath": "searchpath:Searchpath",
    "acl": "acl:Acl",
    "limits": "limits:Limits",
    "tenants": "tenants:Tenants",
    "header": "header:Header",
    "dnssec": "dnssec:Dnssec",
    "tls": "tls:Tls",
    "minimal": "minimal:Minimal",
    "blocklist": "blocklist:Blocklist",
    "template": "template:TemplatePlugin",
    "transfer": "transfer:TransferPlugin",
    "dynupdate": "dynupdate:Dynupdate",
    "hosts": "hosts:Hosts",
    "route53": None,
    "azure": None,
    "clouddns": None,
    "k8s_external": "kubernetes.external:K8sExternal",
    "kubernetes": "kubernetes:Kubernetes",
    "file": "file:File",
    "auto": "auto:Auto",
    "secondary": "secondary:Secondary",
    "family": "family:Family",
    "cache": "cache:Cache",
    "etcd": None,
    "loop": "loop:Loop",
    "forward": "forward:Forward",
    "grpc": "forward.grpc:Grpc",
    "erratic": "erratic:Erratic",
    "whoami": "whoami:Whoami",
    "on": None,
    "sign": "sign:Sign",
    "view": "view:View",
    "nomad": None,
}
RANK: Final = {name: rank for rank, name in enumerate(ORDER)}
BUILT: Final = tuple(name for name, place in ORDER.items() if place is not None)


def place(name: str) -> tuple[str, str] | None:
    """The module and class of a built plugin; None where the name is known but not built."""
    found = ORDER[name]
    if found is None:
        return None
    module, _, cls = found.partition(":")
    return _BUILT + module, cls
