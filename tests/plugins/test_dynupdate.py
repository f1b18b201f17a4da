"""dynupdate: RFC 2136 by dnspython, nsupdate and knsupdate; who may do what; crashes; floods; secondaries."""

import fcntl
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dns.exception
import dns.flags
import dns.message
import dns.opcode
import dns.query
import dns.rcode
import dns.tsig
import dns.tsigkeyring
import dns.update
import dns.xfr
import dns.zone
import pytest

from kdns.corefile import CorefileError
from kdns.plugins.dynupdate import journal, zone
from kdns.testing import Server, code, data, eventually, free_port
from tests.fixtures import Serve
from tests.zones import peers

SECRET = "c2VjcmV0IG9mIHRoZXNlIHRlc3RzIGFuZCBub25l"
KEYS = dns.tsigkeyring.from_text({"all.": SECRET, "acme.": SECRET, "other.": SECRET})
STRANGE = dns.tsigkeyring.from_text({"strange.": SECRET})
ZONE = """\
$TTL 300
@ SOA ns hostmaster 1 3600 1 86400 60
@ NS ns
ns A 192.0.2.1
www A 192.0.2.2
www A 192.0.2.3
alias CNAME www
mail MX 10 www
"""
OWN = "dynupdate example.org {{\n file {0}/seed\n database {0}/db\n {1}\n }}"
ALLOW = "allow all. * *\n allow acme. _acme-challenge.example.org TXT\n allow acme. @ A"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "seed").write_text(ZONE)
    return tmp_path


def corefile(folder: Path, *options: str, more: str = "", allow: str = ALLOW) -> str:
    keys = "\n ".join(f"secret {key} {SECRET}" for key in ("all.", "acme.", "other."))
    own = OWN.format(folder, "\n ".join((allow, *options)))
    return f".:{{port}} {{\n bind 127.0.0.1\n tsig {{\n {keys}\n }}\n {own}\n {more}\n}}\n"


def update(key: str = "all.", zone: str = "example.org.", ring: Any = KEYS) -> dns.update.UpdateMessage:
    return dns.update.UpdateMessage(zone, keyring=ring, keyname=key, keyalgorithm="hmac-sha256")


def send(server: Server, message: dns.message.Message, tcp: bool = False) -> str:
    reply = server.send(message, tcp=tcp)
    assert reply.opcode() == dns.opcode.UPDATE and reply.id == message.id
    if message.had_tsig or message.keyring:
        assert reply.had_tsig
    return dns.rcode.to_text(reply.rcode())


def serial(server: Server) -> int:
    return int(server.ask("example.org.", "SOA").answer[0][0].serial)


def test_records_are_added_replaced_and_deleted(serve: Serve, folder: Path) -> None:
    server = serve(corefile(folder))
    assert data(server.ask("www.example.org.")) == ["192.0.2.2", "192.0.2.3"]
    made = update()
    made.add("new", 60, "A", "192.0.2.9")
    made.add("new", 60, "A", "192.0.2.10")
    made.delete("www", "A", "192.0.2.2")
    made.delete("mail")
    made.delete("alias", "CNAME")
    assert send(server, made) == "NOERROR" and serial(server) == 2
    assert data(server.ask("new.example.org.")) == ["192.0.2.10", "192.0.2.9"]
    assert data(server.ask("www.example.org.")) == ["192.0.2.3"]
    assert [code(server.ask(f"{name}.example.org.", "MX")) for name in ("mail", "alias")] == ["NXDOMAIN"] * 2
    made = update()
    made.replace("new", 30, "A", "192.0.2.11")
    assert send(server, made, tcp=True) == "NOERROR"
    reply = server.ask("new.example.org.")
    assert data(reply) == ["192.0.2.11"] and reply.answer[0].ttl == 30
    assert send(server, made) == "NOERROR" and serial(server) == 3  # nothing changed


def test_the_rules_of_rfc_2136_for_cname_soa_and_the_apex(serve: Serve, folder: Path) -> None:
    server = serve(corefile(folder))

    def sent(*lines: tuple[Any, ...], delete: bool = False) -> None:
        made = update()
        for line in lines:
            (made.delete if delete else made.add)(*line)
        assert send(server, made) == "NOERROR"

    sent(("www", 300, "CNAME", "ns"), ("alias", 300, "A", "192.0.2.9"))  # neither beside other data
    assert serial(server) == 1 and data(server.ask("alias.example.org.", "CNAME")) == ["www.example.org."]
    sent(("alias", 300, "CNAME", "ns"))
    assert data(server.ask("alias.example.org.", "CNAME")) == ["ns.example.org."] and serial(server) == 2
    sent(("@",), ("@", "NS"), ("@", "SOA"), ("@", "NS", "ns"), delete=True)
    assert serial(server) == 2 and data(server.ask("example.org.", "NS")) == ["ns.example.org."]
    sent(("@", 300, "NS", "ns2"))
    sent(("@", "NS", "NS"), delete=True)  # names in rdatas are equal in any case
    assert data(server.ask("example.org.", "NS")) == ["ns2.example.org."] and serial(server) == 4
    sent(("@", 300, "SOA", "ns hostmaster 3 3600 1 86400 60"))
    sent(("@", 300, "SOA", "ns hostmaster 0 3600 1 86400 60"))
    sent(("www", 300, "SOA", "ns hostmaster 9 3600 1 86400 60"))
    assert serial(server) == 4
    sent(("@", 300, "SOA", "ns hostmaster 4294967295 3600 1 86400 60"), ("x", 1, "A", "192.0.2.9"))
    raised = serial(server)
    assert raised == 5  # older, by RFC 1982: the rest has raised it
    sent(("@", 300, "SOA", f"ns hostmaster {raised + 100} 3600 1 86400 60"), ("y", 1, "A", "192.0.2.9"))
    assert serial(server) == raised + 100
    sent(("www", 77, "A", "192.0.2.2"))  # another TTL is a change, of the whole set
    assert server.ask("www.example.org.").answer[0].ttl == 77 and serial(server) == raised + 101


@pytest.mark.parametrize(
    ("name", "args", "expected"),
    [
        ("present", ("www",), "NOERROR"), ("present", ("none",), "NXDOMAIN"), ("absent", ("none",), "NOERROR"),
        ("absent", ("www",), "YXDOMAIN"), ("present", ("www", "A"), "NOERROR"), ("present", ("www", "MX"), "NXRRSET"),
        ("absent", ("www", "A"), "YXRRSET"), ("absent", ("www", "MX"), "NOERROR"),
        ("present", ("www", "A", "192.0.2.2"), "NXRRSET"), ("present", ("mail", "MX", "10 WWW"), "NOERROR"),
        ("present", ("www.example.net.",), "NOTZONE"),
    ],
)  # fmt: skip
def test_prerequisites(serve: Serve, folder: Path, name: str, args: tuple[Any, ...], expected: str) -> None:
    server = serve(corefile(folder))
    made = update()
    getattr(made, name)(*args)
    made.add("new", 60, "A", "192.0.2.9")
    assert send(server, made) == expected
    assert serial(server) == (2 if expected == "NOERROR" else 1)


def test_who_may_change_what(serve: Serve, folder: Path) -> None:
    server = serve(corefile(folder))

    def added(key: str, name: str, rtype: str, rdata: str, ring: Any = KEYS) -> str:
        made = update(key, ring=ring)
        made.add(name, 60, rtype, rdata)
        return send(server, made)

    assert added("acme.", "_acme-challenge", "TXT", "token") == "NOERROR"
    assert added("acme.", "@", "A", "192.0.2.1") == "NOERROR"
    for refused in (("_acme-challenge", "A", "192.0.2.1"), ("www", "TXT", "x"), ("@", "TXT", "x")):
        assert added("acme.", *refused) == "REFUSED"
    assert added("other.", "www", "TXT", "x") == "REFUSED"
    made = update("acme.")
    made.delete("_acme-challenge")
    assert send(server, made) == "REFUSED"  # to delete all is a permission of its own
    made = dns.update.UpdateMessage("example.org.")
    made.add("www", 60, "TXT", "x")
    assert send(server, made) == "REFUSED"  # unsigned
    made = update("strange.", ring=STRANGE)
    made.add("www", 60, "TXT", "x")
    with pytest.raises(dns.tsig.PeerBadKey):
        server.send(made)
    assert serial(server) == 3


def test_what_is_malformed_or_elsewhere_is_told_so(serve: Serve, folder: Path) -> None:
    server = serve(corefile(folder, "max_update_records 50", "max_records 60"))
    made = update(zone="example.net.")
    made.add("www", 60, "A", "192.0.2.1")
    assert send(server, made) == "NOTAUTH"
    made = update()
    made.add("www.example.net.", 60, "A", "192.0.2.1")
    assert send(server, made) == "NOTZONE"
    made = update()
    made.add("www", 60, "DNSKEY", "256 3 13 aaaa")
    assert send(server, made) == "NOTIMP"
    made = update()
    made.add("www", 60, "A", "192.0.2.1")
    made.update[0].rdclass = 3  # CHAOS
    assert send(server, made) == "FORMERR"
    made = update()
    for i in range(51):
        made.add(f"h{i}", 60, "A", "192.0.2.1")
    reply = server.raw(made.to_wire())
    assert reply is not None and reply[2:4] == b"\xa8\x05"  # REFUSED, before any signature is looked at
    for start in (0, 49):
        made = update()
        for i in range(start, start + 49):
            made.add(f"h{i}", 60, "A", "192.0.2.1")
        expected = "REFUSED" if start else "NOERROR"
        assert send(server, made, tcp=True) == expected  # the zone is full
    assert serial(server) == 2


def test_only_blocks_with_such_zones_take_updates(serve: Serve, folder: Path) -> None:
    made = update()
    made.add("www", 60, "A", "192.0.2.1")
    for text in (
        ".:{port} {\n bind 127.0.0.1\n whoami\n}",
        corefile(folder).replace(".:{port}", "example.net:{port}", 1)
        + "example.org:{port} {\n bind 127.0.0.1\n whoami\n}",
    ):
        plain = dns.update.UpdateMessage("example.org.")
        plain.add("www", 60, "A", "192.0.2.1")
        reply = serve(text).send(plain)
        assert reply.rcode() == dns.rcode.NOTIMP and reply.opcode() == dns.opcode.UPDATE


def test_nsupdate_and_knsupdate_change_a_zone(serve: Serve, folder: Path) -> None:
    server = serve(corefile(folder))
    for i, (program, key) in enumerate((("nsupdate", "hmac-sha256:all.:"), ("knsupdate", "hmac-sha256:all.:"))):
        found = shutil.which(program)
        if found is None:
            continue
        text = (
            f"server 127.0.0.1 {server.port}\nzone example.org.\nprereq nxdomain n{i}.example.org.\n"
            f'update add n{i}.example.org. 60 TXT "a b"\nupdate add n{i}.example.org. 60 A 192.0.2.7\nsend\nanswer\n'
        )
        ran = [subprocess.run([found, "-y", key + SECRET], input=text, capture_output=True, text=True, timeout=90)
               for _ in range(2)]  # fmt: skip
        assert ran[0].returncode == 0, ran[0].stderr
        assert "YXDOMAIN" in ran[1].stderr + ran[1].stdout
        assert data(server.ask(f"n{i}.example.org.")) == ["192.0.2.7"]


def test_an_acme_solver_adds_and_deletes_its_token(serve: Serve, folder: Path) -> None:
    """cert-manager and lego: two challenges of one name at a time, each deleted by its rdata."""
    server = serve(corefile(folder))
    for token in ("one", "TWO"):
        made = update("acme.")
        made.add("_acme-challenge", 60, "TXT", token)
        assert send(server, made) == "NOERROR"
    made = update("acme.")
    made.delete("_acme-challenge", "TXT", "two")  # another rdata: TXT differs by case
    made.delete("_acme-challenge", "TXT", "one")
    assert send(server, made) == "NOERROR"
    assert data(server.ask("_acme-challenge.example.org.", "TXT")) == ['"TWO"']
    made = update("acme.")
    made.delete("_acme-challenge", "TXT")  # lego clears what was left over
    assert send(server, made) == "NOERROR"
    assert code(server.ask("_acme-challenge.example.org.", "TXT")) == "NXDOMAIN"


def test_external_dns_reads_by_axfr_and_changes(serve: Serve, folder: Path) -> None:
    server = serve(corefile(folder, more="transfer {\n to *\n }"))
    found = dns.zone.Zone("example.org.")
    query, _ = dns.xfr.make_query(found, keyring=KEYS, keyname="all.", keyalgorithm="hmac-sha256")
    dns.query.inbound_xfr("127.0.0.1", found, query, port=server.port, timeout=5, lifetime=10)
    assert "www" in {str(name) for name in found}
    made = update()
    made.delete("www", "A", "192.0.2.2")
    made.add("www", 0, "A", "192.0.2.20")
    made.add("a-www", 0, "TXT", '"heritage=external-dns,external-dns/owner=me"')
    assert send(server, made) == "NOERROR"
    assert data(server.ask("www.example.org.")) == ["192.0.2.20", "192.0.2.3"]


def test_updates_outlive_a_restart_and_the_file_is_a_zone_file(serve: Serve, folder: Path) -> None:
    with Server(corefile(folder)) as server:
        made = update()
        made.add("new", 60, "TXT", '"odd \\" \\200"')
        assert send(server, made) == "NOERROR"
    assert not (folder / "db.journal").read_bytes()
    (folder / "seed").write_text(ZONE.replace("192.0.2.1\n", "192.0.2.99\n"))
    read = dns.zone.from_file(str(folder / "db"), "example.org.")
    assert read.get_rdataset("new", "TXT") is not None
    again = serve(corefile(folder))
    assert data(again.ask("new.example.org.", "TXT")) == ['"odd \\" \\200"'] and serial(again) == 2
    assert data(again.ask("ns.example.org.")) == ["192.0.2.1"]
    with pytest.raises(CorefileError, match="another server uses it"):
        serve(corefile(folder))


def test_a_reload_keeps_the_zone(serve: Serve, folder: Path) -> None:
    server = serve(corefile(folder))
    made = update()
    made.add("new", 60, "A", "192.0.2.9")
    assert send(server, made) == "NOERROR"
    assert server.reload(corefile(folder, allow="allow other. * *").replace("{port}", str(server.port)))
    assert data(server.ask("new.example.org.")) == ["192.0.2.9"]
    assert send(server, update_of("all.")) == "REFUSED" and send(server, update_of("other.")) == "NOERROR"


def update_of(key: str) -> dns.update.UpdateMessage:
    made = update(key)
    made.add("more", 60, "A", "192.0.2.9")
    return made


def test_a_journal_that_was_cut_anywhere_has_its_whole_frames(tmp_path: Path) -> None:
    path = str(tmp_path / "j")
    names: journal.Content = [
        (b"\x01a\x00", [(1, 60, (b"\1\2\3\4", b"\1\2\3\5")), (16, 5, (b"\1x",))]),
        (b"\x01b\x00", []),
    ]
    frames = [journal.packed(i, names) for i in (1, 2, 3)]
    whole = b"".join(frames)
    for cut in sorted({*range(0, len(whole) + 1, 7), *range(len(whole) - 15, len(whole) + 1)}):
        Path(path).write_bytes(whole[:cut])
        opened = journal.Journal(path)
        read = opened.open()
        assert [frame.number for frame in read] == [1, 2, 3][: cut // len(frames[0])]
        assert all(frame.names == names for frame in read)
        opened.append(journal.packed(9, []))
        opened.close()
        opened = journal.Journal(path)
        assert opened.open()[-1].number == 9
        opened.close()
    Path(path).write_bytes(whole[:20] + b"?" + whole[21:])
    with pytest.raises(journal.Damaged, match="damaged at octet 0"):
        journal.Journal(path).open()


def test_a_disk_that_fails_fails_the_update_and_nothing_else(
    serve: Serve, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(corefile(folder))
    append = journal.Journal.append

    def torn(self: journal.Journal, frame: bytes) -> None:
        os.write(self.file, frame[: len(frame) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(journal.Journal, "append", torn)
    assert send(server, update_of("all.")) == "SERVFAIL"
    assert code(server.ask("more.example.org.")) == "NXDOMAIN" and serial(server) == 1
    monkeypatch.setattr(journal.Journal, "append", append)
    assert send(server, update_of("all.")) == "NOERROR" and serial(server) == 2
    frames = journal._frames((folder / "db.journal").read_bytes())
    assert len(list(frames)) == 1


@pytest.mark.parametrize("name", ["db", "db.journal"])
def test_a_pipe_as_the_database_kept_the_start_waiting_for_ever(serve: Serve, folder: Path, name: str) -> None:
    os.mkfifo(folder / name)
    with pytest.raises(CorefileError, match=f"dynupdate: .*/{name}: it is not a regular file"):
        serve(corefile(folder))


def test_a_disk_that_hangs_kept_updates_waiting_and_the_server_from_ending(
    serve: Serve, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it was given is not acknowledged, and what hangs does not meet what is written after it."""
    over = threading.Event()
    monkeypatch.setattr(zone, "WRITING", 0.3)
    monkeypatch.setattr(journal.os, "fdatasync", lambda file: over.wait(20))
    try:
        with Server(corefile(folder)) as server:
            for _ in range(2):  # the second finds the first hanging
                assert send(server, update_of("all.")) == "SERVFAIL"
                assert code(server.ask("more.example.org.")) == "NXDOMAIN" and serial(server) == 1
            over.set()
            eventually(lambda: send(server, update_of("all.")) == "NOERROR")
            assert serial(server) == 2
            assert len(list(journal._frames((folder / "db.journal").read_bytes()))) == 1
            over.clear()
            made = update("all.")
            made.add("last", 60, "A", "192.0.2.9")
            assert send(server, made) == "SERVFAIL"
        assert not over.is_set()
    finally:
        over.set()
    monkeypatch.setattr(journal.os, "fdatasync", os.fsync)
    eventually(lambda: not busy(folder / "db.journal"))
    again = serve(corefile(folder))
    assert data(again.ask("more.example.org.")) == ["192.0.2.9"]


def busy(path: Path) -> bool:
    """Whether somebody has the journal's lock."""
    with open(path, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_a_journal_is_closed_once_what_hangs_in_it_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, over = threading.Event(), threading.Event()
    monkeypatch.setattr(journal.os, "fdatasync", lambda file: (begun.set(), over.wait(20)))
    opened = journal.Journal(str(tmp_path / "j"))
    opened.open()
    thread = threading.Thread(target=opened.append, args=(journal.packed(1, []),))
    thread.start()
    assert begun.wait(10)
    opened.close()
    os.fstat(opened.file)
    over.set()
    thread.join()
    assert opened.file == -1
    with pytest.raises(OSError, match="the journal is closed"):
        opened.append(b"")


def test_a_flood_is_bounded_and_others_do_not_wait(serve: Serve, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(corefile(folder, allow="allow all. * *\n allow other. * *"))
    gate = threading.Event()
    append = journal.Journal.append

    def slow(self: journal.Journal, frame: bytes) -> None:
        gate.wait(20)
        append(self, frame)

    monkeypatch.setattr(journal.Journal, "append", slow)
    count = zone.BATCH + zone.OF_KEY + 200
    replies: dict[int, int] = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        for i in range(count):
            made = update()
            made.add(f"f{i}", 60, "A", "192.0.2.1")
            sock.sendto(made.to_wire(), ("127.0.0.1", server.port))
            if i % 50 == 49:  # queries are answered in the midst of it
                began = time.monotonic()
                assert data(server.ask("www.example.org.")) and time.monotonic() - began < 2
        other: list[str] = []
        thread = threading.Thread(target=lambda: other.append(send(server, update_of("other."))))
        thread.start()
        gate.set()
        for _ in range(count):
            reply = sock.recv(65535)
            replies[reply[3] & 15] = replies.get(reply[3] & 15, 0) + 1
        thread.join(20)
    assert replies[2] >= 100 and replies[0] >= zone.OF_KEY and sum(replies.values()) == count
    assert other == ["NOERROR"]  # another key has places of its own


def process(folder: Path, port: int) -> subprocess.Popen[bytes]:
    (folder / "Corefile").write_text(corefile(folder).replace("{port}", str(port)))
    with open(folder / "output", "ab") as output:
        running = subprocess.Popen(
            [sys.executable, "-m", "kdns", "-conf", str(folder / "Corefile")], stdout=output, stderr=output
        )
    eventually(lambda: running.poll() is not None or peers.answers(port, "example.org."), step=0.05)
    assert running.poll() is None, (folder / "output").read_text()
    return running


def test_a_server_that_is_killed_at_any_point_loses_no_update_and_leaves_none_half_done(folder: Path) -> None:
    port, chance = free_port(), random.Random(7)
    acknowledged: set[str] = set()
    sent: list[str] = []
    for turn in range(5):
        running = process(folder, port)
        stop = threading.Event()

        def client(which: int, turn: int = turn, stop: threading.Event = stop) -> None:
            for i in range(10_000):
                if stop.is_set():
                    return
                name = f"k{turn}-{which}-{i}"
                made = update()
                made.add(name, 60, "A", "192.0.2.9")
                made.add(f"{name}.half", 60, "TXT", "x" * 200)
                sent.append(name)
                try:
                    reply = dns.query.udp(made, "127.0.0.1", port=port, timeout=1)
                except (OSError, dns.exception.DNSException):
                    return
                if reply.rcode() == dns.rcode.NOERROR:
                    acknowledged.add(name)

        threads = [threading.Thread(target=client, args=(which,)) for which in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.2 + chance.random() * 0.3)
        running.send_signal(signal.SIGKILL)
        running.wait()
        stop.set()
        for thread in threads:
            thread.join(10)
    running = process(folder, port)
    running.terminate()
    assert running.wait(20) == 0
    read = dns.zone.from_file(str(folder / "db"), "example.org.")
    there = {str(name) for name in read}
    assert len(acknowledged) > 20 and acknowledged <= there
    for name in sent:
        assert (name in there) == (f"{name}.half" in there)


@pytest.fixture
def notified() -> Iterator[tuple[int, list[bytes]]]:
    """Somebody who is told of new versions: a port, and what came."""
    got: list[bytes] = []
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))

    def listen() -> None:
        try:
            while True:
                message, where = sock.recvfrom(65535)
                if not message:
                    return
                got.append(message)
                sock.sendto(message[:2] + bytes((message[2] | 0x80,)) + message[3:], where)
        except OSError:
            return

    thread = threading.Thread(target=listen)
    thread.start()
    yield sock.getsockname()[1], got
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
        end.sendto(b"", sock.getsockname())
    thread.join(5)
    sock.close()


def test_an_update_is_notified_and_had_by_ixfr(serve: Serve, folder: Path, notified: tuple[int, list[bytes]]) -> None:
    port, got = notified
    server = serve(corefile(folder, more=f"transfer {{\n to * 127.0.0.1:{port}\n }}"))
    eventually(lambda: got)
    before = len(got)
    assert send(server, update_of("all.")) == "NOERROR"
    eventually(lambda: len(got) > before)
    found = dns.zone.from_text(ZONE, "example.org.")
    query, was = dns.xfr.make_query(found, serial=1, keyring=KEYS, keyname="all.", keyalgorithm="hmac-sha256")
    reply = dns.query.tcp(query, "127.0.0.1", port=server.port, timeout=5, one_rr_per_rrset=True)
    assert [str(rrset.name) for rrset in reply.answer if rrset.rdtype == 1] == ["more.example.org."]
    dns.query.inbound_xfr("127.0.0.1", found, query, port=server.port, timeout=5, lifetime=10)
    assert was == 1 and found.get_rdataset("more", "A") is not None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("dynupdate {\n database x\n allow k * A\n }", "needs `file`"),
        ("dynupdate {\n file x\n allow k * A\n }", "`database`"),
        ("dynupdate {\n file x\n database y\n }", "needs `allow"),
        ("dynupdate {\n file x\n database y\n allow k www.example.net A\n }", "is not in the zone"),
        ("dynupdate {\n file x\n database y\n allow k * RRSIG\n }", "is not a type"),
        ("dynupdate {\n file x\n database y\n allow k * * A\n }", "stands alone"),
        ("dynupdate {\n file x\n database y\n allow k * A\n color\n }", "unknown"),
        ("dynupdate {\n file /nowhere/x\n database /nowhere/y\n allow k * A\n }", "No such file"),
    ],
)
def test_bad_directives_are_named(serve: Serve, text: str, expected: str) -> None:
    with pytest.raises(CorefileError, match=expected):
        serve(f"example.org:{{port}} {{\n bind 127.0.0.1\n {text}\n}}")


def test_a_key_that_the_block_does_not_have_is_named(serve: Serve, folder: Path) -> None:
    with pytest.raises(CorefileError, match="has no key nobody"):
        serve(corefile(folder, allow="allow nobody. * A"))
