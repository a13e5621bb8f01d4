"""A frame between two from their flows: what either frame hides is taken from the other, and how sure that is."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .flow import soften, warp

LANDED = 1e-3  # share of a pixel from which motion is known there
HIDDEN = 0.3  # share of a pixel below which a frame does not show it
LOCAL_DOUBT = 0.6  # share of the frames' difference that motion may leave around a pixel
WHOLE_DOUBT = 0.47  # the same share over the whole frame, above which the pair is no motion but, say, a dissolve


@dataclass(frozen=True)
class Synthesis:
    """A frame made from two, and how far its motion is to be trusted.

    frame       [C, H, W]
    confidence  [1, H, W] in 0..1; near 0 where motion explains the pair no better than rest
    """

    frame: Tensor
    confidence: Tensor


def synthesize(first: Tensor, second: Tensor, flows: tuple[Tensor, Tensor], time: float) -> Synthesis:
    """Make one frame from two and their flows.

    Each flow is carried along itself to the wanted time (summation splatting, Niklaus and Liu 2020), which tells
    where in either frame a pixel comes from; what only one frame shows is taken from that one.

    first, second  [C, H, W] in 0..1
    flows          two of [2, H, W] pixels, first to second and second to first
    time           0..1
    """
    forward, backward = flows
    ahead, seen_ahead = splat(forward, forward * time)
    behind, seen_behind = splat(backward, backward * (1 - time))
    # Motion per unit of time at the wanted instant, from whichever side reaches a pixel.
    weight_a, weight_b = (1 - time) * seen_ahead, time * seen_behind
    total = weight_a + weight_b
    motion = (weight_a * ahead - weight_b * behind) / total.clamp(min=LANDED)
    motion = fill(motion, total > LANDED)
    from_first = warp(first[None], -time * motion[None])[0]
    from_second = warp(second[None], (1 - time) * motion[None])[0]
    hidden_a, hidden_b = (seen_ahead < HIDDEN).float(), (seen_behind < HIDDEN).float()
    a = (1 - time) * (1 - 0.98 * hidden_a * (1 - hidden_b))
    b = time * (1 - 0.98 * hidden_b * (1 - hidden_a))
    frame = (a * from_first + b * from_second) / (a + b)
    return Synthesis(frame, _confidence(second - first, from_second - from_first))


def safe_frame(made: Synthesis, first: Tensor, second: Tensor, time: float) -> Tensor:
    """The made frame where it is to be trusted, the plain mix of the two where it is not.

    first, second  [C, H, W] in 0..1, what `made` was made from
    time           0..1
    ->             [C, H, W]
    """
    return torch.lerp(torch.lerp(first, second, time), made.frame, made.confidence)


def _confidence(at_rest: Tensor, moved: Tensor) -> Tensor:
    """How far motion explains a pair, [1, H, W] in 0..1.

    at_rest, moved  [C, H, W] difference of the two frames as they are, and of both brought to the wanted time
    """
    # A change of brightness over the whole frame is no motion and speaks neither for nor against it.
    sizes = [(d - d.mean((1, 2), keepdim=True)).abs().mean(0, keepdim=True) for d in (at_rest, moved)]
    rest, left = torch.cat(sizes).add(torch.tensor([[[0.002]], [[0.0]]], device=at_rest.device)).split(1)
    whole = torch.sigmoid(40 * (WHOLE_DOUBT - left.mean() / rest.mean()))
    height, width = rest.shape[-2:]
    coarse = F.interpolate(torch.cat([rest, left])[None], (-(-height // 4), -(-width // 4)), mode="area")
    rest, left = soften(coarse, 5, 1.75).split(1, 1)
    local = torch.sigmoid(12 * (LOCAL_DOUBT - left / rest))
    return F.interpolate(local * whole, (height, width), mode="bilinear", align_corners=False)[0]


def splat(values: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
    """Carry values along a flow, each spread over the four pixels it lands between.

    values  [C, H, W]
    flow    [2, H, W] pixels
    ->      their mean where they land [C, H, W], and how much landed [1, H, W] (1: fully covered)
    """
    channels, height, width = values.shape
    across = torch.arange(width, device=flow.device, dtype=flow.dtype)
    down = torch.arange(height, device=flow.device, dtype=flow.dtype)
    tx, ty = across + flow[0], down[:, None] + flow[1]
    left, top = tx.floor(), ty.floor()
    total = values.new_zeros(channels + 1, height * width)
    ones = torch.cat([values, values.new_ones(1, height, width)])
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        px, py = left + dx, top + dy
        weight = (1 - (tx - px).abs()) * (1 - (ty - py).abs())
        inside = (px >= 0) & (px < width) & (py >= 0) & (py < height)
        index = (py.clamp(0, height - 1) * width + px.clamp(0, width - 1)).long().flatten()
        total.index_add_(1, index, (ones * (weight * inside)).flatten(1))
    landed = total[-1:].view(1, height, width)
    return total[:-1].view(channels, height, width) / landed.clamp(min=LANDED), landed


def fill(motion: Tensor, known: Tensor) -> Tensor:
    """Give pixels without a motion that of their surroundings, from ever coarser averages.

    motion  [2, H, W]
    known   [1, H, W] bool
    """
    levels = [(motion * known, known.to(motion))]
    while min(levels[-1][0].shape[-2:]) > 2:
        value, share = (F.avg_pool2d(t[None], 2, ceil_mode=True)[0] for t in levels[-1])
        levels.append((value, share))
    result = levels[-1][0] / levels[-1][1].clamp(min=1e-6)
    for value, share in reversed(levels[:-1]):
        up = F.interpolate(result[None], value.shape[-2:], mode="nearest")[0]
        result = torch.where(share > 1e-6, value / share.clamp(min=1e-6), up)
    return result
