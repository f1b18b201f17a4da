"""searchpath as Pods' resolvers see it: glibc, musl, Go and c-ares look names up through a resolv.conf as the kubelet
writes it.

Each client runs in a mount namespace of its own with its own /etc/resolv.conf. What is not installed, or not allowed,
is skipped by name.
"""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import dns.message
import pytest
import yaml

from kdns.testing import Server, answer, soa
from kdns.testing.objects import namespace, service
from tests.fixtures import Serve, Start

# Resolvers know no port but 53. Each worker of pytest, and each run, has an address of its own.
HOST = f"127.{os.getpid() >> 8 & 127 | 128}.{os.getpid() & 255}.42"
RESOLV = (
    f"search n1.svc.cluster.local svc.cluster.local cluster.local corp.example.org\nnameserver {HOST}\noptions ndots:5 "
    f"timeout:2 attempts:1\n"
)

C = r"""
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
int main(int argc, char **argv) {
    struct addrinfo hints, *found, *each;
    char text[64];
    memset(&hints, 0, sizeof hints);
    hints.ai_socktype = SOCK_STREAM;
    if (getaddrinfo(argv[1], NULL, &hints, &found)) return 1;
    for (each = found; each; each = each->ai_next) {
        void *at = each->ai_family == AF_INET ? (void *)&((struct sockaddr_in *)each->ai_addr)->sin_addr
                                              : (void *)&((struct sockaddr_in6 *)each->ai_addr)->sin6_addr;
        puts(inet_ntop(each->ai_family, at, text, sizeof text));
    }
    return argc != 2;
}
"""
GO = """
package main
import ("net"; "os")
func main() {
    found, err := net.LookupHost(os.Args[1])
    if err != nil { println(err.Error()); os.Exit(1) }
    for _, each := range found { os.Stdout.WriteString(each + "\\n") }
}
"""
CARES = """
import sys, pycares, socket, time
channel = pycares.Channel(timeout=2, tries=1)
out = []
took = lambda r, e: out.append((r, e))
channel.getaddrinfo(sys.argv[1], None, family=socket.AF_UNSPEC, type=socket.SOCK_STREAM, callback=took)
end = time.monotonic() + 10
while not out and time.monotonic() < end:
    time.sleep(0.01)
if not out or out[0][1] is not None:
    sys.exit(1)
for node in out[0][0].nodes:
    print(node.addr[0].decode() if isinstance(node.addr[0], bytes) else node.addr[0])
"""


def why_not() -> str:
    """Why clients cannot be run here, or nothing."""
    if os.geteuid() != 0:
        return "only root may bind port 53 and mount over /etc/resolv.conf"
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        return "no mount namespaces here"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.bind((HOST, 53))
        except OSError as error:
            return f"{HOST}:53: {error}"
    return ""


pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The commands of the clients that can be had here."""
    folder = tmp_path_factory.mktemp("clients")
    (folder / "client.c").write_text(C)
    (folder / "client.go").write_text(GO)
    (folder / "cares.py").write_text(CARES)
    out = {"glibc": ["getent", "ahosts"]}
    if shutil.which("musl-gcc"):
        subprocess.run(["musl-gcc", "-static", "-o", "musl", "client.c"], cwd=folder, check=True)
        out["musl"] = [str(folder / "musl")]
    if shutil.which("go"):
        env = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=mod", "GOTOOLCHAIN": "local"}
        # All that it imports is compiled too, and that takes a third less without optimizing.
        build = ["go", "build", "-gcflags=all=-N -l", "-o", "go-client", "client.go"]
        subprocess.run(build, cwd=folder, env=env, check=True)
        out["go"] = [str(folder / "go-client")]
    try:
        import pycares  # noqa: F401

        out["c-ares"] = [sys.executable, str(folder / "cares.py")]
    except ImportError:
        pass
    return out


@pytest.fixture(params=["glibc", "musl", "go", "c-ares"])
def resolve(
    request: pytest.FixtureRequest, clients: dict[str, list[str]], tmp_path: Path
) -> Callable[[str], list[str]]:
    """Looks a name up as a Pod does: its addresses, nothing where it does not exist."""
    command = clients.get(request.param)
    if command is None:
        pytest.skip(f"{request.param} is not installed")
    (tmp_path / "resolv.conf").write_text(RESOLV)

    def run(name: str) -> list[str]:
        inner = f'mount --bind {tmp_path / "resolv.conf"} /etc/resolv.conf && exec "$@"'
        words = ["unshare", "-m", "sh", "-c", inner, "sh", *command, name]
        done = subprocess.run(words, capture_output=True, text=True, timeout=90, check=False)
        return sorted({line.split()[0] for line in done.stdout.splitlines()})

    return run


KNOWN = {"api.example.com.": {1: "A 192.0.2.1", 28: "AAAA 2001:db8::1"}, "v4.example.com.": {1: "A 192.0.2.4"},
         "v6.example.com.": {28: "AAAA 2001:db8::6"}, "intra.corp.example.org.": {1: "A 192.0.2.9"}}  # fmt: skip


def world(query: dns.message.Message, proto: str) -> dns.message.Message:
    known = KNOWN.get(query.question[0].name.to_text())
    if known is None:
        reply = soa(answer(query), zone=".")
        reply.set_rcode(3)
        return reply
    record = known.get(int(query.question[0].rdtype))
    return answer(query, record) if record else soa(answer(query), zone=".")


@pytest.fixture
def server(serve: Serve, upstream: Start, tmp_path: Path, lines: list[str]) -> Server:
    path = tmp_path / "c.yaml"
    path.write_text(
        yaml.safe_dump_all(
            [namespace("n1"), service("n1/web", "10.0.0.1"), service("n2/db", "10.0.0.2"), namespace("n2")]
        )
    )
    up = upstream(world)
    return serve(
        f".:53 {{\n bind {HOST}\n log\n searchpath {{\n suffixes corp.example.org\n }}\n cache 30\n kubernetes "
        f"cluster.local {{\n"
        f" manifests {path}\n }}\n forward . {up.address}\n}}",
        port=53, host=HOST,
    )  # fmt: skip


Resolve = Callable[[str], list[str]]


def asked(lines: list[str]) -> list[str]:
    return [line.split('"')[1].split()[2] for line in lines if '"A IN' in line or '"AAAA IN' in line]


def test_an_outside_name_takes_one_query_for_each_family(server: Server, resolve: Resolve, lines: list[str]) -> None:
    assert resolve("api.example.com") == ["192.0.2.1", "2001:db8::1"]
    assert set(asked(lines)) == {"api.example.com.n1.svc.cluster.local."} and len(asked(lines)) == 2


@pytest.mark.parametrize(("name", "expected"), [("v4.example.com", "192.0.2.4"), ("v6.example.com", "2001:db8::6")])
def test_a_name_of_one_family_is_found_as_that(
    server: Server, resolve: Resolve, lines: list[str], name: str, expected: str
) -> None:
    assert resolve(name) == [expected] and len(asked(lines)) == 2


def test_names_of_the_cluster_and_of_the_node_are_found_as_without(
    server: Server, resolve: Resolve, lines: list[str]
) -> None:
    assert resolve("web") == resolve("web.n1") == resolve("web.n1.svc.cluster.local") == ["10.0.0.1"]
    assert resolve("db.n2.svc") == ["10.0.0.2"]
    assert resolve("intra") == ["192.0.2.9"]  # one label: the client walks itself
    assert resolve("api.example.com.") == ["192.0.2.1", "2001:db8::1"]


def test_a_name_that_does_not_exist_is_not_found(server: Server, resolve: Resolve, lines: list[str]) -> None:
    assert resolve("nope.example.com") == [] and "nope.example.com." in asked(lines)
