"""The crop room: subjects kept, faces cut and false faces, each beside what the same pictures get otherwise.

The peers run on the same pictures in the same run: a crop around the middle in the bucket nearest to the picture's
aspect (as a trainer's), ComfyUI core's two steps (shorter edge, then centre crop, both to whole pixels), and
scikit-image's cascade with the settings of its example.
"""

import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from .__main__ import Figure

SUBJECTS, GROUPS, COLLAGES = 200, 1000, 20
SIZE, SQUARE = (768, 512), 512
GROUNDS = (
    *("coffee.png", "chelsea.png", "rocket.jpg", "grass.png", "gravel.png", "brick.png", "coins.png", "moon.png"),
    *("motorcycle_left.png", "page.png", "ihc.png", "retina.jpg", "hubble_deep_field.jpg", "horse.png", "color.png"),
)


def run() -> list[Figure]:
    return [*_subjects(), *_faces(), *_found()]


def _ground(rng: np.random.Generator) -> np.ndarray:
    width, height = SIZE
    kind = rng.integers(4)
    tilt, wave, strength = rng.uniform(0, np.pi), rng.uniform(0.05, 0.3), rng.uniform(8, 22)
    if kind == 3:
        down, across = np.mgrid[:height, :width]
        pattern = np.sin((across * np.cos(tilt) + down * np.sin(tilt)) * wave)[..., None]
    else:
        cell = (4, 16, 64)[kind]
        small = rng.normal(0, 1, (height // cell + 1, width // cell + 1, 3)).astype(np.float32)
        planes = [Image.fromarray(small[..., i]).resize(SIZE, Image.Resampling.BICUBIC) for i in range(3)]
        pattern = np.stack([np.asarray(p) for p in planes], -1)
    slope = np.linspace(-1, 1, width)[None, :, None] * rng.uniform(-25, 25)
    return rng.integers(60, 190, 3) + pattern * strength + slope


def _scene(seed: int) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """A subject of another colour and texture anywhere on a textured ground, and its box."""
    rng = np.random.default_rng(seed)
    ground = _ground(rng)
    w, h = (int(v) for v in rng.integers(110, 260, 2))
    x, y = int(rng.integers(0, SIZE[0] - w + 1)), int(rng.integers(0, SIZE[1] - h + 1))
    tone = rng.integers(30, 226, 3).astype(float)
    while np.abs(tone - ground.mean((0, 1))).max() < 50:
        tone = rng.integers(30, 226, 3).astype(float)
    inner = tone + np.kron(rng.normal(0, 25, (h // 12 + 1, w // 12 + 1, 3)), np.ones((12, 12, 1)))[:h, :w]
    down, across = np.mgrid[:h, :w]
    shape = ((across - w / 2 + 0.5) / (w / 2)) ** 2 + ((down - h / 2 + 0.5) / (h / 2)) ** 2 <= 1
    shape |= rng.random() < 0.4
    ground[y : y + h, x : x + w][shape] = inner[shape]
    noisy = ground + rng.normal(0, 4, ground.shape)
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)), (x, y, w, h)


def _kept(inner, window) -> float:
    """Share of a box x, y, w, h that lies in a window of that form."""
    across = max(0.0, min(inner[0] + inner[2], window[0] + window[2]) - max(inner[0], window[0]))
    down = max(0.0, min(inner[1] + inner[3], window[1] + window[3]) - max(inner[1], window[1]))
    return across * down / (inner[2] * inner[3])


def _middle(size, bucket) -> tuple[float, float, float, float]:
    """The window around the middle that a trainer fits to a bucket."""
    scale = min(size[0] / bucket[0], size[1] / bucket[1])
    w, h = bucket[0] * scale, bucket[1] * scale
    return (size[0] - w) / 2, (size[1] - h) / 2, w, h


def _core(size, side: int) -> tuple[float, float, float, float]:
    """The window of core's "shorter edge" and "centre crop" steps, in the picture's pixels."""
    scale = side / min(size)
    resized = [side if s == min(size) else int(s * scale) for s in size]
    left, top = (max(0, (s - side) // 2) for s in resized)
    across, down = size[0] / resized[0], size[1] / resized[1]
    return left * across, top * down, side * across, side * down


def _subjects() -> list[Figure]:
    from flux_atelier.core.dataset.crop import smart_crop
    from flux_atelier.core.dataset.saliency import subject_map

    lost = {"ours": 0, "middle": 0, "core": 0}
    spent = 0.0
    for seed in range(SUBJECTS):
        image, subject = _scene(seed)
        began = time.process_time()
        crop = smart_crop(image.size, 1.0, (), subject_map(image))
        spent += time.process_time() - began
        windows = {"ours": crop.box, "middle": _middle(SIZE, (SQUARE, SQUARE)), "core": _core(SIZE, SQUARE)}
        for name, window in windows.items():
            lost[name] += _kept(subject, window) < 0.95
    ours, middle, core = (100 * lost[n] / SUBJECTS for n in ("ours", "middle", "core"))
    return [
        Figure("subjects not kept, beside the middle", ours, middle, "%", most=5),
        Figure("subjects not kept, beside core", ours, core, "%", most=5),
        # The peer of both times is what a scan may take for a picture of this size (benchmarks/curation.py).
        Figure("CPU time of a map and a crop", spent / SUBJECTS * 1000, None, "ms", most=20),
    ]


def _faces() -> list[Figure]:
    from flux_atelier.core.dataset.buckets import choose_bucket as nearest
    from flux_atelier.core.dataset.buckets import make_buckets
    from flux_atelier.core.dataset.crop import choose_bucket

    rng, buckets = np.random.default_rng(0), make_buckets(1024)
    cut = {"ours": 0, "middle": 0, "core": 0}
    could, spent = 0, 0.0
    for _ in range(GROUPS):
        size = tuple(int(v) for v in rng.integers(600, 3000, 2))
        side = rng.uniform(0.05, 0.4) * min(size)
        places = rng.random((rng.integers(1, 4), 2)) * (np.array(size) - side)
        union = np.ceil(places.max(0) + side) - np.floor(places.min(0))
        scales = [(b, min(size[0] / b.width, size[1] / b.height)) for b in buckets]
        if not any((union <= [b.width * s, b.height * s]).all() for b, s in scales):
            continue
        could += 1
        faces = [{"x": x, "y": y, "w": side, "h": side} for x, y in places]
        began = time.process_time()
        choice = choose_bucket(size, faces, None, buckets)
        spent += time.process_time() - began
        windows = {"ours": choice.crop.box, "middle": _middle(size, nearest(*size, buckets)), "core": _core(size, 1024)}
        for name, window in windows.items():
            cut[name] += any(_kept((x, y, side, side), window) < 1 - 1e-9 for x, y in places)
    ours, middle, core = (100 * cut[n] / could for n in ("ours", "middle", "core"))
    return [
        Figure("pictures with a cut face, nearest bucket", ours, middle, "%", most=1e-9),
        Figure("pictures with a cut face, core square", ours, core, "%", most=1e-9),
        Figure("CPU time of a bucket and a crop", spent / could * 1000, None, "ms", most=20),
    ]


def _collage(pictures: list[Image.Image], seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    whole = Image.new("RGB", (512, 512))
    for i in range(4):
        picture = pictures[rng.integers(len(pictures))]
        side = int(min(picture.size) * rng.uniform(0.5, 1))
        x, y = int(rng.integers(picture.width - side + 1)), int(rng.integers(picture.height - side + 1))
        part = picture.crop((x, y, x + side, y + side)).resize((256, 256))
        whole.paste(ImageOps.mirror(part) if rng.random() < 0.5 else part, (256 * (i % 2), 256 * (i // 2)))
    return whole


def _found() -> list[Figure]:
    """Faces found where there is none, and missed where there is one; photographs of scikit-image."""
    try:
        import skimage.data
        from skimage.feature import Cascade
    except ImportError:
        return []
    from flux_atelier.core.dataset.faces import find_faces

    folder = Path(skimage.data.__file__).parent
    pictures = [Image.open(folder / name).convert("RGB") for name in GROUNDS]
    plain = Cascade(str(folder / "lbpcascade_frontalface_opencv.xml"))
    face = Image.open(folder / "astronaut.png").convert("RGB").crop((110, 10, 340, 240))
    false, missed = [0, 0], [0, 0]
    for seed in range(COLLAGES):
        rng, ground = np.random.default_rng(seed), _collage(pictures, seed)
        side = int(rng.integers(160, 330))
        x, y = (int(v) for v in rng.integers(0, 512 - side, 2))
        shown = ground.copy()
        shown.paste(face.resize((side, side)).rotate(rng.uniform(-6, 6), fillcolor=(180, 170, 160)), (x, y))
        middle = np.array([x + side * 0.43, y + side * 0.46])
        for which, detect in enumerate((find_faces, lambda image: _example(plain, image))):
            false[which] += len(detect(ground))
            places = [np.array([b["x"] + b["w"] / 2, b["y"] + b["h"] / 2]) for b in detect(shown)]
            missed[which] += not any(np.abs(p - middle).max() < 0.2 * side for p in places)
    return [
        Figure(f"false faces in {COLLAGES} collages", *false, "", most=1e-9),
        Figure(f"faces missed of {COLLAGES}", *missed, "", most=1),
    ]


def _example(cascade, image: Image.Image) -> list[dict]:
    found = cascade.detect_multi_scale(np.asarray(image), 1.2, 1, (24, 24), (500, 500))
    return [{"x": f["c"], "y": f["r"], "w": f["width"], "h": f["height"]} for f in found]
