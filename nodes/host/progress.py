"""The running node's bar, messages to the browser, and cancel."""

import math
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import comfy.model_management as memory
import comfy.utils
from PIL import Image

Item = TypeVar("Item")
EVENT = "flux_atelier.step"
EVENT_SECONDS = 0.4  # at most so often a running node speaks to the browser


class Progress:
    """The running node's bar, previews and messages; every call notices a cancel."""

    def __init__(self, total: int, node_id: str | None):
        self.bar = comfy.utils.ProgressBar(total, node_id=node_id)
        self.total, self.node_id, self._spoke = total, node_id, 0.0

    def at(self, value: int, picture: Image.Image | None = None) -> None:
        """Move the bar, show a picture if there is one; raises ComfyUI's interrupt if the person cancelled."""
        check_cancel()
        preview = ("JPEG", picture, 512) if picture else None
        self.bar.update_absolute(value, self.total, preview)

    def tell(self, data: dict, now: bool = False) -> None:
        """Send an event to the browser, unless one was sent a moment ago."""
        if not now and time.monotonic() - self._spoke < EVENT_SECONDS:
            return
        self._spoke = time.monotonic()
        server = prompt_server()
        if server is not None:
            # Python would write NaN, which is no JSON and which browsers refuse.
            told = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in data.items()}
            server.send_sync(EVENT, told | {"node": self.node_id}, server.client_id)


def prompt_server():
    """ComfyUI's server, or None outside of it."""
    from server import PromptServer

    return getattr(PromptServer, "instance", None)


def check_cancel() -> None:
    memory.throw_exception_if_processing_interrupted()


def noticed(items: Iterable[Item]) -> Iterator[Item]:
    """The same items, with a cancel noticed at each."""
    for item in items:
        check_cancel()
        yield item
