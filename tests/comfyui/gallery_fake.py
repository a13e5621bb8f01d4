"""The gallery's routes over rows made in memory, and a page with the gallery alone on it: what the server could do wrong.

    python tests/comfyui/gallery_fake.py 8765      # then open http://127.0.0.1:8765/?theme=light

`Fake.trouble` makes answers late, wrong or absent.
"""  # fmt: skip

import asyncio
import io
import os
import sys
from pathlib import Path

from aiohttp import web
from browser import Browser
from PIL import Image, ImageDraw

CONTROL, SHIFT = 2, 8  # modifiers of keys
PICTURES = os.environ.get("ATELIER_SCREENSHOTS")  # a folder to look at what the tests saw
WEB = Path(__file__).resolve().parents[2] / "web"
STORE, KEY = "cats-0123abcd", "0123456789abcdef"
HOSTILE = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>'
LIGHT = "--comfy-input-bg:#C9C9C9;--input-text:#222;--border-color:#888;--bg-color:#DDD;--fg-color:#222"
DARK = "--comfy-input-bg:#222;--input-text:#ddd;--border-color:#4e4e4e;--bg-color:#202020;--fg-color:#fff"
PAGE = """<!doctype html><meta charset="utf-8"><title>gallery</title><body style="margin:0;background:var(--bg-color);%s" class="%s">
<div id="home" style="width:%spx;height:%spx;margin:10px"></div><button id="outside">outside</button>
<script type="module">
import { makeGallery } from "/web/lib/gallery_element.mjs";
import { GALLERY_STYLE } from "/web/lib/gallery_style.mjs";
const style = document.createElement("style"); style.textContent = GALLERY_STYLE; document.head.append(style);
window.leaked = [];
for (const kind of ["keydown", "keyup", "copy", "paste", "pointerdown", "wheel"]) {
  window.addEventListener(kind, (event) => window.leaked.push(kind + " " + (event.key ?? "")));
}
const server = { ask: (path, options) => fetch(path, options), address: (path) => path };
window.gallery = makeGallery(document, { server, storage: sessionStorage, full: () => {} });
document.querySelector("#home").append(window.gallery.element);
window.addEventListener("pagehide", () => window.gallery.keep());
window.began = performance.now();
window.gallery.open("%s/%s");
</script>"""


class Fake:
    """A dataset of made-up rows behind the gallery's routes; an async context."""

    def __init__(self, count: int = 1000, port: int = 0):
        self.count, self.port = count, port
        self.decisions: dict[int, str | None] = {}
        self.stars: dict[int, int] = {}
        self.texts: dict[int, list[str]] = {}
        self.done: list[tuple[str, dict, dict]] = []
        self.revision = 1
        self.trouble = ""  # away | refuse | late
        self.late: list[float] = []  # seconds that the next answers with rows wait, one after the other
        self.asked: list[str] = []
        self.current = True
        self.pending = 0  # answers that say the groups are still looked for
        self.thumbs: dict[int, bytes] = {}

    async def __aenter__(self) -> "Fake":

        @web.middleware
        async def troubled(request: web.Request, handler):
            return await self._troubled(request, handler)

        app = web.Application(middlewares=[troubled])
        home, view = "/flux_atelier/datasets/{store}", "/flux_atelier/datasets/{store}/views/{key}"
        app.add_routes(
            [
                web.get("/", self._page),
                web.static("/web", WEB),
                web.get(view, self._view),
                web.get(f"{view}/rows", self._rows),
                web.get(f"{view}/similar/{{id}}", self._similar),
                web.get(f"{view}/groups", self._groups),
                web.get(f"{home}/thumbs/{{id}}", self._thumb),
                web.get(f"{home}/pictures/{{id}}", self._thumb),
                web.post(f"{view}/decide", self._decide),
                web.post(f"{view}/stars", self._stars),
                web.post(f"{view}/caption", self._caption),
                web.post(f"{home}/undo", self._undo),
            ]
        )
        self.runner = web.AppRunner(app)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", self.port).start()
        self.port = self.runner.addresses[0][1]
        return self

    async def __aexit__(self, *_) -> None:
        await self.runner.cleanup()

    async def _troubled(self, request: web.Request, answer):
        """Leave requests without an answer, or with a refusal, as `trouble` says."""
        ours = request.path.startswith("/flux_atelier") and "/thumbs/" not in request.path
        if ours:
            self.asked.append(request.path_qs)
        if ours and self.trouble == "away":
            request.transport.close()
        if ours and self.trouble == "refuse" and request.method == "POST":
            return web.json_response({"error": "The store is read-only. Copy it first."}, status=409)
        return await answer(request)

    async def _page(self, request: web.Request) -> web.Response:
        light = request.query.get("theme") == "light"
        size = request.query.get("width", "900"), request.query.get("height", "640")
        html = PAGE % (LIGHT if light else DARK, "" if light else "dark-theme", *size, STORE, KEY)
        return web.Response(text=html, content_type="text/html")

    def row(self, n: int) -> dict:
        """A row: every seventh is captioned by a person, every hundredth has been cropped; row 5 is hostile."""
        model = {"text": f"a watercolour of cat {n} on a sofa, soft light", "author": "model", "model": "florence-2"}
        own = [{"text": text, "author": "human", "model": ""} for text in self.texts.get(n, [])]
        if n not in self.texts and n % 7 == 3:
            own = [{"text": f"cat {n}, by hand", "author": "human", "model": ""}]
        path = f"cats/{HOSTILE.replace('/', '')}.png" if n == 5 else f"cats/IMG_{n:05d}.png"
        row = {
            "id": f"{n:012x}", "path": path, "width": 1536, "height": 1024, "decision": self.decisions.get(n),
            "stars": self.stars.get(n), "split": "train", "repeats": 1, "tags": ["cat", "sofa"], "reason": None, "by": None,
            "captions": [*own, model], "digest": f"{n:016x}", "crop": [256, 0, 1024, 1024] if n % 100 == 0 else None,
            "boxes": [{"label": "face", "x": 620, "y": 260, "w": 300, "h": 300, "score": 0.91}] if n % 100 == 0 else [],
            "notes": [], "scores": {"sharpness": 0.5 + (n % 50) / 100, "noise": 3.25}, "left_out": None, "parent": None,
        }  # fmt: skip
        if n == 5:
            row["captions"] = [{"text": HOSTILE, "author": "model", "model": HOSTILE}]
            row |= {"tags": [HOSTILE], "reason": HOSTILE}
        return row

    def matching(self, expression: str) -> list[int]:
        every = range(self.count)
        if not expression:
            return list(every)
        if expression == "undecided":
            return [n for n in every if not self.decisions.get(n)]
        if expression.startswith("id ="):
            return [int(expression.split('"')[1], 16)]
        if expression.startswith("last "):
            return list(every)[-int(expression.split()[1]) :]
        raise web.HTTPBadRequest(
            text='{"error": "The filter has shapness, which is not known. Did you mean <b>sharpness</b>?"}',
            content_type="application/json",
        )

    async def _view(self, request: web.Request) -> web.Response:
        kept = list(self.decisions.values()).count("keep")
        rejected = list(self.decisions.values()).count("reject")
        counts = {"keep": kept, "reject": rejected, "undecided": self.count - kept - rejected, "left_out": 40}
        return web.json_response({
            "store": STORE, "key": KEY, "root": "/data/cats", "total": self.count, "counts": counts, "revision": self.revision,
            "scores": ["sharpness", "noise"], "names": ["undecided", "kept", "width"], "splits": {"train": self.count},
            "current": self.current,
        })  # fmt: skip

    async def _rows(self, request: web.Request) -> web.Response:
        asked = request.query
        offset, limit = int(asked["offset"]), int(asked["limit"])
        found = self.matching(asked["filter"])
        if asked["group"] == "left_out":
            found = found[:40]
        rows = [self.row(n) for n in found[offset : offset + limit]]
        if asked["group"] == "left_out":
            rows = [row | {"left_out": {"reason": "blurred, sharpness 0.12", "by": "Check Quality"}} for row in rows]
        if self.late:
            await asyncio.sleep(self.late.pop(0))
        return web.json_response({"total": len(found), "revision": self.revision, "rows": rows})

    async def _similar(self, request: web.Request) -> web.Response:
        own = int(request.match_info["id"], 16)
        return web.json_response({"rows": [self.row(own + i) | {"distance": i - 1} for i in range(1, 9)]})

    async def _groups(self, request: web.Request) -> web.Response:
        offset, limit = int(request.query["offset"]), int(request.query["limit"])
        if self.pending:
            self.pending -= 1
            return web.json_response({"pending": True, "done": 500, "total": self.count})
        groups = []
        for g in range(offset, min(offset + limit, 45)):
            rows = [self.row(g * 3 + i) for i in range(2 + g % 3)]
            why = [[rows[0]["id"], other["id"], "same after a flip"] for other in rows[1:]]
            groups.append({"kept": rows[0]["id"], "rows": rows, "why": why})
        return web.json_response({"total": 45, "groups": groups})

    async def _thumb(self, request: web.Request) -> web.Response:
        hue = int(request.match_info["id"], 16) % 24
        if hue not in self.thumbs:
            image = Image.new("HSV", (256, 171), (hue * 10, 90, 150)).convert("RGB")
            ImageDraw.Draw(image).ellipse((100, 40, 160, 100), fill=(235, 220, 200))
            held = io.BytesIO()
            image.save(held, "webp")
            self.thumbs[hue] = held.getvalue()
        headers = {"Cache-Control": "public, max-age=31536000, immutable"}
        return web.Response(body=self.thumbs[hue], content_type="image/webp", headers=headers)

    def _chosen(self, asked: dict) -> list[int]:
        return self.matching(asked["filter"]) if "filter" in asked else [int(own, 16) for own in asked["ids"]]

    def _remember(self, label: str, values: dict, chosen: dict) -> web.Response:
        self.done.append((label, values, {n: values.get(n) for n in chosen}))
        values.update(chosen)
        self.revision += 1
        return web.json_response({"changed": len(chosen), "revision": self.revision})

    async def _decide(self, request: web.Request) -> web.Response:
        asked = await request.json()
        chosen = self._chosen(asked)
        label = f"{asked['decision'] or 'clear'} {len(chosen)} pictures"
        return self._remember(label, self.decisions, dict.fromkeys(chosen, asked["decision"]))

    async def _stars(self, request: web.Request) -> web.Response:
        asked = await request.json()
        return self._remember("stars", self.stars, dict.fromkeys(self._chosen(asked), asked["stars"]))

    async def _caption(self, request: web.Request) -> web.Response:
        asked = await request.json()
        return self._remember("caption", self.texts, {int(asked["id"], 16): asked["texts"]})

    async def _undo(self, request: web.Request) -> web.Response:
        label = None
        if self.done:
            label, values, before = self.done.pop()
            for n, value in before.items():
                if value is None:
                    values.pop(n)
                else:
                    values[n] = value
            self.revision += 1
        return web.json_response({"undone": label, "revision": self.revision})


class Seen:
    """The page with the gallery on it, and hands to use it."""

    def __init__(self, page: Browser, fake: Fake | None = None):
        self.page, self.fake = page, fake

    async def open(self, ask: str = "") -> None:
        await self.page.open(f"http://127.0.0.1:{self.fake.port}/?{ask}")
        await self.page.wait_for("window.gallery && document.querySelector('.cell[aria-label*=\"IMG_\"]')", 20)
        await self.focus()

    async def focus(self) -> None:
        await self.page.evaluate("document.querySelector('.cells').focus()")

    async def key(self, *keys: str, modifiers: int = 0) -> None:
        for key in keys:
            text = {"text": key} if len(key) == 1 and not modifiers & CONTROL else {}
            await self.page.send("Input.dispatchKeyEvent", type="keyDown", key=key, modifiers=modifiers, **text)
            await self.page.send("Input.dispatchKeyEvent", type="keyUp", key=key, modifiers=modifiers)

    async def text(self, selector: str) -> str:
        return await self.page.evaluate(f"document.querySelector('{selector}').textContent")

    async def until(self, script: str) -> None:
        """Wait until an expression is true, looking more often than a page that loads needs."""
        for _ in range(300):
            if await self.page.evaluate(f"Boolean({script})"):
                return
            await asyncio.sleep(0.05)
        raise TimeoutError(script)

    async def settled(self) -> None:
        """Wait until the server has answered all changes."""
        await self.until("!window.gallery.pages.edits.length")

    async def verdicts(self, count: int) -> list[str]:
        script = "[...document.querySelectorAll('.cell')].sort((a, b) => a.dataset.index - b.dataset.index)"
        return await self.page.evaluate(f"{script}.slice(0, {count}).map(c => c.dataset.decision)")

    async def filter(self, text: str) -> None:
        await self.key("/")
        await self.page.send("Input.insertText", text=text)
        await self.key("Enter")

    async def picture(self, name: str) -> None:
        if PICTURES:
            await self.page.screenshot(Path(PICTURES) / f"gallery-{name}.png")


async def serve(port: int) -> None:
    async with Fake(50_000, port):
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
