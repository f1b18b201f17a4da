"""HOST:PORT as it stands in Corefiles and on the command line: one reading for all."""

import re
from collections.abc import Callable

import pytest

from kdns.address import host_port, split_host_port
from kdns.corefile import CorefileError
from kdns.server import build
from tests.cli.test_commands import kdns

# What is written, and what it is with the default port 53; None: an error.
TARGETS = {
    "192.0.2.1": ("192.0.2.1", 53), "192.0.2.1:5353": ("192.0.2.1", 5353), "::1": ("::1", 53), "[::1]": ("::1", 53),
    "[::1]:5353": ("::1", 5353), "2001:db8::1:53": ("2001:db8::1:53", 53), "fe80::1%eth0": ("fe80::1%eth0", 53),
    "[fe80::1%eth0]:54": ("fe80::1%eth0", 54), "[192.0.2.1]:54": ("192.0.2.1", 54), "dns.example": ("dns.example", 53),
    "dns.example:1": ("dns.example", 1), "dns.example.:65535": ("dns.example.", 65535),
    "192.0.2.1%name:54": ("192.0.2.1%name", 54),
    "[::1]:abc": None, "[::1]abc": None, "[::1]53": None, "[::1]:": None, "[::1": None, "::1]": None, "[]:53": None,
    "[x]:53": None,
    "192.0.2.1:abc": None, "192.0.2.1:": None, "192.0.2.1:0": None, "192.0.2.1:65536": None, "192.0.2.1:-1": None,
    "192.0.2.1:+53": None, "192.0.2.1: 53": None, "192.0.2.1:５３": None, "192.0.2.1:053x": None, "192.0.2.1:1:2": None,
    "a:b:c": None, ":53": None, "": None, "192.0.2.1:" + "9" * 5000: None,
}  # fmt: skip
# The same for a place to listen on, where the port must be there and the host need not be.
LISTENERS = {
    ":8080": ("", 8080), "localhost:8080": ("localhost", 8080), "[::]:8080": ("::", 8080),
    "127.0.0.1:0": ("127.0.0.1", 0),
    "localhost": None, "": None, "8080": None, "::1:8080": None, "::1": None, ":": None, ":abc": None, "[::1]": None,
    ":70000": None,
}  # fmt: skip


@pytest.mark.parametrize("text", TARGETS, ids=lambda text: text[:20] or "empty")
def test_a_target_is_read_as_written(text: str) -> None:
    wanted = TARGETS[text]
    if wanted is not None:
        assert split_host_port(text, 53) == wanted
        assert split_host_port(host_port(*wanted), 53) == wanted
    else:
        with pytest.raises(ValueError, match=re.escape(f'"{text}"')):
            split_host_port(text, 53)


@pytest.mark.parametrize("text", LISTENERS)
def test_a_place_to_listen_on_has_a_port(text: str) -> None:
    wanted = LISTENERS[text]
    if wanted is not None:
        assert split_host_port(text) == wanted
    else:
        with pytest.raises(ValueError):
            split_host_port(text)


def corefile(line: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        try:
            build.build(build.read(f".:1053 {{\n {line.replace('WORD', text)}\n}}\n", "Corefile", environ={}))
        except CorefileError as error:
            return str(error)
        return ""

    return read


WHERE = {
    "forward": corefile("forward . WORD"),
    "forward tls": corefile("forward . tls://WORD"),
    "resolver": corefile("forward . a.example {\n resolver WORD\n }"),
    "transfer": corefile("transfer {\n to WORD\n }\n whoami"),
    "health": corefile("health WORD"),
    "ready": corefile("ready WORD"),
    "prometheus": corefile("prometheus WORD"),
    "status": corefile("status WORD"),
}


@pytest.mark.parametrize("where", WHERE)
def test_a_bad_port_was_taken_for_the_default_one(where: str) -> None:
    read = WHERE[where]
    for bad in ("[::1]:abc", "[::1]x53", "127.0.0.1:", "127.0.0.1:99999", "[::1"):
        said = read(bad)
        assert re.match(r"Corefile:\d+:\d+: ", said) and bad in said, (bad, said)
    assert read("[::1]:5353") == "" and read("127.0.0.1:5353") == ""


def test_a_transfers_source_is_an_address_without_a_port() -> None:
    read = corefile("transfer {\n to *\n source WORD\n }\n whoami")
    assert read("::1") == read("192.0.2.1") == ""
    for bad in ("192.0.2.1:53", "[::1]:abc", "here"):
        assert read(bad).startswith("Corefile:4:") and bad in read(bad)


def test_a_server_blocks_port_of_thousands_of_digits_is_an_error() -> None:
    with pytest.raises(CorefileError, match=r"Corefile:1:1: port 9+ in .* is not within 0 to 65535"):
        build.read(f".:{'9' * 5000} {{\n}}", "Corefile", environ={})


def test_a_bad_port_of_a_server_to_ask_is_an_error() -> None:
    for bad in ("[::1]:abc", "127.0.0.1:", "[::1", "a:b:c"):
        done = kdns("query", f"@{bad}", "a.org")
        assert (
            done.returncode == 2 and bad in done.stderr and len(done.stderr.splitlines()) == 2
        )  # and where the help is
