"""The gallery in ComfyUI's own frontend, in both renderers, over a real dataset: run, decided, full screen, opened again."""

import asyncio
import json
from pathlib import Path

import pytest
from browser import Browser, find_chromium
from comfy_process import Server
from gallery_fake import CONTROL, HOSTILE, Seen
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(not find_chromium(), reason="no chromium: the gallery was not looked at")

GRAPH = """(() => {
  const a = window.app; a.graph.clear();
  const load = LiteGraph.createNode("FluxAtelierLoadDataset"), review = LiteGraph.createNode("FluxAtelierReviewDataset");
  load.pos = [0, 0]; review.pos = [460, 0]; a.graph.add(load); a.graph.add(review); load.connect(0, review, 0);
  load.widgets.find((w) => w.name === "folder").value = "cats";
  Object.assign(a.canvas.ds, {scale: 1, offset: [60, 90]}); a.canvas.setDirty(true, true);
})()"""
REVIEW = "window.app.graph._nodes.find(n => n.type === 'FluxAtelierReviewDataset')"


def pictures(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for n in range(count):
        image = Image.new("HSV", (320 - n % 3 * 60, 240), (n * 7 % 256, 120, 90 + n)).convert("RGB")
        image.putpixel((n, n), (255, 255, 255))
        image.save(folder / f"cat{n:02d}.png")
        (folder / f"cat{n:02d}.txt").write_text(f"cat number {n}" if n else HOSTILE)


@pytest.fixture(scope="module")
def server(comfyui, tmp_path_factory):
    base = tmp_path_factory.mktemp("gallery") / "base"
    with Server(comfyui, ROOT, base) as running:
        pictures(base / "input" / "cats", 60)
        yield running


class InComfyUI(Seen):
    async def start(self, server: Server) -> None:
        await self.page.open(f"http://127.0.0.1:{server.port}")
        await self.page.wait_for("window.app && window.app.graph && window.app.extensionManager")
        await asyncio.sleep(4)
        known = "fetch('/object_info/FluxAtelierReviewDataset').then(r => r.json()).then(o => Object.keys(o).length)"
        if not await self.page.evaluate(known):
            pytest.skip("Review Dataset is not among this pack's nodes")

    async def queue(self) -> None:
        await self.page.evaluate("window.app.queuePrompt(0)")

    async def turn_and_drag(self) -> None:
        """A turn of the wheel over the pictures, and a drag across them."""
        box = "(() => { const b = document.querySelector('.cells').getBoundingClientRect(); return [b.left + 60, b.top + 60]; })()"
        x, y = await self.page.evaluate(box)
        await self.page.send("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=300)
        await self.until("document.querySelector('.cells').scrollTop > 100")
        for kind, by in (("mousePressed", 0), ("mouseMoved", 40), ("mouseReleased", 40)):
            await self.page.send(
                "Input.dispatchMouseEvent", type=kind, x=x + by, y=y, button="left", buttons=1, clickCount=1
            )

    async def cells(self) -> None:
        await self.page.wait_for(
            "document.querySelector('.cell[aria-label*=cat]') && document.querySelectorAll('.cell img:not([hidden])').length > 3",
            60,
        )


async def a_run_fills_the_gallery_and_keys_decide(seen: InComfyUI, name: str):
    await seen.page.evaluate(GRAPH)
    await seen.until("document.querySelector('.flux-atelier-gallery')")
    assert "Queue the workflow" in await seen.text(".empty-note")
    await seen.queue()
    await seen.cells()
    await seen.picture(f"{name}-node")
    await seen.focus()
    before = await seen.page.evaluate(f"[...{REVIEW}.pos, window.app.canvas.ds.scale, ...window.app.canvas.ds.offset]")
    await seen.turn_and_drag()
    after = await seen.page.evaluate(f"[...{REVIEW}.pos, window.app.canvas.ds.scale, ...window.app.canvas.ds.offset]")
    assert after == before  # the wheel and the mouse were the gallery's
    await seen.key("Home")
    await seen.key("k", "r", "4")
    await seen.until("document.querySelector('.counts').textContent === 'kept 1rejected 1undecided 58'")
    await seen.key("Home", "Delete", "Backspace")  # means the decision here, never the node
    await seen.key("c", "v", modifiers=CONTROL)
    await seen.until("document.querySelector('.counts').textContent === 'kept 0rejected 1undecided 59'")
    assert await seen.page.evaluate("window.app.graph._nodes.length") == 2
    await seen.key("e")
    await seen.until("document.querySelector('.editor textarea')")
    assert await seen.page.evaluate("document.querySelector('.editor textarea').value") == HOSTILE
    await seen.page.evaluate("document.querySelector('.editor textarea').select()")
    await seen.page.send("Input.insertText", text="a grey cat")
    await seen.key("Enter", modifiers=CONTROL)
    await seen.until("document.querySelector('.detail').hidden")
    await seen.key(" ")
    await seen.until("document.querySelector('.detail .text').textContent === 'a grey cat'")
    await seen.key("u")
    await seen.until("document.querySelector('.detail .text').textContent !== 'a grey cat'")
    assert await seen.text(".detail .text") == HOSTILE
    await seen.key("Escape")


async def the_gallery_fills_the_window_and_goes_back(seen: InComfyUI, name: str):
    await seen.page.evaluate("document.querySelector('.full').click()")
    await seen.until("document.querySelector('dialog.flux-atelier-dialog .flux-atelier-gallery')")
    await asyncio.sleep(0.5)
    await seen.key("ArrowRight", "k", " ")
    await seen.until("!document.querySelector('.detail').hidden && document.querySelector('.strip button')")
    await seen.picture(f"{name}-full")
    await seen.key("Escape", "Escape")
    await seen.until("!document.querySelector('dialog.flux-atelier-dialog')")
    assert await seen.page.evaluate("document.querySelectorAll('.flux-atelier-gallery').length") == 1
    await seen.until("document.activeElement.className === 'cells'")


async def a_workflow_opens_where_it_was_left(seen: InComfyUI, name: str):
    saved = await seen.page.evaluate("window.app.graph.serialize()")
    (kept,) = [
        node["properties"]["flux_atelier_view"] for node in saved["nodes"] if "flux_atelier_view" in node["properties"]
    ]
    assert kept.startswith("cats")
    await seen.page.evaluate("document.querySelector('.cells').focus()")
    await seen.filter("undecided")
    await seen.until("document.querySelector('.foot .shown').textContent === '59 pictures'")
    await seen.page.evaluate("window.app.graph.clear()")
    await seen.until("!document.querySelector('.flux-atelier-gallery')")
    await seen.page.evaluate(f"window.app.loadGraphData({json.dumps(saved)})")
    await seen.cells()
    await seen.until("document.querySelector('.foot .shown').textContent === '59 pictures'")
    await seen.page.evaluate("window.app.extensionManager.setting.set('Comfy.ColorPalette', 'light')")
    await asyncio.sleep(0.5)
    await seen.picture(f"{name}-light")


@pytest.mark.parametrize("vue", [False, True], ids=["classic", "vue"])
def test_the_gallery_in_the_frontend(server, tmp_path, vue):
    file = server.base / "user" / "default" / "comfy.settings.json"
    chosen = {"Comfy.VueNodes.Enabled": vue, "Comfy.ColorPalette": "dark"}
    file.write_text(json.dumps(json.loads(file.read_text()) | chosen))

    async def go():
        async with Browser(tmp_path, (1400, 900)) as page:
            seen = InComfyUI(page)
            await seen.start(server)
            for look in (
                a_run_fills_the_gallery_and_keys_decide,
                the_gallery_fills_the_window_and_goes_back,
                a_workflow_opens_where_it_was_left,
            ):
                await look(seen, "vue" if vue else "classic")
            await seen.focus()
            await seen.filter("width > 0")
            await seen.until("document.querySelector('.foot .shown').textContent === '60 pictures'")
            await seen.key("a", modifiers=CONTROL)
            await seen.key("Delete", "0")  # the other renderer begins with nothing decided
            await seen.until("document.querySelector('.counts').textContent === 'kept 0rejected 0undecided 60'")
            return page.console

    console = asyncio.run(go())
    assert not [c for c in console if c[0] in ("error", "exception") and "atelier" in c[1].lower()], console
