"""Crops to a bucket's aspect that cut no face and keep the subject, and the bucket that loses the least of a picture.

All windows of one size are scored at once, from an integral image and from edges alone, so a crop takes about a
millisecond. A crop is only recorded; the picture stays as it is.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from ..errors import AtelierError
from ..options import Options
from .buckets import Bucket

PLACES = 65  # windows tried along each axis, besides those that touch a face
SMALLER = 0.95  # step from one window size to the next
THIRD = 1 / 3  # of the window's height from above: where the largest face's middle looks best
CUT, LOST = 3.0, 1.0  # what cutting a face costs, and leaving one out, times its share of the faces
CROWDED, LOW, ASIDE = (
    0.3,
    0.15,
    0.05,
)  # weights: too little room around faces, a face off the third, an off-centre subject


class CropOptions(Options):
    """How much room faces keep, and how small a crop may become to save one."""

    hair: float = Field(default=0.4, ge=0, le=2, description="Room above a face, as a share of the face's height.")
    chin: float = Field(default=0.2, ge=0, le=2, description="Room below a face, as a share of the face's height.")
    beside: float = Field(
        default=0.15, ge=0, le=2, description="Room left and right of a face, as a share of the face's width."
    )
    smallest: float = Field(
        default=0.6,
        gt=0,
        le=1,
        description="Smallest crop, as a share of the sides of the largest possible one; smaller ones are tried only "
        "where the largest would cut a face.",
    )


@dataclass(frozen=True)
class Crop:
    """A window in pixels of the picture, and what became of faces and subject."""

    x: int
    y: int
    w: int
    h: int
    kept: float  # 0..1, share of the picture's pixels
    subject_kept: float | None  # 0..1, of its box, or of the map; None where neither was given
    faces_held: int
    faces_cut: int
    faces_lost: int  # wholly outside

    @property
    def box(self) -> tuple[int, int, int, int]:
        """x, y, w, h, as StoredRow.crop."""
        return self.x, self.y, self.w, self.h


@dataclass(frozen=True)
class BucketChoice:
    """A bucket, the crop to its aspect, and what the person should be told; empty where all went well."""

    bucket: Bucket
    crop: Crop
    told: str = ""


@dataclass(frozen=True)
class _Scene:
    """A picture as cropping sees it: faces [N, 4] as left, top, right, bottom; the subject likewise, or its map."""

    size: tuple[int, int]
    faces: np.ndarray
    subject: np.ndarray | None
    salient: np.ndarray | None
    options: CropOptions


@dataclass(frozen=True)
class _Windows:
    """Windows of one size: left edges [K], top edges [K], width and height in pixels."""

    x: np.ndarray
    y: np.ndarray
    w: int
    h: int


def smart_crop(
    size: tuple[int, int],
    target: Bucket | float,
    faces: Iterable[Mapping] = (),
    subject: Mapping | np.ndarray | None = None,
    options: CropOptions | None = None,
) -> Crop:
    """Find the largest window of an aspect that cuts no face, keeps the subject and has faces in its upper third.

    size     width and height of the picture, pixels
    target   a bucket, or width over height
    faces    boxes in pixels: mappings with x, y, w, h
    subject  its box, or a map [h, w] >= 0 of the whole picture (saliency.subject_map); None for the middle
    options  room around faces, smallest window
    ->       the crop. Where no window holds the largest face without cutting another, the largest window that costs the
             faces the least; faces_cut then says so
    Raises AtelierError for a size or an aspect that is not above 0.
    """
    scene = _scene(size, faces, subject, options or CropOptions())
    return _crop(scene, target)


def choose_bucket(
    size: tuple[int, int],
    faces: Iterable[Mapping],
    subject: Mapping | np.ndarray | None,
    buckets: Sequence[Bucket],
    options: CropOptions | None = None,
) -> BucketChoice:
    """Choose the bucket that loses the least of a picture and cuts no face, and crop to it.

    size, faces, subject, options  as for smart_crop
    buckets                        those allowed
    ->                             the choice; `told` names what had to be cut where no bucket holds all faces
    Raises AtelierError if there is no bucket.
    """
    if not buckets:
        raise AtelierError("There is no bucket to choose from. Allow at least one.")
    scene = _scene(size, faces, subject, options or CropOptions())
    holding = [b for b in buckets if _holds(scene, b)]
    if holding:
        chosen = min(holding, key=lambda b: (_loss(scene, b), -b.width * b.height, b))
        return BucketChoice(chosen, _crop(scene, chosen))
    tried = [BucketChoice(b, _crop(scene, b)) for b in sorted(buckets)]
    best = min(tried, key=lambda c: (c.crop.faces_cut, -c.crop.faces_held, -c.crop.kept))
    count, crop = len(scene.faces), best.crop
    told = (
        f"No bucket holds all {count} faces: {crop.faces_held} are kept, {crop.faces_cut} cut, {crop.faces_lost} left out."
        if count > 1
        else "No bucket holds the face: it is cut."
    )
    return BucketChoice(best.bucket, crop, told)


def window_of(size: tuple[int, int], target: Bucket | float) -> tuple[int, int]:
    """Width and height of the largest window of an aspect inside a picture, whole pixels."""
    aspect = target.width / target.height if isinstance(target, Bucket) else float(target)
    width, height = size
    if min(width, height) < 1 or not math.isfinite(aspect) or aspect <= 0:
        raise AtelierError(f"A picture of {width} x {height} has no crop of aspect {aspect:g}. Both must be above 0.")
    return min(width, max(1, round(height * aspect))), min(height, max(1, round(width / aspect)))


def _scene(size, faces: Iterable[Mapping], subject, options: CropOptions) -> _Scene:
    width, height = size
    boxes = np.array([_edges(f) for f in faces], np.float64).reshape(-1, 4)
    boxes = np.clip(boxes, 0, [width, height, width, height])
    boxes = boxes[(boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])]
    box = np.clip(_edges(subject), 0, [width, height, width, height]) if isinstance(subject, Mapping) else None
    if box is not None and (box[2] <= box[0] or box[3] <= box[1]):
        box = None
    salient = None if subject is None or isinstance(subject, Mapping) else np.asarray(subject, np.float64)
    if salient is not None and not salient.sum() > 0:
        salient = None
    return _Scene(size, boxes, box, salient, options)


def _edges(box: Mapping) -> np.ndarray:
    return np.array([box["x"], box["y"], box["x"] + box["w"], box["y"] + box["h"]], np.float64)


def _holds(scene: _Scene, bucket: Bucket) -> bool:
    """Whether one window can have all faces whole: the pixels that they touch must fit."""
    if not len(scene.faces):
        return True
    low, high = np.floor(scene.faces[:, :2].min(0)), np.ceil(scene.faces[:, 2:].max(0))
    return bool((high - low <= window_of(scene.size, bucket)).all())


def _loss(scene: _Scene, bucket: Bucket) -> float:
    """Share of the pixels that a bucket loses, and of the subject's box that it must cut."""
    inside = window_of(scene.size, bucket)
    lost = 1 - math.prod(inside) / math.prod(scene.size)
    if scene.subject is not None:
        lost += 1 - float(np.minimum(1, np.array(inside) / (scene.subject[2:] - scene.subject[:2])).prod())
    return round(lost, 9)


def _crop(scene: _Scene, target: Bucket | float) -> Crop:
    largest = window_of(scene.size, target)
    first, saved = _cut_to(scene, largest, 1.0)
    scale = SMALLER
    while not saved and scale >= scene.options.smallest - 1e-9:
        crop, saved = _cut_to(scene, largest, scale)
        if saved:
            return crop
        scale *= SMALLER
    return first


def _cut_to(scene: _Scene, largest: tuple[int, int], scale: float) -> tuple[Crop, bool]:
    """The best crop of one size, and whether it is as good to the faces as any size can be."""
    windows = _windows(scene, max(1, round(largest[0] * scale)), max(1, round(largest[1] * scale)))
    best, saved = _best(scene, windows, largest)
    return _told(scene, windows, best), saved


def _windows(scene: _Scene, w: int, h: int) -> _Windows:
    along = []
    for axis, side in ((0, w), (1, h)):
        free = scene.size[axis] - side
        # Beside an even grid: windows that begin or end at a face, with and without its room.
        edges = np.concatenate([scene.faces, _roomy(scene)])
        low, high = edges[:, axis], edges[:, axis + 2]
        touching = [np.floor(low), np.ceil(high) - side, np.ceil(high), np.floor(low) - side]
        every = np.concatenate([np.round(np.linspace(0, free, min(free + 1, PLACES))), *touching])
        along.append(np.unique(np.clip(every, 0, free)).astype(int))
    x, y = np.meshgrid(*along, indexing="ij")
    return _Windows(x.ravel(), y.ravel(), w, h)


def _roomy(scene: _Scene) -> np.ndarray:
    """Faces with room for hair and chin, cut to the picture."""
    options, (width, height) = scene.options, scene.size
    sides = scene.faces[:, 2:] - scene.faces[:, :2]
    room = np.array([-options.beside, -options.hair, options.beside, options.chin])
    return np.clip(scene.faces + room * np.concatenate([sides, sides], 1), 0, [width, height, width, height])


def _best(scene: _Scene, windows: _Windows, largest: tuple[int, int]) -> tuple[int, bool]:
    """The window that costs the least; whether it cuts no face and has the largest one that fits any window."""
    pleasure = _pleasure(scene, windows)
    if not len(scene.faces):
        return int(pleasure.argmax()), True
    held, cut = _fates(scene.faces, windows)
    area = (scene.faces[:, 2:] - scene.faces[:, :2]).prod(1)
    share = area / area.sum()
    fits = (np.ceil(scene.faces[:, 2:]) - np.floor(scene.faces[:, :2]) <= largest).all(1)
    # A face that no window holds is shown as far as can be, rather than shunned.
    cost = np.where(fits, CUT * cut + LOST * ~(held | cut), CUT * (1 - _inside(scene.faces, windows))) @ share
    whole = ~cut[:, fits].any(1)
    if fits.any():
        whole &= held[:, int(np.where(fits, area, -1).argmax())]
    cost = np.where(whole, cost, cost + 10) if whole.any() else cost
    least = np.isclose(cost, cost.min())
    return int(np.where(least, pleasure, -np.inf).argmax()), bool(whole.any())


def _fates(faces: np.ndarray, windows: _Windows) -> tuple[np.ndarray, np.ndarray]:
    """Which faces are whole inside, which partly: [K, N] each."""
    left, top = windows.x[:, None], windows.y[:, None]
    right, bottom = left + windows.w, top + windows.h
    held = (faces[:, 0] >= left) & (faces[:, 1] >= top) & (faces[:, 2] <= right) & (faces[:, 3] <= bottom)
    outside = (faces[:, 2] <= left) | (faces[:, 3] <= top) | (faces[:, 0] >= right) | (faces[:, 1] >= bottom)
    return held, ~held & ~outside


def _inside(boxes: np.ndarray, windows: _Windows) -> np.ndarray:
    """Share of every box's area in every window, [K, N]."""
    low = np.stack([windows.x, windows.y], -1)[:, None]
    side = np.array([windows.w, windows.h])
    common = np.minimum(boxes[:, 2:], low + side) - np.maximum(boxes[:, :2], low)
    return np.clip(common, 0, None).prod(-1) / (boxes[:, 2:] - boxes[:, :2]).prod(-1)


def _pleasure(scene: _Scene, windows: _Windows) -> np.ndarray:
    """What is good about windows that treat faces alike: subject kept, room, the upper third, a middle place; [K]."""
    middle = np.stack([windows.x + windows.w / 2, windows.y + windows.h / 2], -1)
    side = np.array([windows.w, windows.h])
    score = np.zeros(len(middle))
    kept = _subject_kept(scene, windows)
    if kept is not None:
        score = score + kept
    score = score - ASIDE * np.minimum(1, np.abs(middle - _aim(scene)) / side).sum(1)
    if len(scene.faces):
        score = score - CROWDED * (1 - _inside(_roomy(scene), windows)).mean(1)
        face = scene.faces[int((scene.faces[:, 2:] - scene.faces[:, :2]).prod(1).argmax())]
        height = ((face[1] + face[3]) / 2 - windows.y) / windows.h
        score = score - LOW * np.minimum(1, np.abs(height - THIRD))
    return score


def _subject_kept(scene: _Scene, windows: _Windows) -> np.ndarray | None:
    if scene.subject is not None:
        return _inside(scene.subject[None], windows)[:, 0]
    if scene.salient is None:
        return None
    rows, columns = scene.salient.shape
    total = np.zeros((rows + 1, columns + 1))
    total[1:, 1:] = scene.salient.cumsum(0).cumsum(1)
    xs = np.stack([windows.x, windows.x + windows.w]) * (columns / scene.size[0])
    ys = np.stack([windows.y, windows.y + windows.h]) * (rows / scene.size[1])
    corners = [_between(total, y, x) for y in ys for x in xs]
    return (corners[3] - corners[2] - corners[1] + corners[0]) / total[-1, -1]


def _between(total: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Values of an integral image at fractional places, linear between its points."""
    top = np.clip(y.astype(int), 0, total.shape[0] - 2)
    left = np.clip(x.astype(int), 0, total.shape[1] - 2)
    down, across = y - top, x - left
    above = total[top, left] * (1 - across) + total[top, left + 1] * across
    below = total[top + 1, left] * (1 - across) + total[top + 1, left + 1] * across
    return above * (1 - down) + below * down


def _aim(scene: _Scene) -> np.ndarray:
    """The place that a window's middle is drawn to: the subject's, else the picture's."""
    if scene.subject is not None:
        return (scene.subject[:2] + scene.subject[2:]) / 2
    if scene.salient is None:
        return np.array(scene.size) / 2
    share = scene.salient / scene.salient.sum()
    rows, columns = share.shape
    across = share.sum(0) @ (np.arange(columns) + 0.5) / columns
    down = share.sum(1) @ (np.arange(rows) + 0.5) / rows
    return np.array([across, down]) * scene.size


def _told(scene: _Scene, windows: _Windows, best: int) -> Crop:
    one = _Windows(windows.x[[best]], windows.y[[best]], windows.w, windows.h)
    held, cut = (int(found.sum()) for found in _fates(scene.faces, one))
    kept = _subject_kept(scene, one)
    return Crop(
        x=int(one.x[0]), y=int(one.y[0]), w=one.w, h=one.h, kept=one.w * one.h / math.prod(scene.size),
        subject_kept=None if kept is None else float(np.clip(kept[0], 0, 1)),
        faces_held=held, faces_cut=cut, faces_lost=len(scene.faces) - held - cut,
    )  # fmt: skip
