"""A headless Chromium, driven by its DevTools protocol over a WebSocket: pages, keys, pictures. Skips where none is
installed.

Loopback only: the flags keep it from looking for updates and accounts. Its sandbox is off, because a container's root
cannot have one; what it shows are our own pages.
"""

import asyncio
import base64
import contextlib
import itertools
import json
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import aiohttp
import pytest

from kdns.testing import LoopThread, eventually

_NAMES: Final = ("chromium", "chromium-browser", "google-chrome")
_FLAGS: Final = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-extensions",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
    "--remote-debugging-port=0",
)  # fmt: skip
_KEYS: Final = {"Tab": 9, "Enter": 13, " ": 32}
WAIT: Final = 30.0  # seconds for anything that it is asked


class Browser:
    """One browser with one page. `preferences` are its `Local State`, as the settings pages write it."""

    def __init__(self, folder: Path, *flags: str, preferences: dict[str, Any] | None = None) -> None:
        found = next(filter(None, map(shutil.which, _NAMES)), None)
        if found is None:
            pytest.skip("chromium is not installed")
        folder.mkdir()
        (folder / "Local State").write_text(json.dumps(preferences or {}))
        words = [found, *_FLAGS, *flags, f"--user-data-dir={folder}", "about:blank"]
        self.process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.thread = LoopThread()
        self.numbers = itertools.count(1)
        self.replies: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.said: list[str] = []  # what the page wrote to its console, and what it threw
        port = folder / "DevToolsActivePort"
        eventually(lambda: port.is_file() and "\n" in port.read_text(), WAIT)
        self.thread.run(self._open(port.read_text().split("\n")[0]), WAIT)
        for domain in ("Page", "Runtime", "Log", "Accessibility"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(Exception):
            self.call("Browser.close")
        self.thread.run(self._close())
        self.thread.close()
        try:
            self.process.wait(WAIT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    async def _open(self, port: str) -> None:
        self.session = aiohttp.ClientSession()
        async with self.session.get(f"http://127.0.0.1:{port}/json") as reply:
            (page,) = [each for each in await reply.json() if each["type"] == "page"]
        self.socket = await self.session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0)
        self.reader = asyncio.ensure_future(self._read())

    async def _close(self) -> None:
        self.reader.cancel()
        await self.socket.close()
        await self.session.close()

    async def _read(self) -> None:
        async for message in self.socket:
            said = json.loads(message.data)
            if "id" in said:
                self.replies.pop(said["id"]).set_result(said)
            elif said["method"] in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
                self.said.append(json.dumps(said["params"]))

    async def _call(self, method: str, options: dict[str, Any]) -> dict[str, Any]:
        number = next(self.numbers)
        self.replies[number] = asyncio.get_running_loop().create_future()
        await self.socket.send_json({"id": number, "method": method, "params": options})
        return await self.replies[number]

    def call(self, method: str, **options: Any) -> dict[str, Any]:
        """What a command of the protocol results in."""
        said = self.thread.run(self._call(method, options), WAIT)
        assert "error" not in said, said
        result: dict[str, Any] = said["result"]
        return result

    def look(self, width: int, height: int, *, dark: bool = False, still: bool = False) -> None:
        """The size of the window in CSS pixels, and what the person at it prefers."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        features = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce" if still else "no-preference"},
        ]
        self.call("Emulation.setEmulatedMedia", features=features)

    def open(self, url: str) -> None:
        """Goes to a page; returns once it is loaded, or the page that says why not."""
        self.call("Page.navigate", url=url)
        eventually(lambda: self.run("location.href") != "about:blank" and self.run("document.readyState") == "complete")

    def run(self, expression: str) -> Any:
        """The value of JavaScript, as JSON holds it."""
        said = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in said, said["exceptionDetails"]
        return said["result"].get("value")

    def text(self) -> str:
        """What the page shows."""
        return str(self.run("document.body.innerText"))

    def press(self, key: str) -> None:
        """One key of the keyboard."""
        code = _KEYS.get(key, ord(key[0].upper()))
        text = {"Enter": "\r", "Tab": ""}.get(key, key)
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, text=text, windowsVirtualKeyCode=code)

    def picture(self, path: Path, *, whole: bool = True) -> None:
        """The whole page, or what the window shows of it, as a PNG file."""
        made = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(made["data"]))
