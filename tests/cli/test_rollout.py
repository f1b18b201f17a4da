"""A rollout loses no query: two processes on one port, and one that is told to stop; reloads under load; JSON logs."""

import json
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dns.message
import pytest

from kdns import log
from kdns.testing import Server, free_port
from tests.cli.test_commands import Process, processes  # noqa: F401 (a fixture)

WHOAMI = ".:{port} {{\n bind 127.0.0.1\n health 127.0.0.1:{http} {{\n  lameduck {lameduck}\n }}\n whoami\n}}\n"


@contextmanager
def asking(port: int, threads: int = 4) -> Iterator[list[str]]:
    """Asks from new ports without a pause; the list is of queries that got no answer."""
    lost: list[str] = []
    counts = [0]
    stop = threading.Event()

    def run(number: int) -> None:
        i = 0
        while not stop.is_set():
            i += 1
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.settimeout(10)
                client.connect(("127.0.0.1", port))
                for _ in range(5):
                    query = dns.message.make_query(f"x{i}.t{number}.org.", "A").to_wire()
                    try:
                        client.send(query)
                        if client.recv(512)[:2] != query[:2]:
                            lost.append("wrong id")
                    except OSError as error:
                        lost.append(f"{number}.{i}: {error}")
                    counts[0] += 1

    running = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
    for thread in running:
        thread.start()
    try:
        yield lost
    finally:
        stop.set()
        for thread in running:
            thread.join()
    assert counts[0] > 100


def test_a_rolling_replacement_of_two_that_share_the_port_loses_nothing(
    tmp_path: Path,
    processes: list[Process],  # noqa: F811
) -> None:
    port = free_port()

    def begin() -> Process:
        path = tmp_path / f"Corefile{len(processes)}"
        path.write_text(WHOAMI.format(port=port, http=free_port(), lameduck="200ms"))
        made = Process("-conf", str(path), "-share-port")
        processes.append(made)
        made.until("kdns-")
        return made

    old = begin()
    with asking(port) as lost:
        for _ in range(3):
            new = begin()
            time.sleep(0.2)
            assert old.end(signal.SIGTERM) == 0
            old = new
            time.sleep(0.1)
    assert not lost, lost[:5]


def test_a_thousand_reloads_under_load_refuse_no_query() -> None:
    text = '.:{port} {\n bind 127.0.0.1\n template IN A {\n answer "{{ .Name }} 60 A 192.0.2.N"\n }\n}'
    server = Server(text.replace("2.N", "2.1"))
    try:
        with asking(server.port, threads=2) as lost:
            for i in range(1000):
                assert server.reload(text.replace("2.N", f"2.{i % 250 + 1}"))
        assert not lost, lost[:5]
    finally:
        server.close()


def test_a_lame_duck_that_nobody_asks_any_more_leaves_early(tmp_path: Path, processes: list[Process]) -> None:  # noqa: F811
    path = tmp_path / "Corefile"
    path.write_text(WHOAMI.format(port=free_port(), http=free_port(), lameduck="30s"))
    process = Process("-conf", str(path))
    processes.append(process)
    process.until("kdns-")
    began = time.monotonic()
    assert process.end(signal.SIGTERM) == 0
    assert time.monotonic() - began < 15 and any("the lameduck ends early" in line for line in process.lines)


def test_json_logs_are_an_object_a_line_with_a_querys_fields(tmp_path: Path, processes: list[Process]) -> None:  # noqa: F811
    port = free_port()
    path = tmp_path / "Corefile"
    path.write_text(
        f".:{port} {{\n bind 127.0.0.1\n log\n errors\n forward bad.org 127.0.0.1:1 {{\n max_fails 0\n }}\n "
        f"whoami\n}}\n"
    )
    process = Process("-conf", str(path), "-log-format", "json")
    processes.append(process)
    process.until("kdns-")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        client.connect(("127.0.0.1", port))
        for name in (b'\x03a"\n', b"\x01x\x03bad\x03org"):
            client.send(b"\x12\x34\x01\0\0\1\0\0\0\0\0\0" + name + b"\0\0\1\0\1")
            client.recv(512)
        source = client.getsockname()[1]
    process.end(signal.SIGTERM)
    found = [json.loads(line) for line in process.lines]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", line["time"]) for line in found)
    query = next(line for line in found if line.get("plugin") == "log" and line["rcode"] == "NOERROR")
    assert query["qname"] == 'a\\"\\010.' and query["client_ip"] == "127.0.0.1" and query["client_port"] == source
    # CoreDNS 1.15's names, so that what reads its logs reads these.
    assert set(query) == {
        "time", "level", "plugin", "msg", "client_ip", "client_port", "qname", "qtype", "qclass", "protocol", "id",
        "opcode",
        "request_size", "dnssec_ok", "bufsize", "rcode", "rflags", "response_size", "duration_seconds",
    }  # fmt: skip
    assert f'{source} - 4660 "A IN' in query["msg"] and query["protocol"] == "udp" and query["request_size"] == 21
    bare = next(line for line in found if line.get("plugin") == "log" and line["rcode"] == "SERVFAIL")
    assert bare["rflags"] == "qr,rd" and bare["response_size"] == 27
    assert (
        query["qtype"] == "A"
        and query["id"] == 0x1234
        and 0 < query["duration_seconds"] < 1
        and query["level"] == "INFO"
    )
    failed = next(line for line in found if line.get("plugin") == "errors")
    assert failed["level"] == "ERROR" and failed["msg"].startswith("2 x.bad.org. A: ")


def test_a_bad_log_format_is_said(tmp_path: Path, processes: list[Process]) -> None:  # noqa: F811
    process = Process("-log-format", "xml")
    processes.append(process)
    out, err = process.process.communicate(timeout=90)
    assert process.process.returncode == 2 and b"expected text or json" in err and not out


def test_what_fails_for_every_query_is_written_a_hundred_times_a_second_and_then_counted(
    lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: now[0])
    logger = log.plugin("errors")
    before = log.left_out()
    for i in range(1000):
        logger.error(f"2 x{i}.org. A: timeout")
    assert len(lines) == log.MAX_COMPLAINTS and log.left_out() == before + 900
    now[0] += 1
    logger.error("again")
    assert lines[-2:] == [
        "[WARNING] 900 more warnings and errors were left out: at most 100 a second are written",
        "[ERROR] plugin/errors: again",
    ]  # fmt: skip
