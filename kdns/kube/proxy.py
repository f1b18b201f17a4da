"""The proxy between kdns and the API, chosen by the rules that kubectl and every other program in Go follow.

They are those of Go's golang.org/x/net/http/httpproxy: HTTP_PROXY or HTTPS_PROXY by the URL's scheme, or the same in
lower case; NO_PROXY is a list of hosts, domains, addresses and prefixes that are asked directly; so is this machine
itself.
"""

import base64
import ipaddress
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Proxy(NamedTuple):
    """A proxy's URL without its user, which would be in the log with every error, and the headers that show the user to
    it.
    """

    url: str
    headers: dict[str, str]


def env_proxy(url: str, environ: Mapping[str, str]) -> Proxy | None:
    """The proxy that the environment names for a URL; None where it is asked directly. Raises ValueError."""
    parts = urlsplit(url)
    name = "HTTPS_PROXY" if parts.scheme == "https" else "HTTP_PROXY"
    proxy = environ.get(name) or environ.get(name.lower()) or ""
    host = (parts.hostname or "").lower()
    if not proxy or not host:
        return None
    port = str(parts.port or (443 if parts.scheme == "https" else 80))
    if is_direct(host, port, environ.get("NO_PROXY") or environ.get("no_proxy") or ""):
        return None
    return usable_proxy(name, proxy)


def usable_proxy(name: str, url: str) -> Proxy:
    """The proxy of a URL, which is `http://` if it has no scheme; `name` is where it comes from. Raises ValueError."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"{name}: a proxy is asked over http:// or https://, not over {parts.scheme}://")
    if not parts.hostname:
        raise ValueError(f"{name}: the proxy's URL has no host")
    user, separator, where = parts.netloc.rpartition("@")
    headers = {}
    if separator:
        name_and_password = unquote(user) if ":" in user else f"{unquote(user)}:"
        headers["Proxy-Authorization"] = f"Basic {base64.b64encode(name_and_password.encode()).decode()}"
    return Proxy(f"{parts.scheme}://{where}", headers)


def is_direct(host: str, port: str, no_proxy: str) -> bool:
    """True if a host (in lower case) is asked without a proxy: this machine, and what NO_PROXY lists."""
    address = _address(host)
    if host == "localhost" or (address is not None and address.is_loopback):
        return True
    return any(_matches(entry.strip().lower(), host, port, address) for entry in no_proxy.split(","))


def _matches(entry: str, host: str, port: str, address: Address | None) -> bool:
    """True if one entry of NO_PROXY, `*`, PREFIX, or HOST or ADDRESS with or without `:PORT`, is for this host."""
    if entry == "*":
        return True
    if "/" in entry:
        try:
            return address is not None and address in ipaddress.ip_network(entry, strict=False)
        except ValueError:
            pass
    wanted, its_port = entry, ""
    if entry.count(":") == 1 or "]:" in entry:
        wanted, _, its_port = entry.rpartition(":")
    wanted = wanted.removeprefix("[").removesuffix("]")
    if not wanted or its_port not in ("", port):
        return False
    its_address = _address(wanted)
    if its_address is not None:
        return its_address == address
    # `example.com` is the domain and all below it; `.example.com` and `*.example.com` only what is below.
    wanted = wanted.removeprefix("*")
    return host.endswith(wanted) if wanted.startswith(".") else host == wanted or host.endswith(f".{wanted}")


def _address(text: str) -> Address | None:
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return mapped or found
