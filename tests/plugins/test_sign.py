"""sign: what it writes, judged by other people's tools; when it signs again; what is broken; the loop."""

import asyncio
import os
import random
import shutil
import subprocess
import time
from pathlib import Path

import dns.dnssec
import dns.rdatatype
import dns.zone
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdns.corefile import CorefileError
from kdns.dns.name import from_text
from kdns.plugins import sign
from kdns.server import build
from kdns.testing import code, data, eventually
from kdns.zonefile import signing
from kdns.zonefile.signing import DAY, HOUR, Done, Job, due, next_serial, read_head, run
from tests import programs
from tests.fixtures import Serve
from tests.zones import keymaker
from tests.zones.example_zones import ZONES

NOW = int(time.time())
KINDS = ("nsec", "nsec3", "opt-out")
VERIFIERS = {
    "dnssec-verify": ["-q", "-o", "ZONE", "FILE"], "ldns-verify-zone": ["FILE"], "kzonecheck": ["-o", "ZONE", "FILE"],
}  # fmt: skip


def judged_by(tool: str, zone: str, path: Path, *options: str) -> None:
    """A verifier finds a signed zone good."""
    words = VERIFIERS[tool]
    if tool == "dnssec-verify":
        # One key signs everything: BIND wants to be told.
        words = [*(options or ([] if " DNSKEY 256 " in path.read_text() else ["-z"])), *words]
    line = [str(programs.find(tool)), *(word.replace("ZONE", zone).replace("FILE", str(path)) for word in words)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, (tool, done.stdout, done.stderr)


def verified(zone: str, path: Path, *options: str) -> None:
    """All verifiers that this machine has find a signed zone good; the first test is skipped by name for the others."""
    for tool in filter(programs.find, VERIFIERS):
        judged_by(tool, zone, path, *options)


def job(folder: Path, zone: str = "example.", denial: str = "nsec", now: int = NOW, **more: int) -> Job:
    keys = tuple(sorted(str(path) for path in folder.glob(f"K{zone}+*.key")))
    return Job(str(folder / f"db.{zone}"), from_text(zone), keys, str(folder / f"db.{zone}signed"), now, denial=denial,
               **more)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for zone, text in ZONES.items():
        (tmp_path / f"db.{zone}").write_text(text)
        keymaker.make(tmp_path, zone)
    return tmp_path


# What it writes.


@pytest.mark.parametrize("zone", list(ZONES))
@pytest.mark.parametrize("denial", KINDS)
@pytest.mark.parametrize("tool", [pytest.param(tool, marks=programs.needs(tool)) for tool in VERIFIERS])
def test_other_peoples_tools_find_a_signed_zone_good(folder: Path, zone: str, denial: str, tool: str) -> None:
    done = run(job(folder, zone, denial))
    assert not done.error and done.serial == NOW
    judged_by(tool, zone, folder / f"db.{zone}signed")


@pytest.mark.parametrize("algorithm", [8, 10, 13, 14, 15, 16])
def test_every_algorithm_signs_whole_and_split(tmp_path: Path, algorithm: int) -> None:
    (tmp_path / "db.example.").write_text(ZONES["example."])
    keymaker.make(tmp_path, "example.", algorithm)
    assert not run(job(tmp_path)).error
    if algorithm != 16:  # ldns has no ED448 here
        verified("example.", tmp_path / "db.example.signed")
    keymaker.make(tmp_path, "example.", algorithm, flags=256)
    assert run(job(tmp_path)).why == "its records, its keys or the kind of denial have changed"
    if algorithm != 16:
        verified("example.", tmp_path / "db.example.signed")


def test_two_algorithms_sign_everything_each(tmp_path: Path) -> None:
    (tmp_path / "db.example.").write_text(ZONES["example."])
    keymaker.make(tmp_path, "example.", 13)
    keymaker.make(tmp_path, "example.", 15)
    keymaker.make(tmp_path, "example.", 13, flags=256)
    assert not run(job(tmp_path)).error
    verified("example.", tmp_path / "db.example.signed", "-z")


def test_what_an_earlier_signing_left_is_made_anew_and_the_parents_records_are_there(folder: Path) -> None:
    assert not run(job(folder)).error
    shutil.copy(folder / "db.example.signed", folder / "db.example.")
    done = run(job(folder, denial="nsec3"))
    assert not done.error
    verified("example.", folder / "db.example.signed")
    signed = dns.zone.from_file(str(folder / "db.example.signed"), "example.", relativize=False)
    (key,) = signed.find_rdataset("example.", "DNSKEY")
    assert [str(ds) for ds in signed.find_rdataset("example.", "CDS")] == [
        str(dns.dnssec.make_ds("example.", key, "SHA256"))  # type: ignore[arg-type]
    ]
    assert len(signed.find_rdataset("example.", "CDNSKEY")) == 1
    assert not [name for name, node in signed.items() if node.get_rdataset(1, dns.rdatatype.NSEC)]


_NAMES = st.lists(st.sampled_from(["a", "b", "c", "*", "\\000"]), min_size=1, max_size=4).map(".".join)
_DATA = st.sampled_from(
    ["A 192.0.2.1", "TXT x", "MX 1 a", "NS ns.example.net.", "AAAA 2001:db8::1",
     'NAPTR 1 1 "u" "E2U+sip" "" UPPER.example.',
     "DS 1 13 2 0102030405060708091011121314151617181920212223242526272829303132"]
)  # fmt: skip


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.dictionaries(_NAMES, st.sets(_DATA, min_size=1, max_size=3), max_size=8), st.sampled_from(KINDS))
def test_random_zones_are_signed_well(tmp_path: Path, zone: dict[str, set[str]], denial: str) -> None:
    records = ""
    for name, found in zone.items():
        # A wildcard that delegates is a cut to some and data to others (RFC 4592, section 4.2); a DS needs an NS.
        if "*" in name:
            found = {text for text in found if not text.startswith(("NS", "DS"))}
        elif not any(text.startswith("NS ") for text in found):
            found = {text for text in found if not text.startswith("DS")}
        records += "".join(f"{name} {text}\n" for text in sorted(found))
    (tmp_path / "db.example.").write_text(f"$TTL 60\n@ SOA ns h 1 2 3 4 30\n@ NS ns.example.net.\n{records}")
    if not list(tmp_path.glob("K*.key")):
        keymaker.make(tmp_path, "example.")
    done = run(job(tmp_path, denial=denial))
    assert not done.error, done.error
    verified("example.", tmp_path / "db.example.signed")


# When it signs.


def test_signatures_are_made_anew_by_corednss_rules() -> None:
    assert due(NOW - 3 * HOUR, NOW + 32 * DAY, NOW) == ""
    assert "6 days" in due(NOW - 6 * DAY - 1, NOW + 32 * DAY, NOW)
    assert due(NOW - 6 * DAY, NOW + 14 * DAY, NOW) == ""
    assert "14 days" in due(NOW - DAY, NOW + 14 * DAY - 1, NOW)
    assert "in the future" in due(NOW + 1, NOW + 32 * DAY, NOW)


def test_a_zone_is_signed_when_it_is_due_and_only_then(folder: Path) -> None:
    first = run(job(folder, inception_jitter=5 * HOUR, expiration_jitter=DAY))
    assert "is not there" in first.why
    assert (first.inception, first.expiration) == (NOW - 8 * HOUR, NOW + 33 * DAY)
    text = (folder / "db.example.signed").read_text()
    same = run(job(folder, now=NOW + 5 * DAY))
    assert (same.why, same.serial, same.expiration) == ("", NOW, first.expiration)
    assert (folder / "db.example.signed").read_text() == text
    again = run(job(folder, now=NOW + 6 * DAY))
    assert "6 days" in again.why and again.serial == NOW + 6 * DAY
    back = run(job(folder, now=NOW - DAY))  # the clock was set back
    assert "in the future" in back.why and back.serial == again.serial + 1
    (folder / "db.example.").write_text(ZONES["example."] + "more A 192.0.2.99\n")
    changed = run(job(folder, now=NOW - DAY))
    assert "have changed" in changed.why and changed.serial == back.serial + 1
    assert run(job(folder, denial="nsec3", now=NOW - DAY)).why == changed.why
    (folder / "db.example.signed").write_text("; by somebody else\n")
    assert run(job(folder)).why == "kdns has not signed it before"


def test_a_serial_is_the_time_but_always_newer_than_the_last() -> None:
    assert next_serial(1000, None) == 1000 == next_serial(1000, 999)
    assert next_serial(1000, 1000) == 1001 and next_serial(1000, 5000) == 5001
    assert next_serial(0, 0xFFFFFFFF) == 1  # a serial of 0 is avoided: CoreDNS takes none
    assert next_serial(10, 0xFFFFFFF0) == 10


def test_the_digest_does_not_depend_on_the_order_of_records(folder: Path) -> None:
    run(job(folder))
    lines = ZONES["example."].splitlines(keepends=True)
    body = lines[3:]
    random.Random(1).shuffle(body)
    (folder / "db.example.").write_text("".join(lines[:3] + body))
    assert run(job(folder)).why == ""


def test_a_file_is_put_in_its_place_whole_or_not_at_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not run(job(folder)).error
    before = (folder / "db.example.signed").read_bytes()
    (folder / "db.example.").write_text(ZONES["example."] + "more A 192.0.2.99\n")

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(signing.os, "fsync", full)
    done = run(job(folder))
    assert "No space left on device" in done.error
    assert (folder / "db.example.signed").read_bytes() == before
    assert not [name for name in os.listdir(folder) if name.startswith(".")]


def test_what_is_broken_is_said_with_its_place(folder: Path) -> None:
    (folder / "db.example.").write_text("@ SOA broken\n")
    done = run(job(folder))
    assert f"{folder}/db.example.:1:" in done.error and not (folder / "db.example.signed").exists()
    (folder / "db.example.").unlink()
    assert "No such file or directory" in run(job(folder)).error
    (folder / "db.example.").write_text("$TTL 60\n@ NS ns\n")
    assert "SOA" in run(job(folder)).error


# In a server.


def corefile(folder: Path, *options: str, zones: str = "example.") -> str:
    inner = "\n ".join((f"key directory {folder}", f"directory {folder}", *options))
    lines = f"file {folder}/db.example.signed example. {{\n reload 50ms\n }}"
    return f".:{{port}} {{\n bind 127.0.0.1\n {lines}\n sign {folder}/db.example. {zones} {{\n {inner}\n }}\n}}\n"


def test_a_zone_is_signed_served_and_signed_again_when_its_file_changes(
    serve: Serve, folder: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    monkeypatch.setattr(sign, "LOOK", 0.05)
    monkeypatch.setattr(sign, "RETRY", 0.2)
    server = serve(corefile(folder))
    eventually(lambda: data(server.ask("xx.example.", "A")) == ["192.0.2.10"])
    eventually(lambda: any("Successfully signed zone" in line for line in lines))
    first = read_head(str(folder / "db.example.signed"))
    (folder / "db.example.").write_text(ZONES["example."] + "more A 192.0.2.99\n")
    eventually(lambda: data(server.ask("more.example.", "A")) == ["192.0.2.99"])
    second = read_head(str(folder / "db.example.signed"))
    assert first and second and second.serial > first.serial
    verified("example.", folder / "db.example.signed")
    (folder / "db.example.").write_text("@ SOA broken\n")
    eventually(lambda: any("Error signing" in line for line in lines))
    assert data(server.ask("more.example.", "A")) == ["192.0.2.99"]
    (folder / "db.example.").write_text(ZONES["example."])
    eventually(lambda: code(server.ask("more.example.", "A")) == "NXDOMAIN")
    keymaker.make(folder, "example.", 15)  # a new pair is taken with the next start
    (folder / "db.example.signed").unlink()
    eventually(lambda: (folder / "db.example.signed").exists())
    assert server.reload(corefile(folder))
    eventually(lambda: len(server.ask("example.", "DNSKEY").answer[0]) == 2)
    assert sum("Error signing" in line for line in lines) == 1


def test_a_zone_that_is_signed_is_not_signed_again_at_the_next_start(
    serve: Serve, folder: Path, lines: list[str]
) -> None:
    run(job(folder))
    before = (folder / "db.example.signed").read_bytes()
    server = serve(corefile(folder))
    eventually(lambda: any("Skipping signing zone" in line for line in lines))
    assert data(server.ask("xx.example.", "A")) == ["192.0.2.10"]
    assert (folder / "db.example.signed").read_bytes() == before


def test_it_is_signed_again_when_the_time_has_come(serve: Serve, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sign, "LOOK", 0.05)
    server = serve(corefile(folder))
    path = str(folder / "db.example.signed")
    first = eventually(lambda: read_head(path))
    instance = server.server.instance
    assert instance is not None
    (plugin,) = [each for each in instance.plugins if isinstance(each, sign.Sign)]
    now = time.time()
    plugin.clock = lambda: now + 7 * DAY
    again = eventually(lambda: (found := read_head(path)) and found.serial != first.serial and found)
    assert again.expiration >= now + 39 * DAY - 1


def test_a_reload_while_a_zone_was_signed_left_what_had_been_signed_before(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes signed it: the old configuration's, which knew the zone as it was, could be the last to write."""
    running = 0

    async def run_beside(job: Job) -> Done:
        nonlocal running
        running += 1
        assert running == 1
        for _ in range(5):
            await asyncio.sleep(0)
        running -= 1
        return Done()

    async def main() -> None:
        monkeypatch.setattr(signing, "run_beside", run_beside)
        made = job(folder)
        old, new = [
            sign.Signer(made.source, made.origin, made.keys, made.target, made.denial, time.time) for _ in range(2)
        ]
        signing_it = asyncio.create_task(old.sign())
        await asyncio.gather(signing_it, new.sign())
        assert not sign._turns

    asyncio.run(main())


def test_one_file_is_signed_for_several_zones(serve: Serve, folder: Path) -> None:
    (folder / "db.example.").write_text("$TTL 60\n@ SOA ns h 1 2 3 4 60\n@ NS ns\nns A 192.0.2.1\n")
    serve(corefile(folder, "denial nsec3", zones="wild.example. more.example."))
    for zone in ("wild.example.", "more.example."):
        eventually(lambda zone=zone: (folder / f"db.{zone}signed").exists())
        verified(zone, folder / f"db.{zone}signed")


@pytest.mark.parametrize(("wrong", "expected"), [
    ("sign", "expected a zone's master file after sign"),
    ("sign db.x", "sign needs a key"),
    ("sign db.x {\n key aws_secretsmanager K\n }", "Corefile:4:6: keys in AWS Secrets Manager are not read"),
    ("sign db.x {\n key file K\n denial nsec5\n }", "expected nsec, nsec3 or opt-out"),
    ("sign db.x {\n key file K\n directory a b\n }", "unexpected argument"),
    ("sign db.x {\n keys file K\n }", "unknown property"),
])  # fmt: skip
def test_errors_of_the_corefile_have_their_place(wrong: str, expected: str) -> None:
    with pytest.raises(CorefileError) as caught:
        build.build(build.read(f"example.org {{\n bind 127.0.0.1\n {wrong}\n}}\n", "Corefile"))
    assert expected in str(caught.value)


def test_a_key_that_may_not_sign_keys_is_an_error_at_the_start(serve: Serve, tmp_path: Path) -> None:
    path = keymaker.make(tmp_path, "example.", flags=256)
    with pytest.raises(CorefileError) as caught:
        serve(corefile(tmp_path))
    assert f'sign: DNSKEY in "{path}.key" is not a CSK/KSK' in str(caught.value)
    Path(f"{path}.private").unlink()
    with pytest.raises(CorefileError, match=r"Corefile:7:16: sign: .*\.private: No such file or directory"):
        serve(corefile(tmp_path))


def test_signing_a_zone_holds_the_loop_no_longer_than_starting_a_process(folder: Path) -> None:
    records = "".join(f"h{i} A 192.0.2.{i % 256}\n" for i in range(3000))
    (folder / "db.example.").write_text(ZONES["example."] + records)

    async def measured() -> tuple[Done, int]:
        turns = 0
        task = asyncio.create_task(signing.run_beside(job(folder)))
        while not task.done():
            await asyncio.sleep(0)
            turns += 1
        return task.result(), turns

    done, turns = asyncio.run(measured())
    assert not done.error and done.why and turns > 1000  # it waits; it does not work
