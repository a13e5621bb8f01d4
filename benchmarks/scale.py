"""Scale: 50,000 files opened cold and warm, filtered and decided on; 5,000 pictures scanned, deduplicated and split.

Every step runs in a process of its own, whose own peak memory counts. ComfyUI's nodes load a part of the same files,
and what they take is scaled to all, since all of them would not fit; they decode what they open, and keep no state, so
they open a folder as slowly the second time.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from .__main__ import ROOT, Figure

FILES, KINDS = 50_000, 200  # files to open; different pictures among them, told apart by bytes after their end
CHAIN, COPIES = 5_000, 500  # pictures of the chain, and copies of earlier ones among them
PART = 250  # pictures that ComfyUI loads of a set
START = """
import json, sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from benchmarks.__main__ import load_package
load_package()
folder, result = Path({folder!r}), {{}}
def memory():  # this process's own peak; getrusage would tell the parent's where that was higher
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmHWM"))
    return int(line.split()[1]) / 1024
def timed(name, call):
    wall, cpu = time.perf_counter(), time.process_time()
    answer = call()
    result[name] = [time.perf_counter() - wall, time.process_time() - cpu]
    return answer
"""
OPENING = """
from flux_atelier.core.dataset.scan import finish, scan
from flux_atelier.core.dataset.sources import list_folder
from flux_atelier.core.dataset.store import Store
from flux_atelier.core.dataset.view import View
before = memory()
with Store(folder.parent / "opened" / "atelier.db") as store:
    def opened(measured=False):
        finish(scan(store, list_folder(folder), measured=measured))
        return View.of(store)
    timed("cold", opened)
    assert len(timed("warm", opened)) == {files}
result["memory"] = memory() - before
print(json.dumps(result))
"""
CHOOSING = """
import os, random
from flux_atelier.core.dataset.store import Store
from flux_atelier.core.dataset.stored import StoredRow
from flux_atelier.core.dataset.view import View
chance = random.Random(0)
names = ("sharpness", "noise", "exposure", "contrast", "entropy", "resolution", "colourfulness", "letterbox")
rows = [
    StoredRow(f"{{i:05}}.png", f"{{i:032x}}"[::-1], "1:1", width=512, height=512, measured=1,
              scores={{name: chance.random() for name in names}})
    for i in range({files})
]
with Store(folder.parent / "chosen" / "atelier.db") as store:
    store.put(rows)
    view = View.of(store)
    found = timed("filter", lambda: view.filter("sharpness > 0.4 and noise < 0.9"))
    wanted = [i for i, row in enumerate(rows) if row.scores["sharpness"] > 0.4 and row.scores["noise"] < 0.9]
    assert found.ids == tuple(view.ids[i] for i in wanted)
    timed("plain", lambda: [json.loads(r[0])["sharpness"] > 0.4 for r in store.db.execute("SELECT scores FROM rows")])
    timed("decisions", lambda: [store.decide([own], "keep", "human") for own in view.ids[::1000]])
def whole_file():
    for _ in range(5):
        with open(folder.parent / "decisions.json", "w") as file:
            json.dump({{own: "keep" for own in view.ids}}, file)
            file.flush()
            os.fsync(file.fileno())
timed("whole file", whole_file)
print(json.dumps(result))
"""
CHAINED = """
from flux_atelier.core.dataset.duplicates import find_duplicates
from flux_atelier.core.dataset.looks import copies_of, look_at_rows
from flux_atelier.core.dataset.scan import finish, scan
from flux_atelier.core.dataset.sources import list_folder
from flux_atelier.core.dataset.split import SplitOptions, split_rows
from flux_atelier.core.dataset.store import Store
from flux_atelier.core.dataset.view import View
with Store(folder.parent / "chained" / "atelier.db") as store:
    timed("scan", lambda: finish(scan(store, list_folder(folder))))
    view = View.of(store)
def dedup():
    rows = view.rows()
    *_, looks = look_at_rows(view.store, folder, rows)
    return find_duplicates(copies_of(rows), looks)
groups = timed("dedup", dedup)
view = view.without({{id: group.reason(id) for group in groups for id in group.left_out}}, "Remove Duplicates")
view = timed("filter", lambda: view.filter("sharpness > 0.02 and shorter >= 256"))
chosen = timed("split", lambda: split_rows(view.rows(), SplitOptions()))
view = view.lay({{id: {{"split": split}} for id, split in chosen.items()}})
result |= {{"memory": memory(), "left out": len(view.left_out), "kept": len(view)}}
print(json.dumps(result))
"""
CORE = """
sys.path[:] = [p for p in sys.path if p != {root!r}]
sys.path.insert(0, {comfyui!r}); sys.argv = ["main.py"]
import comfy.options; comfy.options.enable_args_parsing(False)
from comfy.cli_args import args; args.cpu = True
import folder_paths
from comfy_extras.nodes_dataset import ImageDeduplicationNode, LoadImageTextDataSetFromFolderNode
folder_paths.set_input_directory(str(folder.parent))
before = memory()
images, texts = timed("load", lambda: LoadImageTextDataSetFromFolderNode.execute(folder.name).args)
result |= {{"memory": memory() - before, "count": len(images)}}
timed("dedup", lambda: ImageDeduplicationNode._group_process(images, 0.95))
print(json.dumps(result))
"""


def _child(folder: Path, code: str, **names) -> dict:
    text = (START + code).format(root=str(ROOT), folder=str(folder), **names)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, cwd="/", env=environment)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.strip().splitlines()[-1])


def _core(folder: Path) -> dict | None:
    comfyui = Path(os.environ.get("COMFYUI_PATH") or Path.home() / "ComfyUI")
    if not (comfyui / "comfy_extras" / "nodes_dataset.py").is_file():
        print(f"There is no ComfyUI at {comfyui} (set COMFYUI_PATH): its figures are left out.")
        return None
    return _child(folder, CORE, comfyui=str(comfyui))


def _picture(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    pixels = rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def _write_small(folder: Path, part: Path) -> None:
    rng, held = np.random.default_rng(0), folder.parent / "kinds"
    held.mkdir()
    kinds = []
    for i in range(KINDS):
        _picture(rng, (48, 32)).save(held / f"{i}.png")
        kinds.append((held / f"{i}.png").read_bytes())
    for i in range(FILES):
        below = folder / f"{i // 500:03}"
        below.mkdir(parents=True, exist_ok=True)
        (below / f"{i:05}.png").write_bytes(kinds[i % KINDS] + i.to_bytes(4, "big"))
        (below / f"{i:05}.txt").write_text(f"picture {i}")
    _link(sorted(folder.rglob("*.png"))[:PART], part)


def _write_chain(folder: Path, part: Path) -> None:
    rng = np.random.default_rng(1)
    folder.mkdir()
    for i in range(CHAIN - COPIES):
        size = ((576, 384), (384, 576), (480, 480))[i % 3]
        _picture(rng, size).save(folder / f"{i:05}.jpg", quality=92)
    for i in range(COPIES):
        with Image.open(folder / f"{i:05}.jpg") as picture:
            picture.save(folder / f"copy{i:05}.jpg", quality=60)
    _link(sorted(folder.glob("*.jpg"))[:: CHAIN // PART], part)


def _link(files: list[Path], part: Path) -> None:
    part.mkdir()
    for file in files:
        os.link(file, part / file.name)


def _opening(root: Path) -> list[Figure]:
    _write_small(root / "small", root / "smallpart")
    ours, chosen = (_child(root / "small", code, files=FILES) for code in (OPENING, CHOOSING))
    core = _core(root / "smallpart")
    scale = FILES / core["count"] if core else 0
    wall, cpu = [value * scale for value in core["load"]] if core else [float("nan")] * 2
    filtering, plain = chosen["filter"][1] * 1e3, chosen["plain"][1] * 1e3
    decided, whole = chosen["decisions"][0] / (FILES / 1000) * 1e3, chosen["whole file"][0] / 5 * 1e3
    return [
        Figure("open 50,000 files cold", ours["cold"][0], wall, "s", most=15),
        Figure("open 50,000 files cold, CPU", ours["cold"][1], cpu, "s"),
        Figure("open 50,000 files warm", ours["warm"][0], wall, "s", most=5),
        Figure("open 50,000 files warm, CPU", ours["warm"][1], cpu, "s", most=1),
        Figure("memory of opening", ours["memory"], core["memory"] * scale if core else float("nan"), "MiB", most=300),
        Figure("filter 50,000 rows by scores, CPU", filtering, plain, "ms", most=100),
        Figure("one decision among 50,000", decided, whole, "ms", most=10),
    ]


def _chain(root: Path) -> list[Figure]:
    _write_chain(root / "chain", root / "chainpart")
    ours, core = _child(root / "chain", CHAINED), _core(root / "chainpart")
    print(f"the chain left out {ours['left out']} of {COPIES} copies and kept {ours['kept']} pictures")
    scale = CHAIN / core["count"] if core else 0
    loading, memory = (core["load"][1] * scale, core["memory"] * scale) if core else (float("nan"),) * 2
    total = sum(ours[name][1] for name in ("scan", "dedup", "filter", "split"))
    return [
        Figure("memory of 5,000 pictures to a split", ours["memory"], memory, "MiB", most=800),
        Figure("5,000 pictures to a split, CPU; peer loads", total, loading, "s"),
        Figure("scan of one of 5,000, CPU", ours["scan"][1] / CHAIN * 1e3, 1e3 * loading / CHAIN, "ms", most=10),
    ]


def run() -> list[Figure]:
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
    with tempfile.TemporaryDirectory(prefix="scale_") as held:
        return [*_opening(Path(held)), *_chain(Path(held))]
