"""A headless Chromium driven over its DevTools protocol (https://chromedevtools.github.io/devtools-protocol/)."""

import asyncio
import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import aiohttp

__all__ = ["Chromium", "Page", "find_chromium"]

PATIENCE = 20.0
"""Seconds for anything to happen: generous, for loaded machines."""

_FLAGS = (
    "--headless",
    "--no-sandbox",  # continuous integration runs as root
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--no-proxy-server",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)
_KEYS = {"Tab": 9, "Enter": 13, " ": 32, "ArrowDown": 40}


def find_chromium() -> str | None:
    """The browser's program, if the machine has one."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Chromium:
    """One browser process; a context manager. Everything happens in the calling thread."""

    def __init__(self, program: str, folder: Path) -> None:
        self._runner = asyncio.Runner()
        self._ids = itertools.count(1)
        self._folder = folder
        self._pages: dict[str, Page] = {}
        # A fresh home: Debian's wrapper script and the crash handler write there.
        environment = {**os.environ, "HOME": str(folder)}
        self._process = subprocess.Popen(
            [program, *_FLAGS, f"--user-data-dir={folder}", "about:blank"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def __enter__(self) -> "Chromium":
        try:
            port, path = self._address()
            self._session, self._socket = self._runner.run(self._connect(f"ws://127.0.0.1:{port}{path}"))
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(aiohttp.ClientError, ConnectionError):
            self.call("Browser.close")
        self._runner.run(self._disconnect())
        self._end()

    def _address(self) -> list[str]:
        file = self._folder / "DevToolsActivePort"
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and self._process.poll() is None:
            with contextlib.suppress(FileNotFoundError):
                if len(lines := file.read_text().splitlines()) == 2:
                    return lines
            time.sleep(0.02)
        raise TimeoutError(f"chromium did not open its DevTools port within {PATIENCE} s; exit: {self._process.poll()}")

    async def _connect(self, address: str) -> tuple[aiohttp.ClientSession, aiohttp.ClientWebSocketResponse]:
        session = aiohttp.ClientSession()
        return session, await session.ws_connect(address, max_msg_size=0)

    async def _disconnect(self) -> None:
        await self._socket.close()
        await self._session.close()

    def _end(self) -> None:
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._runner.close()

    def call(self, method: str, session: str | None = None, **parameters: object) -> dict:
        """The result of one command; what is reported meanwhile goes to the pages."""
        return self._runner.run(self._call(method, session, parameters))

    async def _call(self, method: str, session: str | None, parameters: dict[str, object]) -> dict:
        number = next(self._ids)
        message = {"id": number, "method": method, "params": parameters}
        await self._socket.send_json(message | ({"sessionId": session} if session else {}))
        async with asyncio.timeout(PATIENCE):
            while True:
                answer = json.loads(await self._socket.receive_str())
                if answer.get("id") == number:
                    if "error" in answer:
                        raise RuntimeError(f"{method}: {answer['error']}")
                    return answer["result"]
                if page := self._pages.get(answer.get("sessionId")):
                    page.events.append((answer["method"], answer["params"]))

    def open(self, address: str, *, width: int = 1280, height: int = 900, phone: bool = False, **media: str) -> "Page":
        """A page of its own storage, loaded; `media`: features such as prefers_color_scheme="dark"."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self._pages[session] = Page(self, session)
        for domain in ("Page", "Runtime", "Log", "DOM", "Network"):
            page.call(f"{domain}.enable")
        page.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        features = [{"name": name.replace("_", "-"), "value": value} for name, value in media.items()]
        page.call("Emulation.setEmulatedMedia", features=features)
        page.call("Page.navigate", url=address)
        page.wait(f"location.href === {json.dumps(address)} && document.readyState === 'complete'")
        return page


class Page:
    """One page of the browser."""

    def __init__(self, browser: Chromium, session: str) -> None:
        self._browser = browser
        self._session = session
        self.events: list[tuple[str, dict]] = []

    def call(self, method: str, **parameters: object) -> dict:
        """The result of a DevTools command on this page."""
        return self._browser.call(method, self._session, **parameters)

    def run(self, script: str) -> object:
        """The value of an expression, awaited."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(f"{script}: {result['exceptionDetails']['exception']['description']}")
        return result["result"].get("value")

    def wait(self, condition: str) -> None:
        """Until the expression is true."""
        end = time.monotonic() + PATIENCE
        while not self.run(condition):
            if time.monotonic() > end:
                text = self.run("document.body.innerText")
                raise TimeoutError(f"not true within {PATIENCE} s: {condition}\n{self.complaints()}\n{text}")
            time.sleep(0.02)

    def event(self, method: str) -> dict:
        """The parameters of the first event of this name, awaited."""
        end = time.monotonic() + PATIENCE
        while not (found := [event for name, event in self.events if name == method]):
            if time.monotonic() > end:
                raise TimeoutError(f"no {method} within {PATIENCE} s")
            time.sleep(0.02)
            self._browser.call("Target.getTargets")
        return found[0]

    def text(self, selector: str) -> str:
        """What is to be read in the first match."""
        return self.run(f"document.querySelector({json.dumps(selector)}).innerText")

    def texts(self, selector: str) -> list[str]:
        """What is to be read in each match."""
        return self.run(f"[...document.querySelectorAll({json.dumps(selector)})].map((node) => node.innerText)")

    def press(self, key: str, *, shift: bool = False) -> None:
        """A key goes down and up."""
        typed = {"Enter": "\r", " ": " "}.get(key, key if len(key) == 1 else "")
        code = _KEYS.get(key, ord(key.upper()) if len(key) == 1 else 0)
        for kind in ("keyDown", "keyUp"):
            text = {"text": typed} if typed and kind == "keyDown" else {}
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, modifiers=8 * shift, **text
            )

    def type(self, text: str) -> None:
        """Text into what has the focus."""
        self.call("Input.insertText", text=text)

    def choose_files(self, selector: str, *paths: Path) -> None:
        """As the reader does in the dialogue of a file input."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", files=[str(path) for path in paths], nodeId=node)

    def drop_files(self, *paths: Path, x: int = 5, y: int = 5) -> None:
        """Files let go over the point x, y (CSS pixels)."""
        data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def complaints(self) -> list[str]:
        """Errors and warnings of the console, violations of the content policy among them."""
        self.run("0")
        found = []
        for method, event in self.events:
            if method == "Log.entryAdded" and event["entry"]["level"] in ("error", "warning"):
                found.append(f"{event['entry']['text']} {event['entry'].get('url', '')}")
            elif method == "Runtime.exceptionThrown":
                details = event["exceptionDetails"]
                found.append(details.get("exception", {}).get("description", details["text"]))
            elif method == "Runtime.consoleAPICalled":
                found.append(f"console.{event['type']}: {[argument.get('value') for argument in event['args']]}")
        return found

    def requests(self) -> list[str]:
        """The addresses asked for so far."""
        return [event["request"]["url"] for method, event in self.events if method == "Network.requestWillBeSent"]

    def shot(self, path: Path) -> None:
        """An image of the whole page."""
        png = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(png))
