"""The command line as a person meets it: real processes, flags, exit codes, one clear line for what is wrong."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdns import version
from kdns.testing import free_port
from tests.forker import ENV, forker


def kdns(
    *words: str, stdin: str | bytes | None = None, cwd: Path | None = None, timeout: float = 90
) -> subprocess.CompletedProcess[str]:
    data = stdin.encode() if isinstance(stdin, str) else stdin
    done = forker().run(words, data, cwd, timeout)
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


class Process:
    """A kdns that serves."""

    def __init__(self, *words: str, cwd: Path | None = None, stdin: str | None = None) -> None:
        self.process = forker().start(words, cwd, stdin=stdin is not None)
        with self.process.stdin:
            self.process.stdin.write((stdin or "").encode())
        self.lines: list[str] = []

    def until(self, text: str) -> str:
        """Reads lines until one holds the text."""
        for line in self.process.stdout:
            self.lines.append(line.decode().rstrip())
            if text in self.lines[-1]:
                return self.lines[-1]
        raise AssertionError(f"{text!r} did not come: {self.lines} {self.process.stderr.read().decode()}")

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        out, _ = self.process.communicate(timeout=90)
        self.lines += out.decode().splitlines()
        return self.process.wait()


@pytest.fixture
def processes() -> Iterator[list[Process]]:
    made: list[Process] = []
    yield made
    for each in made:
        each.process.kill()
        each.process.communicate()


WHOAMI = ".:{port} {\n    bind 127.0.0.1\n    whoami\n}\n"


def corefile(tmp_path: Path, text: str = WHOAMI) -> tuple[str, int]:
    port = free_port()
    path = tmp_path / "Corefile"
    path.write_text(text.replace("{port}", str(port)))
    return str(path), port


# Flags that print.


@pytest.mark.parametrize("flag", ["-version", "--version", "-version=true"])
def test_version_prints_two_lines(flag: str) -> None:
    done = kdns(flag)
    assert done.returncode == 0
    first, second = done.stdout.splitlines()
    assert first.startswith("kdns-") and second.startswith("linux/") and "Python" in second
    assert second.endswith(f", {version.build()}")


def test_plugins_lists_directives_alphabetically_and_ends_with_an_empty_line() -> None:
    lines = kdns("-plugins").stdout.split("\n")
    names = lines[: lines.index("")]
    assert names == sorted(names) and "kubernetes" in names and "forward" in names


@pytest.mark.parametrize(("words", "code", "text"), [
    (["-nope"], 2, "flag provided but not defined: -nope"),
    (["-conf"], 2, "flag needs an argument: -conf"),
    (["-quiet=maybe"], 2, 'invalid boolean value "maybe" for -quiet'),
    (["-dns.port", "x"], 2, 'invalid value "x" for flag -dns.port'),
    (["-h"], 0, "Usage: kdns"),
    (["serve-me"], 1, "serve-me"),
    (["-conf", "/nowhere/Corefile"], 1, "cannot read the Corefile /nowhere/Corefile: No such file or directory"),
])  # fmt: skip
def test_a_bad_command_line_says_so_and_exits(words: list[str], code: int, text: str) -> None:
    done = kdns(*words)
    assert done.returncode == code
    assert text in done.stdout + done.stderr and "Traceback" not in done.stderr


# Serving.


@pytest.mark.parametrize("style", [("-conf", "{}"), ("-conf={}",), ("--conf", "{}"), ("--conf={}",)])
def test_conf_may_be_written_in_every_way_go_allows(
    tmp_path: Path, processes: list[Process], style: tuple[str, ...]
) -> None:
    path, port = corefile(tmp_path)
    process = Process(*(word.format(path) for word in style))
    processes.append(process)
    process.until("linux/")
    assert process.lines[0] == f".:{port} on 127.0.0.1"
    assert process.lines[1].startswith("kdns-")
    assert process.end(signal.SIGINT) == 0


def test_the_corefile_of_the_folder_is_the_default(tmp_path: Path, processes: list[Process]) -> None:
    _, port = corefile(tmp_path)
    process = Process(cwd=tmp_path)
    processes.append(process)
    assert process.until("on 127.0.0.1") == f".:{port} on 127.0.0.1"
    assert process.end() == 0


@pytest.mark.parametrize("flag", ["-dns.port", "-p"])
def test_without_a_corefile_or_with_an_empty_one_it_says_who_asked(
    tmp_path: Path, processes: list[Process], flag: str
) -> None:
    for text in (None, "# nothing\n"):
        if text is not None:
            (tmp_path / "Corefile").write_text(text)
        port = free_port()
        process = Process(flag, str(port), cwd=tmp_path)
        processes.append(process)
        assert process.until(".:") == f".:{port}"
        assert process.end() == 0


def test_stdin_is_read_and_quiet_hides_the_banner(processes: list[Process], tmp_path: Path) -> None:
    port = free_port()
    pid = tmp_path / "pid"
    process = Process("-conf", "stdin", "-quiet", "-pidfile", str(pid), stdin=WHOAMI.replace("{port}", str(port)))
    processes.append(process)
    end = time.monotonic() + 20
    while not (pid.exists() and pid.read_text()) and time.monotonic() < end:
        time.sleep(0.02)
    assert pid.read_text() == f"{process.process.pid}\n"
    assert process.end() == 0
    assert not pid.exists()
    assert not any(line.startswith((".:", "kdns-")) for line in process.lines)


def test_a_second_server_on_the_same_port_is_refused_with_what_to_do(tmp_path: Path, processes: list[Process]) -> None:
    path, port = corefile(tmp_path)
    process = Process("-conf", path)
    processes.append(process)
    process.until("kdns-")
    second = kdns("-conf", path)
    assert second.returncode == 1
    assert f"127.0.0.1:{port}: another process has this port" in second.stderr and "-share-port" in second.stderr
    assert len(second.stderr.splitlines()) == 1
    third = Process("-conf", path, "-share-port")
    processes.append(third)
    third.until("kdns-")
    assert third.end() == 0 and process.end() == 0


def test_a_port_below_1024_needs_a_privilege_and_the_error_says_which(tmp_path: Path) -> None:
    if int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) <= 53:
        pytest.skip("every port is unprivileged on this machine")
    path, _ = corefile(tmp_path, ".:53 {\n bind 127.0.0.77\n whoami\n}\n")
    words = [sys.executable, "-m", "kdns", "-conf", path]
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("setpriv is not installed (util-linux), and root may bind every port")
        words = ["setpriv", "--bounding-set=-net_bind_service", "--inh-caps=-net_bind_service", *words]
    done = subprocess.run(words, capture_output=True, text=True, env={**ENV, "PYTHONPATH": str(Path.cwd())}, timeout=90)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert "permission denied" in done.stderr and "NET_BIND_SERVICE" in done.stderr and "-dns.port" in done.stderr


@pytest.mark.parametrize(("text", "expected"), [
    (".:1 {\n  kuberntes\n}\n", ':2:3: unknown directive "kuberntes" (did you mean "kubernetes"?)'),
    (".:1 {\n  etcd db\n}\n", ':2:3: plugin "etcd" is known from CoreDNS'),
    (".:1 {\n  kubernetes cluster.local {\n    transfer to x\n  }\n}\n", ":3:5: unknown property"),
    (".:1 {\n  kubernetes cluster.local\n}\n", "no cluster is configured"),
    (".:1 {\n  kubernetes cluster.local {\n    kubeconfig /nowhere/config\n  }\n}\n", "kubeconfig /nowhere/config: no "
        "such file"),
    (".:1 {\n  kubernetes cluster.local {\n    manifests /nowhere/x.yaml\n  }\n}\n", "no such file or folder"),
    ("quic://.:1 {\n  whoami\n}\n", "QUIC is always encrypted: name a certificate"),
    ("tls://a.:1 {\n  whoami\n}\nhttps://b.:1 {\n  whoami\n}\n", ":4:1: https://b.:1 and tls://a.:1 at "),
    (".:1 {\n  whoami\n}\n.:1 {\n  whoami\n}\n", ":4:1: cannot serve .:1 - it is already defined at"),
    (".:1 {\n  bind 127.0.0.1\n  whoami\n}\n.:1 {\n  whoami\n}\n", "zone overlap"),
    (".:1 {\n  bind 203.0.113.77\n  whoami\n}\n", "this machine does not have the address"),
    (".:1 {\n  bind nonsense0\n  whoami\n}\n", "neither an IP address nor an interface"),
    (".:1 {\n  forward . nowhere.invalid\n}\n", "cannot be resolved"),
    (".:1 {\n  forward . /nowhere/resolv.conf\n}\n", "neither an address nor a file"),
])  # fmt: skip
def test_what_cannot_start_says_why_in_one_line(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "Corefile"
    path.write_text(text)
    done = kdns("-conf", str(path))
    assert done.returncode == 1
    assert expected in done.stderr
    assert len(done.stderr.splitlines()) == 1 and "Traceback" not in done.stderr


def test_a_block_of_plain_dns_with_a_certificate_was_served_in_the_clear_without_a_word(tmp_path: Path) -> None:
    (tmp_path / "Corefile").write_text(
        ".:853 {\n tls a b\n quic {\n  max_streams 3\n }\n}\n"
        ".:53 tls://.:8853 {\n tls a b\n whoami\n}\nhttps3://. {\n tls a b\n https3\n https\n}\n"
    )
    done = kdns("check", str(tmp_path / "Corefile"))
    found = [line.partition("warning: ")[2] for line in done.stderr.splitlines() if " does nothing " in line]
    assert found == [
        "quic does nothing in the server block .:853: it has no key with quic://",
        "tls does nothing in the server block .:853: it has no key with https:// or grpc:// or quic:// or https3:// or "
        "tls://",
        "https does nothing in the server block https3://.:443: it has no key with https://",
    ]


def test_a_broken_kubeconfig_says_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "config").write_text("{{{")
    path = tmp_path / "Corefile"
    path.write_text(
        ".:1 {\n  kubernetes cluster.local {\n    kubeconfig config ctx\n  }\n}\n".replace(
            "config ctx", f"{tmp_path}/config ctx"
        )
    )
    done = kdns("-conf", str(path))
    assert done.returncode == 1 and "cannot be read" in done.stderr and len(done.stderr.splitlines()) == 1


def test_the_second_interrupt_leaves_at_once_with_code_2(tmp_path: Path, processes: list[Process]) -> None:
    text = ".:{port} {\n bind 127.0.0.1\n whoami\n health 127.0.0.1:HTTP {\n lameduck 30s\n }\n}\n".replace(
        "HTTP", str(free_port())
    )
    path, _ = corefile(tmp_path, text)
    process = Process("-conf", path)
    processes.append(process)
    process.until("linux/")
    process.process.send_signal(signal.SIGTERM)
    process.until("lameduck")
    assert process.end(signal.SIGINT) == 2


def test_hangup_is_ignored_and_usr1_reloads(tmp_path: Path, processes: list[Process]) -> None:
    path, port = corefile(tmp_path)
    process = Process("-conf", path)
    processes.append(process)
    process.until("linux/")
    process.process.send_signal(signal.SIGHUP)
    process.process.send_signal(signal.SIGUSR1)
    process.until("[INFO] Reloading complete")
    Path(path).write_text("nonsense {\n")
    process.process.send_signal(signal.SIGUSR1)
    assert f"{path}:1:" in process.until("[ERROR] Restart failed")
    with socket.create_connection(("127.0.0.1", port), timeout=5):
        pass
    assert process.end() == 0


def test_the_log_begins_as_coredns_does_zones_hash_versions(tmp_path: Path, processes: list[Process]) -> None:
    path, port = corefile(tmp_path, ".:{port} {\n bind 127.0.0.1\n reload\n whoami\n}\n")
    process = Process("-conf", path)
    processes.append(process)
    process.until("linux/")
    zone, digest, version, _ = process.lines
    assert zone == f".:{port} on 127.0.0.1" and version.startswith("kdns-")
    assert digest.startswith("[INFO] plugin/reload: Running configuration SHA512 = ") and len(digest.split()[-1]) == 128


def test_a_corefile_that_is_emptied_while_it_is_written_again_takes_no_name_away(
    tmp_path: Path, processes: list[Process]
) -> None:
    path, port = corefile(tmp_path)
    process = Process("-conf", path)
    processes.append(process)
    process.until("linux/")
    Path(path).write_text("")
    process.process.send_signal(signal.SIGUSR1)
    assert process.until("[ERROR] Restart failed").endswith(f"{path} is empty: what was served before stays")
    with socket.create_connection(("127.0.0.1", port), timeout=5):
        pass


# check.


def test_check_says_ok_or_where_it_is_wrong(tmp_path: Path) -> None:
    path, _ = corefile(tmp_path)
    done = kdns("check", "-conf", path)
    assert (done.returncode, done.stdout) == (0, f"{path}: ok (1 server block, 2 plugins)\n")
    bad = kdns("check", "-", stdin=".:53 {\n  kuberntes cluster.local\n}\n")
    assert bad.returncode == 1
    assert bad.stderr == 'stdin:2:3: error: unknown directive "kuberntes" (did you mean "kubernetes"?)\n'


def test_check_opens_nothing_unless_told_to_load(tmp_path: Path) -> None:
    text = ".:53 {\n  kubernetes cluster.local {\n    manifests /nowhere\n  }\n  forward . /nowhere/resolv.conf\n}\n"
    assert kdns("check", "-", stdin=text).returncode == 0
    loaded = kdns("check", "--load", "-", stdin=text)
    assert loaded.returncode == 1 and "/nowhere" in loaded.stderr


def test_check_prints_json() -> None:
    good = kdns("check", "--json", "-", stdin=".:53 {\n whoami\n}\n")
    assert json.loads(good.stdout) == {"file": "stdin", "ok": True, "blocks": 1, "plugins": 1, "warnings": []}
    bad = kdns("check", "--json", "-", stdin=".:53 {\n nope\n}\n")
    found = json.loads(bad.stdout)
    assert (found["line"], found["column"], found["ok"], bad.returncode) == (2, 2, False, 1)


@pytest.mark.parametrize("stdin", [b"", b"\x00\xff\xfe" * 100, b"{" * 5000, b"a " * 20000, b"x {\n" * 2000])
def test_check_survives_any_input(stdin: bytes) -> None:
    done = kdns("check", "-", stdin=stdin)
    assert done.returncode in (0, 1) and "Traceback" not in done.stderr


def test_check_of_unreadable_files_is_one_line(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        done = kdns("check", str(path))
        assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and "cannot read" in done.stderr


def test_check_and_plan_know_the_schemes(tmp_path: Path) -> None:
    path = tmp_path / "Corefile"
    path.write_text("tls://. https://. grpc://.:8443 {\n whoami\n}\nhttps://. {\n tls /nowhere /nowhere\n}\n")
    done = kdns("check", str(path))
    assert done.returncode == 1 and "https://.:443" in done.stderr and "already defined" in done.stderr
    path.write_text("tls://. https://a.org grpc://.:8443 {\n whoami\n}\nhttps://. {\n tls /nowhere /nowhere\n}\n")
    done = kdns("check", str(path))
    assert done.returncode == 0 and done.stderr.count("is served unencrypted") == 2
    assert "tls://.:853 is served unencrypted" in done.stderr and "grpc://.:8443 is served unencrypted" in done.stderr
    assert "the certificate /nowhere does not exist" in kdns("check", "--load", str(path)).stderr
    assert "tls://.:853 https://a.org.:443 grpc://.:8443" in kdns("plan", str(path)).stdout
    path.write_text("quic://. https3://a.org {\n tls /nowhere /nowhere\n}\n")
    assert "quic://.:853 https3://a.org.:443" in kdns("plan", str(path)).stdout
    path.write_text("quic://. {\n whoami\n}\n")
    assert "quic://.:853: QUIC is always encrypted" in kdns("check", str(path)).stderr


def test_check_says_what_is_no_error_and_yet_worth_knowing(tmp_path: Path) -> None:
    text = (
        ".:{port} {\n searchpath\n kubernetes cluster.local {\n  manifests x\n }\n forward 10.1.0.0/20 127.0.0.1\n}\n"
    )
    path, _ = corefile(tmp_path, text)
    done = kdns("check", path)
    assert done.returncode == 0 and "ok (1 server block" in done.stdout
    assert "warning: plugin/searchpath: " in done.stderr and "toFQDNs" in done.stderr
    assert "warning: plugin/forward: Unsupported CIDR notation" in done.stderr
    as_json = json.loads(kdns("check", "--json", path).stdout)
    assert as_json["ok"] and len(as_json["warnings"]) == 2
    quiet, _ = corefile(
        tmp_path, text.replace("searchpath", "searchpath {\n except kube-system\n }").replace("10.1.0.0/20", ".")
    )
    assert kdns("check", quiet).stderr == ""


@pytest.mark.parametrize(
    ("lines", "needs"),
    [
        ("tenants {\n isolate\n unknown allow\n }", "tenants: it needs the plugin kubernetes"),
        ("k8s_external ext.org", "k8s_external: it needs the plugin kubernetes"),
        ("blocklist {\n file l\n namespaces shop\n }", "need the plugin kubernetes"),
    ],
)
def test_check_said_ok_of_a_plugin_without_the_one_that_it_needs(tmp_path: Path, lines: str, needs: str) -> None:
    (tmp_path / "Corefile").write_text(f". {{\n {lines}\n whoami\n}}\n")
    done = kdns("check", str(tmp_path / "Corefile"))
    assert done.returncode == 1 and needs in done.stdout + done.stderr


def test_check_refuses_blocks_of_one_listener_that_ask_different_things_of_clients(tmp_path: Path) -> None:
    text = "tls://a.org {\n tls a.crt a.key\n whoami\n}\ntls://b.org {\n tls b.crt b.key {\n%s\n }\n whoami\n}\n"
    for option, said in (("", ""), ("client_auth require_and_verify", "client_auth"), ("min_version 1.3", "1.3")):
        (tmp_path / "Corefile").write_text(text % option)
        done = kdns("check", str(tmp_path / "Corefile"))
        assert done.returncode == (1 if option else 0), done.stderr
        assert not option or re.search(rf"Corefile:6:2: error: tls: tls://b\.org\.\S* has {option}", done.stderr)
        assert said in done.stderr and (option or not done.stderr)


def test_check_refuses_client_certificates_over_quic_without_reading_them(tmp_path: Path) -> None:
    for scheme in ("quic", "https3"):
        text = f"{scheme}://a.org {{\n tls a.crt a.key ca.crt {{\n client_auth verify_if_given\n }}\n whoami\n}}\n"
        (tmp_path / "Corefile").write_text(text)
        done = kdns("check", str(tmp_path / "Corefile"))
        assert done.returncode == 1 and "Corefile:1:1: error: " in done.stderr, done.stderr
        assert "client_auth cannot be had over QUIC" in done.stderr


def test_a_signal_to_reload_while_it_started_ended_the_process(tmp_path: Path, processes: list[Process]) -> None:
    path, port = corefile(tmp_path)
    process = Process("-conf", path)
    processes.append(process)
    process.until(f":{port}")  # the sockets are open, and the rest of the start is still to come
    process.process.send_signal(signal.SIGUSR1)
    process.until("[INFO] Reloading complete")
    assert process.end() == 0
