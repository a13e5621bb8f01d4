"""Frames in between, as a stream: a few frames are held at a time, whatever the length of the clip."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import torch
from pydantic import Field
from torch import Tensor

from ..errors import AtelierError
from ..options import Options
from .cuts import Change, change_between, is_cut, thumbnail
from .flow import Flow, best_flow, both_ways
from .synthesis import Synthesis, safe_frame, synthesize
from .timing import LONGEST_REPEAT, Wanted, even_stamps, frame_count, loop_rate, schedule

Between = Callable[[Tensor, Tensor, float], Tensor]  # (first, second, time in 0..1) -> frame, all [C, H, W] in 0..1


class RetimeOptions(Options):
    """How a clip is brought to another frame rate."""

    hold_cuts: bool = Field(
        default=True, description="Hold the last frame of a shot until the cut instead of mixing two shots."
    )
    longest_repeat: int = Field(
        default=LONGEST_REPEAT,
        ge=0,
        le=12,
        description="A frame shown again up to this often, as in animation on twos, moves evenly; 0 leaves repeats alone.",
    )


@dataclass(frozen=True)
class Seen:
    """A frame [C, H, W] and its thumbnail [3, 36, 64]."""

    frame: Tensor
    thumb: Tensor


def interpolate(frames: Iterable[Tensor], factor: int, between: Between) -> Iterator[Tensor]:
    """Put factor - 1 frames between each two; n frames become (n - 1) * factor + 1.

    frames   [C, H, W] in 0..1, all of one size
    factor   2 or more
    between  makes one frame
    ->       the same kind of frames; a shot's last frame is held until the cut instead of mixing two shots
    Raises AtelierError for another factor, or a frame of another size.
    """
    if factor < 2:
        raise AtelierError(f"The factor is {factor}. Choose 2 or more.")
    before: Tensor | None = None
    for number, given in enumerate(frames):
        frame = _alike(number, given, None if before is None else before.shape)
        if before is not None:
            held = is_cut(before, frame)
            for i in range(1, factor):
                yield before if held else in_between(between, before, frame, i / factor)
        yield frame
        before = frame


def retime(
    frames: Iterable[Tensor],
    rates: tuple[Fraction, Fraction],
    between: Between,
    options: RetimeOptions | None = None,
    loop: bool = False,
) -> Iterator[Tensor]:
    """Bring a clip from one frame rate to any other; n frames become frame_count(n, source, target, loop).

    frames   [C, H, W] in 0..1, all of one size
    rates    frames per second of the source and of the result
    between  makes one frame
    loop     the last frame leads back to the first, without a seam; then all frames are held at once
    Raises AtelierError for a frame of another size.
    """
    options = options or RetimeOptions()
    source, target = rates
    count = None
    if loop:
        given = list(frames)
        if not given:
            return
        count = frame_count(len(given), source, target, loop)
        frames, target = [*given, given[0]], loop_rate(len(given), source, target)
    for wanted in wanted_frames(even_stamps(frames, source), target, 1 / source, options):
        if count is not None and wanted.number >= count:
            return
        yield made(wanted, between)


def wanted_frames(
    stamped: Iterable[tuple[Fraction, Tensor]], target: Fraction, last: Fraction, options: RetimeOptions
) -> Iterator[Wanted[Seen]]:
    """Plan the frames of a clip at another rate, with its cuts and repeats seen on thumbnails.

    stamped  (seconds, frame [C, H, W]) in order
    target   frames per second
    last     seconds the last frame lasts
    """

    def change(first: Seen, second: Seen) -> Change:
        kind = change_between(first.thumb, second.thumb)
        return Change.MOTION if kind is Change.CUT and not options.hold_cuts else kind

    return schedule(_seen(stamped), target, last, change, options.longest_repeat)


def _seen(stamped: Iterable[tuple[Fraction, Tensor]]) -> Iterator[tuple[Fraction, Seen]]:
    size = None
    for number, (stamp, given) in enumerate(stamped):
        frame = _alike(number, given, size)
        size = frame.shape
        yield stamp, Seen(frame, thumbnail(frame))


def made(wanted: Wanted[Seen], between: Between) -> Tensor:
    """The frame that is wanted, [C, H, W]."""
    if not wanted.time:
        return wanted.first.frame
    return in_between(between, wanted.first.frame, wanted.second.frame, float(wanted.time))


def in_between(between: Between, first: Tensor, second: Tensor, time: float) -> Tensor:
    """One frame of an interpolator, in the type of the given ones and within 0..1."""
    return between(first, second, time).to(first.dtype).clamp(0, 1)


def _alike(number: int, frame: Tensor, size: torch.Size | None) -> Tensor:
    """A clean frame; raises AtelierError if it has another size than the one before."""
    if size is not None and frame.shape != size:
        raise AtelierError(
            f"Frame {number} is {_told(frame.shape)}, the one before it {_told(size)}. Bring all frames to one size."
        )
    return clean(frame)


def _told(size: torch.Size) -> str:
    return f"{size[2]} x {size[1]}" + (f" with {size[0]} channels" if size[0] != 3 else "")


def clean(frame: Tensor) -> Tensor:
    """Values in 0..1 in the frame's own float type; what is not finite becomes black or white."""
    return torch.nan_to_num(frame, nan=0.0, posinf=1.0, neginf=0.0).clamp(0, 1)


def blend(first: Tensor, second: Tensor, time: float) -> Tensor:
    """The plain mix, for comparison and for frames without motion."""
    return torch.lerp(first, second, time)


def flow_between(flow: Flow | None = None, fallback: bool = False) -> Between:
    """Make the weight-free interpolator: both flows, projected to the wanted time, then both frames warped and mixed.

    flow      how motion is estimated; the better of what is installed when left out
    fallback  where motion does not explain a pair, mix the frames instead
    """
    make = flow_synthesis(flow)

    def between(first: Tensor, second: Tensor, time: float) -> Tensor:
        # Colours count as much as they cover, or what is clear would shine through an edge.
        a, b = (_covering(f.float()) for f in (first, second))
        result = make(first, second, time)
        return _uncovered(safe_frame(result, a, b, time) if fallback else result.frame)

    return between


def flow_synthesis(flow: Flow | None = None) -> Callable[[Tensor, Tensor, float], Synthesis]:
    """Make the same interpolator with its confidence; its frames have colours multiplied by alpha where there is one.

    flow  as in flow_between
    """
    estimate = flow or best_flow()
    pair: tuple[Tensor, Tensor] | None = None
    given: tuple[Tensor, Tensor]
    flows: tuple[Tensor, Tensor]

    def make(first: Tensor, second: Tensor, time: float) -> Synthesis:
        nonlocal pair, given, flows
        if pair is None or pair[0] is not first or pair[1] is not second:  # the flows serve every time of a pair
            pair = first, second
            given = _covering(first.float()), _covering(second.float())
            flows = both_ways(estimate, *given)
        return synthesize(*given, flows, time)

    return make


def _covering(frame: Tensor) -> Tensor:
    """Colours multiplied by alpha, where a frame [C, H, W] has one."""
    if frame.shape[0] not in (2, 4):
        return frame
    return torch.cat([frame[:-1] * frame[-1:], frame[-1:]])


def _uncovered(frame: Tensor) -> Tensor:
    if frame.shape[0] not in (2, 4):
        return frame
    alpha = frame[-1:]
    return torch.cat([torch.where(alpha > 1e-4, frame[:-1] / alpha.clamp(min=1e-4), frame[:-1]), alpha])
