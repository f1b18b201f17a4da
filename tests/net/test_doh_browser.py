"""DNS over HTTPS as a browser asks it: headless Chromium's secure DNS."""

import base64
import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from kdns.testing import Server, eventually
from tests.browser import Browser
from tests.fixtures import Serve
from tests.securepeers import NAME, Site

ONLY = "only-here.kdns.test"  # RFC 6761, section 6.2: nobody else answers for `test`


class Web:
    """A web server on loopback with one page. `hosts` are the names that it was asked under."""

    def __init__(self) -> None:
        self.hosts: list[str | None] = []
        web = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                web.hosts.append(self.headers["Host"])
                body = b"<!doctype html><title>page</title><p>reached"
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def web() -> Iterator[Web]:
    made = Web()
    yield made
    made.close()


def key_hash(certificate: Path) -> str:
    """The hash of a certificate's public key, as the browser's flag takes it."""
    key = x509.load_pem_x509_certificate(certificate.read_bytes()).public_key()
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(hashlib.sha256(spki).digest()).decode()


def secure_dns(server: Server) -> dict[str, object]:
    """What the browser's settings page writes for `secure DNS` with a provider of one's own."""
    url = f"https://127.0.0.1:{server.port}/dns-query{{?dns}}"
    return {"dns_over_https": {"mode": "secure", "templates": url}}


@pytest.mark.parametrize("trusted", [True, False])
def test_a_browser_with_secure_dns_reaches_a_page_by_a_name_that_only_we_answer(
    serve: Serve, tmp_path: Path, web: Web, trusted: bool
) -> None:
    site = Site(tmp_path)
    site.issue(NAME, "127.0.0.1")
    server = serve(
        f"https://.:{{port}} {{\n bind 127.0.0.1\n tls {tmp_path}/tls.crt {tmp_path}/tls.key\n"
        f" hosts {{\n 127.0.0.1 {ONLY}\n }}\n}}\n"
    )
    flags = [f"--ignore-certificate-errors-spki-list={key_hash(tmp_path / 'tls.crt')}"] if trusted else []
    port = web.server.server_port
    with Browser(tmp_path / "profile", *flags, preferences=secure_dns(server)) as browser:
        browser.open(f"http://{ONLY}:{port}/")
        if trusted:
            eventually(lambda: browser.text() == "reached")
            assert set(web.hosts) == {f"{ONLY}:{port}"}
        else:  # `secure` has no way around a server whose certificate is not trusted
            eventually(lambda: "ERR_NAME_NOT_RESOLVED" in browser.text())
            assert not web.hosts
