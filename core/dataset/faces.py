"""Faces and other found things in a picture: boxes from any detector's output, a detector without weights, box facts.

ComfyUI's detectors (RT-DETR, MediaPipe, SAM) put BOUNDING_BOX values on a wire; those are the first choice. The detector
here is for a machine that has none of their weights: a cascade that comes inside scikit-image or OpenCV 4, run on the
picture, on its mirror image and on closer looks. A face is one in all of them, a chance pattern seldom is.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np
from PIL import Image, ImageOps

from ..errors import AtelierError
from .measures import sharpness

SIDE = 512  # pixels: the longer side that the cascade sees
SMALLEST = 24  # pixels of that: what the cascades were trained on
LOOKED = 256  # pixels: the longer side of a box for its sharpness
ALIKE = 0.4  # overlap over union from which two hits are the same thing
FLAT = 8.0  # grey levels: a face has more contrast
EITHER = 0.3  # share of the hits that make a face: so many in the picture, and in its mirror image
CLOSER = (50, 60, 70)  # pixels: sides that a candidate is scaled to for a closer look
CONFIRMED = 2.0  # times the hits that make a face: so many in all closer looks together
COLOURLESS = 1.2  # times as many where a colour picture shows no colour of skin


@dataclass(frozen=True)
class Cascade:
    """A trained cascade: [H, W, 3] uint8 -> [N, 4] x, y, w, h of single hits; and how many of them make a face."""

    detect: Callable[[np.ndarray], np.ndarray]
    votes: int


class Box(TypedDict):
    """What was found where: pixels of the picture after its EXIF turn; score in 0..1."""

    label: str
    x: float
    y: float
    w: float
    h: float
    score: float
    sharpness: NotRequired[float]


def read_boxes(value: object, sizes: Sequence[tuple[int, int]], label: str = "face") -> list[list[Box]]:
    """Read a BOUNDING_BOX value, cut to the pictures it belongs to.

    value  one box, a list of boxes (the same for every picture), or a list of boxes for each picture; a box is a mapping
           with x, y, width (or w), height (or h), and perhaps label, score and metadata that holds those
    sizes  width and height of every picture
    label  for boxes that have none
    ->     one list for each picture; boxes that lie outside it are left out
    Raises AtelierError if the value is no box or has boxes for another number of pictures.
    """
    frames = _frames(value)
    if len(frames) == 1:
        frames = frames * len(sizes)
    if len(frames) != len(sizes):
        raise AtelierError(
            f"There are boxes for {len(frames)} pictures, but {len(sizes)} pictures. Detect on the same pictures."
        )
    return [
        [box for found in frame if (box := _clipped(_box(found, label), size))]
        for frame, size in zip(frames, sizes, strict=True)
    ]


def _frames(value: object) -> list[list[object]]:
    if value is None:
        return [[]]
    if isinstance(value, Mapping):
        return [[value]]
    if not isinstance(value, (list, tuple)):
        raise _no_box(value)
    if any(isinstance(item, (list, tuple)) or item is None for item in value):
        return [[item] if isinstance(item, Mapping) else list(item or ()) for item in value]
    return [list(value)]


def _no_box(found: object) -> AtelierError:
    return AtelierError(f"{str(found)[:80]} is no bounding box. Give boxes with x, y, width and height in pixels.")


def _box(found: object, label: str) -> Box:
    if not isinstance(found, Mapping):
        raise _no_box(found)
    about = found.get("metadata")
    about = about if isinstance(about, Mapping) else {}
    name = found.get("label") or about.get("label") or label
    score = found.get("score", about.get("score"))
    try:
        sides = found["width"] if "width" in found else found["w"], found["height"] if "height" in found else found["h"]
        x, y, w, h = (float(v) for v in (found["x"], found["y"], *sides))
        score = 1.0 if score is None else float(score)
    except (KeyError, TypeError, ValueError):
        raise _no_box(dict(found)) from None
    if not all(map(math.isfinite, (x, y, w, h, score))):
        raise _no_box(dict(found))
    # A box drawn from right to left has negative sides.
    x, w = (x + w, -w) if w < 0 else (x, w)
    y, h = (y + h, -h) if h < 0 else (y, h)
    return {"label": str(name), "x": x, "y": y, "w": w, "h": h, "score": score}


def _clipped(box: Box, size: tuple[int, int]) -> Box | None:
    left, top = max(0.0, box["x"]), max(0.0, box["y"])
    right, bottom = min(float(size[0]), box["x"] + box["w"]), min(float(size[1]), box["y"] + box["h"])
    if right <= left or bottom <= top:
        return None
    return {**box, "x": left, "y": top, "w": right - left, "h": bottom - top}


def find_faces(image: Image.Image) -> list[Box]:
    """Find frontal faces without weights, by a cascade (Viola and Jones 2001) that sees the picture and its mirror image.

    Profiles, masks and small faces (below a twentieth of the longer side) are missed: a trained detector finds more.

    image  any mode and size
    ->     boxes with label "face", score and sharpness, the surest first
    Raises AtelierError if neither scikit-image nor OpenCV 4 is installed.
    """
    cascade = _cascade()
    image = image.convert("RGB")
    small = image.copy()
    small.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC, reducing_gap=2)
    if min(small.size) < SMALLEST:
        return []
    hits = cascade.detect(np.asarray(small))
    mirrored = cascade.detect(np.asarray(ImageOps.mirror(small)))
    mirrored[:, 0] = small.width - mirrored[:, 0] - mirrored[:, 2]
    scale = np.array([image.width / small.width, image.height / small.height] * 2)
    found: list[Box] = []
    for place, votes in _voted(small, hits, mirrored, cascade.votes):
        x, y, w, h = (round(float(v), 1) for v in place * scale)
        if not _confirmed(image, place * scale, cascade):
            continue
        box: Box = {"label": "face", "x": x, "y": y, "w": w, "h": h, "score": round(votes / (votes + cascade.votes), 3)}
        kept = _clipped(box, image.size)
        if kept:
            found.append({**kept, "sharpness": box_sharpness(image, kept)})
    return found


def _voted(small: Image.Image, hits: np.ndarray, mirrored: np.ndarray, needed: int) -> list[tuple[np.ndarray, int]]:
    """Groups of hits that enough of both pictures agree on, the most votes first, none inside a stronger one."""
    boxes = np.concatenate([hits, mirrored])
    own = np.arange(len(boxes)) < len(hits)
    faces: list[tuple[np.ndarray, int]] = []
    for members in _grouped(boxes):
        votes, box = int(members.sum()), boxes[members].mean(0)
        either = min(int((members & own).sum()), int((members & ~own).sum()))
        if votes < needed or either < EITHER * needed or votes < needed * _doubt(small, box):
            continue
        middle = box[:2] + box[2:] / 2
        if not any(((middle >= f[:2]) & (middle <= f[:2] + f[2:])).all() for f, _ in faces):
            faces.append((box, votes))
    return faces


def _grouped(boxes: np.ndarray) -> Iterable[np.ndarray]:
    """Masks of boxes that overlap the one with the most such neighbours, then of what is left."""
    corner, end = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    shared = np.minimum(end[:, None], end[None]) - np.maximum(corner[:, None], corner[None])
    common = np.clip(shared, 0, None).prod(-1)
    area = boxes[:, 2:].prod(-1)
    alike = common >= ALIKE * (area[:, None] + area[None] - common)
    left = np.ones(len(boxes), bool)
    while left.any():
        members = alike[int((alike @ left * left).argmax())] & left
        yield members
        left = left & ~members


def _confirmed(image: Image.Image, box: np.ndarray, cascade: Cascade) -> bool:
    """Whether the cascade finds a place again when it is cut out with its surroundings and scaled."""
    x, y, w, h = box
    part = image.crop(tuple(int(v) for v in (x - w / 2, y - h / 2, x + 1.5 * w, y + 1.5 * h)))
    votes = 0
    for side in CLOSER:
        hits = cascade.detect(np.asarray(part.resize((2 * side, 2 * side), Image.Resampling.BICUBIC, reducing_gap=2)))
        aside = np.abs(hits[:, :2] + hits[:, 2:] / 2 - side).max(1)
        votes += int(((aside < side / 4) & (hits[:, 2] > 0.6 * side) & (hits[:, 2] < 1.5 * side)).sum())
    return votes >= CONFIRMED * cascade.votes


def _doubt(small: Image.Image, box: np.ndarray) -> float:
    """How many times as many votes a place needs by its contrast and colour."""
    x, y, w, h = (int(v) for v in box)
    part = small.crop((x, y, x + w, y + h))
    if np.asarray(part.convert("L"), np.float32).std() < FLAT:
        return math.inf
    _, blue, red = np.moveaxis(np.asarray(part.convert("YCbCr"), np.int16), -1, 0)
    if max(np.abs(blue - 128).mean(), np.abs(red - 128).mean()) < 3:
        return 1  # grey: colour says nothing
    # The chroma of skin, light and dark (Chai and Ngan 1999).
    skin = ((blue >= 77) & (blue <= 128) & (red >= 133) & (red <= 175)).mean()
    return 1 if skin >= 0.25 else COLOURLESS


@lru_cache(maxsize=1)
def _cascade() -> Cascade:
    for make in (_local_binary_patterns, _haar):
        cascade = make()
        if cascade:
            return cascade
    raise AtelierError(
        "No face detector is installed: neither scikit-image nor OpenCV 4 was found. "
        "Run `pip install scikit-image`, or connect the boxes of a detector node."
    )


def _local_binary_patterns() -> Cascade | None:
    try:
        import skimage.data
        from skimage.feature import Cascade as Trained
    except ImportError:
        return None
    file = Path(skimage.data.__file__).parent / "lbpcascade_frontalface_opencv.xml"
    if not file.is_file():
        return None
    trained = Trained(str(file))

    def detect(pixels: np.ndarray) -> np.ndarray:
        # A threshold above 1 merges nothing: the single hits are what votes.
        found = trained.detect_multi_scale(
            np.ascontiguousarray(pixels), 1.2, 1, (SMALLEST, SMALLEST), (SIDE, SIDE), 0, 1.01
        )
        hits = [(f["c"], f["r"], f["width"], f["height"]) for f in found]
        return np.array(sorted(hits), np.float64).reshape(-1, 4)

    return Cascade(detect, votes=10)


def _haar() -> Cascade | None:
    try:
        import cv2
    except ImportError:
        return None
    folder = getattr(getattr(cv2, "data", None), "haarcascades", "")
    file = Path(folder) / "haarcascade_frontalface_default.xml"
    # OpenCV 5 has neither the class nor the file.
    if not hasattr(cv2, "CascadeClassifier") or not folder or not file.is_file():
        return None
    trained = cv2.CascadeClassifier(str(file))

    def detect(pixels: np.ndarray) -> np.ndarray:
        grey = cv2.equalizeHist(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))
        found = trained.detectMultiScale(grey, 1.05, 0, minSize=(SMALLEST, SMALLEST))
        return np.array(sorted(map(tuple, found)), np.float64).reshape(-1, 4)

    return Cascade(detect, votes=40)


def box_sharpness(image: Image.Image, box: Mapping) -> float:
    """Sharpness of what is in a box, as measures.sharpness: 0..1, independent of how sharp the rest is."""
    x, y = math.floor(box["x"]), math.floor(box["y"])
    part = image.crop((x, y, math.ceil(box["x"] + box["w"]), math.ceil(box["y"] + box["h"]))).convert("L")
    part.thumbnail((LOOKED, LOOKED), Image.Resampling.BICUBIC)
    return sharpness(np.asarray(part, np.float32))["sharpness"]


def with_sharpness(image: Image.Image, boxes: Iterable[Mapping]) -> list[dict]:
    """Boxes with the sharpness of what is in them, for detectors that do not tell it."""
    return [{**box, "sharpness": box_sharpness(image, box)} for box in boxes]


def faces_among(boxes: Iterable[Mapping] | None, label: str = "face") -> list[Mapping]:
    """The boxes of one label, whatever its case; none where nothing has looked yet."""
    return [box for box in boxes or () if str(box["label"]).lower() == label.lower()]


def face_facts(boxes: Iterable[Mapping] | None, size: tuple[int, int], label: str = "face") -> dict[str, float]:
    """What a filter asks of the boxes of one label.

    boxes  of any label; None before anything has looked
    size   width and height of the picture
    ->     faces           how many
           face_share      0..1, the largest one's share of the picture; 0 without one
           and where there is one:
           face_offset     0..1, how far the largest one's middle is from the picture's: 0 there, 1 in a corner
           face_side       pixels, the smallest side of any
           face_sharpness  0..1, of the largest one, where it was measured
           Nothing where nothing has looked: unknown is not 0.
    """
    if boxes is None:
        return {}
    faces = faces_among(boxes, label)
    if not faces:
        return {"faces": 0, "face_share": 0.0}
    width, height = size
    largest = max(faces, key=lambda box: box["w"] * box["h"])
    across = (largest["x"] + largest["w"] / 2) / width - 0.5
    down = (largest["y"] + largest["h"] / 2) / height - 0.5
    facts = {
        "faces": len(faces),
        "face_share": largest["w"] * largest["h"] / (width * height),
        "face_offset": math.hypot(across, down) / math.hypot(0.5, 0.5),
        "face_side": min(min(box["w"], box["h"]) for box in faces),
    }
    return facts | ({"face_sharpness": largest["sharpness"]} if "sharpness" in largest else {})
