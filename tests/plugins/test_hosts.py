"""hosts: what files and lines say, however large, however they change."""

import io
import os
import threading
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdns import files, hostsfile, metrics
from kdns.dns.name import from_text
from kdns.hostsfile import Builder, Table
from kdns.plugins import hosts as hosts_module
from kdns.testing import additional, answers, block, code, data, eventually
from tests.fixtures import Serve


def test_hosts_answers_from_file_and_lines(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text(
        "192.0.2.1 a.example.org A-alias.example.org # note\n2001:db8::1 a.example.org\n"
        "192.0.2.2 *.wild.org\nnonsense\n192.0.2.9 out.net\n"
    )
    server = serve(
        block(
            f"hosts {path} example.org wild.org {{\n 192.0.2.3 inline.example.org\n ttl 60\n fallthrough\n }}", "whoami"
        )
    )
    reply = server.ask("A.Example.ORG.")
    assert data(reply) == ["192.0.2.1"] and reply.answer[0].ttl == 60
    assert data(server.ask("a.example.org.", "AAAA")) == ["2001:db8::1"]
    assert data(server.ask("a-alias.example.org.")) == ["192.0.2.1"]
    assert data(server.ask("inline.example.org.")) == ["192.0.2.3"]
    assert data(server.ask("x.wild.org.")) == ["192.0.2.2"] and not server.ask("x.y.wild.org.").answer
    assert data(server.ask("1.2.0.192.in-addr.arpa.", "PTR")) == ["a-alias.example.org.", "a.example.org."]
    assert answers(server.ask("a.example.org.", "MX")) == []
    assert code(server.ask("out.net.")) == "EMPTY" and additional(server.ask("out.net."))


def test_hosts_took_ipv4_addresses_in_ipv6_form_for_ipv6(serve: Serve) -> None:
    server = serve(
        block("hosts /nowhere {\n ::ffff:192.0.2.7 m.example\n ::FFFF:c000:208 m.example\n 2001:db8::7 m.example\n }")
    )
    assert data(server.ask("m.example.")) == ["192.0.2.7", "192.0.2.8"]
    assert data(server.ask("m.example.", "AAAA")) == ["2001:db8::7"]
    assert data(server.ask("7.2.0.192.in-addr.arpa.", "PTR")) == ["m.example."]


def test_hosts_makes_reverse_names_unless_told_not_to(serve: Serve) -> None:
    lines_ = "hosts /nowhere {\n 192.0.2.1 a.example.org b.example.org\n fallthrough\n }"
    assert data(serve(block(lines_)).ask("1.2.0.192.in-addr.arpa.", "PTR")) == ["a.example.org.", "b.example.org."]
    without = serve(block(lines_.replace("fallthrough", "no_reverse"), "whoami"))
    assert code(without.ask("1.2.0.192.in-addr.arpa.", "PTR")) == "EMPTY"


def test_hosts_entries_are_counted_as_the_original_counts_them(serve: Serve, tmp_path: Path) -> None:
    """Names and reverse names, and no wildcards; names were all that counted."""
    path = tmp_path / "hosts"
    path.write_text("10.0.0.1 a.org b.org *.c.org\n2001:db8::1 a.org\n")
    serve(block(f"hosts {path} {{\n 10.0.0.2 d.org\n }}"))
    assert metrics.REGISTRY["coredns_hosts_entries"].slot(str(path))[0] == 8
    serve(block(f"hosts {path} {{\n no_reverse\n }}"))
    assert metrics.REGISTRY["coredns_hosts_entries"].slot(str(path))[0] == 3


def test_hosts_without_fallthrough_is_servfail_for_unknown_names(serve: Serve) -> None:
    assert code(serve(block("hosts /nowhere {\n 192.0.2.1 a.org\n }", "whoami")).ask("b.org.")) == "SERVFAIL"


def test_a_hosts_file_is_followed_and_kept_when_it_vanishes(serve: Serve, tmp_path: Path, lines: list[str]) -> None:
    path = tmp_path / "hosts"
    server = serve(block(f"hosts {path} {{\n reload 50ms\n fallthrough\n }}"))
    assert code(server.ask("a.org.")) == "SERVFAIL"
    path.write_text("192.0.2.1 a.org\n")
    eventually(lambda: data(server.ask("a.org.")) == ["192.0.2.1"])
    path.write_text("192.0.2.22 a.org\n")
    eventually(lambda: data(server.ask("a.org.")) == ["192.0.2.22"])
    path.unlink()
    eventually(lambda: any("what was read before is kept" in line and "No such file" in line for line in lines))
    assert data(server.ask("a.org.")) == ["192.0.2.22"]


def test_a_file_of_wildcards_alone_was_lost_at_the_start(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("192.0.2.2 *.wild.org\n")
    assert data(serve(block(f"hosts {path}")).ask("x.wild.org.")) == ["192.0.2.2"]


def test_a_large_file_is_read_by_a_child_and_says_the_same(
    serve: Serve, tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "hosts"
    text = "".join(f"10.{i >> 16}.{i >> 8 & 255}.{i & 255} h{i}.big.org alias{i}\n" for i in range(9_000))
    assert len(text) > hosts_module.INLINE
    path.write_text(text + "192.0.2.1 *.wild.org\n\xff\xfe nonsense\n", encoding="latin-1")
    server = serve(block(f"hosts {path} {{\n 10.0.0.7 inline.org\n reload 50ms\n fallthrough\n }}"))
    assert data(server.ask("h8999.big.org.")) == ["10.0.35.39"] and data(server.ask("x.wild.org.")) == ["192.0.2.1"]
    assert data(server.ask("7.0.0.10.in-addr.arpa.", "PTR")) == ["alias7.", "h7.big.org.", "inline.org."]
    path.write_text(text.replace("h8999.", "new."))
    eventually(lambda: data(server.ask("new.big.org.")) == ["10.0.35.39"])
    path.write_text("192.0.2.9 small.org\n")
    eventually(lambda: data(server.ask("small.org.")) == ["192.0.2.9"])
    assert code(server.ask("h1.big.org.")) == "SERVFAIL" and not any("kept" in line for line in lines)


def test_a_child_that_fails_keeps_what_was_read(
    serve: Serve, tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "hosts"
    path.write_text("192.0.2.1 a.org\n")
    server = serve(block(f"hosts {path} {{\n reload 50ms\n }}"))

    async def fails(*words: Any, **options: Any) -> bytearray:
        raise hosts_module.ChildFailed("Cannot allocate memory")

    monkeypatch.setattr(hosts_module.child, "output", fails)
    path.write_text("192.0.2.1 b.org\n" * 20_000)
    eventually(lambda: any("Cannot allocate memory; what was read before is kept" in line for line in lines))
    assert data(server.ask("a.org.")) == ["192.0.2.1"]


def test_a_pipe_without_a_writer_in_place_of_the_file_held_the_start_for_ever(
    serve: Serve, tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "read_through", partial(files.read_through, timeout=0.2))
    os.mkfifo(tmp_path / "hosts")
    server = serve(block(f"hosts {tmp_path}/hosts {{\n 192.0.2.1 a.org\n reload 0s\n }}"))
    assert data(server.ask("a.org.")) == ["192.0.2.1"]
    assert any("it is a pipe or a device, and did not end within 0.2 s" in line for line in lines)


@pytest.mark.parametrize("kind", ["folder", "binary", "one long line"])
def test_what_is_no_hosts_file_costs_a_line_at_most(serve: Serve, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "hosts"
    if kind == "folder":
        path.mkdir()
    else:
        path.write_bytes(os.urandom(200_000) if kind == "binary" else b"192.0.2.5 " + b"x" * 4_000_000)
    server = serve(block(f"hosts {path} {{\n 192.0.2.1 a.org\n }}"))
    assert data(server.ask("a.org.")) == ["192.0.2.1"]


def test_a_configmap_is_followed_over_its_swapped_link(serve: Serve, tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"..{number}").mkdir()
        (tmp_path / f"..{number}" / "hosts").write_text(f"192.0.2.{number} a.org\n")
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "hosts").symlink_to("..data/hosts")
    server = serve(block(f"hosts {tmp_path}/hosts {{\n reload 50ms\n }}"))
    assert data(server.ask("a.org.")) == ["192.0.2.1"]
    (tmp_path / "..new").symlink_to("..2")
    (tmp_path / "..new").rename(tmp_path / "..data")
    eventually(lambda: data(server.ask("a.org.")) == ["192.0.2.2"])


def test_an_address_of_many_names_gives_the_first(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("".join(f"192.0.2.1 n{i}\n" for i in range(hostsfile.MAX_NAMES + 50)))
    found = data(serve(block(f"hosts {path}")).ask("1.2.0.192.in-addr.arpa.", "PTR", tcp=True))
    assert len(found) == hostsfile.MAX_NAMES and f"n{hostsfile.MAX_NAMES}." not in found


def table(text: str, *, zones: tuple[bytes, ...] = (), inline: tuple[str, ...] = (), reverse: bool = True) -> Table:
    builder = Builder(hostsfile.Request(zones, inline, reverse))
    for _ in builder.read(text.splitlines()):
        pass
    for _ in builder.link():
        pass
    return Table(b"".join(builder.parts()))


words_ = st.sampled_from(["a", "b.org", "B.org", "*.b.org", "c.b.org", "x" * 64, "..", "d\\.e"])
addresses = st.sampled_from(
    ["192.0.2.1", "192.0.2.2", "::ffff:192.0.2.1", "2001:db8::1", "fe80::1%eth0", "999.1.1.1", "#"]
)


@given(st.lists(st.tuples(addresses, st.lists(words_, max_size=3)), max_size=40), st.booleans())
def test_a_table_says_what_its_lines_say(found: list[tuple[str, list[str]]], reverse: bool) -> None:
    text = "\n".join(" ".join((address, *names)) for address, names in found)
    forward: dict[bytes, list[bytes]] = {}
    back: dict[bytes, list[bytes]] = {}
    for line in text.splitlines():
        address, names = hostsfile.read_line(line)
        for name in names if address is not None else ():
            assert address is not None
            if address not in forward.setdefault(name, []):
                forward[name].append(address)
            if not name.startswith(b"\1*") and name not in back.setdefault(address, []):
                back[address].append(name)
    made = table(text, reverse=reverse)
    for name, expected in forward.items():
        v4, v6 = made.addresses(name)
        assert v4 == [each for each in expected if len(each) == 4] and v6 == [
            each for each in expected if len(each) == 16
        ]
    for packed, expected in back.items():
        assert made.names(packed) == (expected if reverse else [])
    assert made.addresses(from_text("nobody.example.")) == ([], []) and made.names(b"\1\2\3\4") == []


def test_a_file_of_one_endless_line_took_time_by_the_square_of_its_length_and_was_held_whole() -> None:
    class Endless(io.RawIOBase):
        """64 MiB without a line's end, and then a line as it should be."""

        left = 1 << 26

        def read(self, size: int = -1) -> bytes:
            if self.left:
                self.left -= size
                return b"10.0.0.1 a.b " * (size // 13) + b" " * (size % 13)
            end, self.end = self.end, b""
            return end

        end = b"tail e.f\n10.0.0.2 c.d\n"

    first, last = hostsfile.lines_of(cast(BinaryIO, Endless()))
    assert len(first) <= hostsfile.MAX_LINE + (1 << 16)
    assert last == "10.0.0.2 c.d" and "tail" not in first


@pytest.mark.parametrize("octets", [b"", b"kht1", b"x" * 100, table("192.0.2.1 a").__class__ and b"\0" * 20])
def test_octets_that_are_no_table_are_refused(octets: bytes) -> None:
    with pytest.raises(ValueError, match="no table of hosts"):
        Table(octets)


def test_a_file_that_is_written_while_it_is_read_ends_as_its_last_state(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("192.0.2.1 a.org\n")
    server = serve(block(f"hosts {path} {{\n reload 20ms\n }}"))
    over = threading.Event()

    def write() -> None:
        for i in range(200):
            path.write_text(f"192.0.2.{i % 200 + 1} a.org\n" * (i % 7 + 1))
        path.write_text("192.0.2.222 a.org\n")
        over.set()

    threading.Thread(target=write).start()
    assert over.wait(30)
    eventually(lambda: data(server.ask("a.org.")) == ["192.0.2.222"])
