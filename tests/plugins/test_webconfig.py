"""prometheus behind a web configuration file: TLS, passwords, headers."""

import base64
import http.client
import os
import signal
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from kdns.corefile import CorefileError
from kdns.net import certificates
from kdns.testing import block, eventually, free_port
from tests.fixtures import Serve
from tests.securepeers import Authority


def test_metrics_are_served_behind_tls_as_a_web_configuration_says(
    serve: Serve, tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificates, "LOOK_EVERY", 0.02)
    authority, port = Authority(tmp_path), free_port()

    def issue(name: str) -> None:
        made = authority.ca.issue_cert(name)
        made.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
        made.private_key_pem.write_to_path(str(tmp_path / "key.pem"))

    issue("metrics.lab")
    (tmp_path / "web.yaml").write_text(
        "tls_server_config:\n  cert_file: cert.pem\n  key_file: key.pem\n  min_version: TLS13\n"
        "  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: ca.pem\n"
        "http_server_config:\n  headers:\n    X-Frame-Options: deny\n"
    )
    serve(block(f"prometheus 127.0.0.1:{port} {{\n tls {tmp_path}/web.yaml\n }}", "whoami"))

    def scrape(name: str, known: bool = True) -> str:
        context = ssl.create_default_context(cafile=str(authority.path))
        if known:
            authority.ca.issue_cert("scraper.lab").configure_cert(context)
        with (
            socket.create_connection(("127.0.0.1", port), timeout=5) as raw,
            context.wrap_socket(raw, server_hostname=name) as sock,
        ):
            sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            return b"".join(iter(lambda: sock.recv(65536), b"")).decode()

    text = scrape("metrics.lab")
    assert (
        text.startswith("HTTP/1.1 200 OK") and "\r\nX-Frame-Options: deny\r\n" in text and "coredns_build_info" in text
    )
    try:
        refused = scrape("metrics.lab", known=False)
    except (ssl.SSLError, ConnectionError):
        refused = ""  # with TLS 1.3 the client may learn of it by an alert, or by the end of the connection
    assert not refused
    # A certificate that is renewed is used by later handshakes.
    issue("renewed.lab")
    eventually(lambda: any("cert.pem has changed and is in use" in line for line in lines))
    assert scrape("renewed.lab").startswith("HTTP/1.1 200 OK")
    # One that is half written leaves the one before in force.
    (tmp_path / "cert.pem").write_text("nonsense")
    eventually(lambda: any("the previous certificate stays in use" in line for line in lines))
    assert scrape("renewed.lab").startswith("HTTP/1.1 200 OK")


def test_metrics_are_read_with_a_password_where_the_web_configuration_has_users(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import bcrypt

    path, port = tmp_path / "web.yaml", free_port()
    path.write_text(f"basic_auth_users:\n  ann: {bcrypt.hashpw(b'pass:word', bcrypt.gensalt(4)).decode()}\n")
    serve(block(f"prometheus 127.0.0.1:{port} {{\n tls {path}\n }}", "whoami"))

    def scrape(*credentials: bytes) -> tuple[int, str | None]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        fields = {"Authorization": "Basic " + base64.b64encode(b":".join(credentials)).decode()} if credentials else {}
        connection.request("GET", "/metrics", headers=fields)
        response = connection.getresponse()
        response.read()
        connection.close()
        return response.status, response.getheader("WWW-Authenticate")

    no = (401, "Basic")
    assert scrape() == scrape(b"ann", b"wrong") == scrape(b"bob", b"pass:word") == scrape(b"ann") == no
    assert scrape(b"ann", b"\xff") == scrape(b"ann", b"x" * 500) == scrape(b"ann", b"a\0b") == no
    assert scrape(b"ann", b"pass:word")[0] == 200
    calls: list[bytes] = []
    monkeypatch.setattr(bcrypt, "checkpw", lambda password, hashed: calls.append(password))
    assert scrape(b"ann", b"pass:word")[0] == 200 and not calls  # checked once


def test_a_password_that_was_taken_away_was_good_until_the_restart(serve: Serve, tmp_path: Path) -> None:
    """A reload kept the listener, and with it all that the web configuration had said before."""
    import bcrypt

    path, port = tmp_path / "web.yaml", free_port()

    def write(password: bytes) -> None:
        path.write_text(f"basic_auth_users:\n  ann: {bcrypt.hashpw(password, bcrypt.gensalt(4)).decode()}\n")

    def scrape(password: bytes) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request(
            "GET", "/metrics", headers={"Authorization": "Basic " + base64.b64encode(b"ann:" + password).decode()}
        )
        status = connection.getresponse().status
        connection.close()
        return status

    write(b"one")
    text = block(f"prometheus 127.0.0.1:{port} {{\n tls {path}\n }}", "whoami")
    server = serve(text)
    assert (scrape(b"one"), scrape(b"two")) == (200, 401)
    write(b"two")
    assert server.reload(text)
    assert (scrape(b"one"), scrape(b"two")) == (401, 200)


def test_a_scraper_with_the_right_password_waited_for_all_who_guessed(serve: Serve, tmp_path: Path) -> None:
    import bcrypt

    path, port = tmp_path / "web.yaml", free_port()
    # A check takes half a second or more.
    path.write_text(f"basic_auth_users:\n  ann: {bcrypt.hashpw(b'right', bcrypt.gensalt(13)).decode()}\n")
    serve(block(f"prometheus 127.0.0.1:{port} {{\n tls {path}\n }}", "whoami"))

    def request(password: str) -> bytes:
        token = base64.b64encode(f"ann:{password}".encode()).decode()
        return f"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\nAuthorization: Basic {token}\r\n\r\n".encode()

    def scrape() -> bytes:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
            sock.sendall(request("right"))
            return sock.makefile("rb").readline()

    assert b" 200 " in scrape()
    guesses = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(20)]
    for number, sock in enumerate(guesses):
        sock.sendall(request(f"wrong {number}"))
    assert b" 200 " in scrape()
    guesses[-1].setblocking(False)
    with pytest.raises(BlockingIOError):  # it is not its turn yet
        guesses[-1].recv(1)
    for sock in guesses:
        sock.close()


def test_who_guesses_and_goes_does_not_keep_the_scraper_out(serve: Serve, tmp_path: Path) -> None:
    """Each check that nobody waited for any more went on beside the next."""
    import bcrypt

    path, port = tmp_path / "web.yaml", free_port()
    path.write_text(f"basic_auth_users:\n  ann: {bcrypt.hashpw(b'right', bcrypt.gensalt(10)).decode()}\n")
    serve(block(f"prometheus 127.0.0.1:{port} {{\n tls {path}\n }}", "whoami"))

    def ask(password: str) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", port), timeout=20)
        token = base64.b64encode(f"ann:{password}".encode()).decode()
        sock.sendall(f"GET /metrics HTTP/1.1\r\nHost: a\r\nAuthorization: Basic {token}\r\n\r\n".encode())
        return sock

    def status(password: str) -> bytes:
        with ask(password) as sock, sock.makefile("rb") as stream:
            return stream.readline()

    # Another server of this process may have left a check that nobody waits for.
    eventually(lambda: b" 401 " in status("wrong"), 60)
    for number in range(30):
        ask(f"wrong {number}").close()
    assert b" 200 " in status("right")


def test_a_hash_that_takes_days_to_check_kept_the_process_from_ending(tmp_path: Path) -> None:
    import bcrypt

    port, corefile, log = free_port(), tmp_path / "Corefile", tmp_path / "log"
    days = bcrypt.hashpw(b"right", bcrypt.gensalt(4)).decode().replace("$04$", "$31$")
    (tmp_path / "web.yaml").write_text(f"basic_auth_users:\n  ann: {days}\n")
    prometheus = f"prometheus 127.0.0.1:{port} {{\n tls {tmp_path}/web.yaml\n }}"
    corefile.write_text(block(prometheus, "whoami").replace("{port}", str(free_port())))

    def seconds() -> float:
        """Of CPU."""
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) / os.sysconf("SC_CLK_TCK")

    with (
        log.open("wb") as out,
        subprocess.Popen([sys.executable, "-m", "kdns", "-conf", str(corefile)], stdout=out, stderr=out) as process,
    ):
        try:
            eventually(lambda: "CPython" in log.read_text(), 60)
            before = seconds()
            with socket.create_connection(("127.0.0.1", port)) as sock:
                token = base64.b64encode(b"ann:wrong").decode()
                sock.sendall(f"GET /metrics HTTP/1.1\r\nHost: a\r\nAuthorization: Basic {token}\r\n\r\n".encode())
                eventually(lambda: seconds() - before > 0.5, 60)
                process.send_signal(signal.SIGTERM)
                assert process.wait(30) == 0
        finally:
            process.kill()


def test_cipher_suites_are_those_of_the_web_configuration(serve: Serve, tmp_path: Path) -> None:
    authority, path, port = Authority(tmp_path), tmp_path / "web.yaml", free_port()
    made = authority.ca.issue_cert("metrics.lab")
    made.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    made.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    path.write_text(
        "tls_server_config:\n  cert_file: cert.pem\n  key_file: key.pem\n  max_version: TLS12\n  cipher_suites:\n"
        "  - TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384\n  - TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384\n  - "
        "TLS_AES_128_GCM_SHA256\n"
    )
    serve(block(f"prometheus 127.0.0.1:{port} {{\n tls {path}\n }}", "whoami"))
    context = ssl.create_default_context(cafile=str(authority.path))
    with (
        socket.create_connection(("127.0.0.1", port), timeout=5) as raw,
        context.wrap_socket(raw, server_hostname="metrics.lab") as sock,
    ):
        cipher = sock.cipher()
    assert cipher is not None and cipher[0].endswith("AES256-GCM-SHA384") and cipher[1] == "TLSv1.2"


@pytest.mark.parametrize(("text", "said"), [
    (None, "No such file or directory"), ("- a", "the file is not a mapping"), ("a: [", "while parsing"),
    ("basic_auth_users:\n  a: b", "the password of a is not a bcrypt hash"),
    ("basic_auth_users: [a]", "basic_auth_users is not a mapping"),
    ("tls_server_config:\n  cert_file: x\n  key_file: y\n  cipher_suites: [TLS_RSA_WITH_RC4_128_SHA]",
        "is none of TLS_ECDHE_ECDSA_WITH"),
    ("tls_server_config:\n  cert_file: x\n  key_file: y\n  cipher_suites: x", "cipher_suites is not a list"),
    ("web: {}", "web is not supported by kdns"),
    ("tls_server_config:\n  cert_file: x", "key_file is missing"),
    ("tls_server_config:\n  cert_file: x\n  key_file: y", "x does not exist"),
    ("tls_server_config:\n  cert_file: x\n  key_file: y\n  min_version: SSL3", '"SSL3" is none of TLS10'),
    ("http_server_config:\n  headers:\n    Server: x", "Server is not supported"),
    ('http_server_config:\n  headers:\n    X-Frame-Options: "a\\nb"', "no header can have"),
])  # fmt: skip
def test_a_bad_web_configuration_is_named(serve: Serve, tmp_path: Path, text: str | None, said: str) -> None:
    path = tmp_path / "web.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(CorefileError) as caught:
        serve(block(f"prometheus 127.0.0.1:0 {{\n tls {path}\n }}", "whoami"))
    assert f"the web configuration {path}: " in str(caught.value) and said in str(caught.value)
    assert "\n" not in str(caught.value)
