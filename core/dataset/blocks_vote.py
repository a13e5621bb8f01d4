"""Lay one picture on a part of another and let 64 blocks vote whether they show the same.

A few blocks may disagree, so a logo or a caption on one copy does no harm; two pictures that are merely alike in their
large shapes do not pass. Beside duplicates.py, which decides with it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np

from .hashes import SIDE, cosines, orient

THUMB, FIT, GRID = 64, 48, 8  # pixels of a stored thumb; pixels and blocks per side when laid on each other
CROPS = ((0.95, 3), (0.9, 4), (0.85, 5))  # side of a part, places along each axis
INSIDE = 0.6  # side of the parts that are compared with the same part of another picture
ALIKE = 0.8  # correlation of two blocks that show the same
FAINT = 3.0  # grey levels: a block with less has nothing to compare
FEWEST = 16  # blocks with something in them, below which nothing can be said
SMALLEST, LARGEST = 0.55, 1.1  # side of a window after fitting
WHOLE = (0, 0, 1, 1)
ROUNDS, STEP = 5, 0.04  # of fitting; the longest step, in sides of the picture


@dataclass(frozen=True)
class Candidates:
    """P pairs: the whole, the part that may lie in it, the window [P, 4] (top, left, height, width in 0..1) it should
    lie in, and the orientation that brings the part upright."""

    whole: np.ndarray
    part: np.ndarray
    windows: np.ndarray
    orientation: np.ndarray

    def take(self, chosen) -> "Candidates":
        return Candidates(self.whole[chosen], self.part[chosen], self.windows[chosen], self.orientation[chosen])


@cache
def _reader(start: float, length: float) -> np.ndarray:
    """The lowest cosines of a stretch of a thumb's row, [8, THUMB]: the stretch is averaged to SIDE pixels first."""
    edges = (start + length * np.arange(SIDE + 1) / SIDE) * THUMB
    overlap = np.minimum(edges[1:, None], np.arange(1, THUMB + 1)) - np.maximum(edges[:-1, None], np.arange(THUMB))
    average = np.maximum(overlap, 0) / (edges[1:] - edges[:-1])[:, None]
    return (cosines(SIDE, 8) @ average).astype(np.float32)


def part_hashes(thumbs: np.ndarray) -> Iterator[tuple[tuple[float, float, float, float], np.ndarray, bool]]:
    """Go through parts of all pictures: the window, the low frequencies there, and whether it is compared with the same
    window of others (a logo elsewhere is then not seen) rather than with whole pictures (a crop).

    thumbs  [N, 64, 64] float32
    ->      (top, left, height, width in 0..1), [N, 8, 8] float32, bool
    """
    for side, places in CROPS:
        starts = np.linspace(0, 1 - side, places)
        for top in starts:
            for left in starts:
                low = _reader(top, side) @ thumbs @ _reader(left, side).T
                yield (float(top), float(left), side, side), low, False
    far = 1 - INSIDE
    for top, left in ((0, 0), (0, far), (far, 0), (far, far), (far / 2, far / 2)):
        yield (top, left, INSIDE, INSIDE), _reader(top, INSIDE) @ thumbs @ _reader(left, INSIDE).T, True


def vote(thumbs: np.ndarray, pairs: Candidates) -> tuple[np.ndarray, np.ndarray]:
    """Fit each part into its whole and count the blocks that agree.

    thumbs  [N, 64, 64] uint8
    ->      share of agreeing blocks [P] in 0..1, height and width of the fitted windows [P, 2]
    """
    if not len(pairs.whole):
        return np.zeros(0), np.zeros((0, 2))
    wholes = thumbs[pairs.whole].astype(np.float32)
    parts = sample(_upright(thumbs, pairs), np.tile(np.array(WHOLE, np.float32), (len(pairs.whole), 1)))
    windows = fit(wholes, parts, pairs.windows)
    shares = block_share(sample(wholes, windows), parts)
    inside = (windows[:, 2:].min(1) >= SMALLEST) & (windows[:, 2:].max(1) <= LARGEST)
    return np.where(inside, shares, 0), windows[:, 2:]


def seem_same(thumbs: np.ndarray, pairs: Candidates, agreeing: float) -> np.ndarray:
    """Check pairs whose hashes are alike: as they are, then fitted; pictures with little in them may have few blocks.

    A logo on an empty ground is most of such a picture's hash, so the hash alone would join all that carry it.

    ->  [P] bool
    """
    parts = _upright(thumbs, pairs)
    same = block_share(thumbs[pairs.whole].astype(np.float32), parts, fewest=FEWEST // 4) >= agreeing
    doubted = np.flatnonzero(~same)
    some = pairs.take(doubted)
    if doubted.size:
        shares, _ = vote(thumbs, some)
        same[doubted] = shares >= agreeing
    return same


def _upright(thumbs: np.ndarray, pairs: Candidates) -> np.ndarray:
    parts = thumbs[pairs.part].astype(np.float32)
    for o in np.unique(pairs.orientation):
        at = pairs.orientation == o
        parts[at] = orient(parts[at], int(o))
    return parts


def sample(pixels: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """Read windows of pictures with linear interpolation, the edge repeated outside.

    pixels   [P, T, T]
    windows  [P, 4], top, left, height, width in 0..1
    ->       [P, FIT, FIT]
    """
    size = pixels.shape[-1]
    middles = (np.arange(FIT, dtype=np.float32) + 0.5) / FIT
    rows, columns = (
        np.clip((windows[:, i, None] + windows[:, i + 2, None] * middles) * size - 0.5, 0, size - 1) for i in (0, 1)
    )
    down, across = (
        np.maximum(0, 1 - np.abs(p[..., None] - np.arange(size, dtype=np.float32))) for p in (rows, columns)
    )
    return down @ pixels @ across.transpose(0, 2, 1)


def _standard(pixels: np.ndarray) -> np.ndarray:
    centred = pixels - pixels.mean((1, 2), keepdims=True)
    return centred / np.maximum(centred.std((1, 2), keepdims=True), 1)


def fit(wholes: np.ndarray, parts: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """Move and stretch windows until the parts lie on the wholes (Lucas and Kanade 1981), brightness set aside.

    Pixels that differ much count less (Cauchy), so a logo does not pull.
    """
    wanted = _standard(parts)
    along = (np.arange(FIT, dtype=np.float32) + 0.5) / FIT
    windows = windows.astype(np.float32)
    for _ in range(ROUNDS):
        seen = _standard(sample(wholes, windows))
        step_down, step_across = np.gradient(seen, axis=(1, 2))
        step_down *= FIT / windows[:, 2, None, None]
        step_across *= FIT / windows[:, 3, None, None]
        slopes = np.stack([step_down, step_across, step_down * along[:, None], step_across * along], 1)
        slopes = slopes.reshape(len(seen), 4, -1)
        rest = (wanted - seen).reshape(len(seen), -1)
        weighed = slopes / (1 + (rest / 0.5) ** 2)[:, None]
        square = weighed @ slopes.transpose(0, 2, 1)
        square += np.eye(4, dtype=np.float32) * (1e-3 * np.trace(square, axis1=1, axis2=2)[:, None, None] + 1e-3)
        step = np.linalg.solve(square, (weighed @ rest[..., None]))[..., 0]
        windows = windows + np.clip(step, -STEP, STEP)
        windows[:, 2:] = np.clip(windows[:, 2:], 0.5, 1.2)
    return windows


def block_share(a: np.ndarray, b: np.ndarray, fewest: int = FEWEST) -> np.ndarray:
    """Share of the blocks with something in them that show the same, by their correlation; 0 where too few can tell.

    a, b    [P, S, S] in grey levels, S a multiple of 8
    fewest  blocks that must have something in them
    ->      [P] in 0..1
    """
    first, second = _blocks(a), _blocks(b)
    spread_a, spread_b = first.std(-1), second.std(-1)
    together = (first * second).mean(-1) / np.maximum(spread_a * spread_b, 1e-6)
    telling = np.maximum(spread_a, spread_b) >= FAINT
    agreed = (telling & (together >= ALIKE)).sum(-1)
    count = telling.sum(-1)
    return np.where(count >= fewest, agreed / np.maximum(count, 1), 0)


def _blocks(pixels: np.ndarray) -> np.ndarray:
    """[P, S, S] -> [P, 64 blocks, pixels], each block without its mean."""
    side = pixels.shape[-1] // GRID
    cut = pixels.reshape(-1, GRID, side, GRID, side).swapaxes(2, 3).reshape(-1, GRID * GRID, side * side)
    return cut - cut.mean(-1, keepdims=True)
