"""Gaussian noise that moves with a clip, so that a sampler draws the same strokes on the same things.

Each cell of the noise takes over the cell that its motion points at. What is left of a motion after rounding is kept
for the next frame, so slow motion adds up.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .flow import Flow, best_flow
from .stabilise import sample, trust_in

TIE = 0.499  # of a cell; rounds as 0.5 does, but away from where equal motions meet


@dataclass(frozen=True)
class NoiseField:
    """Noise between two frames.

    values  [C, h, w], independent, standard normal
    offset  [2, h, w] cells (x, y) from a cell's middle to where its noise truly is, within half a cell
    """

    values: Tensor
    offset: Tensor


def fresh_noise(channels: int, height: int, width: int, rng: torch.Generator) -> NoiseField:
    """A field of new noise, drawn on the CPU so that a seed gives the same on every machine."""
    return NoiseField(torch.randn(channels, height, width, generator=rng), torch.zeros(2, height, width))


def carry_noise(field: NoiseField, motion: Tensor, known: Tensor, rng: torch.Generator) -> NoiseField:
    """Move noise by one frame and keep it white and of unit variance.

    Where one cell is wanted by k new ones (things come nearer), they share it: each takes 1/sqrt(k) of it, and new
    noise without its mean over the k (Chang et al. 2024; Burgert et al. 2025). Their variance is 1/k + (1 - 1/k) = 1,
    their covariance 1/k - 1/k = 0.

    motion  [2, h, w] cells, from a place now to the same thing in the previous frame
    known   [h, w] bool, False where the frame shows what was hidden before: new noise comes there
    rng     on the CPU
    ->      the field of the present frame
    """
    channels, height, width = field.values.shape
    y = torch.arange(height, dtype=torch.float32)[:, None].expand(height, width)
    x = torch.arange(width, dtype=torch.float32)[None].expand(height, width)
    wanted = torch.stack([x, y]) + motion.to("cpu", torch.float32)
    nearest = _index(wanted, height, width)[0]
    # The noise that lies where the motion points: its cell is off by what rounding has left there.
    offset = field.offset.flatten(1)
    index, inside = _index(wanted - offset[:, nearest].view(2, height, width), height, width)
    taken = inside & known.cpu()
    left = torch.stack([x, y]).flatten(1)[:, index] + offset[:, index] - wanted.flatten(1)
    # New noise takes part in its neighbours' rounding, or both would claim one cell soon.
    # Where neighbours move apart the two look-ups may disagree; more than half a cell off is a new start.
    left = left.clamp(-0.5, 0.5).view(2, height, width)
    values = _shared(field.values, index, taken.flatten(), rng)
    return NoiseField(values.view(channels, height, width), left)


def _index(place: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Flat number of the cell at each place [2, h, w], and whether it is inside the field."""
    # Steady motion ends up on the half exactly; there, float's errors would send neighbours either way.
    x, y = (place + TIE).floor().long()
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return (y.clamp(0, height - 1) * width + x.clamp(0, width - 1)).flatten(), inside


def _shared(values: Tensor, index: Tensor, taken: Tensor, rng: torch.Generator) -> Tensor:
    """Values [C, n] taken over by cell number, split where several take the same one, drawn anew where none is taken."""
    channels, count = len(values), values[0].numel()
    drawn = torch.randn(channels, count, generator=rng)
    source, target = index[taken], taken.nonzero().flatten()
    claims = torch.bincount(source, minlength=count).float()
    means = torch.zeros(channels, count).index_add_(1, source, drawn[:, target]) / claims.clamp(min=1)
    k = claims[source]
    mixed = values.flatten(1)[:, source] / k.sqrt() + (drawn[:, target] - means[:, source]) * (k > 1)
    return drawn.index_copy(1, target, mixed)


def warped_noise(
    frames: Iterable[Tensor],
    size: tuple[int, int, int],
    seed: int,
    flow: Flow | None = None,
    cuts: Collection[int] = (),
    finer: int = 1,
) -> Iterator[Tensor]:
    """Noise for each frame of a clip that moves as the clip does.

    frames  [3, H, W] in 0..1
    size    channels, height and width of the latent
    flow    how motion is estimated; the better of what is installed when left out
    cuts    frames that begin a new shot: their noise is all new
    finer   cells along a side of one value of the latent. With 1 noise stays whole and moves by whole values; with 2
            or more it glides, and a value between two places is a mix of both
    ->      [C, h, w] float32 on the CPU for each frame, standard normal
    """
    estimate, rng = flow or best_flow(), torch.Generator().manual_seed(seed)
    channels, height, width = size
    grid = height * finer, width * finer
    field, before = None, None
    for number, frame in enumerate(frames):
        if field is None or before is None or number in cuts:
            field = fresh_noise(channels, *grid, rng)
        else:
            motion = estimate(frame, before)
            field = follow(field, motion, trust_in(motion, frame, sample(before, motion)), rng)
        before = frame
        yield summed(field.values, finer)


def follow(field: NoiseField, motion: Tensor, trust: Tensor, rng: torch.Generator) -> NoiseField:
    """Bring noise from a clip's frame to the next one, by a motion of pixels.

    motion  [2, H, W] pixels, from the present frame to the previous one
    trust   [1, H, W] in 0..1; new noise comes where it is half or less
    rng     on the CPU
    """
    grid = field.values.shape[-2], field.values.shape[-1]
    return carry_noise(field, cells_of(motion, grid), _reduced(trust, grid)[0] > 0.5, rng)


def cells_of(motion: Tensor, grid: tuple[int, int]) -> Tensor:
    """A motion in pixels [2, H, W] as one in cells of a grid, [2, h, w]."""
    height, width = motion.shape[-2:]
    scale = motion.new_tensor([grid[1] / width, grid[0] / height])
    return _reduced(motion, grid) * scale[:, None, None]


def _reduced(values: Tensor, grid: tuple[int, int]) -> Tensor:
    smaller = grid[0] <= values.shape[-2] and grid[1] <= values.shape[-1]
    way = {"mode": "area"} if smaller else {"mode": "bilinear", "align_corners": False}
    return F.interpolate(values[None].float(), grid, **way)[0]


def summed(values: Tensor, side: int) -> Tensor:
    """Sum of each square of independent standard normal values, scaled to unit variance."""
    return F.avg_pool2d(values[None], side)[0] * side
