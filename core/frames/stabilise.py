"""Smooth stylised video: what the previous stylised frame showed is carried along the source's motion and mixed in.

The source tells the motion, because it does not flicker. Where the source's previous frame, carried along, does not
look like the present one, the motion is not trusted and the stylised frame stands as it is.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from ..errors import AtelierError
from ..options import Options
from .flow import Flow, best_flow
from .interpolate import clean

DOUBT = 0.06  # change of a source's colour at which half of the trust in its motion is gone
OTHER = 0.25  # difference of what was carried and what is drawn, from which they are different things
THING = 1.5  # pixels, deviation of the Gaussian over which that is judged: strokes may differ
LOW = 1.0  # pixels, deviation of the Gaussian that parts colours from strokes
AROUND = 31  # pixels, side of the window in which the strength of strokes is measured
MOST_GAIN = 3.0  # of strokes that averaging has made weaker
UNREACHED = 1e-6  # trust at which nothing was carried to a place


class StabiliseOptions(Options):
    """How stylised frames are held together."""

    strength: float = Field(
        default=0.9, ge=0, le=0.98, description="Share of the carried previous frame; 0 leaves the frames as they are."
    )
    detail: float = Field(
        default=0.6,
        ge=0,
        le=1,
        description="Least strength of the strokes, as a share of the stylised frame's; 0 lets them get as soft as the "
        "mixing makes them.",
    )


def stabilise(
    source: Iterable[Tensor],
    stylised: Iterable[Tensor],
    options: StabiliseOptions | None = None,
    flow: Flow | None = None,
    resets: Collection[int] = (),
) -> Iterator[Tensor]:
    """Hold stylised frames together along the source's motion, two frames at a time (recursive, as Lai et al. 2018).

    Strokes (the band above LOW) become weaker by averaging; they are made stronger again up to `detail`, after the
    recursion, so that they stay the same strokes from frame to frame.

    source    [3, H, W] in 0..1, the frames before they were stylised
    stylised  [3, H, W] in 0..1, as many and as large; the work is done where they are
    flow      how motion is estimated; the better of what is installed when left out
    resets    numbers of frames that are taken as they come: the first ones after a cut
    ->        [3, H, W] in 0..1, float32; without strength the frames as they came
    Raises AtelierError if the two clips differ in length or size.
    """
    options = options or StabiliseOptions()
    estimate = flow or best_flow()
    before: tuple[Tensor, Tensor] | None = None  # the source's frame and what has come of the stylised ones
    for number, (plain, drawn) in enumerate(_pairs(source, stylised)):
        if options.strength == 0:
            yield drawn
            continue
        # Half precision leaves nothing of small energies, and what is no number would be carried on and on.
        plain, drawn = clean(plain.to(drawn.device, torch.float32)), clean(drawn.float())
        state = drawn
        if before is not None and number not in resets:
            carried, trust = carry(plain, before[0], before[1], estimate)
            state = hold(drawn, carried, options.strength * trust)
        before = plain, state
        yield strengthen(state, drawn, options.detail)


def _pairs(source: Iterable[Tensor], stylised: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    others, number = iter(stylised), -1
    for number, plain in enumerate(source):
        drawn = next(others, None)
        if drawn is None:
            raise AtelierError(
                f"The stylised clip ends after {number} frames, the source goes on. Give clips of one length."
            )
        if plain.shape != drawn.shape:
            raise AtelierError(
                f"Frame {number} of the source is {plain.shape[2]} x {plain.shape[1]}, the stylised one "
                f"{drawn.shape[2]} x {drawn.shape[1]}. Bring both clips to one size."
            )
        yield plain, drawn
    if next(others, None) is not None:
        raise AtelierError(
            f"The source ends after {number + 1} frames, the stylised clip goes on. Give clips of one length."
        )


def carry(now: Tensor, before: Tensor, drawn: Tensor, flow: Flow) -> tuple[Tensor, Tensor]:
    """Bring what was drawn over the source's previous frame to its present one.

    now, before  [3, H, W], frames of the source
    drawn        [C, H, W], over `before`
    ->           [C, H, W] carried, and how much the motion is trusted, [1, H, W] in 0..1
    """
    motion = flow(now, before)
    moved = sample(torch.cat([drawn, before]), motion)
    return moved[: len(drawn)].clamp(0, 1), trust_in(motion, now, moved[len(drawn) :])


def hold(drawn: Tensor, carried: Tensor, share: Tensor) -> Tensor:
    """Mix what was carried into a drawn frame, less where the two show different things.

    A drawn outline does not lie on the source's to the pixel, and what is left behind there would stay for good.

    drawn, carried  [3, H, W]
    share           [1, H, W] in 0..1, of what was carried
    """
    apart = blurred(drawn - carried, THING).abs().amax(0, keepdim=True)
    return torch.lerp(drawn, carried, share * torch.exp2(-((apart / OTHER) ** 2)))


def trust_in(motion: Tensor, now: Tensor, moved: Tensor) -> Tensor:
    """How far a motion explains a frame: by colour alone, since in flat areas any motion does.

    motion      [2, H, W] pixels, from the present frame to the previous one
    now, moved  [3, H, W], the present frame, and the previous one carried along the motion
    ->          [1, H, W] in 0..1; 0 where the motion points outside
    """
    change = (now - moved).abs().amax(0, keepdim=True)
    change = F.avg_pool2d(F.pad(change[None], (1, 1, 1, 1), mode="replicate"), 3, 1)[0]
    height, width = now.shape[-2:]
    y, x = _places(motion)
    to_x, to_y = x + motion[0], y + motion[1]
    inside = (to_x >= -0.5) & (to_x <= width - 0.5) & (to_y >= -0.5) & (to_y <= height - 0.5)
    return torch.exp2(-((change / DOUBT) ** 2)) * inside


def sample(frame: Tensor, motion: Tensor) -> Tensor:
    """Sample a frame where a motion points, by cubic interpolation: linear would blur a little more with every frame.

    frame   [C, H, W]
    motion  [2, H, W] pixels (x, y)
    ->      [C, H, W]; places outside take the border
    """
    height, width = frame.shape[-2:]
    y, x = _places(motion)
    grid = torch.stack([(x + motion[0] + 0.5) * 2 / width - 1, (y + motion[1] + 0.5) * 2 / height - 1], -1)
    return F.grid_sample(frame[None], grid[None].to(frame), "bicubic", "border", align_corners=False)[0]


def _places(motion: Tensor) -> tuple[Tensor, Tensor]:
    height, width = motion.shape[-2:]
    y = torch.arange(height, device=motion.device, dtype=motion.dtype)[:, None]
    x = torch.arange(width, device=motion.device, dtype=motion.dtype)[None]
    return y, x


def strengthen(held: Tensor, drawn: Tensor, detail: float) -> Tensor:
    """Give strokes that averaging has weakened at least a share of the strength they were drawn with.

    held, drawn  [3, H, W]
    detail       share of the variance of the drawn strokes, 0..1
    """
    if detail == 0 or held is drawn:
        return held
    energy, aim = (_around(_edges(frame)) for frame in (held, drawn))
    gain = (detail * aim / energy.clamp(min=1e-8)).sqrt().clamp(1, MOST_GAIN)
    return (held + (gain - 1) * (held - blurred(held, LOW))).clamp(0, 1)


def _edges(frame: Tensor) -> Tensor:
    """Square of the Laplacian, summed over the channels, [1, H, W]: strokes have it, slow changes of colour do not."""
    padded = F.pad(frame[None], (1, 1, 1, 1), mode="replicate")[0]
    beside = padded[:, 1:-1, :-2] + padded[:, 1:-1, 2:] + padded[:, :-2, 1:-1] + padded[:, 2:, 1:-1]
    return (beside - 4 * frame).square().sum(0, keepdim=True)


def _around(values: Tensor) -> Tensor:
    return F.avg_pool2d(values[None], AROUND, 1, AROUND // 2, count_include_pad=False)[0]


def blurred(frame: Tensor, deviation: float) -> Tensor:
    """Gaussian blur of a frame [C, H, W]; beyond the borders it goes on as at them."""
    radius = int(3 * deviation + 0.5)
    at = torch.arange(-radius, radius + 1, device=frame.device, dtype=frame.dtype)
    kernel = torch.exp(-(at**2) / (2 * deviation**2))
    kernel = (kernel / kernel.sum()).expand(len(frame), 1, 1, -1)
    across = F.pad(frame[None], (radius, radius, 0, 0), mode="replicate")
    across = F.conv2d(across, kernel, groups=len(frame))
    down = F.pad(across, (0, 0, radius, radius), mode="replicate")
    return F.conv2d(down, kernel.transpose(2, 3), groups=len(frame))[0]


def stabilise_between(
    source: Sequence[Tensor], anchors: dict[int, Tensor], flow: Flow | None = None, resets: Collection[int] = ()
) -> list[Tensor]:
    """Draw a clip from a few stylised frames: each frame takes from the anchor before and from the one after it.

    Both are carried along the source's motion and mixed by nearness and trust (as Jamriska et al. 2019 do between
    key frames). A frame that no anchor of its shot reaches takes the source.

    source   [3, H, W] in 0..1 each
    anchors  stylised frames by their number; they stand as they are
    resets   first frames of shots; nothing is carried over them
    ->       as many frames as the source has
    Raises AtelierError for no anchor, or one beside the clip.
    """
    beside = [n for n in anchors if not 0 <= n < len(source)]
    if beside or not anchors:
        found = f"Anchor {beside[0]} is not one of the {len(source)} frames" if beside else "There is no anchor frame"
        raise AtelierError(f"{found}. Give stylised frames with numbers from 0 to {len(source) - 1}.")
    between = carry_between(source, anchors, flow, resets)
    return [
        anchors[n] if n in anchors else torch.where(trust > UNREACHED, drawn, source[n])
        for n, (drawn, trust) in enumerate(between)
    ]


def carry_between(
    source: Sequence[Tensor], anchors: dict[int, Tensor], flow: Flow | None = None, resets: Collection[int] = ()
) -> list[tuple[Tensor, Tensor]]:
    """Carry the anchors before and after each frame to it, and mix them by nearness and trust.

    Arguments as in stabilise_between.
    ->  for each frame [3, H, W] what was carried, and [1, H, W] in 0..1 how much the better of both is trusted
    """
    estimate = flow or best_flow()
    numbers = range(len(source))
    ahead = _spread(source, anchors, estimate, numbers, set(resets))
    behind = _spread(source, anchors, estimate, numbers[::-1], {r - 1 for r in resets})
    out = []
    for n in numbers:
        (first, trust_a, steps_a), (second, trust_b, steps_b) = ahead[n], behind[n]
        # The nearer one counts more; an anchor itself is 0 steps away and counts alone.
        a, b = (trust_a, trust_b) if n in anchors else (trust_a * steps_b, trust_b * steps_a)
        mixed = (a * first + b * second) / (a + b).clamp(min=1e-6)
        out.append((mixed, torch.maximum(trust_a, trust_b)))
    return out


def _spread(
    source: Sequence[Tensor], anchors: dict[int, Tensor], flow: Flow, order: Sequence[int], resets: Collection[int]
) -> dict[int, tuple[Tensor, Tensor, int]]:
    """Carry anchors through frames in an order: what is drawn, how much it is trusted, and steps since the anchor."""
    found: dict[int, tuple[Tensor, Tensor, int]] = {}
    last = None
    for n in order:
        nothing = torch.zeros_like(source[n][:1])
        if n in anchors:
            found[n] = anchors[n], nothing + 1, 0
        elif last is None or n in resets:
            found[n] = source[n], nothing, len(source)
        else:
            drawn, trust, steps = found[last]
            carried, now = carry(source[n], source[last], torch.cat([drawn, trust]), flow)
            found[n] = carried[:-1], carried[-1:] * now, steps + 1
        last = n
    return found
