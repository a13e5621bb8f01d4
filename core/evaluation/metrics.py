"""How good a restyled clip is, in figures that need no weights: likeness, steadiness, structure and colour.

`judge` and `judge_clips` walk through clips two frames at a time; `write_scores` and `score_table` show what they found.
"""

import csv
import io
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import AtelierError
from ..files import write_text
from ..frames.cuts import is_cut
from ..frames.flow import Flow, best_flow, luma
from ..frames.stabilise import sample, trust_in
from ..style.statistics import rgb_to_lab

GAUSSIAN, RADIUS = 1.5, 5  # pixels, the window of Wang et al. 2004
TRUSTED = 0.5  # motion is judged where it is trusted by at least this
DIRECTIONS, QUANTILES = 32, 256  # of the sliced distance of colours
MOST_PIXELS = 2**16  # of a picture that are asked for its palette
GOLDEN = 0.618033988749895  # its multiples without their whole part fill a line evenly, in step with no pattern
STRIP = 64  # rows that are softened at a time: they stay in the processor's cache
STRUCTURE_SCALES = 3  # halvings
# Head of a table's column: the figure, and how it is written.
FIGURES = {
    "PSNR dB": ("psnr", ".2f"),
    "SSIM": ("ssim", ".3f"),
    "warping x1000": ("warping", ".3f"),
    "flicker x1000": ("flicker", ".2f"),
    "sharpness x1000": ("sharpness", ".2f"),
    "structure": ("structure", ".3f"),
    "colour ΔE": ("color", ".2f"),
}


@dataclass(frozen=True)
class FrameScores:
    """Figures of one frame; those of motion are None where a shot begins, and where no motion is trusted.

    psnr        dB, likeness to the source
    ssim        -1..1, likeness to the source
    warping     mean squared change along the source's motion, x 1000
    brightness  mean of luma, 0..1
    sharpness   variance of the Laplacian of luma, x 1000
    structure   0..2, what of the source's shapes is lost
    color       Delta E between the palettes of the frame and of the reference
    """

    frame: int
    psnr: float
    ssim: float
    warping: float | None
    brightness: float
    sharpness: float
    structure: float
    color: float


@dataclass(frozen=True)
class ClipScores:
    """A clip's frames and their means.

    flicker  mean second difference of brightness within shots, x 1000; nan where no shot has three frames
    """

    frames: tuple[FrameScores, ...]
    flicker: float

    def mean(self, name: str) -> float:
        """Mean of one figure over the frames that have it; nan if none has.

        That of PSNR is the dB of the mean squared error: one equal frame among others would make a mean of dB inf.
        """
        values = [v for f in self.frames if (v := getattr(f, name)) is not None]
        if not values:
            return math.nan
        if name == "psnr":
            return _decibels(sum(10 ** (-v / 10) for v in values) / len(values))
        return sum(values) / len(values)


def psnr(first: Tensor, second: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures of any one shape in 0..1; inf where they are equal."""
    return _decibels((first - second).double().square().mean().item())


def _decibels(error: float) -> float:
    """A mean squared error of values in 0..1 as PSNR."""
    return -10 * math.log10(error) if error else math.inf


def ssim(first: Tensor, second: Tensor) -> float:
    """Structural similarity with a Gaussian window of 11 x 11 (Wang et al. 2004), the mean of the channels.

    first, second  [C, H, W] in 0..1
    Raises AtelierError for pictures smaller than the window.
    """
    one, two = 0.01**2, 0.03**2
    total, count = 0.0, 0
    for mean_a, mean_b, var_a, var_b, both in _windows(first, second):
        likeness = (2 * mean_a * mean_b + one) * (2 * both + two)
        total += (likeness / ((mean_a**2 + mean_b**2 + one) * (var_a + var_b + two))).sum().item()
        count += likeness.numel()
    return total / count


def _windows(first: Tensor, second: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Means, variances and covariance in all windows that lie inside, a few rows of one channel at a time.

    -> [rows, W - 10] float64 each
    """
    if min(first.shape[-2:]) <= 2 * RADIUS:
        raise AtelierError(
            f"The pictures are {first.shape[-1]} x {first.shape[-2]} pixels. Give at least {2 * RADIUS + 1} x {2 * RADIUS + 1}."
        )
    at = torch.arange(-RADIUS, RADIUS + 1, dtype=torch.float64)
    kernel = torch.exp(-(at**2) / (2 * GAUSSIAN**2))
    weights = (kernel / kernel.sum()).tolist()
    for channels in zip(first, second, strict=True):
        for top in range(0, first.shape[-2] - 2 * RADIUS, STRIP):
            a, b = (channel[top : top + STRIP + 2 * RADIUS].double() for channel in channels)
            mean_a, mean_b, aa, bb, ab = (_softened(strip, weights) for strip in (a, b, a * a, b * b, a * b))
            yield mean_a, mean_b, aa - mean_a**2, bb - mean_b**2, ab - mean_a * mean_b


def _softened(strip: Tensor, weights: list[float]) -> Tensor:
    """Weighted means in square windows that lie inside, [H, W] -> [H - 10, W - 10].

    Shifted sums, because torch's convolution of doubles on the CPU takes fifty times as long.
    """
    for side in (1, 0):
        length = strip.shape[side] - len(weights) + 1
        found = strip.narrow(side, 0, length) * weights[0]
        for i, weight in enumerate(weights[1:], 1):
            found.add_(strip.narrow(side, i, length), alpha=weight)
        strip = found
    return strip


def structure_distance(content: Tensor, drawn: Tensor) -> float:
    """What is lost of a picture's shapes: 1 - correlation of luma in small windows, where the content has shapes.

    The structure term of SSIM at several scales; brightness, contrast and colour have no part in it.

    content, drawn  [3, H, W] in 0..1
    ->              0 where all shapes are kept, about 1 where none is, 2 for a negative
    """
    a, b = luma(content)[None].double(), luma(drawn)[None].double()
    lost, weight = 0.0, 0.0
    for _ in range(STRUCTURE_SCALES):
        if min(a.shape[-2:]) <= 2 * RADIUS:
            break
        for _, _, var_a, var_b, both in _windows(a, b):
            alike = both / (var_a.clamp(min=0) * var_b.clamp(min=0) + 1e-10).sqrt()
            shapes = var_a.clamp(min=0).sqrt()
            lost, weight = lost + ((1 - alike) * shapes).sum().item(), weight + shapes.sum().item()
        a, b = (F.avg_pool2d(t[None], 2)[0] for t in (a, b))
    return lost / weight if weight > 1e-6 else 0.0


def color_distance(first: Tensor, second: Tensor) -> float:
    """How far two palettes are apart: the sliced Wasserstein distance in CIELAB (Bonneel et al. 2015), in Delta E.

    first, second  [3, H, W] in 0..1; the sizes may differ
    ->             0 for the same colours in any order; a shift of all colours counts half, which is its mean
                   length along directions in space
    """
    return (palette(first) - palette(second)).abs().mean().item()


def palette(picture: Tensor) -> Tensor:
    """Quantiles of a picture's colours in CIELAB along directions in space, what `color_distance` compares.

    picture  [3, H, W] in 0..1; of a large one, MOST_PIXELS pixels that lie evenly in it are asked
    ->       [DIRECTIONS, QUANTILES] float64, in order along each direction
    """
    rng = torch.Generator().manual_seed(0)
    axes = F.normalize(torch.randn(DIRECTIONS, 3, generator=rng, dtype=torch.float64), dim=1).to(picture.device)
    pixels = picture.flatten(1)
    count = pixels.shape[1]
    if count > MOST_PIXELS:
        shares = torch.arange(MOST_PIXELS, device=picture.device, dtype=torch.float64) * GOLDEN % 1
        pixels, count = pixels[:, (shares * count).long()], MOST_PIXELS
    along = np.sort((axes @ rgb_to_lab(pixels[:, None].double()).flatten(1)).cpu().numpy(), axis=1)
    places = ((torch.arange(QUANTILES) + 0.5) / QUANTILES * count).long()
    return torch.from_numpy(along)[:, places]


def sharpness(frame: Tensor) -> float:
    """Variance of the Laplacian of luma, x 1000, for [3, H, W] in 0..1."""
    grey = luma(frame).double()
    middle = grey[1:-1, 1:-1]
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * middle
    return 1e3 * laplacian.var(correction=0).item()


def warping_error(drawn: Tensor, before: Tensor, motion: Tensor, trust: Tensor) -> float:
    """Mean squared change of a clip along the source's motion, x 1000 (Lai et al. 2018).

    drawn, before  [3, H, W], the frame and the one before it
    motion         [2, H, W] pixels, from the frame to the one before it, of the source
    trust          [1, H, W], where at least TRUSTED the change counts
    ->             0 where nothing is trusted
    """
    mask = (trust >= TRUSTED).double()
    change = (drawn - sample(before, motion)).double().square().mean(0, keepdim=True)
    return 1e3 * ((change * mask).sum() / mask.sum().clamp(min=1)).item()


def flicker(brightness: Iterable[float], cuts: Collection[int] = ()) -> float:
    """Mean absolute second difference of brightness within shots, x 1000; nan where no shot has three frames."""
    values = list(brightness)
    inner = [n for n in range(2, len(values)) if n not in cuts and n - 1 not in cuts]
    bends = [abs(values[n] - 2 * values[n - 1] + values[n - 2]) for n in inner]
    return 1e3 * sum(bends) / len(bends) if bends else math.nan


def judge(
    source: Iterable[Tensor],
    drawn: Iterable[Tensor],
    reference: Tensor | None = None,
    flow: Flow | None = None,
    cuts: Collection[int] = (),
) -> ClipScores:
    """Judge a restyled clip beside its source, two frames at a time.

    source, drawn  [3, H, W] in 0..1, as many of either
    reference      [3, H, W], whose palette is wanted; the source's own frame if None
    flow           how the source's motion is estimated; the better of what is installed when left out
    cuts           frames that begin a new shot
    Raises AtelierError if the clips differ in length or size, or are empty.
    """
    return judge_clips(source, {"drawn": drawn}, reference, flow, cuts)["drawn"]


def judge_clips(
    source: Iterable[Tensor],
    clips: Mapping[str, Iterable[Tensor]],
    reference: Tensor | None = None,
    flow: Flow | None = None,
    cuts: Collection[int] | None = None,
    watch: Callable[[int], object] | None = None,
) -> dict[str, ClipScores]:
    """Judge clips beside their one source, all of them in one walk with two frames of each in memory.

    source     [1, 3 or 4, H, W] in 0..1; only colours count
    clips      by name, frames of the same size, as many of each
    reference  [3, H, W], whose palette is wanted; the source's own frame if None
    flow       how the source's motion is estimated; the better of what is installed when left out
    cuts       frames that begin a new shot; they are found on the source when left out
    watch      called with the number of frames done, each clip's counted; it may raise to stop
    Raises AtelierError if the clips differ in length or size, are empty, or hold values that are no numbers.
    """
    estimate, shots = flow or best_flow(), set(cuts or ())
    aim = None if reference is None else palette(_colours(reference))
    rows: dict[str, list[FrameScores]] = {name: [] for name in clips}
    before: tuple[Tensor, dict[str, Tensor]] | None = None
    for number, (plain, drawn) in enumerate(_in_step(source, clips)):
        if before and cuts is None and is_cut(before[0], plain):
            shots.add(number)
        moved = _motion(plain, before[0], estimate) if before and number not in shots else None
        wanted = palette(plain) if aim is None else aim
        for place, (name, frame) in enumerate(drawn.items()):
            if watch:
                watch(number * len(drawn) + place)
            error = warping_error(frame, before[1][name], *moved) if before and moved else None
            rows[name].append(_scores(number, plain, frame, wanted, error))
        if watch:
            watch((number + 1) * len(drawn))
        before = plain, drawn
    return {n: ClipScores(tuple(r), flicker([f.brightness for f in r], shots)) for n, r in rows.items()}


def _motion(now: Tensor, before: Tensor, flow: Flow) -> tuple[Tensor, Tensor] | None:
    """The source's motion back to its previous frame and the trust in it; None where nothing is trusted."""
    motion = flow(now, before)
    trust = trust_in(motion, now, sample(before, motion))
    return (motion, trust) if (trust >= TRUSTED).any() else None


def _scores(number: int, plain: Tensor, frame: Tensor, wanted: Tensor, warping: float | None) -> FrameScores:
    """Figures of a frame beside the source's; `wanted` is a palette."""
    return FrameScores(
        frame=number,
        psnr=psnr(plain, frame),
        ssim=ssim(plain, frame),
        warping=warping,
        brightness=luma(frame).double().mean().item(),
        sharpness=sharpness(frame),
        structure=structure_distance(plain, frame),
        color=(palette(frame) - wanted).abs().mean().item(),
    )


def _in_step(
    source: Iterable[Tensor], clips: Mapping[str, Iterable[Tensor]]
) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """A frame of the source with a frame of every clip; raises AtelierError where they do not fit."""
    others, number = {name: iter(frames) for name, frames in clips.items()}, -1
    for number, given in enumerate(source):
        plain, drawn = _colours(given, f"Frame {number} of the source"), {}
        for name, frames in others.items():
            frame = next(frames, None)
            if frame is None:
                raise AtelierError(
                    f"The clip {name!r} ends after {number} frames, the source goes on. Give clips of one length."
                )
            drawn[name] = frame = _colours(frame, f"Frame {number} of the clip {name!r}").to(plain.device)
            if frame.shape != plain.shape:
                raise AtelierError(
                    f"Frame {number} of the clip {name!r} has {frame.shape[2]} x {frame.shape[1]} pixels, the source's "
                    f"{plain.shape[2]} x {plain.shape[1]}. Bring the clips to one size."
                )
        yield plain, drawn
    if number < 0:
        raise AtelierError("The source has no frames. Give clips of one length with a frame or more.")
    for name, frames in others.items():
        if next(frames, None) is not None:
            raise AtelierError(
                f"The source ends after {number + 1} frames, the clip {name!r} goes on. Give clips of one length."
            )


def _colours(frame: Tensor, what: str = "The reference") -> Tensor:
    """The three colours of a frame, [1, 3 or 4, H, W] -> [3, H, W] in 0..1."""
    colours = frame[:3] if frame.shape[0] > 2 else frame[:1].expand(3, -1, -1)
    if not colours.isfinite().all():
        raise AtelierError(f"{what} holds values that are no numbers. Draw it again.")
    return colours.float().clamp(0, 1)


def write_scores(path: Path, scores: ClipScores) -> Path:
    """Write a clip's figures as CSV, a line for each frame and one for the means, whole or not at all."""
    names = [f.name for f in fields(FrameScores)]
    text = io.StringIO()
    pen = csv.writer(text, lineterminator="\n")
    pen.writerow([*names, "flicker"])
    for row in scores.frames:
        pen.writerow([*("" if v is None else f"{v:.6g}" for v in astuple(row)), ""])
    pen.writerow(["mean", *(_told(scores.mean(n), ".6g") for n in names[1:]), _told(scores.flicker, ".6g")])
    return write_text(Path(path), text.getvalue())


def _told(value: float, form: str) -> str:
    """A figure in words; nothing where it could not be measured."""
    return "" if math.isnan(value) else format(value, form)


def score_table(clips: Mapping[str, ClipScores]) -> str:
    """Clips beside each other as a Markdown table, a line each, in columns that stand straight as plain text too."""
    lines = [["clip", *FIGURES], *([name.replace("|", "/"), *_figures(scores)] for name, scores in clips.items())]
    wide = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * wide[0], *("-" * (w - 1) + ":" for w in wide[1:])]
    straight = _straight(lines)
    return "\n".join("| " + " | ".join(line) + " |" for line in (straight[0], rule, *straight[1:]))


def score_list(clips: Mapping[str, ClipScores]) -> str:
    """The same as plain text for a narrow place: a line for each figure, a column for each clip."""
    columns = [["", *FIGURES], *([name, *_figures(scores)] for name, scores in clips.items())]
    lines = _straight([list(line) for line in zip(*columns, strict=True)])
    return "\n".join("  ".join(line).rstrip() for line in lines)


def _straight(lines: list[list[str]]) -> list[list[str]]:
    """Cells as wide as their column; the first column begins on the left, the others end on the right."""
    wide = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [[line[0].ljust(wide[0]), *(c.rjust(w) for c, w in zip(line[1:], wide[1:], strict=True))] for line in lines]


def _figures(scores: ClipScores) -> list[str]:
    means = (scores.flicker if name == "flicker" else scores.mean(name) for name, _ in FIGURES.values())
    return [_told(mean, form) for mean, (_, form) in zip(means, FIGURES.values(), strict=True)]
