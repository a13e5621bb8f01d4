"""Even brightness and colour from frame to frame, shot by shot: each frame's mean and spread follow their smooth course.

Two passes over a clip, so that no more than one frame is held: `measure_levels`, then `deflicker`; `deflicker_file`
makes both.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from ..errors import AtelierError
from ..files import refuse_overwriting
from ..options import Options
from .cuts import Change, change_between, thumbnail
from .stream import others
from .video import probe, read_frames, stamped_frames, write_video

GAINS = (0.5, 2.0)  # a frame's contrast is changed no further
FLOOR = 2 / 255  # added to deviations: a flat frame has no contrast to change


class DeflickerOptions(Options):
    """How evenly brightness and colour run."""

    strength: float = Field(1.0, ge=0, le=1, description="0 leaves the frames, 1 puts them on the smooth course.")
    window: int = Field(9, ge=1, le=120, description="Frames that the smooth course reaches to either side.")
    contrast: bool = Field(True, description="Even out the spread of the colours too, not only their mean.")


class Levels(NamedTuple):
    """Mean and deviation of each channel of each frame: [N, 3], [N, 3]."""

    mean: Tensor
    deviation: Tensor


def measure_levels(frames: Iterable[Tensor]) -> Levels:
    """Measure frames one by one.

    frames  [3, H, W] in 0..1
    Raises AtelierError if there are none.
    """
    rows = []
    for frame in frames:
        flat = torch.nan_to_num(frame[:3].float()).flatten(1)
        deviation, mean = torch.std_mean(flat, 1, correction=0)
        rows.append(torch.stack([mean, deviation]).cpu())
    if not rows:
        raise AtelierError("There are no frames to deflicker. Give a clip with at least one frame.")
    both = torch.stack(rows, 1)
    return Levels(both[0], both[1])


def smooth_course(values: Tensor, window: int, cuts: Sequence[int] = ()) -> Tensor:
    """Run a Gaussian over time within each shot; at a shot's ends the course goes on by reflection through the end.

    values  [N, C]
    window  frames to either side, three deviations of the Gaussian
    cuts    frames that begin a new shot
    ->      [N, C]
    """
    edges = [0, *sorted({c for c in cuts if 0 < c < len(values)}), len(values)]
    return torch.cat([_smooth(values[a:b], window) for a, b in pairwise(edges)])


def _smooth(values: Tensor, window: int) -> Tensor:
    reach = min(window, len(values) - 1)
    if reach == 0:
        return values
    at = torch.arange(-reach, reach + 1, dtype=values.dtype)
    kernel = torch.exp(-0.5 * (3 * at / reach) ** 2)
    # Reflection alone would bend a steady fade at its ends; the line through the shot is taken off before.
    time = torch.linspace(-1, 1, len(values), dtype=values.dtype)[:, None]
    line = values.mean(0) + time * (values * time).sum(0) / time.square().sum()
    padded = F.pad((values - line).T[None], (reach, reach), mode="reflect")
    kernel = (kernel / kernel.sum()).view(1, 1, -1)
    return line + F.conv1d(padded.transpose(0, 1), kernel)[:, 0].T


def aimed_levels(
    found: Levels, options: DeflickerOptions, cuts: Sequence[int] = (), source: Levels | None = None
) -> Levels:
    """The levels that frames shall have.

    source  levels of the clip before it was stylised: what brightens there may brighten here, and only the difference
            between the two clips is smoothed
    """
    if source is not None and source.mean.shape != found.mean.shape:
        raise AtelierError(
            f"The clip has {len(found.mean)} frames, its source {len(source.mean)}. Give clips of one length."
        )
    base = torch.zeros_like(found.mean) if source is None else source.mean
    mean = base + smooth_course(found.mean - base, options.window, cuts)
    if not options.contrast:
        return Levels(mean, found.deviation)
    scale = torch.ones_like(found.mean) if source is None else source.deviation + FLOOR
    ratio = ((found.deviation + FLOOR) / scale).log()
    return Levels(mean, scale * smooth_course(ratio, options.window, cuts).exp() - FLOOR)


def deflicker(frames: Iterable[Tensor], found: Levels, aim: Levels, options: DeflickerOptions) -> Iterator[Tensor]:
    """Bring each frame's mean and deviation to what they shall be, one frame at a time.

    frames  [3, H, W] in 0..1, those that were measured
    found   from measure_levels
    aim     from aimed_levels
    ->      [3, H, W] in 0..1
    """
    gains = ((aim.deviation + FLOOR) / (found.deviation + FLOOR)).clamp(*GAINS)
    for n, frame in enumerate(frames):
        if options.strength == 0:
            yield frame
            continue
        gain, own, wanted = (t[n].to(frame)[:, None, None] for t in (gains, found.mean, aim.mean))
        even = (frame - own) * gain + wanted
        yield torch.lerp(frame, even, options.strength).clamp(0, 1)


Told = Callable[[int, int, Tensor], None]  # frames read in both passes, those there will be, and the last one


def deflicker_file(source: Path, out: Path, options: DeflickerOptions, told: Told) -> tuple[int, int]:
    """Even out a video file in two passes, one frame at a time; the first sound is copied unchanged.

    Frames are shown when they were, uneven times too, and pixels keep their shape.

    out   .mp4, written whole or not at all
    told  called for each frame of both passes; what it raises stops the run
    ->    frames and shots
    Raises AtelierError if a file is no film, the result would be the source, or MP4 cannot hold the sound.
    """
    refuse_overwriting(out, [source])
    if out.suffix.lower() != ".mp4":
        raise AtelierError(f"{out.name} has another ending than .mp4. Write to a .mp4 file.")
    check_sound(source)
    clip, cuts, before = probe(source), [], None
    stamps: list[Fraction] = []
    half = clip.frames or max(1, round(clip.seconds * clip.rate))

    def measured() -> Iterator[Tensor]:
        nonlocal before
        with closing(stamped_frames(source)) as read:
            for number, (stamp, frame) in enumerate(read):
                now = thumbnail(frame)
                if before is not None and change_between(before, now) is Change.CUT:
                    cuts.append(number)
                before = now
                stamps.append(stamp)
                told(number + 1, 2 * half, frame)
                yield frame

    found = measure_levels(measured())
    count = len(found.mean)

    def evened() -> Generator[Tensor, None, None]:
        aim = aimed_levels(found, options, cuts)
        with closing(read_frames(source)) as read:
            for number, frame in enumerate(deflicker(read, found, aim, options), 1):
                told(count + number, 2 * count, frame)
                yield frame

    with closing(evened()) as frames:
        return write_video(out, frames, clip.rate, source, clip, stamps), len(cuts) + 1


def check_sound(source: Path) -> None:
    """Raise AtelierError where a file is no film, or MP4 cannot hold its sound."""
    probe(source)
    try:
        others(source, Path("film.mp4"))
    except AtelierError:
        raise AtelierError(f"MP4 cannot hold the sound of {source.name}. Convert it to AAC first.") from None
