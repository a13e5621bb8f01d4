"""Numbers that say how sharp a picture is and what it looks like, from one small decode."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import fft, ndimage

from .folder import open_picture

SIDE = 512  # pixels: sharpness is measured on a picture no longer than this


class Measures(NamedTuple):
    """Sharpness 0..1 (sharp photographs 0.7 to 0.9, blurred ones below 0.35), and the 64-bit perceptual hash."""

    sharpness: float
    phash: int


def measure(file: Path) -> Measures:
    """Decode a picture once, small, and measure it; raises AtelierError if it cannot be decoded."""
    grey = open_picture(file, draft=SIDE).convert("L")
    return Measures(sharpness(grey), perceptual_hash(grey))


def sharpness(grey: Image.Image) -> float:
    """Share of its fine detail that a picture loses when it is blurred once more (Crete et al. 2007).

    A blurred picture has nothing left to lose. Measured on the most detailed part of a 4 x 4 grid, so a sharp subject
    before a soft background counts as sharp.
    """
    small = grey.copy()
    small.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC)
    pixels = np.asarray(small, dtype=np.float32) / 255
    losses = []
    for axis in (0, 1):
        again = ndimage.uniform_filter1d(pixels, 9, axis=axis)
        before, after = np.abs(np.diff(pixels, axis=axis)), np.abs(np.diff(again, axis=axis))
        lost = np.maximum(before - after, 0)
        losses.append([(b.sum(), x.sum()) for b, x in zip(_tiles(before), _tiles(lost), strict=True)])
    scores = []
    for (b0, l0), (b1, l1) in zip(*losses, strict=True):
        if b0 + b1 > 1e-6:
            scores.append((b0 + b1, (l0 + l1) / (b0 + b1)))
    if not scores:
        return 0.0
    detailed = sorted(scores, reverse=True)[: max(1, len(scores) // 4)]
    return float(max(score for _, score in detailed))


def _tiles(pixels: np.ndarray) -> list[np.ndarray]:
    return [tile for band in np.array_split(pixels, 4, 0) for tile in np.array_split(band, 4, 1)]


def perceptual_hash(grey: Image.Image) -> int:
    """pHash: signs of the 8 x 8 lowest cosine frequencies of a 32 x 32 picture against their median (Zauner 2010)."""
    pixels = np.asarray(grey.resize((32, 32), Image.Resampling.BOX), dtype=np.float32)
    low = np.asarray(fft.dctn(pixels, norm="ortho"))[:8, :8].ravel()
    bits = low > np.median(low)
    return int(sum(1 << i for i, bit in enumerate(bits) if bit))
