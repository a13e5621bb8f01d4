"""Compare Pictures and Compare Videos in ComfyUI's own frontend, in both renderers: dragged, typed, played in step, let go."""

import asyncio
import base64
import io
import json
import os
import re
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from browser import Browser, find_chromium
from comfy_process import Server
from PIL import Image

from flux_atelier.core.frames.video import write_video
from flux_atelier.core.images import save_picture, to_picture

ROOT = Path(__file__).resolve().parents[2]
PICTURES = os.environ.get("ATELIER_SCREENSHOTS")  # a folder to look at what the test saw
STILL, FILM = ".flux-atelier-compare.pictures", ".flux-atelier-compare.videos"
VIDEO_IN = FILM + " .side.{} video"
VIDEO = f"document.querySelector('{VIDEO_IN}')"

pytestmark = pytest.mark.skipif(not find_chromium(), reason="no chromium: the comparisons were not looked at")


def scene(warm: bool, at: float, size=(90, 160)) -> torch.Tensor:
    """A disc over a slope, [3, H, W]; `at` is how far it has gone, 0..1."""
    y, x = torch.meshgrid(torch.linspace(0, 1, size[0]), torch.linspace(0, 1, size[1]), indexing="ij")
    disc = ((x - 0.15 - 0.7 * at) ** 2 * 3.16 + (y - 0.5) ** 2 < 0.04).float()
    slope = torch.stack([0.25 + 0.5 * x, 0.3 + 0.3 * y, 0.7 - 0.4 * x])
    picture = slope * (1 - disc) + disc * torch.tensor([0.95, 0.85, 0.2])[:, None, None]
    return picture.flip(0) * 0.9 if warm else picture


@pytest.fixture(scope="module")
def server(comfyui, tmp_path_factory):
    with Server(comfyui, ROOT, tmp_path_factory.mktemp("compare") / "base") as running:
        for name, warm, size in (("before", False, (180, 320)), ("after", True, (90, 160))):
            save_picture(running.base / "input" / f"{name}.png", to_picture(scene(warm, 0.3, size)))
        for name, warm, rate, seconds in (("before", False, 12, 3), ("after", True, 24, 2.5)):
            count = round(rate * seconds)
            frames = (scene(warm, n / rate / 3) for n in range(count))
            write_video(running.base / "input" / f"{name}.mp4", frames, Fraction(rate))
        yield running


GRAPH = {
    "1": ("LoadImage", {"image": "before.png"}, [0, 0]),
    "2": ("LoadImage", {"image": "after.png"}, [0, 400]),
    "3": ("FluxAtelierComparePictures", {"before": "1", "after": "2"}, [330, 0]),
    "4": ("LoadVideo", {"file": "before.mp4"}, [0, 800]),
    "5": ("LoadVideo", {"file": "after.mp4"}, [0, 1100]),
    "6": ("FluxAtelierCompareVideos", {"before": "4", "after": "5"}, [330, 430]),
}
BUILD = """(graph => {
  const app = window.app, made = {};
  app.graph.clear();
  for (const [id, [type, inputs, pos]] of Object.entries(graph)) {
    const node = made[id] = LiteGraph.createNode(type);
    node.pos = pos;
    app.graph.add(node);
    for (const [name, value] of Object.entries(inputs)) {
      const slot = made[value] ? node.inputs.findIndex(i => i.name === name) : -1;
      if (slot >= 0) made[value].connect(0, node, slot);
      else node.widgets.find(w => w.name === name).value = value;
    }
  }
  window.made = made;
  Object.assign(app.canvas.ds, {scale: 1, offset: [-240, 110]});
  app.canvas.setDirty(true, true);
})"""


PANELS_READY = (
    "document.querySelectorAll('.flux-atelier-compare').length === 2 && "
    "[...document.querySelectorAll('.flux-atelier-compare .nothing')].every(n => !n.textContent)"
    " && [...document.querySelectorAll('.flux-atelier-compare img')].every(i => i.naturalWidth)"
    " && [...document.querySelectorAll('.flux-atelier-compare video')].every(v => v.readyState >= 2)"
)


class Seen:
    """The page with both comparisons on it."""

    def __init__(self, page: Browser, name: str):
        self.page, self.name = page, name

    async def open(self, server: Server) -> None:
        await self.page.open(f"http://127.0.0.1:{server.port}")
        await self.page.wait_for("window.app && window.app.graph && window.app.extensionManager")
        await asyncio.sleep(4)
        await self.page.evaluate(f"{BUILD}({json.dumps(GRAPH)})")
        await self.page.wait_for(f"document.querySelector('{FILM}') && document.querySelector('{STILL}')")
        await asyncio.sleep(1)

    async def run(self) -> None:
        await self.page.evaluate("window.app.queuePrompt(0)")
        await self.page.wait_for(PANELS_READY)
        await asyncio.sleep(0.5)

    async def of(self, where: str, script: str):
        """Evaluate with `e` being an element."""
        return await self.page.evaluate(f"(e => {script})(document.querySelector('{where}'))")

    async def until(self, script: str) -> None:
        """Wait until it is true of the videos `before` and `after` and their bar `bar`."""
        await self.page.wait_for(
            f"((before, after, bar) => {script})({VIDEO.format('before')}, {VIDEO.format('after')},"
            f" document.querySelector('{FILM} .bar input'))",
            60,
        )

    async def times(self) -> tuple[float, float]:
        return tuple(
            await self.page.evaluate(f"[{VIDEO.format('before')}, {VIDEO.format('after')}].map(v => v.currentTime)")
        )

    async def box(self, where: str) -> list[float]:
        return await self.of(where, "(b => [b.left, b.top, b.width, b.height])(e.getBoundingClientRect())")

    async def mouse(self, kind: str, x: float, y: float, **more) -> None:
        await self.page.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1, **more)

    async def drag(self, where: str, *shares: float) -> None:
        left, top, width, height = await self.box(where)
        places = [(left + share * width, top + height / 2) for share in shares]
        await self.mouse("mousePressed", *places[0])
        for place in places[1:]:
            await self.mouse("mouseMoved", *place, buttons=1)
        await self.mouse("mouseReleased", *places[-1])
        await asyncio.sleep(0.2)

    async def swipe(self, where: str, *shares: float) -> None:
        """The same with a finger."""
        left, top, width, height = await self.box(where)
        await self.page.send("Emulation.setTouchEmulationEnabled", enabled=True)
        for n, share in enumerate(shares):
            points = [{"x": left + share * width, "y": top + height / 2}]
            await self.page.send(
                "Input.dispatchTouchEvent", type="touchMove" if n else "touchStart", touchPoints=points
            )
        await self.page.send("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
        await self.page.send("Emulation.setTouchEmulationEnabled", enabled=False)
        await asyncio.sleep(0.2)

    async def press(self, words: str, where: str = FILM) -> None:
        """Click a button with the mouse."""
        found = f"[...document.querySelectorAll('{where} button')].find(b => b.textContent === '{words}')"
        x, y = await self.page.evaluate(
            f"(b => [b.left + b.width / 2, b.top + b.height / 2])({found}.getBoundingClientRect())"
        )
        await self.mouse("mousePressed", x, y)
        await self.mouse("mouseReleased", x, y)
        await asyncio.sleep(0.2)

    async def key(self, key: str, times: int = 1) -> None:
        text = {"text": key} if len(key) == 1 else {}
        for _ in range(times):
            await self.page.send("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, **text)
            await self.page.send("Input.dispatchKeyEvent", type="keyUp", key=key, code=key)
        await asyncio.sleep(0.2)

    async def share(self, where: str) -> float:
        """What of a side is shown, by the browser's own account, of both sides alike."""
        before, after = [
            await self.of(f"{where} .side.{side}", "getComputedStyle(e).clipPath") for side in ("before", "after")
        ]
        left = float(re.search(r"([\d.]+)%\)?$", after.replace("calc(100% - ", ""))[1]) / 100
        right = re.search(r"calc\(([-\d.]+)% - ([\d.]+)%\)|\s([\d.]+)%", before)
        hidden = float(right[3]) if right[3] else float(right[1]) - float(right[2])
        assert hidden / 100 == pytest.approx(1 - left, abs=1e-3)
        return left

    async def colours(self, where: str, *places: tuple[float, float]) -> list[tuple[int, int, int]]:
        """What the screen shows at places of an element, as shares of its width and height."""
        left, top, width, height = await self.box(where)
        shot = await self.page.send("Page.captureScreenshot", format="png")
        screen = Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")
        return [screen.getpixel((round(left + x * width), round(top + y * height))) for x, y in places]

    async def picture(self, name: str) -> None:
        if PICTURES:
            await self.page.screenshot(Path(PICTURES) / f"compare-{self.name}-{name}.png")


async def the_slider_shows_before_left_and_after_right(seen: Seen):
    where = f"{STILL} .frame"
    assert await seen.share(STILL) == 0.5
    position = await seen.page.evaluate("[...window.made[3].pos]")
    await seen.drag(where, 0.5, 0.6, 0.75)
    assert await seen.share(STILL) == pytest.approx(0.75, abs=0.01)
    places = [(0.1, 0.1), (0.6, 0.9), (0.9, 0.9)]
    for place, warm, shown in zip(places, (False, False, True), await seen.colours(where, *places), strict=True):
        wanted = scene(warm, 0.3)[:, round(place[1] * 89), round(place[0] * 159)] * 255
        assert max(abs(a - b) for a, b in zip(shown, wanted.tolist(), strict=True)) < 12, (place, shown)
    assert await seen.page.evaluate("[...window.made[3].pos]") == position  # the node was not dragged along
    assert await seen.of(f"{STILL} .facts", "e.textContent") == "320 × 180 and 160 × 90"
    await seen.key("ArrowLeft", 5)
    assert await seen.share(STILL) == pytest.approx(0.7, abs=0.01)
    await seen.key("End")
    assert await seen.share(STILL) == 1
    await seen.swipe(where, 0.9, 0.5, 0.2)
    assert await seen.share(STILL) == pytest.approx(0.2, abs=0.02)
    assert await seen.page.evaluate("window.app.graph._nodes.length") == 6
    await seen.picture("slider")


async def both_videos_run_together(seen: Seen):
    await seen.press("Play")
    await seen.until("before.currentTime > 0.2 && after.currentTime > 0.2")
    gaps = []
    while (both := await seen.times())[0] < 2.2 and both[0] > 0:
        gaps.append(abs(both[0] - both[1]))
        if len(gaps) == 5:
            await seen.picture("playing")
        await asyncio.sleep(0.1)
    assert sorted(gaps)[len(gaps) // 2] < 0.1, gaps
    await seen.until("before.currentTime > 2.6 && after.currentTime > 2.4 && after.paused && !before.paused")
    await seen.until("before.currentTime < 1.5 && after.currentTime < 1.5 && !after.paused")  # the loop
    await seen.press("Pause")
    before, after = await seen.times()
    assert abs(before - after) < 1e-3
    await asyncio.sleep(0.4)
    assert await seen.times() == (before, after)
    await seen.drag(f"{FILM} .bar input", 0.1, 0.3, 0.5)
    await seen.until("!before.seeking && !after.seeking && Math.abs(before.currentTime - after.currentTime) < 1e-3")
    middle = (await seen.times())[0]
    assert 1.3 < middle < 1.7
    await seen.key("ArrowRight", 6)
    await seen.until("!before.seeking && !after.seeking")
    assert (await seen.times())[1] == pytest.approx(middle + 6 / 24, abs=1 / 24)
    await seen.drag(f"{FILM} .bar input", 0.5, 1.0)
    await seen.until(
        "!after.seeking && !before.seeking && before.currentTime > 2.9 && after.currentTime === after.duration"
    )
    assert await seen.of(f"{FILM} .time", "e.textContent") == "0:03.0 / 0:03.0"


async def videos_lie_over_each_other_and_play_on(seen: Seen):
    await seen.press("Over")
    where = f"{FILM} .frame"
    await seen.drag(where, 0.5, 0.3)
    assert await seen.share(FILM) == pytest.approx(0.3, abs=0.01)
    await seen.drag(f"{FILM} .bar input", 0.9, 0.0)
    await seen.until("!before.seeking && !after.seeking && before.currentTime === 0")
    await asyncio.sleep(0.3)
    places = [(0.25, 0.9), (0.9, 0.9)]
    for place, warm, shown in zip(places, (False, True), await seen.colours(where, *places), strict=True):
        wanted = scene(warm, 0)[:, round(place[1] * 89), round(place[0] * 159)] * 255
        assert max(abs(a - b) for a, b in zip(shown, wanted.tolist(), strict=True)) < 20, (place, shown)
    await seen.key(" ")  # the focus is on the seek bar
    await seen.until("!before.paused && before.currentTime > 0.3")
    await seen.press("Beside")
    assert not await seen.of(VIDEO_IN.format("before"), "e.paused")
    await seen.press("Pause")
    await seen.press("Over")
    await seen.picture("over")


async def a_larger_node_shows_more(seen: Seen):
    before = await seen.box(f"{FILM} .stage")
    await seen.page.evaluate("window.made[6].setSize([700, 520]); window.app.canvas.setDirty(true, true)")
    await asyncio.sleep(0.7)
    after = await seen.box(f"{FILM} .stage")
    assert after[2] > before[2] + 100 and after[3] > before[3] + 40
    frame = await seen.box(f"{FILM} .frame")
    assert frame[2] / frame[3] == pytest.approx(16 / 9, rel=0.02)
    assert frame[2] <= after[2] + 1 and frame[3] <= after[3] + 1
    await seen.picture("large")


async def the_light_theme(seen: Seen):
    await seen.page.evaluate("window.app.extensionManager.setting.set('Comfy.ColorPalette', 'light')")
    await asyncio.sleep(0.7)
    for where in (STILL, FILM):
        paper, ink = await seen.of(where, "(s => [s.backgroundColor, s.color])(getComputedStyle(e))")
        assert abs(brightness(paper) - brightness(ink)) > 100, (where, paper, ink)
    await seen.picture("light")
    await seen.page.evaluate("window.app.extensionManager.setting.set('Comfy.ColorPalette', 'dark')")
    await asyncio.sleep(0.5)


def brightness(colour: str) -> float:
    return sum(float(part) for part in re.findall(r"[\d.]+", colour)[:3]) / 3


RELEASED = "window.old.every(v => v.paused && !v.getAttribute('src') && v.networkState === 0)"


async def a_reload_starts_empty_and_lets_go(seen: Seen):
    saved = await seen.page.evaluate("window.app.graph.serialize()")
    assert not [
        node["widgets_values"] for node in saved["nodes"] if node["id"] in (3, 6) and node.get("widgets_values")
    ]
    await seen.page.evaluate("window.old = [...document.querySelectorAll('.flux-atelier-compare video')]; 0")
    await seen.press("Play")
    await seen.page.evaluate(f"window.app.loadGraphData({json.dumps(saved)})")
    await asyncio.sleep(1.5)
    assert await seen.page.evaluate(RELEASED)
    assert await seen.page.evaluate("document.querySelectorAll('.flux-atelier-compare').length") == 2
    assert "Run the graph" in await seen.of(f"{FILM} .nothing", "e.textContent")
    await seen.picture("empty")
    await seen.page.evaluate("window.app.extensionManager.command.execute('Workspace.PreviousOpenedWorkflow')")
    await seen.page.wait_for(PANELS_READY)  # ComfyUI has kept the result of the workflow that was left
    await seen.page.evaluate("window.app.extensionManager.command.execute('Workspace.NextOpenedWorkflow')")
    await asyncio.sleep(2.5)
    assert "Run the graph" in await seen.of(f"{FILM} .nothing", "e.textContent")
    await seen.run()  # from ComfyUI's cache: the result comes again
    assert (await seen.times())[0] == 0


async def a_removed_node_stops_its_videos(seen: Seen):
    await seen.page.evaluate("window.old = [...document.querySelectorAll('.flux-atelier-compare video')]; 0")
    await seen.press("Play")
    await seen.until("!before.paused && before.currentTime > 0.1")
    await seen.page.evaluate(
        "(() => { const g = window.app.graph; g.remove(g._nodes.find(n => n.type === 'FluxAtelierCompareVideos')); })()"
    )
    await asyncio.sleep(0.5)
    assert await seen.page.evaluate(RELEASED)
    assert await seen.page.evaluate(f"document.querySelectorAll('{FILM}').length") == 0


@pytest.mark.parametrize("vue", [False, True], ids=["classic", "vue"])
def test_comparisons_in_the_frontend(server, tmp_path, vue):
    file = server.base / "user" / "default" / "comfy.settings.json"
    values = {"Comfy.VueNodes.Enabled": vue, "Comfy.ColorPalette": "dark"}
    file.write_text(json.dumps(json.loads(file.read_text()) | values))

    async def go():
        (tmp_path / "profile").mkdir()
        async with Browser(tmp_path / "profile", (1300, 1150)) as page:
            seen = Seen(page, "vue" if vue else "classic")
            await seen.open(server)
            await seen.run()
            for look in (
                the_slider_shows_before_left_and_after_right,
                both_videos_run_together,
                videos_lie_over_each_other_and_play_on,
                a_larger_node_shows_more,
                the_light_theme,
                a_reload_starts_empty_and_lets_go,
                a_removed_node_stops_its_videos,
            ):
                await look(seen)
            return page.console

    console = asyncio.run(go())
    assert not [c for c in console if c[0] in ("error", "exception") and "atelier" in c[1].lower()], console
    assert not [c for c in console if c[0] == "exception"], console
