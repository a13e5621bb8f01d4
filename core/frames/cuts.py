"""Cuts and repeated frames, seen on thumbnails of 64 x 36 pixels: what neighbouring frames are to each other."""

from enum import Enum

import torch
import torch.nn.functional as F
from torch import Tensor

WIDE, HIGH = 64, 36
CUT = 0.34  # changed share of the colours, and share of the pattern that no motion explains, together
REPEAT = 0.002  # mean difference of values in 0..1, the most that compression makes of one picture
REPEAT_SPOT = 0.03  # the same for the pixel that differs most: a small thing that moves is no repeat
STEADY = 0.1  # change of a mean colour that is no other scene
REACH = (12, 8)  # pixels of the thumbnail that a part of the picture may move between two frames
EVEN = 0.01  # mean contrast below which a picture has no pattern
BLOCK = 9  # pixels of the thumbnail


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
    # A cut shows other colours, or the same colours in an order that no motion leads to. The search for a motion is
    # left out where its result, between nothing and the plain difference, cannot turn the verdict.
    left = CUT - colour_change(first, second)
    if left < 0 or _unmoved(first, second) <= left:
        return Change.CUT if left < 0 else Change.MOTION
    return Change.CUT if pattern_change(first, second) > left else Change.MOTION


def is_cut(first: Tensor, second: Tensor) -> bool:
    """Whether two frames [C, H, W] in 0..1 belong to different shots."""
    return change_between(thumbnail(first), thumbnail(second)) is Change.CUT


def is_repeat(first: Tensor, second: Tensor) -> bool:
    """Whether two frames [C, H, W] in 0..1 show one picture twice."""
    return change_between(thumbnail(first), thumbnail(second)) is Change.REPEAT


def colour_change(first: Tensor, second: Tensor) -> float:
    """Share of the colour histogram that is not common to two thumbnails (Swain and Ballard 1991), 0..1."""
    means = [t.mean((1, 2), keepdim=True) for t in (first, second)]
    drift = (means[0] - means[1]).clamp(-STEADY, STEADY)  # lamps flicker and cameras expose anew within a shot
    return (1 - torch.minimum(_histogram(first), _histogram(second + drift)).sum()).item()


def _histogram(thumb: Tensor) -> Tensor:
    bins = (thumb.clamp(0, 1) * 7.999).long().flatten(1)
    counts = torch.bincount((bins[0] * 8 + bins[1]) * 8 + bins[2], minlength=512).float().view(1, 1, 8, 8, 8)
    # Neighbouring bins share, or a slow fade across a bin's edge would count as a cut.
    share = torch.tensor([0.25, 0.5, 0.25])
    kernel = (share[:, None, None] * share[:, None] * share)[None, None]
    smooth = F.conv3d(F.pad(counts, (1,) * 6, mode="replicate"), kernel)
    return (smooth / smooth.sum()).flatten()


def pattern_change(first: Tensor, second: Tensor) -> float:
    """Share of a thumbnail's contrast that no shift of its parts leads to from the other, 0..1."""
    a, b = _flattened(first), _flattened(second)
    return min(_left_over(a, b), _left_over(b, a)) / _contrast(a, b) / 2


def _unmoved(first: Tensor, second: Tensor) -> float:
    """The same share when nothing may shift."""
    a, b = _flattened(first), _flattened(second)
    return (a - b).abs().mean().item() / _contrast(a, b) / 2


def _contrast(a: Tensor, b: Tensor) -> float:
    """Mean contrast of two patterns; an even picture has hardly one to lose."""
    return max((a.abs().mean() + b.abs().mean()).item() / 2, EVEN)


def _flattened(thumb: Tensor) -> Tensor:
    """Brightness without its mean, [1, 1, 36, 64]: a flash is no other pattern."""
    grey = thumb.mean(0)
    return (grey - grey.mean())[None, None]


def _left_over(a: Tensor, b: Tensor) -> float:
    """Mean difference when every block of one takes its best place in the other."""
    across, down = REACH
    padded = F.pad(b, (across, across, down, down), mode="replicate")
    views = padded.unfold(2, HIGH, 1).unfold(3, WIDE, 1).reshape(-1, 1, HIGH, WIDE)
    costs = F.avg_pool2d((views - a).abs(), BLOCK, BLOCK, ceil_mode=True)
    return costs.min(0).values.mean().item()
