"""More pictures out of few, as recorded operations: nothing is written until an export.

What is drawn for a copy depends on the seed, the picture's digest and the copy's number alone, so a picture's copies stay
the same whatever else is in the set. Mirroring makes captions false that say left or right, and writing unreadable; the
words are told (English only), and the captions mended.
"""

import math
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from ..files import digest_of
from ..options import Options
from .mirroring import MIRRORED, side_words, writing_words
from .replay import Size, replay_boxes, replayed_size
from .stored import StoredRow

SLACK = 0.5  # pixels by which a box may seem cut through rounding


class AugmentOptions(Options):
    """Which copies are made of each picture; at their defaults, one mirrored copy."""

    copies: int = Field(1, ge=0, le=16, description="Copies per picture, besides the picture itself.")
    flip: bool = Field(True, description="Mirror every second copy left to right, the first one first.")
    degrees: float = Field(0.0, ge=0, le=45, description="Most degrees a copy is turned by; edges are cut, not filled.")
    crop: float = Field(0.0, ge=0, le=0.5, description="Most of each side that is cut off; 0.2 is a fifth.")
    color: float = Field(
        0.0, ge=0, le=1, description="Strength of changes in brightness, contrast, saturation and gamma; 1 is 30 %."
    )
    hue: float = Field(0.0, ge=0, le=180, description="Most degrees around the colour circle.")
    sides: Literal["swap", "skip", "leave"] = Field(
        "swap",
        description="Where a caption says left or right: swap the words, do not mirror the picture, or leave the caption.",
    )
    keep_text: bool = Field(True, description="Do not mirror pictures whose captions or tags tell of writing.")
    protect: str = Field(
        "face", max_length=1000, description="Labels of boxes that are never cut, by commas; empty for none."
    )
    seed: int = Field(0, ge=0, le=2**63 - 1, description="Another seed draws other copies.")


@dataclass(frozen=True)
class MirrorWarning:
    """A picture whose captions or tags do not bear mirroring.

    kind   "sides" for left and right, "writing" for text in the picture
    words  what was found
    done   what becomes of it
    """

    id: str
    kind: str
    words: tuple[str, ...]
    done: str


def variants(rows: Iterable[StoredRow], options: AugmentOptions) -> dict[str, list[dict[str, Any]]]:
    """Copies of pictures as recorded operations.

    rows  only readable pictures of the training split are copied, and no copies of copies are made
    ->    by row id the values of each copy: ops, which begin with the row's own; and that left and right change places in
          what is said of it, whoever says it and when. A copy that would be the same picture as another one is not made.
    """
    made = {}
    for row in rows:
        if row.parent is None and row.fault is None and row.split == "train" and row.width and row.height:
            copies = _copies(row, options)
            if copies:
                made[row.id] = copies
    return made


def _copies(row: StoredRow, options: AugmentOptions) -> list[dict[str, Any]]:
    own, mirrors = list(row.ops or ()), may_mirror(row, options)
    seen, copies = [own], []
    for n in range(1, options.copies + 1):
        mirrored = mirrors and n % 2 == 1
        ops = own + _drawn(row, options, n, mirrored)
        if ops not in seen:
            seen.append(ops)
            copies.append({"ops": ops} | ({MIRRORED: True} if mirrored and options.sides == "swap" else {}))
    return copies


def _drawn(row: StoredRow, options: AugmentOptions, n: int, mirrored: bool) -> list[dict[str, Any]]:
    """The operations of the n-th copy; all is drawn each time, so one option does not change another's draw."""
    rng = random.Random(digest_of(options.seed, row.digest, n))
    turn, zoom, across, down, hue = (rng.random() for _ in range(5))
    shades = {name: rng.uniform(-0.3, 0.3) for name in ("brightness", "contrast", "saturation", "gamma")}
    own = list(row.ops or ())
    size = replayed_size(row.width, row.height, row.crop, own)
    kept = replay_boxes(_protected(row, options), row.width, row.height, row.crop, own) or ()
    ops: list[dict[str, Any]] = []
    degrees = _harmless(round((2 * turn - 1) * options.degrees, 2), kept, size)
    if degrees:
        ops.append({"name": "rotate", "degrees": degrees})
        kept = replay_boxes(kept, *size, None, ops) or ()
        size = replayed_size(*size, None, ops)
    window = _window(size, 1 - options.crop * zoom, (across, down), kept)
    if window[2:] != size:
        ops.append({"name": "crop", **dict(zip("xywh", window, strict=True))})
    if mirrored:
        ops.append({"name": "flip", "axis": "horizontal"})
    color = {name: round(1 + options.color * shade, 3) for name, shade in shades.items()} if options.color else {}
    if options.hue:
        color["hue"] = round((2 * hue - 1) * options.hue, 2)
    return [*ops, {"name": "color", **color}] if color else ops


def _protected(row: StoredRow, options: AugmentOptions) -> list[Mapping]:
    labels = {label.strip().lower() for label in options.protect.split(",")} - {""}
    return [box for box in row.boxes or () if str(box.get("label", "")).lower() in labels]


def _harmless(degrees: float, boxes: Iterable[Mapping], size: Size) -> float:
    """The angle, halved until no box is cut by the edges that a turn costs; 0 after four times."""
    for _ in range(4):
        if degrees and not any(_cut(box, degrees, size) for box in boxes):
            return degrees
        degrees = round(degrees / 2, 2)
    return 0.0


def _cut(box: Mapping, degrees: float, size: Size) -> bool:
    sin, cos = abs(math.sin(math.radians(degrees))), abs(math.cos(math.radians(degrees)))
    whole = (box["w"] * cos + box["h"] * sin, box["w"] * sin + box["h"] * cos)
    left = replay_boxes([box], *size, None, [{"name": "rotate", "degrees": degrees}])
    return not left or left[0]["w"] < whole[0] - SLACK or left[0]["h"] < whole[1] - SLACK


def _window(
    size: Size, share: float, place: tuple[float, float], boxes: Iterable[Mapping]
) -> tuple[int, int, int, int]:
    """A rectangle of a share of both sides, somewhere that holds all boxes whole, larger where they need it."""
    starts, lengths = [], []
    for side, at, from_, length in zip(size, place, "xy", "wh", strict=True):
        first = min((max(0, math.floor(box[from_])) for box in boxes), default=side)
        last = max((min(side, math.ceil(box[from_] + box[length])) for box in boxes), default=0)
        kept = max(1, round(side * share), last - first)
        low, high = max(0, last - kept), min(side - kept, first)
        starts.append(low + int(at * (high - low + 1)))
        lengths.append(kept)
    return starts[0], starts[1], lengths[0], lengths[1]


def may_mirror(row: StoredRow, options: AugmentOptions) -> bool:
    """Whether copies of a row may be mirrored, by the options and by what is said of it."""
    if not options.flip or (options.keep_text and _said(row, writing_words)):
        return False
    return options.sides != "skip" or not _said(row, side_words)


def mirror_warnings(rows: Iterable[StoredRow], options: AugmentOptions) -> list[MirrorWarning]:
    """Tell which pictures mirroring would make untrue, and what becomes of them; empty where nothing is mirrored."""
    if not (options.flip and options.copies):
        return []
    swapped = "left and right are swapped in the captions of mirrored copies"
    sides = {"swap": swapped, "skip": "not mirrored", "leave": "mirrored, and the captions are left as they are"}
    found = []
    for row in rows:
        if row.parent is None and row.split == "train":
            done = sides[options.sides] if may_mirror(row, options) else "not mirrored"
            told = "not mirrored" if options.keep_text else "mirrored, and so is the writing"
            found += [MirrorWarning(row.id, "sides", words, done)] if (words := _said(row, side_words)) else []
            found += [MirrorWarning(row.id, "writing", words, told)] if (words := _said(row, writing_words)) else []
    return found


def _said(row: StoredRow, words_of) -> tuple[str, ...]:
    texts = (*(caption.text for caption in row.captions), *row.tags)
    return tuple(dict.fromkeys(word for text in texts for word in words_of(text)))
