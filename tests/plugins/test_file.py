"""file and auto: answers, chains out of the zone, fallthrough; following files; what is broken; folders."""

import asyncio
import gzip
import os
import random
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import dns.edns
import dns.flags
import dns.message
import dns.opcode
import dns.rdatatype
import dns.rrset
import pytest

from kdns import files, watchfile
from kdns.corefile import CorefileError
from kdns.dns.name import from_text
from kdns.plugins import auto
from kdns.plugins import file as file_plugin
from kdns.plugins.transfer import TransferPlugin
from kdns.testing import Server, Upstream, code, data, eventually
from kdns.testing.upstream import answer
from kdns.zonefile import follow, load
from tests.cli.test_commands import kdns
from tests.fixtures import Serve

ZONE = """\
$TTL 300
@ SOA ns hostmaster {serial} 3600 600 86400 60
@ NS ns
ns A 192.0.2.1
www A 192.0.2.2
alias CNAME www
out CNAME www.example.net.
a.b TXT "below an empty non-terminal"
sub NS ns.sub
ns.sub A 192.0.2.3
"""


def put(path: Path, serial: int = 1, more: str = "") -> None:
    """Writes a zone, as an editor or a ConfigMap does: at once."""
    new = path.with_name(path.name + ".new")
    new.write_text(ZONE.replace("{serial}", str(serial)) + more)
    os.replace(new, path)


@pytest.fixture
def db(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(watchfile, "SETTLE", 0.01)
    path = tmp_path / "db.example.org"
    put(path)
    return path


def corefile(path: Path, *options: str, more: str = "", zone: str = ".") -> str:
    inner = "\n ".join(options)
    return f"{zone}:{{port}} {{\n bind 127.0.0.1\n file {path} example.org {{\n {inner}\n }}\n {more}\n}}\n"


def ede(reply: dns.message.Message) -> list[int]:
    return [int(option.code) for option in reply.options if isinstance(option, dns.edns.EDEOption)]


def test_names_of_a_zone_are_answered_with_authority(serve: Serve, db: Path) -> None:
    server = serve(corefile(db))
    reply = server.ask("WWW.example.org.")
    assert (
        data(reply) == ["192.0.2.2"]
        and reply.flags & dns.flags.AA
        and str(reply.question[0].name) == "WWW.example.org."
    )
    assert [str(rrset) for rrset in reply.authority] == ["example.org. 300 IN NS ns.example.org."]
    denied = server.ask("nope.example.org.")
    assert code(denied) == "NXDOMAIN" and denied.authority[0].ttl == 60
    assert code(server.ask("b.example.org.")) == "NODATA"
    assert data(server.ask("alias.example.org.", tcp=True)) == ["192.0.2.2", "www.example.org."]
    referral = server.ask("x.sub.example.org.")
    assert (
        not referral.flags & dns.flags.AA
        and referral.additional[0].to_text() == "ns.sub.example.org. 300 IN A 192.0.2.3"
    )
    assert code(server.ask("www.example.net.")) == "REFUSED"
    assert code(server.ask("example.org.", "AXFR", tcp=True)) == "REFUSED"


def test_an_answer_is_repeated_until_the_zone_changes(serve: Serve, db: Path) -> None:
    server = serve(corefile(db, "reload 20ms"))
    for _ in range(4):
        assert (
            data(server.ask("www.example.org.")) == ["192.0.2.2"] and code(server.ask("new.example.org.")) == "NXDOMAIN"
        )
    assert any(len(dispatcher.replies) for dispatcher in server.server.instance.dispatchers.values())  # type: ignore[union-attr]
    put(db, 2, "new A 192.0.2.9\n")
    eventually(lambda: data(server.ask("new.example.org.")) == ["192.0.2.9"])


def test_a_cname_out_of_the_zone_is_followed_by_the_whole_server(
    serve: Serve, db: Path, upstream: Callable[..., Upstream]
) -> None:
    peer = upstream(lambda query, proto: answer(query, "A 198.51.100.7"))
    server = serve(corefile(db, more=f"forward . {peer.address}"))
    reply = server.ask("out.example.org.")
    assert data(reply) == ["198.51.100.7", "www.example.net."] and reply.flags & dns.flags.AA


def test_a_cname_out_of_the_zone_that_nobody_knows_is_all_there_is(serve: Serve, db: Path) -> None:
    reply = serve(corefile(db)).ask("out.example.org.")
    assert data(reply) == ["www.example.net."] and code(reply) == "NOERROR"


def test_a_cname_whose_target_cannot_be_had_is_a_failure_and_keeps_the_cname(serve: Serve, db: Path) -> None:
    server = serve(corefile(db, more="template ANY ANY example.net {\n rcode SERVFAIL\n }"))
    reply = server.ask("out.example.org.")
    assert code(reply) == "SERVFAIL" and data(reply) == ["www.example.net."]


def test_names_that_are_not_there_fall_through(serve: Serve, db: Path, upstream: Callable[..., Upstream]) -> None:
    peer = upstream(lambda query, proto: answer(query, "A 198.51.100.7"))
    server = serve(corefile(db, "fallthrough", more=f"forward . {peer.address}"))
    assert data(server.ask("nope.example.org.")) == ["198.51.100.7"]
    assert data(server.ask("b.example.org.")) == ["198.51.100.7"]
    assert code(server.ask("www.example.org.", "TXT")) == "NODATA"  # the name is there


def test_a_ds_is_asked_of_the_parent_where_both_zones_are_here(serve: Serve, db: Path, tmp_path: Path) -> None:
    put(tmp_path / "child")
    put(db, 1, "sub DS 1 13 2 " + "00" * 32 + "\n")
    server = serve(corefile(db, more=f"file {tmp_path / 'child'} sub.example.org"))
    assert server.ask("sub.example.org.", "DS").answer[0].rdtype == 43
    assert data(server.ask("www.sub.example.org.")) == ["192.0.2.2"]


def test_an_edited_file_with_the_same_serial_is_named_and_not_taken(serve: Serve, db: Path, lines: list[str]) -> None:
    server = serve(corefile(db, "reload 20ms"))
    put(db, 1, "new A 192.0.2.9\n")
    eventually(
        lambda: any(
            "its SOA serial is still 1: it is not taken" in line and "reload_by_mtime" in line for line in lines
        )
    )
    assert code(server.ask("new.example.org.")) == "NXDOMAIN"
    put(db, 2, "new A 192.0.2.9\n")
    eventually(lambda: data(server.ask("new.example.org.")) == ["192.0.2.9"])


def test_an_edited_file_with_the_same_serial_is_taken_by_its_time(serve: Serve, db: Path) -> None:
    server = serve(corefile(db, "reload 20ms", "reload_by_mtime"))
    put(db, 1, "new A 192.0.2.9\n")
    eventually(lambda: data(server.ask("new.example.org.")) == ["192.0.2.9"])


def test_a_file_that_breaks_keeps_its_last_good_version(serve: Serve, db: Path, lines: list[str]) -> None:
    server = serve(corefile(db, "reload 20ms"))
    put(db, 2, "bad A x\n")
    eventually(
        lambda: any(
            f"{db}:11:7: expected an IPv4 address" in line and "the last good version is served" in line
            for line in lines
        )
    )
    assert data(server.ask("www.example.org.")) == ["192.0.2.2"]
    db.unlink()
    eventually(lambda: any("Failed to open zone" in line for line in lines))
    assert data(server.ask("www.example.org.")) == ["192.0.2.2"]
    put(db, 3, "new A 192.0.2.9\n")
    eventually(lambda: data(server.ask("new.example.org.")) == ["192.0.2.9"])


WHOLE = b"$TTL 300\n@ SOA ns host 9 3600 300 86400 60\n@ NS ns\nns A 192.0.2.1\n"


@pytest.mark.parametrize(("content", "expected"), [
    (b"", "no SOA"), (bytes(range(256)) * 200, "db.example.org:"), (WHOLE[:-9], "expected an IPv4 address"),
    (WHOLE + b"www TXT " + b"x" * 3_000_000, "a word of 3000000 octets"),
    (WHOLE.decode().encode("utf-16"), "db.example.org:"), (gzip.compress(WHOLE, mtime=0), "db.example.org:1:"),
    (WHOLE + b"$INCLUDE db.example.org\n" * 1000, "more than 7 deep: does a file include itself"),
    (b"<html><body>404 Not Found</body></html>\n", 'db.example.org:1:17: unknown type "Not"'),
])  # fmt: skip
def test_a_file_that_becomes_something_else_is_named_and_the_zone_is_kept(
    serve: Serve, db: Path, lines: list[str], content: bytes, expected: str
) -> None:
    server = serve(corefile(db, "reload 20ms"))
    (db.parent / "new").write_bytes(content)
    (db.parent / "new").rename(db)
    named = eventually(lambda: [line for line in lines if "Parsing zone" in line])
    assert expected in named[0] and "the last good version is served" in named[0] and len(named[0]) < 5000
    assert data(server.ask("www.example.org.")) == ["192.0.2.2"]


def test_a_missing_file_is_servfail_with_a_reason_until_it_is_there(serve: Serve, db: Path, lines: list[str]) -> None:
    db.unlink()
    server = serve(corefile(db, "reload 20ms"))
    reply = server.ask("www.example.org.", use_edns=0)
    assert code(reply) == "SERVFAIL" and ede(reply) == [14]
    assert any("Failed to open" in line and "trying again" in line for line in lines)
    put(db)
    eventually(lambda: data(server.ask("www.example.org.")) == ["192.0.2.2"])


def test_a_configmaps_links_are_followed(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchfile, "SETTLE", 0.01)
    for serial in (1, 2):
        (tmp_path / f"..{serial}").mkdir()
        put(tmp_path / f"..{serial}" / "db.example.org", serial, f"v{serial} A 192.0.2.9\n")
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "db.example.org").symlink_to("..data/db.example.org")
    server = serve(corefile(tmp_path / "db.example.org", "reload 20ms"))
    folder = serve(f".:{{port}} {{\n bind 127.0.0.1\n auto {{\n directory {tmp_path}\n reload 20ms\n }}\n}}")
    for each in (server, folder):
        assert data(each.ask("v1.example.org.")) == ["192.0.2.9"]
    (tmp_path / "..next").symlink_to("..2")
    os.replace(tmp_path / "..next", tmp_path / "..data")
    for each in (server, folder):
        eventually(lambda each=each: data(each.ask("v2.example.org.")) == ["192.0.2.9"])
        assert code(each.ask("v1.example.org.")) == "NXDOMAIN"


def test_a_large_zone_is_read_beside_the_loop(serve: Serve, db: Path) -> None:
    many = "".join(f"h{i} A 10.0.{i >> 8 & 255}.{i & 255}\n" for i in range(5000))
    put(db, 1, many)
    server = serve(corefile(db, "reload 20ms"))
    assert data(server.ask("h4999.example.org.")) == ["10.0.19.135"]
    put(db, 2, many + "last A 192.0.2.9\n")
    eventually(lambda: data(server.ask("last.example.org.")) == ["192.0.2.9"])
    put(db, 3, many + "bad A x\n")
    assert data(server.ask("last.example.org.")) == ["192.0.2.9"]


@pytest.mark.parametrize("line", ["$INCLUDE more", "$GENERATE 1-9 g$ A 192.0.2.$", "\t$include more"])
def test_a_small_file_that_includes_or_generates_much_was_read_on_the_loop(tmp_path: Path, line: str) -> None:
    path = tmp_path / "db"
    put(path, 1, f"{line}\n")
    assert load._small(str(path)) is None
    put(path)
    assert load._small(str(path)) is not None


def test_a_pipe_as_a_zones_file_or_in_it_was_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "read_through", partial(files.read_through, timeout=0.2))
    pipe, path = tmp_path / "pipe", tmp_path / "db"
    os.mkfifo(pipe)
    with pytest.raises(TimeoutError, match=r"did not end within 0\.2 s"):
        load.read(str(pipe), from_text("example.org."))
    put(path, 1, "$INCLUDE pipe\n")
    with pytest.raises(load.BrokenZone, match=r"db:11:10: \$INCLUDE .*pipe: .* did not end within 0\.2 s"):
        load.read(str(path), from_text("example.org."))


def test_a_reload_of_the_corefile_reads_no_zone_again(serve: Serve, db: Path) -> None:
    server = serve(corefile(db))
    before = follow._files[(str(db), from_text("example.org."), "file")].zone
    assert server.reload(corefile(db, more="whoami"))
    assert follow._files[(str(db), from_text("example.org."), "file")].zone is before is not None
    assert data(server.ask("www.example.org.")) == ["192.0.2.2"]


def test_a_version_that_a_reload_gave_up_reading_was_never_served(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next configuration has the same file, which was known by then as it was."""
    read = follow.read_beside
    file = follow.ZoneFile(str(db), from_text("example.org."), "file")
    file.load()
    put(db, 2)

    async def run() -> None:
        reached = asyncio.Event()

        async def reads(path: str, origin: bytes) -> load.Loaded:
            reached.set()
            return await read(path, origin)

        monkeypatch.setattr(follow, "read_beside", reads)
        looking = asyncio.create_task(file.look())
        await reached.wait()
        looking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await looking
        assert file.zone is not None and file.zone.serial == 1
        assert await file.look() and file.zone.serial == 2
        assert not await file.look()

    asyncio.run(run())


def test_a_reload_failed_where_a_file_that_was_waited_for_had_come_and_a_secondary_is_notified(
    serve: Serve, db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_plugin, "RETRY", 3600.0)
    db.unlink()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.settimeout(20)
        peer.bind(("127.0.0.1", 0))
        text = corefile(
            db, "reload 1h", more=f"transfer {{\n to 127.0.0.1:{peer.getsockname()[1]}\n }}", zone="example.org"
        )
        server = serve(text)
        assert code(server.ask("www.example.org.")) == "SERVFAIL"
        notify, where = peer.recvfrom(512)
        peer.sendto(notify[:2] + bytes((notify[2] | 0x80,)) + notify[3:], where)
        assert server.server.instance is not None
        (sends,) = [each for each in server.server.instance.plugins if isinstance(each, TransferPlugin)]
        eventually(lambda: not sends.tasks)
        put(db)
        assert server.reload(text)
        assert data(server.ask("www.example.org.")) == ["192.0.2.2"]
        assert dns.message.from_wire(peer.recv(512)).opcode() == dns.opcode.NOTIFY


def test_a_file_that_was_read_by_a_reload_and_by_who_waited_for_it_was_served_twice(
    db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the reload had read in its thread took the place of what others had begun to answer from."""
    read, reached, go_on = follow.read_paced, threading.Event(), threading.Event()

    def reads(path: str, origin: bytes) -> load.Loaded:
        found = read(path, origin)
        reached.set()
        assert go_on.wait(20)
        return found

    monkeypatch.setattr(follow, "read_paced", reads)
    file = follow.ZoneFile(str(db), from_text("example.org."), "file")

    async def run() -> None:
        told: list[int] = []
        loading = asyncio.create_task(asyncio.to_thread(file.load))
        await asyncio.to_thread(reached.wait)
        put(db, 2)
        assert await file.look() and file.zone is not None
        zone = file.zone
        file.on_change.append(lambda _: told.append(threading.get_ident()))
        go_on.set()
        await loading
        assert file.zone is zone and zone.serial == 2 and zone.validity.valid
        assert not await file.look() and not told

    asyncio.run(run())


def test_a_reload_and_who_looked_at_its_folder_found_a_file_at_once_and_it_was_followed_twice(
    db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, go_on = threading.Event(), threading.Event()

    class Slow(follow.ZoneFile):
        def __init__(self, path: str, origin: bytes, plugin: str) -> None:
            super().__init__(path, origin, plugin)
            reached.set()
            assert go_on.wait(20)

    monkeypatch.setattr(follow, "ZoneFile", Slow)
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(follow.zone_file, str(db), from_text("example.org."), "auto")
        assert reached.wait(20)
        two = pool.submit(follow.zone_file, str(db), from_text("example.org."), "auto")
        go_on.set()
        assert one.result() is two.result()


@pytest.mark.parametrize(("text", "expected"), [
    ("file", "expected a file"), ("file {db} {\n bogus\n }", "unknown property"),
    ("file {db} {\n reload 5\n }", "a unit is missing"),
    ("file {db} {\n reload_by_mtime x\n }", "unexpected argument"), ("file {bad}", "bad:1:5: expected an IPv4 address"),
    ("file /dev/zero {\n reload 0\n }", "it is a device and not a file"),
    ("file {none} {\n reload 0\n }", "No such file"), ("auto", "auto needs `directory`"), ("auto {\n directory a b\n }",
    "needs a TEMPLATE"),
    ("auto {\n directory a db {1}\n }", "needs a group"),
    ("auto {\n directory a (db {1}\n }", "bad regular expression"),
])  # fmt: skip
def test_bad_directives_are_named(serve: Serve, db: Path, text: str, expected: str) -> None:
    (db.parent / "bad").write_text("a A x\n")
    filled = (
        text.replace("{db}", str(db))
        .replace("{bad}", str(db.parent / "bad"))
        .replace("{none}", str(db.parent / "none"))
    )
    with pytest.raises(CorefileError, match=r"Corefile:\d+:\d+") as caught:
        serve(f".:{{port}} {{\n bind 127.0.0.1\n {filled}\n}}\n")
    assert expected in str(caught.value)


# auto


def test_zones_of_a_folder_come_change_and_go(
    serve: Serve, tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchfile, "SETTLE", 0.01)
    put(tmp_path / "db.one.example")
    (tmp_path / "db.broken.example").write_text("bad\n")
    (tmp_path / "deep").mkdir()
    put(tmp_path / "deep" / "db.one.example", 7)
    server: Server = serve(
        f"example:{{port}} {{\n bind 127.0.0.1\n auto {{\n directory {tmp_path}\n reload 20ms\n }}\n}}"
    )
    assert data(server.ask("www.one.example.")) == ["192.0.2.2"]
    assert server.ask("one.example.", "SOA").answer[0][0].serial == 1
    assert code(server.ask("www.broken.example.")) == code(server.ask("www.two.example.")) == "REFUSED"
    assert any("Parse zone `broken.example.'" in line for line in lines)
    assert any("Multiple zone files match origin" in line for line in lines)
    put(tmp_path / "db.two.example")
    eventually(lambda: data(server.ask("www.two.example.")) == ["192.0.2.2"])
    put(tmp_path / "db.one.example", 2, "new A 192.0.2.9\n")
    eventually(lambda: data(server.ask("new.one.example.")) == ["192.0.2.9"])
    (tmp_path / "db.two.example").unlink()
    eventually(lambda: code(server.ask("www.two.example.")) == "REFUSED")
    assert any("Inserting zone `two.example.'" in line for line in lines) and any(
        "Deleting zone `two.example.'" in line for line in lines
    )


def test_a_template_says_which_zone_a_file_holds(serve: Serve, tmp_path: Path) -> None:
    put(tmp_path / "one.zone")
    put(tmp_path / "other.txt")
    server = serve(
        f".:{{port}} {{\n bind 127.0.0.1\n auto {{\n directory {tmp_path} (.*)[.]zone {{1}}.example.org\n }}\n "
        f"whoami\n}}"
    )
    assert data(server.ask("www.one.example.org.")) == ["192.0.2.2"]


def test_a_folder_that_is_not_there_is_named_and_waited_for(serve: Serve, tmp_path: Path, lines: list[str]) -> None:
    server = serve(f".:{{port}} {{\n bind 127.0.0.1\n auto {{\n directory {tmp_path}/later\n reload 20ms\n }}\n}}")
    assert any("Directory does not exist" in line for line in lines)
    (tmp_path / "later").mkdir()
    put(tmp_path / "later" / "db.example.org")
    eventually(lambda: data(server.ask("www.example.org.")) == ["192.0.2.2"])


def test_a_folder_on_a_file_system_that_hangs_kept_the_server_from_ending_and_nothing_was_said(
    tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "db.example.org")
    corefile = f".:{{port}} {{\n bind 127.0.0.1\n auto {{\n directory {tmp_path}\n reload 20ms\n }}\n}}"
    over = threading.Event()
    found = auto.Auto._found
    hangs: list[bool] = []
    monkeypatch.setattr(auto, "LOOKING", 0.2)
    monkeypatch.setattr(auto.Auto, "_found", lambda self: over.wait(20) if hangs else found(self))
    try:
        with Server(corefile) as server:
            hangs.append(True)
            said = f"looking at folder {tmp_path} took over 0.2 s and was given up; its zones stay as they are"
            eventually(lambda: any(said in line for line in lines))
            assert data(server.ask("www.example.org.")) == ["192.0.2.2"]
        assert not over.is_set()
    finally:
        over.set()


SIGNED = """\
@ NSEC *.w A NS SOA NSEC
*.w A 192.0.2.7
*.w NSEC ns.example.org. A NSEC
"""


def kinds(section: list[dns.rrset.RRset]) -> list[str]:
    return sorted(dns.rdatatype.to_text(rrset.rdtype) for rrset in section)


def test_minimal_keeps_the_proof_of_a_wildcards_answer(serve: Serve, db: Path) -> None:
    put(db, 1, SIGNED)
    server = serve(corefile(db, more="minimal"))
    for _ in range(3):
        assert kinds(server.ask("x.w.example.org.", want_dnssec=True).authority) == ["NSEC"]
        assert not server.ask("x.w.example.org.").authority and not server.ask("www.example.org.").authority
    plain = serve(corefile(db))
    assert kinds(plain.ask("x.w.example.org.", want_dnssec=True).authority) == ["NS", "NSEC"]


def test_what_was_asked_before_changes_no_answer(serve: Serve, db: Path) -> None:
    put(db, 1, SIGNED)
    names = [
        f"{first}.example.org."
        for first in ("www", "WWW", "x.w", "y.w", "nope", "n0pe", "b", "alias", "q.sub", "sub", "x.nope", "a.b.c")
    ]
    asked = [(name, rtype, do) for name in names for rtype in ("A", "TXT", "DS", "NS") for do in (False, True)]

    def said(server: Server, name: str, rtype: str, do: bool) -> list[list[str]]:
        reply = server.ask(name, rtype, want_dnssec=do)
        return [sorted(str(rrset) for rrset in section) for section in reply.sections] + [
            [code(reply), str(reply.flags)]
        ]

    fresh = serve(corefile(db))
    expected = {each: said(fresh, *each) for each in asked}
    server = serve(corefile(db))
    chance = random.Random(1)
    for _ in range(3):
        chance.shuffle(asked)
        for each in asked:
            assert said(server, *each) == expected[each], each


def test_the_courtesy_of_the_zones_servers_never_costs_a_truncation(serve: Serve, db: Path) -> None:
    put(
        db,
        1,
        "".join(f"@ NS ns{i}.{'long' * 12}.example.net.\n" for i in range(4))
        + "".join(f"many A 10.0.0.{i}\n" for i in range(20)),
    )
    server = serve(corefile(db))
    small, large = server.ask("many.example.org."), server.ask("many.example.org.", use_edns=0, payload=1232)
    assert not small.flags & dns.flags.TC and len(small.answer[0]) == 20 and not small.authority and large.authority


def test_a_referral_whose_glue_does_not_fit_is_truncated(serve: Serve, db: Path) -> None:
    many = range(13)
    put(
        db,
        1,
        "".join(
            f"big NS ns{i}.{'x' * 30}.big\nns{i}.{'x' * 30}.big A 10.0.0.{i}\nns{i}.{'x' * 30}.big AAAA ::{i}\n"
            for i in many
        ),
    )
    server = serve(corefile(db))
    assert server.ask("a.big.example.org.").flags & dns.flags.TC
    whole = server.ask("a.big.example.org.", tcp=True)
    assert not whole.flags & dns.flags.TC and len(whole.additional) == 26


def test_explain_says_why(serve: Serve, db: Path, tmp_path: Path) -> None:
    put(db, 1, "*.w A 192.0.2.7\n")
    (tmp_path / "Corefile").write_text(f"example.org:1053 {{\n file {db}\n}}\n")
    for name, why in (
        ("www", "zone example.org., serial 1"), ("x.w", "by the wildcard *.w.example.org."),
        ("x.sub", "delegated to sub.example.org."),
        ("nope", "there is no such name"), ("b", "no record of this type"),
        ("out", "a CNAME leads out of the zone, to www.example.net."),
    ):  # fmt: skip
        done = kdns("explain", "-conf", str(tmp_path / "Corefile"), f"{name}.example.org")
        assert why in done.stdout, done.stdout + done.stderr
