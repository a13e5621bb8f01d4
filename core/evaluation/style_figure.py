"""The style figure: how far pictures have moved from a base towards a target style, without any weights.

A picture is described by its colour moments and by the energy of oriented edges at three scales, which is where brush
strokes, grain and flatness live. Differences are counted in the spread of the two sets. The figure is the place on the
line from the base's mean (0) to the target's mean (1).
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..dataset.folder import open_picture
from ..images import fit_to, to_tensor

SCALES = (2, 4, 8)  # pixels averaged before edges are taken; single pixels are noise and compression
ORIENTATIONS = 4
SHRINK = 0.2  # share of the identity in the covariance
FLAT = 0.01  # change of luma per step below which a surface counts as flat


def describe(pictures: Tensor) -> Tensor:
    """Style features of pictures.

    pictures  [B, 3, H, W] in 0..1
    ->        [B, 18] float32: mean and deviation of luma and two colour differences, then log edge energies
    """
    red, green, blue = pictures.float().unbind(1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    planes = torch.stack([luma, red - green, (red + green) / 2 - blue], 1)
    colors = torch.cat([planes.mean((2, 3)), planes.std((2, 3))], 1)
    edges = []
    for scale in SCALES:
        small = F.avg_pool2d(luma[:, None], scale) if scale > 1 else luma[:, None]
        gx, gy = small[..., 1:-1, 2:] - small[..., 1:-1, :-2], small[..., 2:, 1:-1] - small[..., :-2, 1:-1]
        for k in range(ORIENTATIONS):
            angle = torch.tensor(k * torch.pi / ORIENTATIONS)
            along = gx * angle.cos() + gy * angle.sin()
            # The median edge is the surface's, not that of the few outlines.
            edges.append(along.abs().flatten(1).quantile(0.6, 1))
    return torch.cat([colors, torch.stack(edges, 1).add(FLAT).log()], 1)


def describe_files(files: Sequence[Path], size: tuple[int, int]) -> Tensor:
    """Style features of pictures on disk, fitted to a width and height and opened one at a time, [B, 18]."""
    return torch.cat([describe(to_tensor(fit_to(open_picture(f), *size))[None]) for f in files])


def style_position(pictures: Tensor, base: Tensor, target: Tensor) -> Tensor:
    """Where pictures stand between two sets: on Fisher's discriminant, which weighs down what varies within the sets.

    The covariance within the sets is shrunk towards its diagonal (Ledoit and Wolf 2004, with a fixed share), so that
    a few dozen pictures are enough.

    pictures, base, target  [B, 18], [N, 18], [M, 18] from describe
    ->                      [B]; 0 is the base's mean, 1 the target's
    """
    within = torch.cat([base - base.mean(0), target - target.mean(0)])
    spread = within.std(0).clamp(min=1e-3)
    within, apart = within / spread, (target.mean(0) - base.mean(0)) / spread
    covariance = torch.lerp(within.T @ within / len(within), torch.eye(len(spread), device=spread.device), SHRINK)
    axis = torch.linalg.solve(covariance, apart)
    length = (apart @ axis).clamp(min=1e-12)
    return ((pictures - base.mean(0)) / spread) @ axis / length
