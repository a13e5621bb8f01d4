"""Statistics of colours: CIELAB, means and covariances of many pictures at once, and tone curves from histograms."""

from typing import NamedTuple

import torch
from torch import Tensor

TO_XYZ = ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750), (0.0193339, 0.1191920, 0.9503041))
PIVOT = 0.5  # taken off before squares are summed: float32 keeps more digits of small numbers
CHUNK = 1 << 16  # pixels summed in float32 before the sum goes on in float64
LEVELS = 1024  # of a histogram, between 0 and 1
BEND = 1e-3  # weight of a tone curve's bends against the pixels it serves


class Moments(NamedTuple):
    """Means and covariances in float64: weight [B], mean [B, 3], covariance [B, 3, 3]."""

    weight: Tensor
    mean: Tensor
    covariance: Tensor


def moments(pictures: Tensor, mask: Tensor | None = None) -> Moments:
    """Measure each picture's mean colour and covariance.

    pictures  [B, 3, H, W]; what is not finite counts as 0
    mask      [B or 1, 1, H, W] in 0..1, how much a pixel counts
    ->        weights are the pixels that counted; all zero where none did
    """
    flat = pictures.float().flatten(2)
    each = None if mask is None else mask.float().expand(len(pictures), -1, -1, -1).flatten(2)
    weight = flat.new_zeros(len(flat), dtype=torch.float64)
    total = weight.new_zeros(len(flat), 3)
    squares = weight.new_zeros(len(flat), 3, 3)
    for start in range(0, flat.shape[2], CHUNK):
        part = torch.nan_to_num(flat[..., start : start + CHUNK], nan=0.0, posinf=1.0, neginf=0.0).sub_(PIVOT)
        counted = None if each is None else each[..., start : start + CHUNK]
        weighted = part if counted is None else part * counted
        weight = weight + (part.shape[2] if counted is None else counted.sum((1, 2)))
        total = total + weighted.sum(2)
        squares = squares + weighted @ part.transpose(1, 2)
    count = weight.clamp(min=1e-9)
    mean = total / count[:, None]
    covariance = squares / count[:, None, None] - mean[:, :, None] * mean[:, None, :]
    return Moments(weight, mean + PIVOT * (weight > 0)[:, None], covariance)


def pool(found: Moments, share: Tensor | None = None) -> Moments:
    """Put several pictures' moments together, as if their pixels lay in one picture.

    share  [B], how much of each picture counts
    ->     a batch of one
    """
    weight = found.weight if share is None else found.weight * share
    part = weight / weight.sum().clamp(min=1e-9)
    mean = (part[:, None] * found.mean).sum(0)
    apart = found.mean - mean
    covariance = (part[:, None, None] * (found.covariance + apart[:, :, None] * apart[:, None, :])).sum(0)
    return Moments(weight.sum()[None], mean[None], covariance[None])


def rgb_to_lab(pictures: Tensor) -> Tensor:
    """sRGB to CIELAB under D65; goes on smoothly outside 0..1.

    pictures  [..., 3, H, W], 0..1 is the gamut
    ->        [..., 3, H, W] L 0..100, a and b about -100..100
    """
    size = pictures.abs()
    linear = torch.where(size <= 0.04045, size / 12.92, ((size + 0.055) / 1.055) ** 2.4).copysign(pictures)
    matrix = torch.tensor(TO_XYZ, dtype=pictures.dtype, device=pictures.device)
    xyz = torch.einsum("ij,...jhw->...ihw", matrix / matrix.sum(1, keepdim=True), linear)
    bent = torch.where(xyz > (6 / 29) ** 3, xyz.clamp(min=1e-6) ** (1 / 3), xyz * (841 / 108) + 4 / 29)
    x, y, z = bent.unbind(-3)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -3)


def lab_to_rgb(lab: Tensor) -> Tensor:
    """CIELAB to sRGB, the way back of rgb_to_lab; colours outside the gamut come outside 0..1."""
    y = (lab.select(-3, 0) + 16) / 116
    bent = torch.stack([y + lab.select(-3, 1) / 500, y, y - lab.select(-3, 2) / 200], -3)
    xyz = torch.where(bent > 6 / 29, bent**3, (bent - 4 / 29) * (108 / 841))
    matrix = torch.tensor(TO_XYZ, dtype=torch.float64)
    back = torch.linalg.inv(matrix / matrix.sum(1, keepdim=True)).to(lab)
    linear = torch.einsum("ij,...jhw->...ihw", back, xyz)
    size = linear.abs()
    curved = torch.where(size <= 0.0031308, size * 12.92, 1.055 * size.clamp(min=1e-6) ** (1 / 2.4) - 0.055)
    return curved.copysign(linear)


def histograms(pictures: Tensor, mask: Tensor | None = None) -> Tensor:
    """Shares of the values of each channel over a batch.

    pictures  [B, 3, H, W] in 0..1
    mask      [B or 1, 1, H, W] in 0..1, how much a pixel counts
    ->        [3, LEVELS] float64, each row's sum is 1
    """
    safe = torch.nan_to_num(pictures.float(), nan=0.0, posinf=1.0, neginf=0.0)
    place = (safe.clamp(0, 1) * (LEVELS - 1)).round().long().transpose(0, 1).flatten(1)
    counted = None if mask is None else mask.double().expand(len(pictures), 1, *pictures.shape[-2:]).flatten()
    rows = torch.stack([torch.bincount(row, counted, minlength=LEVELS) for row in place]).double()
    return rows / rows.sum(1, keepdim=True).clamp(min=1e-9)


def tone_curve(source: Tensor, target: Tensor, knots: int) -> Tensor:
    """The rising curve, straight between evenly spaced knots, that brings one histogram to another.

    Exact matching makes steps and bands; the curve is fitted to it by least squares, weighted by the pixels at each
    level, with a small price on bends.

    source, target  [LEVELS], shares of the levels from 0 to 1
    ->              [knots] values at i / (knots - 1)
    """
    levels = torch.linspace(0, 1, LEVELS, dtype=torch.float64, device=source.device)
    reached = torch.cumsum(source, 0) - source / 2  # the middle of a level's own pixels
    exact = _interpolate(reached, torch.cumsum(target, 0) - target / 2, levels)
    place = levels * (knots - 1)
    hats = (1 - (place[:, None] - torch.arange(knots, device=source.device)).abs()).clamp(min=0)
    bends = torch.diff(torch.eye(knots, dtype=torch.float64, device=source.device), n=2, dim=0)
    # Levels without pixels have a little weight, or the curve would be free there.
    weight = source + 1e-6
    system = hats.T @ (weight[:, None] * hats) + BEND / knots * bends.T @ bends
    return torch.linalg.solve(system, hats.T @ (weight * exact)).cummax(0).values


def _interpolate(at: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Values at places of the straight lines through points; x rises, flat beyond both ends."""
    right = torch.searchsorted(x, at).clamp(1, len(x) - 1)
    left = right - 1
    across = ((at - x[left]) / (x[right] - x[left]).clamp(min=1e-12)).clamp(0, 1)
    return torch.lerp(y[left], y[right], across)
