"""The bars of block weights in ComfyUI's own frontend, in both renderers: drawn, dragged, typed, stored as text alone."""

import asyncio
import json
import os
from pathlib import Path

import pytest
from browser import Browser, find_chromium
from comfy_process import Server

ROOT = Path(__file__).resolve().parents[2]
PICTURES = os.environ.get("ATELIER_SCREENSHOTS")  # a folder to look at what the test saw
NODE = "FluxAtelierBlockWeights"
BARS = "document.querySelector('.flux-atelier-blocks')"

pytestmark = pytest.mark.skipif(not find_chromium(), reason="no chromium: the bars were not looked at")


@pytest.fixture(scope="module")
def server(comfyui, tmp_path_factory):
    with Server(comfyui, ROOT, tmp_path_factory.mktemp("bars") / "base") as running:
        yield running


def settings(server: Server, **values) -> None:
    file = server.base / "user" / "default" / "comfy.settings.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


class Bars:
    """The page with one node on it."""

    def __init__(self, page: Browser):
        self.page = page

    async def open(self, server: Server) -> None:
        await self.page.open(f"http://127.0.0.1:{server.port}")
        await self.page.wait_for("window.app && window.app.graph && window.app.extensionManager")
        await asyncio.sleep(4)

    async def fresh(self) -> None:
        """One new node, alone on the canvas, as an empty workflow and the menu give it."""
        empty = {"version": 0.4, "nodes": [], "links": [], "last_node_id": 0, "last_link_id": 0}
        await self.page.evaluate(f"window.app.loadGraphData({json.dumps(empty)})")
        await asyncio.sleep(0.5)
        await self.page.evaluate(
            f"(() => {{ const a = window.app, n = LiteGraph.createNode('{NODE}'); n.pos = [0, 0];"
            " a.graph.add(n); Object.assign(a.canvas.ds, {scale: 1.4, offset: [330, 130]}); a.canvas.setDirty(true, true);"
            " window.node = n; })()"
        )
        await self.page.wait_for(BARS)
        await asyncio.sleep(0.7)

    async def text(self) -> str:
        return await self.page.evaluate("window.node.widgets.find(w => w.name == 'weights').value")

    async def put(self, text: str) -> None:
        """Set the text as a person's typing does."""
        await self.page.evaluate(
            "(() => { const w = window.node.widgets.find(w => w.name == 'weights');"
            f" w.value = {json.dumps(text)}; w.callback?.(w.value); }})()"
        )
        await asyncio.sleep(0.3)

    async def heights(self) -> list[float]:
        """The bars' heights as drawn, in units of the value, on an axis of 0 to 1.5."""
        found = await self.page.evaluate(
            f"[...{BARS}.querySelectorAll('rect.bar')].map(r => Number(r.getAttribute('height')))"
        )
        return [height / 200 for height in found]

    async def at(self, bar: int, value: float) -> tuple[float, float]:
        """Where a bar's value is on the screen."""
        box = await self.page.evaluate(
            f"(() => {{ const b = {BARS}.querySelector('.plot').getBoundingClientRect();"
            f" const r = {BARS}.querySelectorAll('rect.back')[{bar}].getBoundingClientRect();"
            " return [r.left + r.width / 2, b.top, b.height]; })()"
        )
        return box[0], box[1] + min(box[2] - 1, box[2] * (1.5 - value) / 1.5)  # the lower edge is not inside

    async def mouse(self, kind: str, point: tuple[float, float], **more) -> None:
        await self.page.send(
            "Input.dispatchMouseEvent", type=kind, x=point[0], y=point[1], button="left", clickCount=1, **more
        )

    async def drag(self, points: list[tuple[int, float]], modifiers: int = 0) -> None:
        places = [await self.at(*point) for point in points]
        await self.mouse("mousePressed", places[0], modifiers=modifiers)
        for place in places[1:]:
            await self.mouse("mouseMoved", place, buttons=1, modifiers=modifiers)
        await self.mouse("mouseReleased", places[-1], modifiers=modifiers)
        await asyncio.sleep(0.2)

    async def key(self, key: str, times: int = 1) -> None:
        for _ in range(times):
            for kind in ("keyDown", "keyUp"):
                await self.page.send("Input.dispatchKeyEvent", type=kind, key=key, code=key)
        await asyncio.sleep(0.2)

    async def picture(self, name: str) -> None:
        if PICTURES:
            await self.page.screenshot(Path(PICTURES) / f"bars-{name}.png")


async def bars_and_text_are_two_faces_of_one_value(bars: Bars, name: str):
    assert await bars.heights() == pytest.approx([1] * 57, abs=0.02)
    position = await bars.page.evaluate("[...window.node.pos]")
    await bars.drag([(3, 0.5)])
    assert await bars.text() == "double.3 = 0.5"
    await bars.drag([(19, 0.2), (20, 0.2), (21, 0.2)])
    assert await bars.text() == "double.3 = 0.5\nsingle.0-2 = 0.2"
    await bars.drag([(26, 0.0), (33, 1.2), (36, 1.0)], modifiers=8)
    assert await bars.text() == "double.3 = 0.5\nsingle.0-2 = 0.2\nsingle.7-17 = 0..1"
    await bars.picture(f"{name}-drawn")
    await bars.put("default = 0\nsingle.0-37 = 0..1\nattention = 0.5")
    heights = await bars.heights()
    assert heights[:19] == pytest.approx([0] * 19, abs=0.02)
    assert heights[19:] == pytest.approx([n / 37 for n in range(38)], abs=0.02)
    assert await bars.page.evaluate(f"{BARS}.querySelector('.foot').textContent") == "attention = 0.5"
    await bars.picture(f"{name}-text")
    point = await bars.at(56, 0.5)
    for count in (1, 2):
        for kind in ("mousePressed", "mouseReleased"):
            await bars.page.send(
                "Input.dispatchMouseEvent", type=kind, x=point[0], y=point[1], button="left", clickCount=count
            )
    assert "37" not in await bars.text()
    assert await bars.page.evaluate("[...window.node.pos]") == position  # drawing did not drag the node
    await bars.put("sinlge = 1, 3")
    assert await bars.page.evaluate(f"{BARS}.querySelector('.plot').getAttribute('aria-disabled')") == "true"
    await bars.drag([(3, 0.5)])
    assert await bars.text() == "sinlge = 1, 3"
    await bars.picture(f"{name}-problem")


async def the_keyboard_reaches_every_bar(bars: Bars, name: str):
    await bars.page.evaluate(f"{BARS}.querySelector('.plot').focus()")
    await bars.key("ArrowRight", 2)
    await bars.key("ArrowDown", 2)
    assert await bars.text() == "double.2 = 0.9"
    await bars.key("End")
    await bars.key("PageDown")
    assert await bars.text() == "double.2 = 0.9\nsingle.37 = 0.75"
    told = await bars.page.evaluate(f"{BARS}.querySelector('.plot').getAttribute('aria-valuetext')")
    assert told == "single 37: 0.75"
    await bars.picture(f"{name}-keyboard")
    await bars.key("Delete")
    assert await bars.text() == "double.2 = 0.9"
    assert await bars.page.evaluate("window.app.graph._nodes.length") == 1


async def a_workflow_keeps_the_text_and_nothing_else(bars: Bars, name: str):
    await bars.put("single = 0.5")
    saved = await bars.page.evaluate("window.app.graph.serialize()")
    (node,) = saved["nodes"]
    assert node["widgets_values"] == ["flux1", "single = 0.5"]
    prompt = await bars.page.evaluate("window.app.graphToPrompt().then(p => p.output)")
    (asked,) = prompt.values()
    assert asked["inputs"] == {"base": "flux1", "weights": "single = 0.5"}
    await bars.page.evaluate(f"window.app.loadGraphData({json.dumps(saved)})")
    await asyncio.sleep(1.5)
    await bars.page.evaluate("window.node = window.app.graph._nodes[0]; 0")
    assert await bars.text() == "single = 0.5"
    assert (await bars.heights())[19:] == pytest.approx([0.5] * 38, abs=0.02)
    await bars.page.evaluate(
        "(() => { const w = window.node.widgets.find(w => w.name == 'base'); w.value = 'sdxl'; w.callback?.(w.value); })()"
    )
    assert len(await bars.heights()) == 21


async def weights_over_a_wire_are_told_and_not_drawn(bars: Bars, name: str):
    await bars.page.evaluate(
        "(() => { const a = window.app, given = window.node, n = LiteGraph.createNode('FluxAtelierApplyBlockWeights');"
        " n.pos = [0, 420]; a.graph.add(n); window.node = n; window.given = given; })()"
    )
    await asyncio.sleep(1)
    await bars.page.evaluate(
        "(() => { const slot = window.node.inputs.findIndex(i => i.name == 'weights');"
        " window.given.connect(0, window.node, slot); })()"
    )
    await asyncio.sleep(1)
    foots = await bars.page.evaluate(
        "[...document.querySelectorAll('.flux-atelier-blocks')].map(b => [b.querySelector('.foot').textContent,"
        " b.querySelector('.plot').getAttribute('aria-disabled')])"
    )
    assert sorted(foots) == [["", "false"], ["The weights come over a wire.", "true"]]
    await bars.picture(f"{name}-linked")
    await bars.page.evaluate(
        "(() => window.node.disconnectInput(window.node.inputs.findIndex(i => i.name == 'weights')))()"
    )
    await asyncio.sleep(0.5)
    states = await bars.page.evaluate(
        "[...document.querySelectorAll('.flux-atelier-blocks .plot')].map(p => p.getAttribute('aria-disabled'))"
    )
    assert states == ["false", "false"]


async def presets_and_the_light_theme(bars: Bars, name: str):
    await bars.page.evaluate("window.app.extensionManager.setting.set('Comfy.ColorPalette', 'light')")
    await bars.page.evaluate(
        f"(() => {{ const s = {BARS}.querySelector('select'); s.value = 'style blocks';"
        " s.dispatchEvent(new Event('change')); })()"
    )
    assert await bars.text() == "default = 0\nsingle.19-37 = 1"
    await bars.picture(f"{name}-light")
    await bars.page.evaluate(f"{BARS}.querySelector('button').click()")
    assert await bars.text() == ""


@pytest.mark.parametrize("vue", [False, True], ids=["classic", "vue"])
def test_bars_in_the_frontend(server, tmp_path, vue):
    settings(server, **{"Comfy.VueNodes.Enabled": vue, "Comfy.ColorPalette": "dark"})

    async def go():
        (tmp_path / "profile").mkdir()
        async with Browser(tmp_path / "profile", (1300, 900)) as page:
            bars = Bars(page)
            await bars.open(server)
            for look in (
                bars_and_text_are_two_faces_of_one_value,
                the_keyboard_reaches_every_bar,
                a_workflow_keeps_the_text_and_nothing_else,
                weights_over_a_wire_are_told_and_not_drawn,
                presets_and_the_light_theme,
            ):
                await bars.fresh()
                await look(bars, "vue" if vue else "classic")
            return page.console

    console = asyncio.run(go())
    assert not [c for c in console if c[0] in ("error", "exception") and "atelier" in c[1].lower()], console
