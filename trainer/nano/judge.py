"""A pixel rule that reads shape, colour and background off a picture of a scene.

Every pixel takes the name of the nearest palette colour; the frame's most common name is the background; the largest
other patch of one name is the shape, named by the outline that overlaps it best. It knows nothing of prompts.
"""

from functools import cache

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from . import scenes

NAMES = tuple(scenes.COLORS)
TONES = np.array([scenes.COLORS[n] for n in NAMES] + [scenes.second_tone(n) for n in NAMES], dtype=np.float32)
SMALLEST = 60  # pixels; a patch below this is no shape


def read_scene(picture: Tensor, shapes: tuple[str, ...] = scenes.SHAPES) -> tuple[str | None, str | None, str]:
    """Name the shape, its colour and the background's colour; None where no shape is found.

    picture  [3, H, W] in 0..1, scaled to 64 pixels first
    shapes   the shapes to choose from
    """
    names = name_pixels(picture)
    frame = np.concatenate([names[:3].ravel(), names[-3:].ravel(), names[:, :3].ravel(), names[:, -3:].ravel()])
    background = np.bincount(frame, minlength=len(NAMES)).argmax()
    best, best_size = None, SMALLEST
    for color in range(len(NAMES)):
        if color == background:
            continue
        patch, size = largest_patch(names == color)
        if size > best_size:
            best, best_size = (color, patch), size
    if best is None:
        return None, None, NAMES[background]
    return name_outline(best[1], shapes), NAMES[best[0]], NAMES[background]


def content_right(picture: Tensor, scene: scenes.Scene) -> bool:
    """Whether a picture shows the prompt's shape in the prompt's colour."""
    shapes = (*scenes.SHAPES, scenes.SUBJECT) if scene.shape == scenes.SUBJECT else scenes.SHAPES
    return read_scene(picture, shapes)[:2] == (scene.shape, scene.color)


def name_pixels(picture: Tensor) -> np.ndarray:
    """Palette index of every pixel, each the most common of its 3x3 neighbours, [64, 64] int."""
    small = torch.nn.functional.interpolate(picture[None].float(), (scenes.SIDE, scenes.SIDE), mode="area")[0]
    smooth = ndimage.uniform_filter(small.clamp(0, 1).numpy() * 255, (0, 3, 3))
    distance = ((smooth.transpose(1, 2, 0)[:, :, None] - TONES) ** 2).sum(-1)
    nearest = distance.argmin(-1) % len(NAMES)
    votes = np.stack([ndimage.uniform_filter((nearest == i).astype(np.float32), 3) for i in range(len(NAMES))])
    return votes.argmax(0)


def largest_patch(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """The largest connected part of a mask, and its number of pixels."""
    parts, count = ndimage.label(mask)
    if count == 0:
        return mask, 0
    sizes = np.bincount(parts.ravel())[1:]
    return parts == sizes.argmax() + 1, int(sizes.max())


def name_outline(patch: np.ndarray, shapes: tuple[str, ...] = scenes.SHAPES) -> str:
    """The shape whose outline, with the patch's area and centre of mass, overlaps it best."""
    rows, columns = np.nonzero(patch)
    mask = torch.from_numpy(patch)
    overlap = {}
    for shape in shapes:
        area, middle = unit_shapes()[shape]
        for scale in (0.95, 1.0, 1.05):
            radius = torch.tensor(scale * (len(rows) / area) ** 0.5)
            y, x = torch.meshgrid(torch.arange(patch.shape[0]), torch.arange(patch.shape[1]), indexing="ij")
            distance = scenes.shape_distance(shape, x - columns.mean(), y - rows.mean() + middle * radius, radius)
            shared = ((distance < 0) & mask).sum() / ((distance < 0) | mask).sum()
            overlap[shape] = max(overlap.get(shape, 0.0), shared.item())
    return max(overlap, key=overlap.get)


@cache
def unit_shapes() -> dict[str, tuple[float, float]]:
    """Area and height of the centre of mass (downwards) of every shape of radius 1."""
    axis = torch.linspace(-1.2, 1.2, 481)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    found = {}
    for shape in (*scenes.SHAPES, scenes.SUBJECT):
        inside = scenes.shape_distance(shape, x, y, torch.tensor(1.0)) < 0
        found[shape] = (inside.sum().item() * 0.005**2, y[inside].mean().item())
    return found
