"""A real ComfyUI in a process of its own, and a client of its HTTP API and websocket."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import aiohttp

READY_SECONDS = 120


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


class Server:
    """ComfyUI on the CPU with only this pack, in a base directory of its own; a context."""

    def __init__(self, comfyui: Path, pack: Path, base: Path):
        self.comfyui, self.base, self.port = comfyui, base, free_port()
        (base / "custom_nodes").mkdir(parents=True)
        for kind in ("models", "input", "output", "temp", "user"):
            (base / kind).mkdir()
        (base / "custom_nodes" / "flux_atelier").symlink_to(pack)
        settings = base / "user" / "default" / "comfy.settings.json"
        settings.parent.mkdir()
        settings.write_text('{"Comfy.TutorialCompleted": true}')  # or the frontend greets with its template dialog
        self.log = base / "server.log"

    def __enter__(self) -> "Server":
        command = [
            sys.executable, "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(self.port),
            "--base-directory", str(self.base), "--database-url", "sqlite:///:memory:", "--disable-api-nodes",
            "--disable-auto-launch", "--use-pytorch-cross-attention",
        ]  # fmt: skip
        environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": "0"}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, cwd=self.comfyui, stdout=log, stderr=log, env=environment)
        until = time.monotonic() + READY_SECONDS
        while time.monotonic() < until:
            if self.process.poll() is not None:
                break
            try:
                with socket.create_connection(("127.0.0.1", self.port), 1):
                    return self
            except OSError:
                time.sleep(0.2)
        self.__exit__()
        raise RuntimeError(f"ComfyUI did not start:\n{self.text()[-3000:]}")

    def __exit__(self, *_) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def text(self) -> str:
        return self.log.read_text(errors="replace")


class Client:
    """One websocket and the calls a test needs; an async context."""

    def __init__(self, server: Server):
        self.base, self.id = f"http://127.0.0.1:{server.port}", uuid.uuid4().hex

    async def __aenter__(self) -> "Client":
        self.session = aiohttp.ClientSession()
        self.socket = await self.session.ws_connect(f"{self.base}/ws?clientId={self.id}", max_msg_size=0)
        return self

    async def __aexit__(self, *_) -> None:
        await self.socket.close()
        await self.session.close()

    async def get(self, path: str):
        async with self.session.get(self.base + path) as answer:
            return await answer.json()

    async def get_bytes(self, path: str) -> bytes:
        async with self.session.get(self.base + path) as answer:
            answer.raise_for_status()
            return await answer.read()

    async def post(self, path: str, data: dict) -> tuple[int, dict | str]:
        async with self.session.post(self.base + path, json=data) as answer:
            text = await answer.text()
            return answer.status, json.loads(text) if text.startswith("{") else text

    async def queue(self, prompt: dict) -> tuple[int, dict | str]:
        return await self.post("/prompt", {"prompt": prompt, "client_id": self.id})

    async def follow(self, prompt_id: str, on_event=None, seconds: float = 600) -> list[tuple[str, dict]]:
        """Collect a prompt's events until it ends; previews come as ("preview", {"bytes": n})."""
        events: list[tuple[str, dict]] = []
        async with asyncio.timeout(seconds):
            async for message in self.socket:
                if message.type == aiohttp.WSMsgType.BINARY:
                    event = "preview", {"bytes": len(message.data)}
                else:
                    data = json.loads(message.data)
                    event = data["type"], data.get("data") or {}
                events.append(event)
                if on_event:
                    await on_event(*event)
                ended = event[0] in ("execution_success", "execution_error", "execution_interrupted")
                if ended and event[1].get("prompt_id") == prompt_id:
                    return events
        raise RuntimeError("the websocket closed before the prompt ended")

    async def outputs(self, prompt_id: str) -> dict:
        for _ in range(100):
            history = await self.get(f"/history/{prompt_id}")
            if prompt_id in history:
                return history[prompt_id]
            await asyncio.sleep(0.05)
        raise RuntimeError("the prompt is not in the history")
