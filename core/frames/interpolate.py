"""Frames in between, as a stream: a few frames are held at a time, whatever the length of the clip."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from ..errors import AtelierError
from ..options import Options
from .alpha import covering, has_alpha, uncovered
from .cuts import Change, change_between, is_cut, thumbnail
from .flow import Flow, best_flow, both_ways, soften, warp
from .synthesis import Synthesis, safe_frame, synthesize
from .timing import LONGEST_REPEAT, Wanted, even_stamps, frame_count, loop_rate, schedule

Between = Callable[[Tensor, Tensor, float], Tensor]  # (first, second, time in 0..1) -> frame, all [C, H, W] in 0..1
# The same with its confidence; its frames have colours multiplied by alpha where there is one.
Sure = Callable[[Tensor, Tensor, float], Synthesis]
# Share of a mix's difference from the given frames, above which a frame shows what is in neither: frames that follow
# the motion of `moving_clip` come to 0.04 in the middle and 0.18 at most, mixes to 0.5 and more.
UNSHOWN = 0.3
CLEAR = (1.0, 0.0, 1.0)  # a colour that pictures seldom have
LOOKED_AT = 256  # pixels of the shorter side, enough to see whether a frame shows what the given ones do


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
class Method:
    """A way to make frames.

    plain  makes a frame
    sure   makes it and tells how far it is to be trusted, which takes longer
    """

    plain: Between
    sure: Sure


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
            held = is_cut(_visible(before), _visible(frame))
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

    between  makes one frame
    Others, and what is raised, as in planned.
    """
    for wanted in planned(frames, rates, options, loop):
        yield made(wanted, between)


def planned(
    frames: Iterable[Tensor],
    rates: tuple[Fraction, Fraction],
    options: RetimeOptions | None = None,
    loop: bool = False,
) -> Iterator[Wanted[Seen]]:
    """Plan a clip at another frame rate: what `made` makes of each is the clip.

    frames   [C, H, W] in 0..1, all of one size
    rates    frames per second of the source and of the result
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
        yield wanted


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
        yield stamp, Seen(frame, thumbnail(_visible(frame)))


def made(wanted: Wanted[Seen], between: Between) -> Tensor:
    """The frame that is wanted, [C, H, W]."""
    if not wanted.time:
        return wanted.first.frame
    return in_between(between, wanted.first.frame, wanted.second.frame, float(wanted.time))


def made_surely(wanted: Wanted[Seen], sure: Sure, fallback: bool = False) -> tuple[Tensor, Tensor]:
    """The frame that is wanted [C, H, W], and how far it is to be trusted, [H, W] in 0..1; a given frame wholly.

    fallback  as in plain
    """
    first, second, time = wanted.first.frame, wanted.second.frame, float(wanted.time)
    if not wanted.time:
        return first, torch.ones_like(first[0])
    result = sure(first, second, time)
    confidence = result.confidence[0].to(first).clamp(0, 1)
    return _fitted(_settled(result, first, second, time, fallback), first), confidence


def in_between(between: Between, first: Tensor, second: Tensor, time: float) -> Tensor:
    """One frame of an interpolator, in the type of the given ones and within 0..1."""
    return _fitted(between(first, second, time), first)


def _fitted(frame: Tensor, like: Tensor) -> Tensor:
    return frame.to(like.dtype).clamp(0, 1)


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
    return plain(flow_synthesis(flow), fallback)


def flow_method(flow: Flow | None = None) -> Method:
    """The weight-free interpolator both ways; flow as in flow_between."""
    sure = flow_synthesis(flow)
    return Method(plain(sure), sure)


def method_of(between: Between, flow: Flow | None = None) -> Method:
    """Any other interpolator both ways, its confidence as with_confidence tells it."""
    return Method(between, with_confidence(between, flow))


def plain(sure: Sure, fallback: bool = False) -> Between:
    """Leave an interpolator's confidence aside, or use it.

    fallback  where motion does not explain a pair, mix the frames instead
    """

    def between(first: Tensor, second: Tensor, time: float) -> Tensor:
        return _settled(sure(first, second, time), first, second, time, fallback)

    return between


def _settled(result: Synthesis, first: Tensor, second: Tensor, time: float, fallback: bool) -> Tensor:
    if not fallback:
        return uncovered(result.frame)
    # Colours count as much as they cover, or what is clear would shine through an edge.
    a, b = (covering(f.float()) for f in (first, second))
    return uncovered(safe_frame(result, a, b, time))


def with_confidence(between: Between, flow: Flow | None = None) -> Sure:
    """Judge what an interpolator makes, whatever its kind: does either given frame, moved, show the same?

    A mix of two pictures is explained by neither and comes out near 0, motion that was followed near 1.

    flow  finds the motion, on a small copy; the better of what is installed when left out
    """
    estimate = flow or best_flow()

    def make(first: Tensor, second: Tensor, time: float) -> Synthesis:
        frame, *given = (covering(f.float()) for f in (between(first, second, time), first, second))
        return Synthesis(frame, _shown(frame, given, time, estimate))

    return make


def _shown(frame: Tensor, given: list[Tensor], time: float, estimate: Flow) -> Tensor:
    """How far one of two frames [C, H, W] shows what a made one does, [1, H, W] in 0..1."""
    height, width = frame.shape[-2:]
    shrink = min(1.0, LOOKED_AT / min(height, width))
    size = max(1, round(height * shrink)), max(1, round(width * shrink))
    small, *pair = (F.interpolate(f[None], size, mode="area")[0] for f in (frame, *given))
    moved = [small - warp(f[None], estimate(small, f)[None])[0] for f in pair]
    # A change of brightness over the whole frame is no motion and speaks neither for nor against it.
    left = torch.stack([(d - d.mean((1, 2), keepdim=True)).abs().mean(0) for d in moved]).amin(0)
    rest = pair[1] - pair[0]
    # The mix differs from the nearer frame by this share of what both differ by.
    share = max(min(time, 1 - time), 0.25)
    rest = (rest - rest.mean((1, 2), keepdim=True)).abs().mean(0) * share + 0.002
    left, rest = soften(torch.stack([left, rest])[None], 9, 3.0)[0]
    certain = torch.sigmoid(20 * (UNSHOWN - left / rest))
    return F.interpolate(certain[None, None], (height, width), mode="bilinear", align_corners=False)[0]


def flow_synthesis(flow: Flow | None = None) -> Callable[[Tensor, Tensor, float], Synthesis]:
    """Make the same interpolator with its confidence.

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
            given = covering(first.float()), covering(second.float())
            flows = both_ways(estimate, *given)
        return synthesize(*given, flows, time)

    return make


def _visible(frame: Tensor) -> Tensor:
    """A frame [C, H, W] as changes are judged on it: what is clear is magenta, so that a moving edge is no repeat."""
    if not has_alpha(frame):
        return frame
    colours, alpha = frame[:-1].expand(3, -1, -1), frame[-1:]
    return torch.lerp(frame.new_tensor(CLEAR)[:, None, None], colours, alpha)
