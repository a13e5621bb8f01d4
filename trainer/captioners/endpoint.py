"""Captions from a chat endpoint in OpenAI's form, on this machine unless another is allowed.

Pictures go as JPEG in the request. Redirects are not followed, and no proxy stands between this machine and itself, so
a picture goes to the host that was named and to no other.
"""

import base64
import http.client
import io
import ipaddress
import json
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from ...core.errors import AtelierError
from .families import CHAT_PROMPT
from .options import EndpointOptions
from .prompts import Ask, clean

log = logging.getLogger("flux_atelier")
BUSY = (408, 409, 425, 429, 500, 502, 503, 504)


class Endpoint:
    """A model behind an address. `name` is the author of its captions."""

    prompt = CHAT_PROMPT

    def __init__(self, options: EndpointOptions):
        """Check an address; nothing is sent yet.

        Raises AtelierError if it is no http address, or another host's without allow_remote.
        """
        self.options, self.name = options, options.model
        host = _host(options.url)
        local = is_loopback(host)
        if not local and not options.allow_remote:
            raise AtelierError(
                f"{options.url} is another machine, and pictures would go there. "
                "Set allow_remote if you want that, or name an endpoint on 127.0.0.1."
            )
        handlers: list[urllib.request.BaseHandler] = [_StayHere()]
        if local:
            handlers.append(urllib.request.ProxyHandler({}))
        self.opener = urllib.request.build_opener(*handlers)

    @property
    def settings(self) -> dict:
        """What changes an answer besides what is asked."""
        return self.options.settings

    def caption(self, pictures: Sequence[Image.Image], asks: Sequence[Ask]) -> list[str]:
        """Answer the last turn asked about each picture, some requests at a time.

        pictures  RGB, any sizes
        asks      one a picture
        Raises AtelierError if the endpoint refuses, or stays out of reach after every retry.
        """
        with ThreadPoolExecutor(self.options.parallel) as pool:
            return list(pool.map(self._ask, pictures, asks))

    def _ask(self, picture: Image.Image, ask: Ask) -> str:
        shown = {"type": "image_url", "image_url": {"url": _data_url(picture, self.options.longest_side)}}
        messages: list[dict] = [{"role": "system", "content": ask.system}] if ask.system else []
        answer = ""
        for i, turn in enumerate(ask.turns):
            said = [{"type": "text", "text": turn}]
            messages.append({"role": "user", "content": [shown, *said] if i == 0 else turn})
            answer = clean(self._send(messages))
            messages.append({"role": "assistant", "content": answer})
        return answer

    def _send(self, messages: list[dict]) -> str:
        body = {"model": self.options.model, "messages": messages, "max_tokens": self.options.max_tokens}
        body |= {"temperature": self.options.temperature, "stream": False}
        if self.options.temperature:
            body |= {"top_p": self.options.top_p, "seed": self.options.seed}
        for tried in range(self.options.retries + 1):
            answer, trouble, final = self._post(body)
            if not trouble:
                return _content(answer, self.options.url)
            if final or tried == self.options.retries:
                break
            pause = self.options.wait * 2**tried
            log.warning("%s: %s; trying again in %.0f s", self.options.url, trouble, pause)
            time.sleep(pause)
        raise AtelierError(
            f"{self.options.url} gave no caption after {tried + 1} tries: {trouble}. "
            "Look whether the server runs, has this model and takes pictures."
        )

    def _post(self, body: dict) -> tuple[Any, str, bool]:
        """The answer, what went wrong, and whether another try would go the same way."""
        headers = {"Content-Type": "application/json"}
        if self.options.key_variable:
            headers["Authorization"] = f"Bearer {_key(self.options.key_variable)}"
        address = self.options.url.rstrip("/") + "/chat/completions"
        request = urllib.request.Request(address, json.dumps(body).encode(), headers)
        try:
            with self.opener.open(request, timeout=self.options.timeout) as reply:
                return json.load(reply), "", False
        except urllib.error.HTTPError as error:
            reason = " ".join(error.read(2000).decode("utf-8", "replace").split())[:200]
            return None, f"status {error.code} {reason}".strip(), error.code not in BUSY
        except (TimeoutError, urllib.error.URLError, http.client.HTTPException, ConnectionError) as error:
            return None, str(getattr(error, "reason", error)) or type(error).__name__, False
        except ValueError:
            return None, "the answer is not JSON", True


class _StayHere(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req, fp, code, msg, headers, newurl):
        return None  # urllib then raises HTTPError with the redirect's status


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is this machine itself, told without asking any name server."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _host(url: str) -> str:
    try:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname:
            return parts.hostname
    except ValueError:
        pass  # brackets of an IPv6 address that do not close
    raise AtelierError(f"{url!r} is no http address. Write it like http://127.0.0.1:8080/v1.")


def _key(variable: str) -> str:
    if not os.environ.get(variable):
        raise AtelierError(f"The environment variable {variable} is empty. Set it to the endpoint's key.")
    return os.environ[variable]


def _data_url(picture: Image.Image, longest: int) -> str:
    small = picture.convert("RGB")
    if longest:
        small.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    held = io.BytesIO()
    small.save(held, "JPEG", quality=95, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(held.getvalue()).decode()


def _content(answer: Any, url: str) -> str:
    try:
        content = answer["choices"][0]["message"]["content"]
        if isinstance(content, list):
            content = "".join(part.get("text", "") for part in content)
    except (KeyError, IndexError, TypeError, AttributeError):
        content = None
    if not isinstance(content, str):
        raise AtelierError(f"{url} answered in another form than OpenAI's chat. Give the address that ends in /v1.")
    return content
