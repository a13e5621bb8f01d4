"""How good a restyled clip is, in figures that need no weights: likeness, steadiness, structure and colour.

`judge` walks through a clip two frames at a time; `write_scores` and `score_table` show what it found.
"""

import csv
import io
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import AtelierError
from ..files import write_text
from ..frames.flow import Flow, best_flow, luma
from ..frames.stabilise import sample, trust_in
from ..style.statistics import rgb_to_lab

GAUSSIAN, RADIUS = 1.5, 5  # pixels, the window of Wang et al. 2004
TRUSTED = 0.5  # motion is judged where it is trusted by at least this
DIRECTIONS, QUANTILES = 32, 256  # of the sliced distance of colours
STRUCTURE_SCALES = 3  # halvings


@dataclass(frozen=True)
class FrameScores:
    """Figures of one frame; those of motion are None where a shot begins.

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
    """A clip's frames and their means; flicker is the mean second difference of brightness within shots, x 1000."""

    frames: tuple[FrameScores, ...]
    flicker: float

    def mean(self, name: str) -> float:
        """Mean of one figure over the frames that have it; nan if none has."""
        values = [v for f in self.frames if (v := getattr(f, name)) is not None]
        return sum(values) / len(values) if values else math.nan


def psnr(first: Tensor, second: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures of any one shape in 0..1; inf where they are equal."""
    error = (first.double() - second.double()).square().mean().item()
    return -10 * math.log10(error) if error else math.inf


def ssim(first: Tensor, second: Tensor) -> float:
    """Structural similarity with a Gaussian window of 11 x 11 (Wang et al. 2004), the mean of the channels.

    first, second  [C, H, W] in 0..1
    Raises AtelierError for pictures smaller than the window.
    """
    mean_a, mean_b, var_a, var_b, both = _local(first, second)
    one, two = 0.01**2, 0.03**2
    likeness = (2 * mean_a * mean_b + one) * (2 * both + two)
    return (likeness / ((mean_a**2 + mean_b**2 + one) * (var_a + var_b + two))).mean().item()


def _local(first: Tensor, second: Tensor) -> tuple[Tensor, ...]:
    """Means, variances and covariance in windows that lie inside; each [C, H - 10, W - 10] float64."""
    if min(first.shape[-2:]) <= 2 * RADIUS:
        raise AtelierError(
            f"The pictures are {first.shape[-1]} x {first.shape[-2]} pixels. Give at least {2 * RADIUS + 1} x {2 * RADIUS + 1}."
        )
    a, b = first.double(), second.double()
    at = torch.arange(-RADIUS, RADIUS + 1, device=a.device, dtype=a.dtype)
    kernel = torch.exp(-(at**2) / (2 * GAUSSIAN**2))
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
    stacked = torch.stack([a, b, a * a, b * b, a * b]).flatten(0, 1)[:, None]
    means = F.conv2d(F.conv2d(stacked, kernel), kernel.transpose(2, 3))[:, 0].unflatten(0, (5, len(a)))
    mean_a, mean_b, aa, bb, ab = means
    return mean_a, mean_b, aa - mean_a**2, bb - mean_b**2, ab - mean_a * mean_b


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
        _, _, var_a, var_b, both = _local(a, b)
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
    rng = torch.Generator().manual_seed(0)
    axes = F.normalize(torch.randn(DIRECTIONS, 3, generator=rng, dtype=torch.float64), dim=1).to(first.device)
    places = (torch.arange(QUANTILES, device=first.device) + 0.5) / QUANTILES
    lines = []
    for picture in (first, second):
        along = (axes @ rgb_to_lab(picture.double()).flatten(1)).sort(1).values
        lines.append(along[:, (places * along.shape[1]).long()])
    return (lines[0] - lines[1]).abs().mean().item()


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
    """Mean absolute second difference of brightness within shots, x 1000; 0 for shots of less than three frames."""
    values = list(brightness)
    inner = [n for n in range(2, len(values)) if n not in cuts and n - 1 not in cuts]
    bends = [abs(values[n] - 2 * values[n - 1] + values[n - 2]) for n in inner]
    return 1e3 * sum(bends) / len(bends) if bends else 0.0


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
    estimate = flow or best_flow()
    rows: list[FrameScores] = []
    before: tuple[Tensor, Tensor] | None = None
    others = iter(drawn)
    for number, plain in enumerate(source):
        frame = next(others, None)
        if frame is None or frame.shape != plain.shape:
            told = (
                "ends"
                if frame is None
                else f"is {frame.shape[2]} x {frame.shape[1]}, the source {plain.shape[2]} x {plain.shape[1]}"
            )
            raise AtelierError(f"At frame {number} the clip {told}. Give clips of one length and size.")
        error = None
        if before is not None and number not in cuts:
            motion = estimate(plain, before[0])
            error = warping_error(frame, before[1], motion, trust_in(motion, plain, sample(before[0], motion)))
        palette = plain if reference is None else reference
        rows.append(
            FrameScores(
                number, psnr(plain, frame), ssim(plain, frame), error, luma(frame).double().mean().item(),
                sharpness(frame), structure_distance(plain, frame), color_distance(frame, palette),
            )
        )  # fmt: skip
        before = plain, frame
    if not rows or next(others, None) is not None:
        found = f"The clip goes on after the source's {len(rows)} frames" if rows else "The clip has no frames"
        raise AtelierError(f"{found}. Give clips of one length.")
    return ClipScores(tuple(rows), flicker([r.brightness for r in rows], cuts))


def write_scores(path: Path, scores: ClipScores) -> Path:
    """Write a clip's figures as CSV, a line for each frame and one for the means, whole or not at all."""
    names = [f.name for f in fields(FrameScores)]
    text = io.StringIO()
    pen = csv.writer(text, lineterminator="\n")
    pen.writerow([*names, "flicker"])
    for row in scores.frames:
        pen.writerow([*("" if v is None else f"{v:.6g}" for v in astuple(row)), ""])
    pen.writerow(["mean", *(f"{scores.mean(n):.6g}" for n in names[1:]), f"{scores.flicker:.6g}"])
    return write_text(Path(path), text.getvalue())


def score_table(clips: Mapping[str, ClipScores]) -> str:
    """Clips beside each other as a Markdown table, a line each."""
    head = ["clip", "PSNR dB", "SSIM", "warping x1000", "flicker x1000", "sharpness x1000", "structure", "colour ΔE"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, scores in clips.items():
        cells = [
            f"{scores.mean('psnr'):.2f}", f"{scores.mean('ssim'):.3f}", f"{scores.mean('warping'):.3f}",
            f"{scores.flicker:.2f}", f"{scores.mean('sharpness'):.2f}", f"{scores.mean('structure'):.3f}",
            f"{scores.mean('color'):.2f}",
        ]  # fmt: skip
        lines.append("| " + " | ".join([name.replace("|", "/"), *cells]) + " |")
    return "\n".join(lines)
