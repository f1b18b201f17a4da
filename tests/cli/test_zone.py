"""`kdns zone`: checks, prints, compares; `kdns check --load` reads zones."""

from pathlib import Path

import pytest

from tests.cli.test_commands import kdns

ZONE = '$TTL 300\n@ SOA ns h 1 1 1 1 1\n@ NS ns\nb A 192.0.2.1\na 60 TXT "x y"\n'


@pytest.fixture
def db(tmp_path: Path) -> Path:
    path = tmp_path / "db.example.org"
    path.write_text(ZONE)
    return path


def test_a_good_zone_is_summed_up_and_printed_in_canonical_order(db: Path) -> None:
    done = kdns("zone", str(db))
    assert (done.returncode, done.stdout) == (0, f"{db}: ok (zone example.org., serial 1, 3 names, 4 records)\n")
    done = kdns("zone", "-print", str(db))
    assert done.stdout.splitlines() == [
        "example.org. 300 IN SOA ns.example.org. h.example.org. 1 1 1 1 1", "example.org. 300 IN NS ns.example.org.",
        'a.example.org. 60 IN TXT "x y"', "b.example.org. 300 IN A 192.0.2.1",
    ]  # fmt: skip


def test_two_zones_are_compared(db: Path, tmp_path: Path) -> None:
    other = tmp_path / "new"
    other.write_text(ZONE.replace("192.0.2.1", "192.0.2.2"))
    done = kdns("zone", str(db), str(other))
    assert done.returncode == 1
    assert done.stdout.splitlines() == ["- b.example.org. 300 IN A 192.0.2.1", "+ b.example.org. 300 IN A 192.0.2.2"]
    assert kdns("zone", str(db), str(db)).returncode == 0


def test_what_is_wrong_is_named_line_by_line(db: Path) -> None:
    db.write_text(ZONE + "c A x\nd MX y z\nout.example.net. A 192.0.2.1\n")
    done = kdns("zone", str(db))
    assert done.returncode == 1 and done.stderr.splitlines() == [
        f'{db}:6:5: error: expected an IPv4 address, found "x"',
        f'{db}:7:6: error: expected a number up to 65535, found "y"',
        f"{db}:8:1: warning: out.example.net. is not in zone example.org.: left out",
    ]  # fmt: skip
    assert kdns("zone", "nowhere.zone").returncode == 1 and kdns("zone", "nowhere").returncode == 2


def test_check_reads_the_zones_of_a_corefile_where_it_may_load(db: Path) -> None:
    corefile = f"example.org:53 {{\n  file {db}\n}}\n"
    assert kdns("check", "--load", "-", stdin=corefile).returncode == 0
    db.write_text(ZONE + "c A x\n")
    assert kdns("check", "-", stdin=corefile).returncode == 0
    done = kdns("check", "--load", "-", stdin=corefile)
    assert done.returncode == 1
    assert (
        done.stderr.strip()
        == f'stdin:2:8: error: file: zone example.org.: {db}:6:5: expected an IPv4 address, found "x"'
    )
