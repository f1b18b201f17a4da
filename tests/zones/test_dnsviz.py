"""What dnsviz says of signed zones that kdns serves: it looks at the keys, at every record's signatures and at the
proofs, and finds no error.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests import programs
from tests.fixtures import Serve
from tests.zones.example_zones import ZONES
from tests.zones.test_validators import SIGN_KINDS, needs_bind, signed_by_sign, signing_itself

ZONE = "example."
# A name with records, one by a wildcard, one that is not there, one below an empty non-terminal, and that itself.
NAMES = (ZONE, "ai.example.", "q.w.example.", "nope.example.", "ent.of.two.labels.example.", "labels.example.")
# It wants the zone's DS to hold the keys that sign these: the zone has no parent here.
WITHOUT_A_PARENT = {"CDS_SIGNER_INVALID", "CDNSKEY_SIGNER_INVALID"}


ENVIRON = {**os.environ, "PYTHONPATH": str(Path(__file__).parent / "dnsviz")}


def runs() -> bool:
    """Whether dnsviz is there, with the libraries that it needs to say anything."""
    found = programs.find("dnsviz")
    if found is None:
        return False
    done = subprocess.run([found, "grok"], input=b"{}", capture_output=True, env=ENVIRON)
    return b"pygraphviz" not in done.stderr


pytestmark = needs_bind


@pytest.fixture(scope="module", autouse=True)
def dnsviz_runs() -> None:
    """Skips where it is not installed. It is started for that, which takes a second: not when tests are collected."""
    if not runs():
        pytest.skip("dnsviz (or pygraphviz, which it needs) is missing")


@pytest.fixture(autouse=True)
def servers_that_refuse_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """dnsviz also asks the zone's servers by their addresses; those of the example would be waited for."""
    text = ZONES[ZONE].replace("192.0.2.1\n", "127.0.0.1\n").replace("192.0.2.2\n", "127.0.0.1\n")
    monkeypatch.setitem(ZONES, ZONE, text)


def said(words: list[str], given: bytes = b"") -> bytes:
    dnsviz = programs.find("dnsviz")
    assert dnsviz
    done = subprocess.run([dnsviz, *words], input=given, capture_output=True, timeout=120, env=ENVIRON)
    assert not done.returncode, done.stderr.decode()
    return done.stdout


def codes(found: Any) -> set[str]:
    """The codes of all errors, wherever they stand."""
    if isinstance(found, list):
        return {code for each in found for code in codes(each)}
    if not isinstance(found, dict):
        return set()
    errors = {error["code"] for error in found.get("errors", ())}
    return errors | {code for each in found.values() for code in codes(each)}


def judge(port: int, folder: Path, keys: Path, kind: str) -> None:
    anchors = folder / "anchors"
    anchors.write_text("".join(path.read_text() for path in keys.glob("K*.key") if " 257 " in path.read_text()))
    probed = said(["probe", "-A", "-4", "-x", f"{ZONE}+:ns1.{ZONE}=127.0.0.1:{port}", *NAMES])
    errors = said(["grok", "-l", "error", "-t", str(anchors)], probed)  # nothing where there are none
    assert codes(json.loads(errors or b"{}")) <= WITHOUT_A_PARENT
    shown = said(["print", "-t", str(anchors)], probed).decode()
    # Each line of a record, a signature or a proof says what came of it: [.] secure, [-] insecure, [!] bogus.
    marks = [line.partition("[")[2].partition("]")[0] for line in shown.splitlines() if "[" in line]
    # What an opted-out span may hold is not proven to be absent (RFC 5155, section 6).
    assert len(marks) > 50 and set(marks) <= {".", ".!"} | ({"-"} if kind == "opt-out" else set()), shown


@pytest.mark.parametrize("kind", SIGN_KINDS)
def test_dnsviz_finds_no_error_in_what_sign_has_signed(serve: Serve, tmp_path: Path, kind: str) -> None:
    server, keys, _ = signed_by_sign(serve, tmp_path, kind)
    judge(server.port, tmp_path, keys, kind)


@pytest.mark.parametrize("kind", ["compact", "nsec"])
def test_dnsviz_finds_no_error_in_what_dnssec_signs(serve: Serve, tmp_path: Path, kind: str) -> None:
    server, keys, _ = signing_itself(serve, tmp_path, kind, "ECDSAP256SHA256")
    judge(server.port, tmp_path, keys, kind)
