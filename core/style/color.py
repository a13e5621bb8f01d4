"""Colour transfer: pictures and clips take the palette of another picture.

A map of colours is fitted to statistics and then applied pixel by pixel, so that one map can serve a whole shot and
can be written as a lookup table (`lut.py`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from ..errors import AtelierError
from ..options import Options
from .statistics import Moments, histograms, lab_to_rgb, moments, pool, rgb_to_lab, tone_curve

Method = Literal["mkl", "reinhard", "histogram"]
QUANTISED = 1 / 255**2 / 12  # variance of rounding to 8 bits: less than that is no colour
MOST_GAIN = 8.0  # more would show 8-bit steps and compression
FLAT, FULL = 1 / 255, 6 / 255  # deviation below which a picture is left alone, and from which it is fully changed
KNOTS = 33  # of a tone curve: those of a .cube of 33, which is then exact
SIZES = (2, 256)  # entries along an axis of a table, as .cube allows


class ColorOptions(Options):
    """How pictures take the colours of a reference."""

    method: Method = Field(
        "mkl",
        description="mkl: the linear map between two clouds of colours; reinhard: mean and deviation in Lab; "
        "histogram: each channel's histogram.",
    )
    strength: float = Field(1.0, ge=0, le=1, description="0 leaves the pictures, 1 transfers fully.")


class ColorMap(Protocol):
    """A map of colours: [B, 3, H, W] in 0..1 -> [B, 3, H, W], which may leave 0..1."""

    def __call__(self, pictures: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class LinearMap:
    """A matrix and an offset in sRGB, [3, 3] and [3]."""

    matrix: Tensor
    offset: Tensor

    def __call__(self, pictures: Tensor) -> Tensor:
        matrix, offset = self.matrix.to(pictures), self.offset.to(pictures)
        flat = pictures.flatten(2)
        return torch.baddbmm(offset[None, :, None], matrix.expand(len(flat), -1, -1), flat).view_as(pictures)

    def weakened(self, strength: float) -> "LinearMap":
        """The map mixed with leaving colours as they are: as cheap as the map itself."""
        still = torch.eye(3, dtype=self.matrix.dtype, device=self.matrix.device)
        return LinearMap(torch.lerp(still, self.matrix, strength), self.offset * strength)


@dataclass(frozen=True)
class LabMap:
    """A gain and an offset of each of L, a and b; [3] and [3]."""

    gain: Tensor
    offset: Tensor

    def __call__(self, pictures: Tensor) -> Tensor:
        gain, offset = (t.to(pictures)[:, None, None] for t in (self.gain, self.offset))
        return lab_to_rgb(rgb_to_lab(pictures) * gain + offset)


@dataclass(frozen=True)
class CurveMap:
    """A tone curve for each channel, [3, KNOTS] values at even steps from 0 to 1, straight between them."""

    curves: Tensor

    def __call__(self, pictures: Tensor) -> Tensor:
        curves = self.curves.to(pictures)
        place = pictures.clamp(0, 1) * (curves.shape[1] - 1)
        left = place.long().clamp(max=curves.shape[1] - 2)
        planes = []
        for curve, at, below in zip(curves, place.unbind(1), left.unbind(1), strict=True):
            planes.append(torch.lerp(curve[below], curve[below + 1], at - below))
        return torch.stack(planes, 1)


@dataclass(frozen=True)
class TableMap:
    """A colour map by a table, [S, S, S, 3] at even steps over blue, green and red, linear between them.

    low, high  [3], the colours of the table's first and last entry
    """

    table: Tensor
    low: tuple[float, float, float] = (0.0, 0.0, 0.0)
    high: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __call__(self, pictures: Tensor) -> Tensor:
        low, high = (pictures.new_tensor(v)[:, None, None] for v in (self.low, self.high))
        place = ((pictures - low) / (high - low) * 2 - 1).permute(0, 2, 3, 1)[:, None]
        volume = self.table.to(pictures).permute(3, 0, 1, 2).expand(len(pictures), -1, -1, -1, -1)
        return F.grid_sample(volume, place, "bilinear", "border", align_corners=True)[:, :, 0]


@dataclass(frozen=True)
class Still:
    """The map that changes nothing: there was no palette to take or to give."""

    def __call__(self, pictures: Tensor) -> Tensor:
        return pictures


def transfer_color(
    pictures: Tensor, reference: Tensor, strength: float = 1.0, method: Method = "mkl", mask: Tensor | None = None
) -> Tensor:
    """Give pictures the palette of a reference, by one map for the whole batch, so a clip does not flicker.

    A flat picture (a white or black frame) stays as it is and has no part in the statistics; nothing is taken from
    a flat reference.

    pictures   [B, 3, H, W] in 0..1
    reference  [3, H, W] or [N, 3, H, W] in 0..1
    strength   0 leaves the pictures as they are, 1 is the full transfer
    method     as in ColorOptions
    mask       [B or 1, 1, H, W] in 0..1, where colours are taken from and changed
    ->         [B, 3, H, W] in 0..1
    Raises AtelierError for a strength outside 0..1.
    """
    if not 0 <= strength <= 1:
        raise AtelierError(f"The strength is {strength}. Choose a value from 0 to 1.")
    if strength == 0:
        return pictures
    own = moments(pictures, mask)
    return _apply(_fit(pictures, own, reference, method, mask), pictures, strength * colorful(own), mask)


def transfer_shots(
    pictures: Tensor, reference: Tensor, options: ColorOptions, cuts: Sequence[int] = (), mask: Tensor | None = None
) -> Tensor:
    """Give a clip the palette of a reference, with one map for each shot.

    cuts  numbers of the frames that begin a new shot
    The rest as in transfer_color.
    """
    parts = []
    for start, end in shots_between(cuts, len(pictures)):
        own = mask if mask is None or len(mask) == 1 else mask[start:end]
        parts.append(transfer_color(pictures[start:end], reference, options.strength, options.method, own))
    return torch.cat(parts) if parts else pictures


def shots_between(cuts: Sequence[int], count: int) -> Iterator[tuple[int, int]]:
    """First frame, and the one after the last, of each shot; cuts are frames that begin a new one."""
    edges = [0, *sorted({c for c in cuts if 0 < c < count}), count]
    return ((a, b) for a, b in pairwise(edges) if a < b)


def fit_map(pictures: Tensor, reference: Tensor, method: Method = "mkl", mask: Tensor | None = None) -> ColorMap:
    """Fit the map that brings the colours of pictures to those of a reference; arguments as in transfer_color."""
    return _fit(pictures, moments(pictures, mask), reference, method, mask)


def _fit(pictures: Tensor, own: Moments, reference: Tensor, method: Method, mask: Tensor | None) -> ColorMap:
    reference = reference if reference.ndim == 4 else reference[None]
    wanted = moments(reference)
    share = colorful(own)
    if not share.any() or not colorful(pool(wanted)).any():
        return Still()
    if method == "histogram":
        counted = share.to(pictures)[:, None, None, None] * (1.0 if mask is None else mask)
        counted = counted.expand(-1, 1, *pictures.shape[-2:])
        pairs = zip(histograms(pictures, counted), histograms(reference), strict=True)
        return CurveMap(torch.stack([tone_curve(ours, theirs, KNOTS) for ours, theirs in pairs]))
    if method == "reinhard":
        # The table is the map: three powers a pixel cost more, and a .cube file says the same.
        return tabulate(_reinhard(pool(moments(_lab(pictures), mask), share), pool(moments(_lab(reference)))))
    (_, mean_s, source), (_, mean_t, target) = pool(own, share), pool(wanted)
    floor = QUANTISED * torch.eye(3, dtype=source.dtype, device=source.device)
    matrix = limited(monge_kantorovitch(source[0] + floor, target[0] + floor))
    return LinearMap(matrix, mean_t[0] - matrix @ mean_s[0])


def _lab(pictures: Tensor) -> Tensor:
    return rgb_to_lab(torch.nan_to_num(pictures.float(), nan=0.0, posinf=1.0, neginf=0.0))


def _reinhard(own: Moments, wanted: Moments) -> LabMap:
    """Mean and deviation of L, a and b (Reinhard et al. 2001, in CIELAB)."""
    floor = QUANTISED * 100**2
    deviations = [(m.covariance[0].diagonal().clamp(min=0) + floor).sqrt() for m in (own, wanted)]
    gain = (deviations[1] / deviations[0]).clamp(max=MOST_GAIN)
    return LabMap(gain, wanted.mean[0] - gain * own.mean[0])


def tabulate(fitted: ColorMap, size: int = 33, strength: float = 1.0) -> TableMap:
    """Make a table of a colour map.

    Entries may leave 0..1: cut before the interpolation, they would bend colours near the gamut's walls.

    size      entries along each axis, 2 to 256
    strength  0 is the table that changes nothing
    Raises AtelierError for another size.
    """
    if not SIZES[0] <= size <= SIZES[1]:
        raise AtelierError(f"The size of the table is {size}. Choose {SIZES[0]} to {SIZES[1]}.")
    steps = torch.linspace(0, 1, size)
    blue, green, red = torch.meshgrid(steps, steps, steps, indexing="ij")
    lattice = torch.stack([red, green, blue]).reshape(1, 3, 1, -1)
    mapped = torch.lerp(lattice, fitted(lattice), strength)
    return TableMap(mapped.reshape(3, size, size, size).permute(1, 2, 3, 0).contiguous())


def apply_map(fitted: ColorMap, pictures: Tensor, strength: float = 1.0, mask: Tensor | None = None) -> Tensor:
    """Apply a map of colours; flat pictures stay as they are, and nearly flat ones are changed little.

    ->  [B, 3, H, W] in 0..1
    """
    return _apply(fitted, pictures, strength * colorful(moments(pictures, mask)), mask)


def _apply(fitted: ColorMap, pictures: Tensor, share: Tensor, mask: Tensor | None) -> Tensor:
    """Apply a map by a share of each picture, [B] in 0..1."""
    if isinstance(fitted, Still) or not share.any():
        return pictures
    if mask is None and isinstance(fitted, LinearMap) and len(set(share.tolist())) == 1:
        return fitted.weakened(share[0].item())(pictures.float()).clamp_(0, 1).to(pictures.dtype)
    amount = share.to(pictures.device, torch.float32)[:, None, None, None]
    amount = amount if mask is None else amount * mask.to(amount)
    source = pictures.float()
    mixed = torch.lerp(source, fitted(source), amount.expand_as(source)).clamp_(0, 1)
    return torch.where(amount > 0, mixed, source).to(pictures.dtype)


def colorful(found: Moments) -> Tensor:
    """How far pictures are from flat, [B] in 0..1 float64; between the two it rises smoothly, so a fade does not jump."""
    deviation = (found.covariance.diagonal(dim1=1, dim2=2).sum(1) / 3).clamp(min=0).sqrt()
    rising = ((deviation - FLAT) / (FULL - FLAT)).clamp(0, 1)
    return rising * rising * (3 - 2 * rising)


def monge_kantorovitch(source: Tensor, target: Tensor) -> Tensor:
    """The symmetric matrix T with T source T = target, for two [3, 3] covariances (Pitie and Kokaram 2007)."""
    root = _power(source, 0.5)
    back = _power(source, -0.5)
    return back @ _power(root @ target @ root, 0.5) @ back


def limited(matrix: Tensor) -> Tensor:
    """A symmetric positive matrix whose gains are at most MOST_GAIN."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(0, MOST_GAIN)) @ vectors.T


def _power(matrix: Tensor, exponent: float) -> Tensor:
    """A power of a symmetric positive matrix; directions without variance stay zero."""
    values, vectors = torch.linalg.eigh(matrix)
    floor = max(values[-1].item() * 1e-7, 1e-12)
    powered = torch.where(values > floor, values.clamp(min=floor) ** exponent, 0)
    return (vectors * powered) @ vectors.T
