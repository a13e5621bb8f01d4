"""Duplicates and measures: collages of scikit-image's photographs in ten forms, ours beside imagehash and ComfyUI's node.

Every method gets the same files. What it links becomes groups; recall is the share of altered pictures in one group
with their original, precision the share of right pairs among all pairs within groups, a mixed group joins two originals.
"""

import importlib.util
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

from .__main__ import Figure

ORIGINALS = 200
MANY = 50_000  # hashes to match
SIZES = ((576, 384), (384, 576), (480, 480))
PHOTOS = [
    "astronaut.png",
    "brick.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "moon.png",
    "motorcycle_left.png",
    "page.png",
    "retina.jpg",
    "rocket.jpg",
]
CORE = """
import json, logging, sys, time
sys.path.insert(0, {comfyui!r}); sys.argv = ["main.py"]
import comfy.options; comfy.options.enable_args_parsing(False)
from comfy.cli_args import args; args.cpu = True
import numpy as np, torch
from PIL import Image
from comfy_extras.nodes_dataset import ImageDeduplicationNode
files = json.load(open({files!r}))
class Pictures:  # as the node's list, but one tensor at a time
    def __len__(self): return len(files)
    def __getitem__(self, i): return i
    def __iter__(self):
        for f in files:
            yield torch.from_numpy(np.array(Image.open(f).convert("RGB")).astype(np.float32) / 255)[None]
links = []
class Links(logging.Handler):
    def emit(self, record):
        words = record.getMessage().split()
        if "similar" in words: links.append([int(words[1]), int(words[6])])
logging.getLogger().handlers[:] = [Links()]; logging.getLogger().setLevel(logging.INFO)
began = time.process_time()
kept = ImageDeduplicationNode._group_process(Pictures(), 0.95)
print(json.dumps([links, time.process_time() - began, len(kept)]))
"""


def photographs() -> list[Image.Image]:
    import skimage.data

    folder = Path(skimage.data.__file__).parent
    return [Image.open(folder / name).convert("RGB") for name in PHOTOS if (folder / name).is_file()]


def collage(rng: np.random.Generator, photos: list[Image.Image]) -> Image.Image:
    """Two to nine photographs' parts in a grid: of one part alone, two collages would be crops of the same photograph."""
    width, height = SIZES[rng.integers(len(SIZES))]
    sheet = Image.new("RGB", (width, height))
    columns = rng.integers(1, 4)
    rows = rng.integers(1 if columns > 1 else 2, 4)
    across, down = (np.linspace(0, side, n + 1).astype(int) for side, n in ((width, columns), (height, rows)))
    for left, right in itertools.pairwise(across):
        for top, bottom in itertools.pairwise(down):
            photo, size = photos[rng.integers(len(photos))], (int(right - left), int(bottom - top))
            scale = rng.uniform(0.35, 0.9) * min(photo.width / size[0], photo.height / size[1])
            w, h = size[0] * scale, size[1] * scale
            x, y = rng.uniform(0, photo.width - w), rng.uniform(0, photo.height - h)
            part = photo.resize(size, Image.Resampling.LANCZOS, box=(x, y, x + w, y + h))
            sheet.paste(ImageOps.mirror(part) if rng.random() < 0.5 else part, (int(left), int(top)))
    return sheet


def cropped(picture: Image.Image, share: float, rng: np.random.Generator) -> Image.Image:
    width, height = (round(side * (1 - share)) for side in picture.size)
    x, y = rng.integers(0, picture.width - width + 1), rng.integers(0, picture.height - height + 1)
    return picture.crop((int(x), int(y), int(x) + width, int(y) + height))


def with_logo(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    marked = picture.copy()
    width, height = picture.width // 4, picture.height // 8
    x = (8, picture.width - width - 8)[rng.integers(2)]
    y = (8, picture.height - height - 8)[rng.integers(2)]
    pen = ImageDraw.Draw(marked)
    pen.rectangle([x, y, x + width, y + height], fill=(250, 250, 250))
    pen.text((x + 8, y + 8), "SAMPLE LOGO", fill=(200, 0, 0))
    return marked


def noisy(picture: Image.Image, sigma: float, rng: np.random.Generator) -> Image.Image:
    pixels = np.asarray(picture, float) + rng.normal(0, sigma, (picture.height, picture.width, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).round().astype(np.uint8))


def variants(picture: Image.Image, rng: np.random.Generator) -> dict[str, Image.Image]:
    """The altered copies; jpeg30 is made where the file is written."""
    return {
        "jpeg30": picture,
        "half": picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.LANCZOS),
        "brightness": ImageEnhance.Brightness(picture).enhance((0.7, 1.3)[rng.integers(2)]),
        "contrast": ImageEnhance.Contrast(picture).enhance((0.7, 1.3)[rng.integers(2)]),
        "crop5": cropped(picture, 0.05, rng),
        "crop15": cropped(picture, 0.15, rng),
        "noise": noisy(picture, 12, rng),
        "logo": with_logo(picture, rng),
        "flip": ImageOps.mirror(picture),
    }


def write_set(folder: Path) -> tuple[list[Path], np.ndarray, list[str]]:
    """Originals first, then their altered copies: files, the original's number of each, and the form of each."""
    rng, photos = np.random.default_rng(0), photographs()
    made = [("original", i, collage(rng, photos)) for i in range(ORIGINALS)]
    made += [(form, i, picture) for _, i, base in list(made) for form, picture in variants(base, rng).items()]
    files = []
    for at, (form, _, picture) in enumerate(made):
        files.append(folder / f"{at:05}.jpg")
        picture.save(files[-1], quality=30 if form == "jpeg30" else 95)
    return files, np.array([i for _, i, _ in made]), [form for form, _, _ in made]


def judge(name: str, groups: list[list[int]], source: np.ndarray, forms: list[str]) -> tuple[float, float, int]:
    """Recall, precision and mixed groups; the recall of each form is printed."""
    label = np.arange(len(source))
    right = every = mixed = 0
    for group in groups:
        label[group] = group[0]
        counts = np.bincount(source[group])
        right += int((counts * (counts - 1) // 2).sum())
        every += len(group) * (len(group) - 1) // 2
        mixed += int((counts > 0).sum() > 1)
    hit = label == label[source]
    each = {
        f: np.mean([h for h, form in zip(hit, forms, strict=True) if form == f])
        for f in dict.fromkeys(forms[ORIGINALS:])
    }
    recall, precision = float(hit[ORIGINALS:].mean()), right / max(1, every)
    told = " ".join(f"{f} {share:.2f}" for f, share in each.items())
    print(f"{name:<14} recall {recall:.4f} precision {precision:.5f} mixed {mixed}: {told}", flush=True)
    return recall, precision, mixed


def with_imagehash(files: list[Path]) -> tuple[list, float] | None:
    """Links by pHash at most 6 bits apart, and CPU seconds; None where imagehash is not installed."""
    if importlib.util.find_spec("imagehash") is None:
        print("imagehash is not installed (pip install imagehash): its rows are left out.")
        return None
    import imagehash

    from flux_atelier.core.dataset.duplicates import Edge

    began = time.process_time()
    bits = np.stack([imagehash.phash(Image.open(f)).hash.ravel() for f in files])
    signs = np.where(bits, 1, -1).astype(np.float32)
    first, second = np.nonzero(np.triu((64 - signs @ signs.T) / 2 <= 6, 1))
    edges = [Edge(int(a), int(b), "pHash") for a, b in zip(first, second, strict=True)]
    return edges, time.process_time() - began


def with_core(files: list[Path], folder: Path) -> tuple[list, float] | None:
    """Links by ComfyUI's Deduplicate Images at its default, and CPU seconds; None where there is no ComfyUI."""
    from flux_atelier.core.dataset.duplicates import Edge

    comfyui = Path(os.environ.get("COMFYUI_PATH") or Path.home() / "ComfyUI")
    if not (comfyui / "comfy_extras" / "nodes_dataset.py").is_file():
        print(f"There is no ComfyUI at {comfyui} (set COMFYUI_PATH): its rows are left out.")
        return None
    listed = folder / "files.json"
    listed.write_text(json.dumps([str(f) for f in files]))
    code = CORE.format(comfyui=str(comfyui), files=str(listed))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/", check=True)
    links, seconds, kept = json.loads(done.stdout.strip().splitlines()[-1])
    assert kept == len(files) - len(links), "the node's log does not tell every link"
    return [Edge(b, a, "aHash") for a, b in links], seconds


def duplicate_figures(folder: Path) -> list[Figure]:
    from flux_atelier.core.dataset.duplicates import fast_edges, group_edges, look_at, robust_edges
    from flux_atelier.core.dataset.hashes import open_grey

    files, source, forms = write_set(folder)
    count = len(files)
    began = time.process_time()
    looks = look_at(open_grey(f) for f in files)
    fast = fast_edges(looks)
    fast_seconds = time.process_time() - began
    robust = fast + robust_edges(looks, fast)
    robust_seconds = time.process_time() - began
    ours = judge("fast tier", group_edges(count, fast), source, forms)
    strong = judge("robust tier", group_edges(count, robust), source, forms)
    flips = [i for i, form in enumerate(forms) if form == "flip"]
    linked = {frozenset((e.first, e.second)) for e in fast}
    missed_flips = np.mean([frozenset((i, source[i])) not in linked for i in flips])
    figures = [Figure("fast: share of mirrored copies missed", float(missed_flips), None, "", most=0.01)]
    peers = {"pHash": with_imagehash(files), "core node": with_core(files, folder)}
    for name, answer in peers.items():
        if answer is None:
            continue
        edges, seconds = answer
        theirs = judge(name, group_edges(count, edges), source, forms)
        figures += [
            Figure(f"fast: share missed, beside {name}", 1 - ours[0], 1 - theirs[0], "", most=0.25),
            Figure(f"fast: wrong pairs, beside {name}", 1 - ours[1], 1 - theirs[1], "", most=1e-4),
            Figure(f"fast: mixed groups, beside {name}", ours[2], theirs[2], "", most=0.5),
            Figure(f"fast: CPU ms a picture, beside {name}", 1e3 * fast_seconds / count, 1e3 * seconds / count, "ms"),
            Figure(f"robust: share missed, beside {name}", 1 - strong[0], 1 - theirs[0], "", most=0.09),
            Figure(f"robust: wrong pairs, beside {name}", 1 - strong[1], 1 - theirs[1], "", most=1e-3),
            Figure(
                f"robust: CPU ms a picture, beside {name}", 1e3 * robust_seconds / count, 1e3 * seconds / count, "ms"
            ),
        ]
        print(
            f"pictures per CPU second: fast {count / fast_seconds:.0f}, robust {count / robust_seconds:.0f}, {name} {count / seconds:.0f}"
        )
    return figures


def matching_figure() -> Figure:
    """All pairs of many hashes in eight orientations; the peer compares everything with everything."""
    from flux_atelier.core.dataset.hashes import distance, match_oriented

    rng = np.random.default_rng(1)
    turned = rng.integers(0, 1 << 63, (MANY, 8), dtype=np.uint64) * np.uint64(2)
    began = time.process_time()
    match_oriented(turned, 6)
    ours = time.process_time() - began
    began = time.process_time()
    for row in turned[:25].reshape(-1):
        np.flatnonzero(distance(row, turned[:, 0]) <= 6)
    return Figure(f"match {MANY} hashes, 8 orientations", ours, (time.process_time() - began) * MANY / 25, "s", most=2)


def apart(high: list[float], low: list[float]) -> float:
    """Chance that one of the first is above one of the second (area under the ROC curve)."""
    a, b = np.array(high)[:, None], np.array(low)[None]
    return float(((a > b) + 0.5 * (a == b)).mean())


def bokeh(picture: Image.Image) -> Image.Image:
    """A sharp middle before a soft background."""
    mask = Image.new("L", picture.size)
    w, h = picture.size
    ImageDraw.Draw(mask).ellipse([w * 0.3, h * 0.3, w * 0.7, h * 0.7], fill=255)
    soft = picture.filter(ImageFilter.GaussianBlur(6))
    return Image.composite(picture, soft, mask.filter(ImageFilter.GaussianBlur(4)))


def measure_figures() -> list[Figure]:
    import skimage.measure

    from flux_atelier.core.dataset.measures import measure, noise

    rng, photos = np.random.default_rng(2), photographs()
    sharp = [collage(rng, photos) for _ in range(60)]
    forms = {"sharp": sharp, "blurred": [p.filter(ImageFilter.GaussianBlur(2.2)) for p in sharp]}
    forms["bokeh"] = [bokeh(p) for p in sharp]
    began = time.process_time()
    found = {name: [measure(p) for p in pictures] for name, pictures in forms.items()}
    spent = (time.process_time() - began) / (3 * len(sharp))
    began = time.process_time()
    for picture in sharp:
        skimage.measure.blur_effect(np.asarray(picture.convert("L")))
    theirs = (time.process_time() - began) / len(sharp)
    ratio, tile = ({k: [m[key] for m in ms] for k, ms in found.items()} for key in ("sharpness", "sharp_tile"))
    figures = [
        Figure(
            "1 - AUC, sharp against blurred",
            1 - apart(ratio["sharp"], ratio["blurred"]),
            1 - apart(tile["sharp"], tile["blurred"]),
            "",
            most=0.01,
        ),
        Figure(
            "1 - AUC, bokeh against blurred",
            1 - apart(ratio["bokeh"], ratio["blurred"]),
            1 - apart(tile["bokeh"], tile["blurred"]),
            "",
            most=0.01,
        ),
        Figure("all measures, beside scikit-image's blur", 1e3 * spent, 1e3 * theirs, "CPU ms"),
    ]
    for sigma in (5, 10, 20):
        pictures = [noisy(p, sigma, rng) for p in sharp]
        read = [measure(p)["noise"] for p in pictures]
        plain = [noise(np.asarray(p.convert("L"), dtype=np.float32)) for p in pictures]
        ours, mixed = (abs(float(np.median(values)) / sigma - 1) for values in (read, plain))
        figures.append(Figure(f"noise {sigma}: error, beside the brightness's", ours, mixed, "", most=0.15))
    return figures


def run() -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        figures = duplicate_figures(Path(folder))
    return [*figures, matching_figure(), *measure_figures()]
