"""The training panel: what it reads of a run's folder, its wishes, its routes, and how it looks in both renderers."""

import asyncio
import contextlib
import copy
import json
import math
import os
import threading
from pathlib import Path

import pytest
from browser import Browser, find_chromium
from comfy_process import Client, Server
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = json.loads((ROOT / "workflows" / "api" / "quickstart.json").read_text())
PICTURES = os.environ.get("ATELIER_SCREENSHOTS")  # a folder to look at what the test saw
needs_chromium = pytest.mark.skipif(not find_chromium(), reason="no chromium: the panel was not looked at")
RUNS = "/flux_atelier/runs"


def write_run(folder: Path, steps: int = 40, planned: int = 100) -> Path:
    """A run's folder as a training leaves it, and what it may meet: NaN, a step skipped, a line cut short."""
    (folder / "samples").mkdir(parents=True)
    lines = []
    for step in range(1, steps + 1):
        record = {"step": step, "loss": 0.5 + 0.5 / step, "learning_rate": 2e-4, "grad_norm": 0.3, "seconds": 0.5}
        record |= {"memory": int(12.3 * 2**30)}
        if step % 10 == 0:
            record |= {"validation": 0.6 - step / 1000, "levels": [0.9, 0.6, 0.5, 0.3]}
        if step == 5:
            record |= {"loss": math.nan, "skipped": True}
        lines.append(json.dumps(record))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 999, "lo')
    (folder / "events.jsonl").write_text(json.dumps({"step": 20, "note": "loss ran away, rolled back"}) + "\n")
    (folder / "config.toml").write_text(f'steps = {planned}\n[optimizer]\nname = "adamw"\n')
    (folder / "plan.txt").write_text("40 pictures, batch 8, 20 rounds\n")
    for step, color in ((20, "teal"), (40, "orange")):
        Image.new("RGB", (64, 64), color).save(folder / "samples" / f"step-{step:06d}.png")
    return folder


# --- by hand ---------------------------------------------------------------------------------------------------------


def test_wishes_are_taken_once_and_in_order(comfyui):
    from flux_atelier.nodes.panel import Wishes

    wishes = Wishes()
    assert wishes.take() == []
    for wish in ("save", "stop", "save"):
        wishes.ask(wish)
    assert wishes.take() == ["save", "stop"]
    assert wishes.take() == []


def test_no_wish_is_lost_between_threads(comfyui):
    from flux_atelier.nodes.panel import Wishes

    wishes, taken = Wishes(), []
    asking = [threading.Thread(target=lambda k=k: [wishes.ask(f"{k}-{i}") for i in range(500)]) for k in range(4)]
    for thread in asking:
        thread.start()
    while any(t.is_alive() for t in asking):
        taken += wishes.take()
    assert sorted(taken + wishes.take()) == sorted(f"{k}-{i}" for k in range(4) for i in range(500))


def test_a_run_is_live_inside_the_context_whatever_happens(folders):
    from flux_atelier.nodes import panel

    assert not panel.describe("mia")["running"]
    with contextlib.suppress(KeyboardInterrupt), panel.live("mia"):
        assert panel.describe("mia")["running"]
        raise KeyboardInterrupt  # ComfyUI's cancel is no Exception either
    assert not panel.describe("mia")["running"]


@pytest.mark.parametrize(("count", "kept"), [(0, 0), (3, 3), (1500, 1500), (1501, 1500), (100_000, 1500)])
def test_records_are_thinned_to_what_a_screen_can_show(comfyui, count, kept):
    from flux_atelier.nodes.panel import thinned

    lines = [json.dumps({"step": i} | ({"validation": 1.0} if i % 500 == 0 else {})) for i in range(1, count + 1)]
    left = [json.loads(line) for line in thinned(lines, 1500)]
    assert len(left) == kept
    assert [r["step"] for r in left] == sorted({r["step"] for r in left})
    assert sum("validation" in r for r in left) == count // 500
    assert not count or left[-1]["step"] == count


def test_more_validations_than_room_all_stay(comfyui):
    from flux_atelier.nodes.panel import thinned

    lines = [json.dumps({"step": i, "validation": 1.0 if i % 2 else None}) for i in range(100)]
    assert len(thinned(lines, 10)) == 50


def test_a_folder_is_read_as_a_browser_can_take_it(folders):
    from flux_atelier.nodes import host, panel

    write_run(host.run_folder("read"))
    told = panel.describe("read")
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert (told["total"], len(told["records"]), told["running"]) == (100, 40, False)
    assert told["records"][4] | {"loss": None, "skipped": True} == told["records"][4]
    assert told["records"][9]["levels"] == [0.9, 0.6, 0.5, 0.3]
    assert [(s["step"], s["file"]) for s in told["samples"]] == [(20, "step-000020.png"), (40, "step-000040.png")]
    assert told["notes"] == [{"step": 20, "note": "loss ran away, rolled back"}]
    assert told["plan"] == "40 pictures, batch 8, 20 rounds"


# --- in a real server ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(comfyui, tmp_path_factory):
    with Server(comfyui, ROOT, tmp_path_factory.mktemp("panel") / "base") as running:
        write_run(running.base / "output" / "flux_atelier" / "runs" / "mia")
        write_run(running.base / "output" / "flux_atelier" / "runs" / "series" / "one", steps=2)
        (running.base / "output" / "secret.png").write_bytes(b"secret")
        yield running


def in_client(server, action):
    async def go():
        async with Client(server) as client:
            return await action(client)

    return asyncio.run(go())


async def raw_get(client, path: str):
    """Status, headers and body, the path sent as it is written."""
    from yarl import URL

    async with client.session.get(URL(client.base + path, encoded=True)) as answer:
        return answer.status, answer.headers, await answer.read()


def test_a_run_is_told_and_an_unknown_name_is_an_empty_run(server):
    async def ask(client):
        return [await client.get(f"{prefix}{RUNS}/{name}") for prefix in ("", "/api") for name in ("mia", "nobody")]

    mia, nobody, *again = in_client(server, ask)
    assert again == [mia, nobody]
    assert (len(mia["records"]), mia["total"], mia["running"]) == (40, 100, False)
    empty = {"name": "nobody", "running": False, "total": 0, "records": [], "notes": [], "samples": [], "plan": ""}
    assert nobody == empty
    assert not (server.base / "output" / "flux_atelier" / "runs" / "nobody").exists()


def test_a_name_may_have_a_folder_but_leads_nowhere_else(server):
    async def ask(client):
        good = await raw_get(client, f"{RUNS}/series%2Fone")
        bad = [await raw_get(client, f"{RUNS}/{n}") for n in ("..%2F..", "%2Fetc", "mia%2F..%2F..", "%2e%2e%2f%2e%2e")]
        return good, bad

    (status, _, body), bad = in_client(server, ask)
    assert (status, len(json.loads(body)["records"])) == (200, 2)
    for status, _, body in bad:
        assert status == 400, body
        assert "leads out of" in json.loads(body)["error"]


def test_pictures_come_by_their_plain_names_only(server):
    names = ("step-000099.png", "..%2Fconfig.toml", "..%2F..%2F..%2F..%2Fsecret.png", "config.toml", "%2Fetc%2Fpasswd")

    async def ask(client):
        good = await raw_get(client, f"{RUNS}/mia/samples/step-000020.png")
        return good, [await raw_get(client, f"{RUNS}/mia/samples/{n}") for n in names]

    (status, headers, body), bad = in_client(server, ask)
    assert (status, headers["Content-Type"]) == (200, "image/png")
    assert body == (server.base / "output/flux_atelier/runs/mia/samples/step-000020.png").read_bytes()
    assert {status for status, _, _ in bad} == {400}


def test_wishes_for_a_run_at_rest_are_refused(server):
    async def ask(client):
        return [await client.post(f"{RUNS}/mia/{wish}", {}) for wish in ("stop", "save", "sample", "delete")]

    *known, other = in_client(server, ask)
    sentence = "The run 'mia' is not training. Queue its Train LoRA node first."
    assert known == [(409, {"error": sentence})] * 3
    assert other[0] in (404, 405)


def training_prompt(name: str, **changes) -> dict:
    """The quickstart's first training alone, with the default options."""
    prompt = {k: copy.deepcopy(QUICKSTART[k]) for k in ("1", "2", "6")}
    del prompt["6"]["inputs"]["options"]
    prompt["2"]["inputs"] |= {"count": 12, "faults": False}
    prompt["6"]["inputs"] |= {"dataset": ["2", 0], "name": name, **changes}
    return prompt


def test_a_training_fills_its_run(server):
    async def train(client):
        status, answer = await client.queue(training_prompt("short", steps=12, sample_every=6))
        assert status == 200, answer
        events = await client.follow(answer["prompt_id"])
        return events, await client.get(f"{RUNS}/short")

    events, told = in_client(server, train)
    assert events[-1][0] == "execution_success", events[-1]
    assert [r["step"] for r in told["records"]] == list(range(1, 13))
    assert [s["step"] for s in told["samples"]] == [6, 12]
    assert (told["total"], told["running"]) == (12, False)


def test_stop_and_keep_ends_the_run_and_the_graph_goes_on(server):
    answers = []

    async def train(client):
        async def stop(kind, data):
            if kind == "flux_atelier.step" and data.get("phase") == "train" and data["step"] >= 3 and not answers:
                answers.append((await client.get(f"{RUNS}/kept"))["running"])
                answers.append(await client.post(f"{RUNS}/kept/stop", {}))

        status, answer = await client.queue(training_prompt("kept", steps=2000))
        assert status == 200, answer
        events = await client.follow(answer["prompt_id"], stop)
        return events, await client.get(f"{RUNS}/kept")

    events, told = in_client(server, train)
    assert answers == [True, (200, {"asked": "stop"})]
    assert events[-1][0] == "execution_success", events[-1]
    assert 3 <= len(told["records"]) < 1500
    assert not told["running"]
    assert (server.base / "output" / "loras" / "kept.safetensors").is_file()
    last = [data for kind, data in events if kind == "flux_atelier.step"][-1]
    assert last["phase"] == "done"


# --- in the browser --------------------------------------------------------------------------------------------------

PANEL = "document.querySelector('.flux-atelier-panel')"
SEEN = f"""(() => {{
  const panel = {PANEL}, box = panel.getBoundingClientRect();
  const inside = e => {{ const b = e.getBoundingClientRect(); return b.width > 0 && b.bottom <= box.bottom + 1; }};
  return {{
    lines: [...panel.querySelectorAll('svg path')].map(p => p.getAttribute('d').length),
    figures: Object.fromEntries([...panel.querySelectorAll('dl div')].map(d => [...d.children].map(c => c.textContent))),
    head: panel.querySelector('.head').textContent,
    plan: panel.querySelector('.plan').textContent,
    pictures: [...panel.querySelectorAll('img')].filter(i => i.complete && i.naturalWidth).length,
    enabled: [...panel.querySelectorAll('.wishes button')].filter(b => !b.disabled).length,
    fits: [...panel.querySelectorAll('svg, dd, .wishes button')].every(inside), height: panel.offsetHeight,
  }};
}})()"""
ONLY_TRAINING = """for (const n of window.app.graph._nodes) {
  if (![1, 2, 3, 4, 5, 6].includes(Number(n.id)) && n.type != 'MarkdownNote') n.mode = 4; }"""


async def open_graph(page, server, name: str, **values) -> None:
    """The template with its first Train LoRA alone, named and set, in the middle of the screen."""
    graph = (ROOT / "workflows" / "quickstart.json").read_text()
    await page.open(f"http://127.0.0.1:{server.port}")
    await page.wait_for("window.app && window.app.graph && window.app.extensionManager")
    await asyncio.sleep(4)
    await page.evaluate(f"window.app.loadGraphData({graph})")
    await asyncio.sleep(1)
    await page.evaluate(ONLY_TRAINING)
    for key, value in ({"name": name} | values).items():
        await page.evaluate(
            "(() => { const w = window.app.graph.getNodeById(6).widgets.find(w => w.name == "
            f"'{key}'); w.value = {json.dumps(value)}; w.callback?.(w.value); }})()"
        )
    # The second training node's panel would be found as well.
    await page.evaluate("window.app.graph.remove(window.app.graph.getNodeById(10))")
    await page.evaluate(
        "(() => { const n = window.app.graph.getNodeById(6); Object.assign(window.app.canvas.ds,"
        " {scale: 1, offset: [500 - n.pos[0], 80 - n.pos[1]]}); window.app.canvas.setDirty(true, true); })()"
    )
    await asyncio.sleep(1.5)


def settings(server: Server, vue: bool) -> None:
    file = server.base / "user" / "default" / "comfy.settings.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"Comfy.VueNodes.Enabled": vue}))


@needs_chromium
@pytest.mark.parametrize("vue", [False, True], ids=["classic", "vue"])
def test_the_panel_shows_a_run_in_the_middle_after_a_reload_and_after_a_cancel(server, tmp_path, vue):
    name = "watched-vue" if vue else "watched-classic"
    settings(server, vue)
    target = Path(PICTURES) if PICTURES else tmp_path

    async def look():
        seen = {}

        async def note(page, when):
            seen[when] = await page.evaluate(SEEN)
            await page.screenshot(target / f"{name}-{when}.png")

        (tmp_path / "profile").mkdir()
        async with Browser(tmp_path / "profile", (1500, 1300)) as page:
            await open_graph(page, server, name, steps=400, sample_every=20)
            await note(page, "empty")
            await page.evaluate("window.app.queuePrompt(0)")
            await page.wait_for(f"parseInt({PANEL}.querySelector('dd').textContent) >= 60", 240)
            await note(page, "running")
            await open_graph(page, server, name, steps=400, sample_every=20)
            await page.wait_for(f"{PANEL}.querySelectorAll('path').length >= 3")
            await note(page, "reloaded")
            await page.wait_for(f"{PANEL}.querySelector('.head').textContent == 'training'", 120)
            await page.evaluate("fetch('/api/interrupt', {method: 'POST'})")
            await page.wait_for(f"{PANEL}.querySelector('.head').textContent.startsWith('stopped')", 120)
            await asyncio.sleep(1)
            await note(page, "cancelled")
            return seen, page.console

    seen, console = asyncio.run(look())
    assert seen["empty"]["lines"] == []
    assert seen["empty"]["enabled"] == 0
    for when in ("running", "reloaded", "cancelled"):
        assert len(seen[when]["lines"]) >= 3, (when, seen[when])
        assert seen[when]["pictures"] >= 2, (when, seen[when])
        assert seen[when]["figures"]["step"].endswith("/ 400"), seen[when]
        assert float(seen[when]["figures"]["loss"]) > 0
        assert seen[when]["fits"], seen[when]
    assert seen["running"]["enabled"] == 3
    assert seen["cancelled"]["enabled"] == 0
    ours = [c for c in console if c[0] in ("error", "exception") and "atelier" in c[1].lower()]
    assert not ours, ours
    assert not [c for c in console if c[0] == "exception"], console


@needs_chromium
def test_a_name_typed_brings_its_run_and_the_console_stays_clean(server, tmp_path):
    settings(server, False)

    async def look():
        (tmp_path / "profile").mkdir()
        async with Browser(tmp_path / "profile", (1500, 1300)) as page:
            await open_graph(page, server, "../nowhere")
            for name in ("nobody", "mia"):
                await page.evaluate(
                    "(() => { const w = window.app.graph.getNodeById(6).widgets.find(w => w.name == 'name');"
                    f" w.value = '{name}'; w.callback?.(w.value); }})()"
                )
                await asyncio.sleep(1)
            seen = [await page.evaluate(SEEN)]
            for tab in ("rate", "gradient", "noise levels", "seconds", "loss"):
                await page.evaluate(
                    f"[...{PANEL}.querySelectorAll('button')].find(b => b.textContent == '{tab}').click()"
                )
                seen.append(await page.evaluate(SEEN))
                await page.screenshot((Path(PICTURES) if PICTURES else tmp_path) / f"tab-{tab.split()[0]}.png")
            return seen, page.console

    seen, console = asyncio.run(look())
    assert seen[0]["figures"]["memory"] == "12.3 GiB"
    assert seen[0]["plan"] == "40 pictures, batch 8, 20 rounds"
    assert seen[0]["head"].startswith("stopped at step 40 of 100")
    assert [len(s["lines"]) for s in seen] == [3, 1, 1, 4, 1, 3]
    assert not [c for c in console if c[0] in ("error", "exception") and "atelier" in c[1].lower()], console
