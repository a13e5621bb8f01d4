"""Colour transfer: pictures and clips take the palette of another picture.

A map of colours is fitted to statistics and then applied pixel by pixel, so that one map can serve a whole shot and
can be written as a lookup table (`lut.py`).
"""

from collections.abc import Callable, Iterator, Sequence
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
SIZES = (2, 129)  # entries along an axis of a table: .cube allows 256, whose file has half a gigabyte
Pictures = Tensor | Sequence[Tensor]  # [B, 3, H, W] in 0..1, or [3, H, W] each of a size of its own
Seen = Callable[[], None]  # called after each picture that was measured or changed


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
    pictures: Tensor,
    reference: Tensor,
    strength: float = 1.0,
    method: Method = "mkl",
    mask: Tensor | None = None,
    reference_mask: Tensor | None = None,
) -> Tensor:
    """Give pictures the palette of a reference, by one map for the whole batch, so a clip does not flicker.

    A flat picture (a white or black frame) stays as it is and has no part in the statistics; nothing is taken from
    a flat reference.

    pictures        [B, 3, H, W] in 0..1
    reference       [3, H, W] or [N, 3, H, W] in 0..1
    strength        0 leaves the pictures as they are, 1 is the full transfer
    method          as in ColorOptions
    mask            [B or 1, 1, H, W] in 0..1, where colours are taken from and changed
    reference_mask  [N or 1, 1, H, W] in 0..1, what of the reference counts
    ->              [B, 3, H, W] in 0..1
    Raises AtelierError for a strength outside 0..1.
    """
    if not 0 <= strength <= 1:
        raise AtelierError(f"The strength is {strength}. Choose a value from 0 to 1.")
    if strength == 0:
        return pictures
    own = _measured(pictures, mask)
    fitted = _fit(pictures, own, Wanted(reference, method, reference_mask), mask)
    return _apply(fitted, pictures, strength * colorful(own), mask)


def transfer_shots(
    pictures: Tensor,
    reference: Tensor,
    options: ColorOptions,
    cuts: Sequence[int] = (),
    mask: Tensor | None = None,
    seen: Seen | None = None,
) -> Tensor:
    """Give a clip the palette of a reference, with one map for each shot.

    cuts  numbers of the frames that begin a new shot
    seen  called twice for each picture: when it was measured and when it was changed
    The rest as in transfer_color.
    """
    if options.strength == 0 or not len(pictures):
        return pictures
    parts, wanted = [], Wanted(reference, options.method)
    for start, end in shots_between(cuts, len(pictures)):
        shot, where = pictures[start:end], mask if mask is None or len(mask) == 1 else mask[start:end]
        own = _measured(shot, where, seen)
        parts.append(_apply(_fit(shot, own, wanted, where), shot, options.strength * colorful(own), where, seen))
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def shots_between(cuts: Sequence[int], count: int) -> Iterator[tuple[int, int]]:
    """First frame, and the one after the last, of each shot; cuts are frames that begin a new one."""
    edges = [0, *sorted({c for c in cuts if 0 < c < count}), count]
    return ((a, b) for a, b in pairwise(edges) if a < b)


@dataclass(frozen=True)
class Wanted:
    """The colours that pictures shall get: those of a reference, by a method, where the reference's mask is white."""

    reference: Tensor
    method: Method = "mkl"
    mask: Tensor | None = None

    @property
    def pictures(self) -> Tensor:
        return self.reference if self.reference.ndim == 4 else self.reference[None]


def fit_map(
    pictures: Pictures, reference: Tensor, method: Method = "mkl", mask: Tensor | None = None, seen: Seen | None = None
) -> ColorMap:
    """Fit the map that brings the colours of pictures to those of a reference; arguments as in transfer_color.

    pictures  a batch, or pictures of any sizes (then without a mask), which are looked at one after another
    seen      called when a picture was measured
    """
    return _fit(pictures, _measured(pictures, mask, seen), Wanted(reference, method), mask)


def _fit(pictures: Pictures, own: Moments, wanted: Wanted, mask: Tensor | None) -> ColorMap:
    theirs = _measured(wanted.pictures, wanted.mask)
    share = colorful(own)
    if not share.any() or not colorful(pool(theirs)).any():
        return Still()
    if wanted.method == "histogram":
        pairs = zip(_tones(pictures, mask, share), _tones(wanted.pictures, wanted.mask), strict=True)
        return CurveMap(torch.stack([tone_curve(mine, other, KNOTS) for mine, other in pairs]))
    if wanted.method == "reinhard":
        # The table is the map: three powers a pixel cost more, and a .cube file says the same.
        seen = pool(_joined(moments(_lab(p), m) for p, m in _rows(pictures, mask)), share)
        return tabulate(
            _reinhard(seen, pool(_joined(moments(_lab(p), m) for p, m in _rows(wanted.pictures, wanted.mask))))
        )
    (_, mean_s, source), (_, mean_t, target) = pool(own, share), pool(theirs)
    floor = QUANTISED * torch.eye(3, dtype=source.dtype, device=source.device)
    matrix = limited(monge_kantorovitch(source[0] + floor, target[0] + floor))
    return LinearMap(matrix, mean_t[0] - matrix @ mean_s[0])


def _rows(pictures: Pictures, mask: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Pictures one at a time with their masks, [1, 3, H, W] and [1, 1, H, W]: a clip is larger than what it leaves free."""
    for number, picture in enumerate(pictures):
        yield picture[None], None if mask is None else mask[number : number + 1] if len(mask) > 1 else mask


def _joined(found: Iterator[Moments]) -> Moments:
    return Moments(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def _measured(pictures: Pictures, mask: Tensor | None, seen: Seen | None = None) -> Moments:
    found = []
    for picture, where in _rows(pictures, mask):
        found.append(moments(picture, where))
        if seen:
            seen()
    return _joined(iter(found))


def _tones(pictures: Pictures, mask: Tensor | None, share: Tensor | None = None) -> Tensor:
    """The channels' histograms of pictures together, [3, LEVELS]; share [B] is how much each counts."""
    total, weight = torch.zeros((), dtype=torch.float64), 1e-9
    for number, (picture, where) in enumerate(_rows(pictures, mask)):
        pixels = picture.shape[-2] * picture.shape[-1] if where is None else where.sum().item()
        part = pixels if share is None else pixels * share[number].item()
        if part:
            total, weight = total + part * histograms(picture, where).cpu(), weight + part
    return total / weight


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

    size      entries along each axis, 2 to 129
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


def apply_map(
    fitted: ColorMap, pictures: Tensor, strength: float = 1.0, mask: Tensor | None = None, seen: Seen | None = None
) -> Tensor:
    """Apply a map to every colour, as programs apply a .cube: those of flat pictures too.

    seen  called when a picture was changed
    ->    [B, 3, H, W] in 0..1
    """
    return _apply(fitted, pictures, torch.full((len(pictures),), strength), mask, seen)


def _apply(fitted: ColorMap, pictures: Tensor, share: Tensor, mask: Tensor | None, seen: Seen | None = None) -> Tensor:
    """Apply a map by a share of each picture, [B] in 0..1."""
    out = None
    for number, (picture, where) in enumerate(_rows(pictures, mask)):
        made = _mapped(fitted, picture, share[number].item(), where).to(pictures.dtype)
        if seen:
            seen()
        if len(pictures) == 1:
            return made
        out = torch.empty_like(pictures) if out is None else out
        out[number] = made[0]
    return pictures if out is None else out


def _mapped(fitted: ColorMap, picture: Tensor, share: float, mask: Tensor | None) -> Tensor:
    if isinstance(fitted, Still) or not share:
        return picture
    source = picture.float()
    if mask is None and isinstance(fitted, LinearMap):
        return fitted.weakened(share)(source).clamp_(0, 1)
    if mask is None:
        return torch.lerp(source, fitted(source), share).clamp_(0, 1)
    amount = share * mask.to(source)
    return torch.where(amount > 0, torch.lerp(source, fitted(source), amount.expand_as(source)).clamp_(0, 1), source)


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
