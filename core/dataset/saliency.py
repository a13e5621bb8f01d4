"""Where the subject of a picture is, without weights: a map of what stands out, and the box that holds it.

A spectral residual (Hou and Zhang 2007) finds what differs from the picture's own texture, gradients find detail; both
on a small copy, where a picture takes a few milliseconds. It is a guess: faces and detected boxes come before it.
"""

import numpy as np
from PIL import Image
from scipy import ndimage

SIDE = 96  # pixels: the longer side of the copy
RESIDUAL, SPREAD = 3, 2.5  # pixels: the mean of the log spectrum; how far the finds are smeared
CENTRE = 0.15  # share of the map that the middle's advantage makes at most
EVEN = 1e-3  # contrast of 0..1: below it only rounding is left, and a spectrum makes something of it
ABOVE = 1.3  # times the mean: from there on a place belongs to the subject


def subject_map(image: Image.Image) -> np.ndarray:
    """How much every place of a picture stands out (Hou and Zhang 2007), with gradients and a slight pull to the middle.

    image  any mode and size
    ->     [h, w] float32 >= 0 with sum 1, the longer side at most 96; even where nothing stands out
    """
    small = image.convert("RGB")
    small.thumbnail((SIDE, SIDE), Image.Resampling.BOX, reducing_gap=2)
    pixels = np.asarray(small, np.float32) / 255
    # Brightness, and two opposed colours: a subject may differ from its ground in colour alone.
    planes = [pixels.mean(-1), pixels[..., 0] - pixels[..., 1], pixels[..., 2] - pixels[..., :2].mean(-1)]
    found = np.sum([_even(_residual(p)) * p.std() for p in planes], axis=0)
    edges = np.sum([np.hypot(ndimage.sobel(p, 0), ndimage.sobel(p, 1)) for p in planes], axis=0)
    apart = np.sum([(ndimage.gaussian_filter(p, SPREAD) - np.median(p)) ** 2 for p in planes], axis=0)
    total = _even(found) + _even(ndimage.gaussian_filter(edges, SPREAD)) + _even(apart)
    total = np.clip(total - np.median(total), 0, None)
    total = _even(total) * (1 - CENTRE + CENTRE * _middle(total.shape))
    whole = float(total.sum())
    return (total / whole if whole > 0 else np.full_like(total, 1 / total.size)).astype(np.float32)


def _residual(plane: np.ndarray) -> np.ndarray:
    if plane.std() < EVEN:
        return np.zeros_like(plane)
    spectrum = np.fft.fft2(plane - plane.mean())
    size = np.log(np.abs(spectrum) + 1e-4)
    rest = size - ndimage.uniform_filter(size, RESIDUAL, mode="wrap")
    back = np.abs(np.fft.ifft2(np.exp(rest + 1j * np.angle(spectrum)))) ** 2
    return ndimage.gaussian_filter(back, SPREAD)


def _even(values: np.ndarray) -> np.ndarray:
    """Values scaled to a mean of 1; zeros where they hardly differ from each other."""
    mean = float(values.mean())
    return values / mean if mean > 0 and np.ptp(values) > 1e-6 else np.zeros_like(values)


def _middle(shape: tuple[int, ...]) -> np.ndarray:
    down, across = (np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in shape)
    return np.exp(-(down[:, None] ** 2 + across[None] ** 2))


def subject_box(image: Image.Image, found: np.ndarray | None = None) -> dict:
    """The box whose places stand out the most above the picture's mean: the largest sum in a rectangle (Bentley 1984).

    image  any mode and size
    found  its subject_map, where that is known already
    ->     label "subject"; x, y, w, h in pixels; score: the share of the map that it holds
    """
    salient = subject_map(image) if found is None else found
    rows, columns = salient.shape
    top, bottom, left, right = _best_rectangle(salient - ABOVE * salient.mean())
    across, down = image.width / columns, image.height / rows
    return {
        "label": "subject", "x": left * across, "y": top * down, "w": (right - left) * across,
        "h": (bottom - top) * down, "score": float(min(1.0, salient[top:bottom, left:right].sum())),
    }  # fmt: skip


def _best_rectangle(values: np.ndarray) -> tuple[int, int, int, int]:
    """Top, bottom, left, right of the rectangle with the largest sum; everything where no value is above 0."""
    rows, columns = values.shape
    if values.max() <= 0:
        return 0, rows, 0, columns
    total = np.zeros((rows + 1, columns + 1))
    total[1:, 1:] = values.cumsum(0).cumsum(1)
    tops, bottoms = np.triu_indices(rows + 1, 1)
    bands = total[bottoms] - total[tops]  # [pairs of rows, columns + 1]: running sums along the band
    lowest = np.minimum.accumulate(bands, axis=1)
    best = bands - lowest
    band, right = np.unravel_index(int(best.argmax()), best.shape)
    left = int(np.argmin(bands[band, : right + 1]))
    return int(tops[band]), int(bottoms[band]), left, int(right)
