"""The template in ComfyUI's own frontend: it opens, runs, draws its chart, and the console stays clean."""

import asyncio
import json
import os
from pathlib import Path

import pytest
from browser import Browser, find_chromium
from comfy_process import Server

ROOT = Path(__file__).resolve().parents[2]
PICTURES = os.environ.get("ATELIER_SCREENSHOTS")  # a folder to look at what the test saw

pytestmark = pytest.mark.skipif(not find_chromium(), reason="no chromium: the frontend was not looked at")


def test_the_template_opens_and_trains_with_a_clean_console(comfyui, tmp_path):
    graph = (ROOT / "workflows" / "quickstart.json").read_text()

    async def look(server):
        (tmp_path / "profile").mkdir()
        async with Browser(tmp_path / "profile") as page:
            await page.open(f"http://127.0.0.1:{server.port}")
            await page.wait_for("window.app && window.app.graph && window.app.extensionManager")
            await asyncio.sleep(4)
            listed = await page.evaluate("fetch('/api/workflow_templates').then(r => r.json())")
            await page.evaluate(f"window.app.loadGraphData({graph})")
            await asyncio.sleep(2)
            kinds = await page.evaluate("window.app.graph._nodes.map(n => n.type)")
            prompt = await page.evaluate("window.app.graphToPrompt().then(p => p.output)")
            await picture(page, "open")
            # A short training, to see the chart at work.
            await page.evaluate(
                "window.app.graph._nodes.find(n => n.id == 6).widgets.find(w => w.name == 'steps').value = 30;"
                "window.app.graph._nodes.filter(n => ![1,2,3,4,5,6].includes(Number(n.id)) && n.type != 'MarkdownNote').forEach(n => n.mode = 4);"
            )
            await page.evaluate("window.app.queuePrompt(0)")
            for _ in range(200):
                history = await page.evaluate("fetch('/api/history').then(r => r.json())")
                if history:
                    break
                await asyncio.sleep(0.5)
            await page.evaluate(
                "Object.assign(window.app.canvas.ds, {scale: 1, offset: [-380, -60]}); window.app.canvas.setDirty(true, true)"
            )
            await asyncio.sleep(1)
            await picture(page, "trained")
            inked = await page.evaluate("Boolean(document.querySelector('.flux-atelier-panel svg path'))")
            assert inked, "the loss chart is empty"
            return listed, kinds, prompt, history, page.console

    async def picture(page, name):
        target = Path(PICTURES) if PICTURES else tmp_path
        await page.screenshot(target / f"{name}.png")

    with Server(comfyui, ROOT, tmp_path / "base") as server:
        listed, kinds, prompt, history, console = asyncio.run(look(server))

    assert "quickstart" in listed["flux_atelier"]
    twin = json.loads((ROOT / "workflows" / "api" / "quickstart.json").read_text())
    assert {k: v["class_type"] for k, v in prompt.items()} == {k: v["class_type"] for k, v in twin.items()}
    for number, node in twin.items():
        assert node["inputs"].items() <= prompt[number]["inputs"].items()
    assert len([k for k in kinds if k == "MarkdownNote"]) == 4
    (run,) = history.values()
    assert run["status"]["status_str"] == "success", run["status"]
    ours = [c for c in console if c[0] in ("error", "exception") and ("flux_atelier" in c[1] or "FluxAtelier" in c[1])]
    assert not ours, ours
    assert not [c for c in console if c[0] == "exception"], console
