"""A headless Chromium over its DevTools protocol: open a page, evaluate, listen to the console, take a picture."""

import asyncio
import base64
import shutil
import subprocess
import time
from pathlib import Path

import aiohttp

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--remote-debugging-port=0",
)  # fmt: skip


def find_chromium() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    """One page in a fresh profile; an async context."""

    def __init__(self, profile: Path, size=(2400, 1500)):
        self.profile, self.size = profile, size
        self.console: list[tuple[str, str]] = []
        self._answers: dict[int, asyncio.Future] = {}
        self._count = 0

    async def __aenter__(self) -> "Browser":
        command = [
            find_chromium(),
            *FLAGS,
            f"--user-data-dir={self.profile}",
            f"--window-size={self.size[0]},{self.size[1]}",
            "about:blank",
        ]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port_file, until = self.profile / "DevToolsActivePort", time.monotonic() + 30
        while not port_file.is_file() and time.monotonic() < until:
            await asyncio.sleep(0.1)
        port = port_file.read_text().splitlines()[0]
        self.session = aiohttp.ClientSession()
        async with self.session.get(f"http://127.0.0.1:{port}/json") as answer:
            pages = [t for t in await answer.json() if t["type"] == "page"]
        self.socket = await self.session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0)
        self._reader = asyncio.create_task(self._read())
        for domain in ("Runtime", "Log", "Page"):
            await self.send(f"{domain}.enable")
        return self

    async def __aexit__(self, *_) -> None:
        self._reader.cancel()
        await self.socket.close()
        await self.session.close()
        self.process.terminate()
        self.process.wait(20)

    async def _read(self) -> None:
        async for message in self.socket:
            data = message.json()
            if "id" in data:
                self._answers.pop(data["id"]).set_result(data)
            elif data["method"] == "Runtime.consoleAPICalled":
                parts = [str(a.get("value", a.get("description", ""))) for a in data["params"]["args"]]
                self.console.append((data["params"]["type"], " ".join(parts)))
            elif data["method"] == "Runtime.exceptionThrown":
                self.console.append(("exception", str(data["params"]["exceptionDetails"])))
            elif data["method"] == "Log.entryAdded":
                entry = data["params"]["entry"]
                self.console.append((entry["level"], f"{entry['text']} {entry.get('url', '')}"))

    async def send(self, method: str, **params) -> dict:
        self._count += 1
        answer = self._answers[self._count] = asyncio.get_running_loop().create_future()
        await self.socket.send_json({"id": self._count, "method": method, "params": params})
        data = await asyncio.wait_for(answer, 60)
        if "error" in data:
            raise RuntimeError(f"{method}: {data['error']}")
        return data.get("result", {})

    async def open(self, address: str) -> None:
        await self.send("Page.navigate", url=address)

    async def evaluate(self, script: str):
        """The value of an expression; a promise is waited for."""
        result = await self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in result:
            raise RuntimeError(str(result["exceptionDetails"]))
        return result["result"].get("value")

    async def wait_for(self, script: str, seconds: float = 60) -> None:
        """Wait until an expression is true."""
        until = time.monotonic() + seconds
        while not await self.evaluate(f"Boolean({script})"):
            if time.monotonic() > until:
                raise TimeoutError(script)
            await asyncio.sleep(0.3)

    async def screenshot(self, path: Path) -> None:
        picture = await self.send("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(picture["data"]))
