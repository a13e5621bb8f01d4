"""Cuts and repeated frames, seen on thumbnails of 64 x 36 pixels: what neighbouring frames are to each other."""

from enum import Enum

import torch
import torch.nn.functional as F
from torch import Tensor

from .flow import soften

WIDE, HIGH = 64, 36
CUT = 0.44  # share of the pattern that no motion explains, and a part of the changed share of the colours, together
COLOURS = 0.4  # that part; where there is no pattern, colours count whole
REPEAT = 0.002  # mean difference of values in 0..1, the most that compression makes of one picture
REPEAT_SPOT = 0.03  # the same for the pixel that differs most: a small thing that moves is no repeat
STEADY = 0.1  # change of a mean colour that is no other scene
FLASH = 0.5  # brightness that a light may add from one frame to the next
GAIN = (0.4, 2.5)  # times that contrast and brightness may fall or grow from one frame to the next
REACH = (12, 8)  # pixels of the thumbnail that a part of the picture may move between two frames
FAINT = 4e-5  # variance of a block, as of noise, below which it has no pattern
BLOCK = 12  # pixels of the thumbnail


class Change(Enum):
    """What the second of two frames is to the first."""

    MOTION = "motion"
    CUT = "cut"
    REPEAT = "repeat"


def thumbnail(frame: Tensor) -> Tensor:
    """Shrink a frame to what changes are judged on.

    frame  [C, H, W] in 0..1
    ->     [3, 36, 64] on the CPU
    """
    colour = frame[:3] if frame.shape[0] > 2 else frame[:1].expand(3, -1, -1)
    return F.interpolate(colour[None].float(), (HIGH, WIDE), mode="area")[0].cpu()


def change_between(first: Tensor, second: Tensor) -> Change:
    """Judge two thumbnails, [3, 36, 64] each."""
    difference = (first - second).abs()
    if difference.mean() <= REPEAT and difference.max() <= REPEAT_SPOT:
        return Change.REPEAT
    # A cut shows a pattern that no motion and no lamp leads to; its colours may be the same.
    a, b = _pattern(first), _pattern(second)
    contrast = (_variance(a).mean() + _variance(b).mean()).item() / 2
    even = FAINT / (contrast + FAINT)
    left = CUT - (COLOURS + (1 - COLOURS) * even) * colour_change(first, second)
    # The search for a motion is left out where its result, at most that of no motion, cannot turn the verdict.
    if left < 0 or _unexplained(a, b, (0, 0)) <= left:
        return Change.CUT if left < 0 else Change.MOTION
    return Change.CUT if _unexplained(a, b, REACH) > left else Change.MOTION


def is_cut(first: Tensor, second: Tensor) -> bool:
    """Whether two frames [C, H, W] in 0..1 belong to different shots."""
    return change_between(thumbnail(first), thumbnail(second)) is Change.CUT


def is_repeat(first: Tensor, second: Tensor) -> bool:
    """Whether two frames [C, H, W] in 0..1 show one picture twice."""
    return change_between(thumbnail(first), thumbnail(second)) is Change.REPEAT


def colour_change(first: Tensor, second: Tensor) -> float:
    """Share of the colour histogram that is not common to two thumbnails (Swain and Ballard 1991), 0..1.

    What a lamp, a flash, a fade or another exposure does to all pixels alike is taken out first.
    """
    means = [t.mean((1, 2), keepdim=True) for t in (first, second)]
    drift = (means[0] - means[1]).clamp(-STEADY, STEADY)
    light = (means[0].mean() - means[1].mean()).clamp(-FLASH, FLASH)
    gain = (means[0].mean() + 0.02) / (means[1].mean() + 0.02)  # of black, next to nothing is multiplied
    pairs = (
        (first, second + drift),
        (first, second + light),
        (first - light, second),
        (first, second * gain.clamp(*GAIN)),
        (first * (1 / gain).clamp(*GAIN), second),
    )
    return min((1 - torch.minimum(_histogram(a), _histogram(b)).sum()).item() for a, b in pairs)


def _histogram(thumb: Tensor) -> Tensor:
    bins = (thumb.clamp(0, 1) * 7.999).long().flatten(1)
    counts = torch.bincount((bins[0] * 8 + bins[1]) * 8 + bins[2], minlength=512).float().view(1, 1, 8, 8, 8)
    # Neighbouring bins share, or a slow fade across a bin's edge would count as a cut.
    share = torch.tensor([0.25, 0.5, 0.25])
    kernel = (share[:, None, None] * share[:, None] * share)[None, None]
    smooth = F.conv3d(F.pad(counts, (1,) * 6, mode="replicate"), kernel)
    return (smooth / smooth.sum()).flatten()


def pattern_change(first: Tensor, second: Tensor) -> float:
    """Share of the contrast of two thumbnails that no shift of parts and no other light explains from the other, 0..1."""
    return _unexplained(_pattern(first), _pattern(second), REACH)


def _pattern(thumb: Tensor) -> Tensor:
    """Brightness [1, 1, 36, 64], a little soft: detail between two pixels differs at every motion."""
    return soften(thumb.mean(0)[None, None], 5, 0.7)


def _unexplained(a: Tensor, b: Tensor, reach: tuple[int, int]) -> float:
    return (_left_over(a, b, reach) + _left_over(b, a, reach)) / 2


def _left_over(a: Tensor, b: Tensor, reach: tuple[int, int]) -> float:
    """Share of a pattern's variance when the other explains every block from its best place, brightness and contrast."""
    across, down = reach
    padded = F.pad(b, (across, across, down, down), mode="replicate")
    views = padded.unfold(2, HIGH, 1).unfold(3, WIDE, 1).reshape(-1, 1, HIGH, WIDE)
    wanted, means = _variance(a), _mean(views)
    common, given = _mean(views * a) - means * _mean(a), _mean(views * views) - means * means
    gain = (common / (given.clamp(min=0) + 1e-6)).clamp(*GAIN)
    left = torch.minimum(wanted - 2 * gain * common + gain.square() * given, wanted).amin(0, keepdim=True)
    return (left.clamp(min=0).sum() / (wanted + FAINT).sum()).item()


def _mean(patterns: Tensor) -> Tensor:
    """Of every block, [B, 1, 3, 6]."""
    return F.avg_pool2d(patterns, BLOCK, BLOCK, ceil_mode=True)


def _variance(patterns: Tensor) -> Tensor:
    return (_mean(patterns.square()) - _mean(patterns).square()).clamp(min=0)
