"""Make the graphs that people open from their API twins: `.venv/bin/python scripts/workflows.py [name ...]`.

`workflows/api/<name>.json` says what is done and is written by hand; an input that a node has gained since is filled in
with its default. `workflows/layout/<name>.toml` says which nodes stand together and what the notes tell. Both go through
ComfyUI's own frontend in a headless Chromium, which knows how large a node is; out come `workflows/<name>.json` and the
thumbnail `workflows/<name>.jpg`. Needs ComfyUI (COMFYUI_PATH, or ~/ComfyUI) and Chromium. Look at the thumbnails after.
"""

import asyncio
import json
import os
import sys
import tempfile
import tomllib
import uuid
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tests" / "comfyui"))  # the browser and the server that the tests drive
import placeholders  # noqa: E402
from browser import Browser  # noqa: E402
from comfy_process import Server  # noqa: E402

WORKFLOWS = ROOT / "workflows"
FACES = json.loads((ROOT / "tests" / "node_faces.json").read_text())
# Width of a node, and the height that it needs once it shows its pictures or text, in graph pixels.
ROOM = {
    "FluxAtelierTrainingOptions": (360, 0),
    "FluxAtelierTrainLora": (420, 0),
    "FluxAtelierTrainingPlan": (420, 0),
    "FluxAtelierLoadDataset": (340, 0),
    "FluxAtelierCaptionDataset": (340, 280),
    "FluxAtelierCurateDataset": (340, 520),
    "FluxAtelierFilterDataset": (360, 0),
    "FluxAtelierReviewDataset": (640, 620),
    "FluxAtelierSmartCrop": (340, 560),
    "FluxAtelierSplitDataset": (340, 0),
    "FluxAtelierBucketReport": (480, 320),
    "FluxAtelierDatasetReport": (480, 760),
    "FluxAtelierExportDataset": (340, 0),
    "FluxAtelierCaptionWithModel": (360, 0),
    "FluxAtelierCaptionWithTagger": (360, 0),
    "FluxAtelierFuseCaptions": (420, 640),
    "FluxAtelierLintCaptions": (420, 640),
    "FluxAtelierRunCurves": (420, 320),
    "FluxAtelierCompareLora": (480, 760),
    "FluxAtelierMergeLoras": (340, 0),
    "FluxAtelierAverageStates": (340, 0),
    "FluxAtelierLoadTrainingSettings": (340, 0),
    "FluxAtelierStylise": (340, 0),
    "PreviewAny": (640, 360),
    "SaveVideo": (340, 420),
    "PreviewImage": (320, 340),
}
WIDTH = 320  # of every other node
TITLE, GAP, MARGIN = 30, 40, 30  # a node's title bar, the space between nodes, the space inside a group
INTRO = 440  # width of the first note
LETTER, LINE, NOTE_EXTRA = 6.0, 18, 60  # of a note's text: width of a letter, height of a line, frame and padding
COLOR = "#3f789e"
FIRST_NOTE = 101  # number of the first note; nodes count from 1
CARD = 768, 432  # a thumbnail in pixels
CARD_NARROW, CARD_WIDTH = 1600, 2000  # how much of a graph it shows
BARS = (90, 130, 700, 500)  # what the frontend lays over the canvas: left, top, right, bottom

MEASURE = "window.app.graph._nodes.map(n => [String(n.id), n.type, n.size[1]])"
RESIZE = "(widths => window.app.graph._nodes.forEach(n => n.setSize([widths[n.id], n.size[1]])))"
PLACE = """(({boxes, notes, groups, color}) => {
  const graph = window.app.graph;
  for (const note of notes) {
    const node = window.LiteGraph.createNode("MarkdownNote");
    node.id = note.id;
    node.title = note.title;
    graph.add(node);
    node.widgets[0].value = note.text;
  }
  for (const node of graph._nodes) {
    const [x, y, width, height] = boxes[node.id];
    node.pos = [x, y];
    node.setSize([width, height]);
    const control = node.widgets?.find(w => w.name === "control_after_generate");
    if (control) control.value = "fixed";
  }
  for (const {title, box} of groups) {
    const group = new window.LiteGraph.LGraphGroup(title);
    group.pos = box.slice(0, 2);
    group.size = box.slice(2);
    group.color = color;
    graph.add(group);
  }
  graph.setDirtyCanvas(true, true);
})"""
LOAD = """(prompt => {
  window.app.graph.clear();
  Object.assign(window.app.graph.state, {lastLinkId: 0, lastNodeId: 0, lastGroupId: 0});
  return window.app.loadApiJson(prompt, "workflow");
})"""
LOOK = """((scale, offset) => {
  window.app.canvas.min_font_size_for_lod = 0;
  Object.assign(window.app.canvas.ds, {scale, offset});
  window.app.canvas.setDirty(true, true);
})"""

Box = tuple[float, float, float, float]  # x, y, width, height; y is below a node's title bar


@dataclass
class Layout:
    """Where everything stands."""

    boxes: dict[str, Box] = field(default_factory=dict)
    notes: list[dict] = field(default_factory=list)
    groups: list[dict] = field(default_factory=list)

    @property
    def card(self) -> Box:
        """The part that the thumbnail shows: the groups below their notes, as wide as stays readable."""
        last = self.groups[-1]["box"]
        top = min(b[1] for n, b in self.boxes.items() if int(n) < FIRST_NOTE) - TITLE - GAP / 2
        tall = max(b[1] + b[3] for n, b in self.boxes.items() if int(n) < FIRST_NOTE) - top
        wide = max(CARD_NARROW, tall * CARD[0] / CARD[1])  # a flat graph is shown larger, not on an empty half
        width = min(last[0] + last[2] - INTRO - GAP, CARD_WIDTH, wide)
        return INTRO + GAP, top, width, width * CARD[1] / CARD[0]

    def add_note(self, title: str, text: str, box: Box) -> None:
        number = FIRST_NOTE + len(self.notes)
        self.notes.append({"id": number, "title": title, "text": text.strip()})
        self.boxes[str(number)] = box


def titled(box: Box) -> Box:
    return box[0], box[1] - TITLE, box[2], box[3] + TITLE


def completed(prompt: dict) -> dict:
    """A prompt with the inputs that its nodes have gained, at their defaults, in the nodes' own order."""
    done = {}
    for number, node in prompt.items():
        face = FACES.get(node["class_type"], {"inputs": {}})["inputs"]
        given = node["inputs"]
        gained = {
            n: i["default"] for n, i in face.items() if n not in given and i["need"] == "required" and "default" in i
        }
        values = given | gained
        order = [*(n for n in face if n in values), *(n for n in given if n not in face)]
        done[number] = node | {"inputs": {n: values[n] for n in order}}
    return done


def note_height(text: str, width: float) -> float:
    """About how tall a text is in a note of a width."""
    letters = (width - 40) / LETTER
    lines = sum(1 + int(len(line) / letters) for line in text.strip().splitlines())
    return lines * LINE + NOTE_EXTRA


def arrange(plan: dict, nodes: dict[str, tuple[str, float]]) -> Layout:
    """Stack nodes in columns, columns in groups, groups from left to right; notes stand at the heads of groups.

    plan   the layout file
    nodes  type and measured height of each node by its number
    """
    layout = Layout()
    widths = [group_width(group, nodes) for group in plan["group"]]
    heads = [(g["note"], w - 2 * MARGIN) for g, w in zip(plan["group"], widths, strict=True) if "note" in g]
    band = max(note_height(*head) for head in heads)
    top = TITLE + GAP
    layout.add_note("About", plan["intro"], (0, top, INTRO, note_height(plan["intro"], INTRO)))
    left = INTRO + GAP
    for group, width in zip(plan["group"], widths, strict=True):
        inside = left + MARGIN
        roof = top if "note" in group else top + band + TITLE + GAP
        if "note" in group:
            layout.add_note("Note", group["note"], (inside, top + TITLE + GAP / 2, width - 2 * MARGIN, band))
        start = bottom = top + TITLE + GAP / 2 + band + TITLE + GAP
        for column in group["columns"]:
            y = start
            for number in column:
                kind, measured = nodes[number]
                size = ROOM.get(kind, (WIDTH, 0))
                layout.boxes[number] = (inside, y, size[0], max(size[1], measured))
                y += layout.boxes[number][3] + TITLE + GAP
            bottom = max(bottom, y - TITLE - GAP)
            inside += column_width(column, nodes) + GAP
        layout.groups.append(
            {"title": group["title"], "box": (left, roof - TITLE, width, bottom - roof + TITLE + MARGIN)}
        )
        left += width + GAP
    return layout


def column_width(column: list[str], nodes: dict) -> float:
    return max(ROOM.get(nodes[number][0], (WIDTH, 0))[0] for number in column)


def group_width(group: dict, nodes: dict) -> float:
    columns = group["columns"]
    return 2 * MARGIN + sum(column_width(c, nodes) for c in columns) + GAP * (len(columns) - 1)


def overlapping(boxes: dict[str, Box]) -> list[tuple[str, str]]:
    """Pairs of nodes that lie over each other, title bars included."""
    areas = {n: titled(b) for n, b in boxes.items()}
    return [
        (a, b)
        for a, b in combinations(areas, 2)
        if all(
            areas[a][i] < areas[b][i] + areas[b][i + 2] and areas[b][i] < areas[a][i] + areas[a][i + 2] for i in (0, 1)
        )
    ]


async def make(page: Browser, name: str) -> None:
    """One workflow, from its twin and its layout to its graph and thumbnail."""
    twin = WORKFLOWS / "api" / f"{name}.json"
    prompt = completed(json.loads(twin.read_text(encoding="utf-8")))
    twin.write_text(json.dumps(prompt, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    plan = tomllib.loads((WORKFLOWS / "layout" / f"{name}.toml").read_text(encoding="utf-8"))
    await page.evaluate(f"{LOAD}({json.dumps(prompt)})")
    await asyncio.sleep(1)
    widths = {n: ROOM.get(node["class_type"], (WIDTH, 0))[0] for n, node in prompt.items()}
    await page.evaluate(f"{RESIZE}({json.dumps(widths)})")
    await asyncio.sleep(1)
    nodes = {n: (kind, height) for n, kind, height in await page.evaluate(MEASURE)}
    placed = {number for group in plan["group"] for column in group["columns"] for number in column}
    if placed != nodes.keys():
        raise SystemExit(f"{name}: the layout and the twin differ in {placed ^ nodes.keys()}")
    layout = arrange(plan, nodes)
    if pairs := overlapping(layout.boxes):
        raise SystemExit(f"{name}: {pairs} overlap")
    await page.evaluate(f"{PLACE}({json.dumps(vars(layout) | {'color': COLOR})})")
    await asyncio.sleep(1)
    graph = await page.evaluate("window.app.graph.serialize()")
    graph["id"] = str(uuid.uuid5(uuid.NAMESPACE_URL, f"flux_atelier/{name}"))
    graph["extra"] = {"ds": {"scale": 0.5, "offset": [60, 40]}}
    text = json.dumps(graph, indent=1, ensure_ascii=False)
    (WORKFLOWS / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    if plan.get("thumbnail", True):
        await photograph(page, layout.card, WORKFLOWS / f"{name}.jpg")


async def photograph(page: Browser, part: Box, path: Path) -> None:
    """Write a picture of a part of the graph, without the frontend's own bars."""
    left, top, width, _ = part
    scale = CARD[0] * 2 / width
    sides = {"width": CARD[0] * 2 + BARS[0] + BARS[2], "height": CARD[1] * 2 + BARS[1] + BARS[3]}
    await page.send("Emulation.setDeviceMetricsOverride", deviceScaleFactor=1, mobile=False, **sides)
    await page.evaluate(f"{LOOK}({scale}, [{BARS[0] / scale - left}, {BARS[1] / scale - top}])")
    await asyncio.sleep(2)
    await page.screenshot(path)
    await page.send("Emulation.clearDeviceMetricsOverride")
    with Image.open(path) as whole:
        crop = whole.convert("RGB").crop((BARS[0], BARS[1], BARS[0] + CARD[0] * 2, BARS[1] + CARD[1] * 2))
    crop.resize(CARD, Image.Resampling.LANCZOS).save(path, quality=88)


async def run(server: Server, names: list[str], profile: Path) -> None:
    async with Browser(profile, (2400, 1500)) as page:
        await page.open(f"http://127.0.0.1:{server.port}")
        await page.wait_for("window.app && window.app.graph && window.app.extensionManager")
        await asyncio.sleep(4)
        for name in names:
            await make(page, name)
            print(name, flush=True)


def main() -> None:
    names = sys.argv[1:] or sorted(p.stem for p in (WORKFLOWS / "layout").glob("*.toml"))
    comfyui = Path(os.environ.get("COMFYUI_PATH") or Path.home() / "ComfyUI")
    with tempfile.TemporaryDirectory() as folder:
        server = Server(comfyui, ROOT, Path(folder) / "base")
        settings = server.base / "user" / "default" / "comfy.settings.json"
        # Vue nodes are the taller ones: what fits for them fits in the classic renderer.
        settings.write_text(json.dumps(json.loads(settings.read_text()) | {"Comfy.VueNodes.Enabled": True}))
        (Path(folder) / "profile").mkdir()
        # resume reads this one; it is only listed here.
        (server.base / "output" / "loras").mkdir()
        (server.base / "output" / "loras" / "quickstart.safetensors").touch()
        placeholders.place(
            server.base, (json.loads((WORKFLOWS / "api" / f"{name}.json").read_text()) for name in names)
        )
        with server:
            asyncio.run(run(server, names, Path(folder) / "profile"))


if __name__ == "__main__":
    main()
