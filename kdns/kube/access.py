"""How the Kubernetes API is reached: its address, its certificates, and what proves who asks.

They come from the `kubernetes` package (kubeconfig files with tokens, client certificates and exec plugins; the Pod's
service account); it is imported only where a cluster is configured, and in a thread where it may run an exec plugin.
What asks is kdns.kube.api: aiohttp takes as long to import as all of kdns, and who reads a Corefile asks nobody.
"""

import importlib
import os
import ssl
import sys
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from kdns import files
from kdns.kube import execplugin
from kdns.kube.proxy import Proxy, env_proxy, usable_proxy

_LARGEST_KUBECONFIG: Final = 4 << 20  # octets: some hundreds of clusters, whose certificates take most of it


class Access(NamedTuple):
    """Access to the API: its URL, TLS, headers that prove who asks, and the proxy if there is one between."""

    url: str
    tls: ssl.SSLContext | None
    headers: dict[str, str]
    proxy: Proxy | None = None


@dataclass(frozen=True, slots=True)
class ApiConfig:
    """The source of access: a kubeconfig, an endpoint with certificates, or (neither) the Pod's service account."""

    endpoint: str = ""
    tls: tuple[str, ...] | None = None
    kubeconfig: str = ""
    context: str = ""

    @classmethod
    def load(cls, *, endpoint: str, tls: tuple[str, ...] | None, kubeconfig: str, context: str) -> "ApiConfig":
        """Checks what can be checked without asking anybody. Raises ValueError with what was tried."""
        config = cls(endpoint, tls, os.path.abspath(kubeconfig) if kubeconfig else "", context)
        if kubeconfig:
            _check_kubeconfig(config)
        elif endpoint:
            for path in tls or ():
                if not os.path.isfile(path):
                    why = "not a regular file" if os.path.exists(path) else "no such file"
                    raise ValueError(f"tls: cannot read {path}: {why}")
        elif not os.environ.get("KUBERNETES_SERVICE_HOST") or not os.environ.get("KUBERNETES_SERVICE_PORT"):
            raise ValueError(
                "no cluster is configured: KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set, so this is "
                "no Pod. "
                "Name one with `kubeconfig FILE` or `endpoint URL`, or serve YAML with `manifests PATH`"
            )
        else:
            _loader()  # half a second of CPU: now, and not beside the first queries
        return config

    @property
    def reading(self) -> str:
        """What `access` does, in words."""
        return f"reading the API's credentials ({self.kubeconfig or self.endpoint or 'the service account'})"

    def access(self) -> Access:
        """Address and credentials, read anew. May run an exec plugin, so call it in a thread. Raises ValueError or
        OSError.
        """
        if self.endpoint and not self.kubeconfig:
            context = None
            if self.endpoint.startswith("https"):
                cert, key, ca = self.tls or ("", "", "")
                context = _context(ca, cert, key)
            return Access(self.endpoint.rstrip("/"), context, {}, env_proxy(self.endpoint, os.environ))
        loader = _loader()
        from kubernetes.client import Configuration

        made = Configuration()
        made.proxy = ""  # it reads the environment by rules of its own
        try:
            if self.kubeconfig:
                loader.load_kube_config(self.kubeconfig, self.context or None, made, persist_config=False)
            else:
                loader.load_incluster_config(client_configuration=made)
        except loader.ConfigException as error:
            raise ValueError(str(error)) from None
        # As client-go: the kubeconfig's `proxy-url` if it has one, whatever NO_PROXY says; else the environment's.
        proxy = usable_proxy("proxy-url", made.proxy) if made.proxy else env_proxy(made.host, os.environ)
        return Access(made.host.rstrip("/"), _tls(made), _headers(made), proxy)


def _loader() -> Any:
    """The part of the package `kubernetes` that reads configurations.

    With it comes a client that nobody here uses, which takes kubernetes_validate with it where that is installed:
    seconds of CPU. A module of None is one that cannot be imported, and the client does without.
    """
    unused = "kubernetes_validate"
    hidden = unused not in sys.modules
    if hidden:
        sys.modules[unused] = None  # type: ignore[assignment]
    try:
        found = importlib.import_module("kubernetes.config")
        execplugin.install()
        return found
    finally:
        if hidden:
            del sys.modules[unused]


def _check_kubeconfig(config: ApiConfig) -> None:
    path = config.kubeconfig
    if not os.path.isfile(path):
        raise ValueError(f"kubeconfig {path}: {'not a file' if os.path.exists(path) else 'no such file'}")
    if os.path.getsize(path) > _LARGEST_KUBECONFIG:
        raise ValueError(f"kubeconfig {path} cannot be read: it is larger than {_LARGEST_KUBECONFIG >> 20} MiB")
    loader = _loader()
    try:
        contexts, current = loader.list_kube_config_contexts(path)
    except UnicodeDecodeError:
        raise ValueError(f"kubeconfig {path} cannot be read: it is not text") from None
    except Exception as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"kubeconfig {path} cannot be read: {why}") from None
    names = [entry["name"] for entry in contexts]
    if config.context and config.context not in names:
        raise ValueError(f'kubeconfig {path} has no context "{config.context}": it has {", ".join(names)}')
    if not config.context and not current:
        raise ValueError(f"kubeconfig {path} has no current context: name one of {', '.join(names)}")


def _tls(made: Any) -> ssl.SSLContext | None:
    if not made.host.startswith("https"):
        return None
    context = _context(made.ssl_ca_cert, made.cert_file, made.key_file)
    if not made.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _context(ca: str | None, cert: str | None, key: str | None) -> ssl.SSLContext:
    """Whom to trust, and what to show; files that are not named are not used. Raises OSError."""
    files.check_pem([path for path in (ca, cert, key) if path])
    context = ssl.create_default_context(cafile=ca or None)
    if cert:
        context.load_cert_chain(cert, key or None)
    return context


def _headers(made: Any) -> dict[str, str]:
    token = made.get_api_key_with_prefix("authorization") or made.api_key.get("BearerToken")
    basic = made.get_basic_auth_token() if made.username else None
    found = token or basic
    return {"Authorization": found} if found else {}
