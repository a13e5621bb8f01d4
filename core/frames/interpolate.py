"""Frames in between, as a stream: two frames are held at a time, whatever the length of the clip."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from ..errors import AtelierError
from .flow import Flow, best_flow, warp

Between = Callable[[Tensor, Tensor, float], Tensor]  # (first, second, time in 0..1) -> frame, all [C, H, W] in 0..1
CUT = 0.3  # share of the colour histogram that changes across a cut


def interpolate(frames: Iterable[Tensor], factor: int, between: Between) -> Iterator[Tensor]:
    """Put factor - 1 frames between each two; n frames become (n - 1) * factor + 1.

    frames   [C, H, W] in 0..1, all of one size
    factor   2 or more
    between  makes one frame
    ->       the same kind of frames; over a cut the nearer one is held instead of mixing two shots
    Raises AtelierError for another factor, or a frame of another size.
    """
    if factor < 2:
        raise AtelierError(f"The factor is {factor}. Choose 2 or more.")
    before = None
    for number, frame in enumerate(frames):
        frame = clean(frame)
        if before is not None:
            if frame.shape != before.shape:
                raise AtelierError(
                    f"Frame {number} is {frame.shape[2]} x {frame.shape[1]}, the one before it "
                    f"{before.shape[2]} x {before.shape[1]}. Bring all frames to one size."
                )
            cut = is_cut(before, frame)
            for i in range(1, factor):
                time = i / factor
                yield (before if time < 0.5 else frame) if cut else between(before, frame, time)
        yield frame
        before = frame


def clean(frame: Tensor) -> Tensor:
    """Float values in 0..1; what is not finite becomes black."""
    return torch.nan_to_num(frame.float(), nan=0.0, posinf=1.0, neginf=0.0).clamp(0, 1)


def is_cut(first: Tensor, second: Tensor) -> bool:
    """Whether two frames belong to different shots, by their colour histograms on 64 x 36 thumbnails."""
    a, b = _histogram(first), _histogram(second)
    return (1 - torch.minimum(a, b).sum()).item() > CUT


def _histogram(frame: Tensor) -> Tensor:
    small = torch.nn.functional.interpolate(frame[None], (36, 64), mode="area")[0]
    bins = (small[:3] * 7.999).long().flatten(1)
    index = bins[0] if len(bins) < 3 else (bins[0] * 8 + bins[1]) * 8 + bins[2]
    counts = torch.bincount(index, minlength=512).float()
    # Neighbouring bins share, or a slow fade across a bin's edge would count as a cut.
    smooth = counts.view(8, 8, 8)
    for axis in range(3):
        smooth = smooth + 0.5 * (smooth.roll(1, axis) + smooth.roll(-1, axis))
    return (smooth / smooth.sum()).flatten()


def blend(first: Tensor, second: Tensor, time: float) -> Tensor:
    """The plain mix, for comparison and for frames without motion."""
    return torch.lerp(first, second, time)


def flow_between(flow: Flow | None = None) -> Between:
    """Make the weight-free interpolator: both flows, projected to the wanted time, then both frames warped and mixed.

    flow  how motion is estimated; the better of what is installed when left out
    """
    estimate = flow or best_flow()
    pair: tuple[Tensor, Tensor] | None = None
    flows: tuple[Tensor, Tensor]

    def between(first: Tensor, second: Tensor, time: float) -> Tensor:
        nonlocal pair, flows
        if pair is None or pair[0] is not first or pair[1] is not second:  # the flows serve every time of a pair
            pair = first, second
            flows = estimate(first[:3], second[:3]), estimate(second[:3], first[:3])
        return synthesize(first, second, flows[0], flows[1], time)

    return between


def synthesize(first: Tensor, second: Tensor, forward: Tensor, backward: Tensor, time: float) -> Tensor:
    """One frame at a time in 0..1 from two frames and their flows.

    Each flow is carried along itself to the wanted time (softmax-free splatting, as in Niklaus and Liu 2020), which
    tells where in either frame a pixel comes from; what only one frame shows is taken from that one.

    forward, backward  [2, H, W] pixels, first to second and second to first
    """
    ahead, seen_ahead = splat(forward, forward * time)
    behind, seen_behind = splat(backward, backward * (1 - time))
    # Motion per unit of time at the wanted instant, from whichever side reaches a pixel.
    weight_a, weight_b = (1 - time) * seen_ahead, time * seen_behind
    total = weight_a + weight_b
    motion = torch.where(total > 1e-3, (weight_a * ahead - weight_b * behind) / total.clamp(min=1e-3), 0)
    motion = fill(motion, total > 1e-3)
    from_first = warp(first[None], -time * motion[None])[0]
    from_second = warp(second[None], (1 - time) * motion[None])[0]
    hidden_a, hidden_b = (seen_ahead < 0.3).float(), (seen_behind < 0.3).float()
    a = (1 - time) * (1 - 0.98 * hidden_a * (1 - hidden_b))
    b = time * (1 - 0.98 * hidden_b * (1 - hidden_a))
    return (a * from_first + b * from_second) / (a + b)


def splat(values: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
    """Carry values along a flow, each spread over the four pixels it lands between.

    values  [C, H, W]
    flow    [2, H, W] pixels
    ->      their mean where they land [C, H, W], and how much landed [1, H, W] (1: fully covered)
    """
    channels, height, width = values.shape
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    tx, ty = x.to(flow) + flow[0], y.to(flow) + flow[1]
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
    return total[:-1].view(channels, height, width) / landed.clamp(min=1e-3), landed


def fill(motion: Tensor, known: Tensor) -> Tensor:
    """Give pixels without a motion that of their surroundings, from ever coarser averages.

    motion  [2, H, W]
    known   [1, H, W] bool
    """
    levels = [(motion * known, known.float())]
    while min(levels[-1][0].shape[-2:]) > 2:
        pooled = [torch.nn.functional.avg_pool2d(t[None], 2, ceil_mode=True)[0] for t in levels[-1]]
        levels.append((pooled[0], pooled[1]))
    result = levels[-1][0] / levels[-1][1].clamp(min=1e-6)
    for value, share in reversed(levels[:-1]):
        up = torch.nn.functional.interpolate(result[None], value.shape[-2:], mode="nearest")[0]
        result = torch.where(share > 1e-6, value / share.clamp(min=1e-6), up)
    return result
