"""Headless Chromium over the DevTools protocol: as much of a browser driver as the tests of the console need."""

import asyncio
import base64
import itertools
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from services.common import testing
from services.common.testing import Process

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars", "--lang=en",
    "--remote-debugging-port=0",
]  # fmt: skip
_KEYS = {
    "Tab": 9,
    "Enter": 13,
    "Escape": 27,
    "Space": 32,
    "End": 35,
    "Home": 36,
    "ArrowLeft": 37,
    "ArrowUp": 38,
    "ArrowRight": 39,
    "ArrowDown": 40,
}
_TEXT = {"Enter": "\r", "Space": " "}
_ALT, _SHIFT = 1, 8
# Pictures of the main states, for people to look at; git ignores the folder.
PICTURES = Path(__file__).resolve().parents[2] / "build" / "screenshots"

# The texts of a page that stand out too little from what is behind them (WCAG 2, level AA).
CONTRAST = """
(() => {
  const parse = (c) => (c.match(/[\\d.]+/g) || []).map(Number);
  const lum = ([r, g, b]) => [r, g, b].map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const over = (top, under) => top.slice(0, 3).map((v, i) => v * (top[3] ?? 1) + under[i] * (1 - (top[3] ?? 1)));
  const behind = (node) => {
    const layers = [];
    for (let at = node; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.length && colour[3] !== 0) { layers.push(colour); if ((colour[3] ?? 1) === 1) break; }
    }
    return layers.reverse().reduce((under, top) => over(top, under), [255, 255, 255]);
  };
  const found = [];
  for (const node of document.querySelectorAll("body *")) {
    const text = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    const box = node.getBoundingClientRect();
    if (!text || !box.width || !box.height || node.disabled || node.closest(".hidden, :disabled") || !node.checkVisibility()) continue;
    const style = getComputedStyle(node), colour = parse(style.color);
    if (style.color.startsWith("color(")) continue;
    const under = behind(node), front = over([...colour.slice(0, 3), (colour[3] ?? 1) * style.opacity], under);
    const [hi, lo] = [lum(front), lum(under)].sort((a, b) => b - a);
    const ratio = (hi + 0.05) / (lo + 0.05), large = parseFloat(style.fontSize) >= 24;
    if (ratio < (large ? 3 : 4.5)) found.push(`${node.tagName} ${node.textContent.trim().slice(0, 30)} ${ratio.toFixed(2)}`);
  }
  return found;
})()"""


class Page:
    """One tab. Keeps what the page logs, which requests it makes and which are refused."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, session_id: str) -> None:
        self._socket = socket
        self._session_id = session_id
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future] = {}
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.served: list[str] = []
        self._serving: Callable[[str, str], tuple[int, str, bytes]] | None = None
        self._tasks: set[asyncio.Task] = set()
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for message in self._socket:
            frame = json.loads(message.data)
            waiting = self._answers.pop(frame.get("id"), None)
            if waiting is not None:
                waiting.set_result(frame)
            else:
                self._notice(frame.get("method", ""), frame.get("params", {}))

    def _notice(self, method: str, params: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.complaints.append(json.dumps(params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Fetch.requestPaused":
            task = asyncio.create_task(self._fulfil(params))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _fulfil(self, params: dict[str, Any]) -> None:
        assert self._serving is not None
        self.served.append(params["request"]["url"])
        status, kind, body = self._serving(params["request"]["url"], params["request"]["headers"].get("authorization", ""))
        headers = [{"name": "content-type", "value": kind}]
        encoded = base64.b64encode(body).decode()
        await self.call("Fetch.fulfillRequest", requestId=params["requestId"], responseCode=status, responseHeaders=headers, body=encoded)

    async def serve(self, pattern: str, serving: Callable[[str, str], tuple[int, str, bytes]]) -> None:
        """Requests that fit the pattern are answered by `serving(url, authorization)`, which gives status, type and bytes."""
        self._serving = serving
        await self.call("Fetch.enable", patterns=[{"urlPattern": pattern}])

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol; AssertionError with what Chromium says when it is refused."""
        number = next(self._numbers)
        self._answers[number] = asyncio.get_running_loop().create_future()
        frame = {"id": number, "method": method, "params": params, **({"sessionId": self._session_id} if self._session_id else {})}
        await self._socket.send_json(frame)
        answer = await asyncio.wait_for(self._answers[number], testing.PATIENCE_S)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    async def attach(self) -> None:
        """Opens a tab and listens to it."""
        target = await self.call("Target.createTarget", url="about:blank")
        attached = await self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session_id = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "Accessibility"):
            await self.call(f"{domain}.enable")

    async def open(self, url: str) -> None:
        """Goes to `url` and waits until its scripts have run."""
        await self.call("Page.navigate", url=url)
        await self.until("document.readyState === 'complete'", f"{url} is loaded")

    async def js(self, expression: str) -> Any:
        """The value of an expression, awaited; AssertionError when it throws."""
        answer = await self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def until(self, expression: str, what: str) -> Any:
        """Polls until the expression is true."""

        async def true() -> Any:
            try:
                return await self.js(expression)
            except AssertionError:
                # Between two documents there is no page to ask.
                return None

        try:
            return await testing.eventually_async(true, what, timeout_s=30)
        except AssertionError as error:
            raise AssertionError(f"{error}\npage: {await self.js('document.body.innerText')}\ncomplaints: {self.complaints}") from None

    async def type(self, text: str) -> None:
        """Text into what has the focus."""
        await self.call("Input.insertText", text=text)

    async def press(self, key: str, *, shift: bool = False, alt: bool = False) -> None:
        """One key down and up: a character, or one of the named ones."""
        text = "" if alt else _TEXT.get(key, key if len(key) == 1 else "")
        held = {
            "key": key if key != "Space" else " ",
            "code": f"Key{key.upper()}" if len(key) == 1 and key.isalpha() else key,
            "windowsVirtualKeyCode": _KEYS.get(key, 0),
            "modifiers": (_SHIFT if shift else 0) | (_ALT if alt else 0),
        }
        if text:
            held["text"] = text
        await self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **held)
        await self.call("Input.dispatchKeyEvent", type="keyUp", **held)

    async def tab_to(self, element_id: str, *, at_most: int = 40) -> list[str]:
        """Tab until the element of that id has the focus; answers what had it on the way."""
        passed: list[str] = []
        for _ in range(at_most):
            await self.press("Tab")
            where = await self.js("document.activeElement.id || document.activeElement.tagName")
            if where == element_id:
                return passed
            passed.append(where)
        raise AssertionError(f"Tab never reached #{element_id}: {passed}")

    async def scheme(self, name: str) -> None:
        """What the system prefers: light or dark."""
        await self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    async def size(self, width: int, height: int) -> None:
        """The window in CSS pixels."""
        await self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    async def screenshot(self, file: Path) -> Path:
        """What is seen now."""
        file.write_bytes(base64.b64decode((await self.call("Page.captureScreenshot", format="png"))["data"]))
        return file

    async def picture(self, name: str) -> Path:
        """What is seen now, kept under `build/screenshots`."""
        PICTURES.mkdir(parents=True, exist_ok=True)
        return await self.screenshot(PICTURES / f"{name}.png")

    async def accessible(self) -> dict[str, list[str]]:
        """Names in the accessibility tree by role, of what assistive software is told."""
        roles: dict[str, list[str]] = {}
        for node in (await self.call("Accessibility.getFullAXTree"))["nodes"]:
            if not node.get("ignored"):
                roles.setdefault(node["role"]["value"], []).append(node.get("name", {}).get("value", ""))
        return roles

    async def close(self) -> None:
        """Stops listening."""
        self._reader.cancel()


class Browser:
    """A Chromium of the test's own; every page gets a session of its own on one connection each."""

    def __init__(self, folder: Path) -> None:
        self._profile = folder / "profile"
        command = ["chromium", *FLAGS, f"--user-data-dir={self._profile}", "about:blank"]
        self.process = Process(command, log=folder / "chromium.log")

    def endpoint(self) -> str:
        """Where the protocol is spoken, once Chromium has written it down."""

        def written() -> str:
            assert self.process.running(), self.process.output()[-3000:]
            file = self._profile / "DevToolsActivePort"
            lines = file.read_text().split() if file.exists() else []
            return f"ws://127.0.0.1:{lines[0]}{lines[1]}" if len(lines) == 2 else ""

        return testing.eventually(written, "Chromium listens")

    @asynccontextmanager
    async def page(self) -> AsyncIterator[Page]:
        """A new tab in a context without cookies or storage of other tests."""
        async with aiohttp.ClientSession() as http:
            async with http.ws_connect(self.endpoint(), max_msg_size=64 * 1024 * 1024) as socket:
                page = Page(socket, "")
                try:
                    await page.attach()
                    yield page
                finally:
                    await page.close()
