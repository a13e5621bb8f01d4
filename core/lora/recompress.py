"""Bringing a merged delta to a rank, or to a share of its energy, and saying what that costs.

Energy is the squared Frobenius norm; a share of it that is kept leaves a relative error of sqrt(1 - share). What is in
factors is cut exactly. A dense delta is cut by a seeded randomised SVD where the rank is small beside its sides, and by
the eigenvectors of its Gram matrix otherwise; the share told is always that of the factors that come out.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import AtelierError
from .factors import Factors
from .svd import svd_of

RANKS = (16, 32, 64, 128)  # at which a report says what is kept
WIDE = 256  # rank above which the spectrum of what stays exact is not worth its time
SKETCH = 4  # a randomised SVD where this many times the looked-for directions still fit into the shorter side
ROUNDS = 4  # of subspace iteration
EXACT_SIDE = 1024  # side up to which a Gram matrix is taken in float64; beyond it the product costs minutes a layer
ROWS = 1024
SEED = 0x5EED


@dataclass(frozen=True)
class Retained:
    """What is left of one layer's merge in the rank it has.

    energy  of the merge before the cut
    kept    share of it in the factors
    at      share that ranks of RANKS keep, where it is known
    """

    rank: int
    energy: float
    kept: float
    at: Mapping[int, float] = field(default_factory=dict)


def recompress(factors: Factors, rank: int = 0, energy: float = 0.0) -> tuple[Factors, Retained]:
    """Cut a delta to a rank or a share of energy, as exactly as can be (Eckart-Young).

    rank    the highest; 0 sets no limit
    energy  share to keep with as few directions as it takes; 0 keeps what the rank allows
    ->      factors with alpha equal to the rank; with neither, or where all fits, the same delta as it is
    """
    exact = not energy and (not rank or factors.rank <= rank)
    if exact and factors.rank > WIDE:
        gram = (factors.up.double().T @ factors.up.double()) * (factors.down.double() @ factors.down.double().T)
        return factors, Retained(factors.rank, gram.sum().item() * factors.scale**2, 1.0)
    svd = svd_of(factors.up, factors.down, factors.scale)
    total = svd.sigma.square().sum().item()
    shares = _shares(svd.sigma.square(), total)
    if exact:
        return factors, Retained(factors.rank, total, 1.0, _at(shares, True))
    r = _rank_for(shares, rank, energy)
    first = svd.balanced(r)
    cut = Factors(first.left(factors.up), first.right(factors.down), float(r), kernel=factors.kernel)
    return cut, Retained(r, total, shares[r - 1], _at(shares, True))


def recompress_dense(delta: Tensor, rank: int = 0, energy: float = 0.0) -> tuple[Factors, Retained]:
    """Bring a dense delta into factors; rank and energy as in recompress, one of them above 0.

    delta  [out, in] float32
    Source: randomised subspace iteration, Halko et al. 2009, arXiv:0909.4061.
    """
    if not rank and not energy:
        raise AtelierError("A dense change fits into no LoRA exactly. Give a rank above 0, or an energy.")
    total = sum(rows.double().square().sum().item() for rows in delta.split(ROWS))
    if rank and 2 * rank * SKETCH <= min(delta.shape):
        left, sigma, right = _sketched(delta, 2 * rank)
        shares = _shares(sigma.double().square(), total)
        r, whole = _rank_for(shares, rank, energy), False
        root = sigma[:r].sqrt()
        up, down = left[:, :r] * root, root[:, None] * right[:r]
    else:
        tall = delta if delta.shape[0] >= delta.shape[1] else delta.T
        squares, vectors = _gram_directions(tall)
        shares = _shares(squares, total)
        r, whole = _rank_for(shares, rank, energy), True
        basis = vectors[:, :r].float()
        images = torch.cat([rows @ basis for rows in tall.split(ROWS)])
        root = squares[:r].clamp(min=0).pow(0.25).float()
        safe = torch.where(root > 0, root, 1.0)
        up, down = (images / safe, (basis * safe).T) if tall is delta else (basis * safe, (images / safe).T)
    return Factors(up.contiguous(), down.contiguous(), float(r)), Retained(r, total, shares[r - 1], _at(shares, whole))


def _sketched(delta: Tensor, directions: int) -> tuple[Tensor, Tensor, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(SEED)
        left, sigma, right = torch.svd_lowrank(delta, q=directions, niter=ROUNDS)
    return left, sigma, right.T


def _gram_directions(tall: Tensor) -> tuple[Tensor, Tensor]:
    """Squared singular values, falling, and right singular vectors [in, in] of a matrix with no more columns than rows."""
    dtype = torch.float64 if tall.shape[1] <= EXACT_SIDE else torch.float32
    gram = torch.zeros(tall.shape[1], tall.shape[1], dtype=dtype)
    for rows in tall.split(ROWS):
        block = rows.to(dtype)
        gram += block.T @ block
    squares, vectors = torch.linalg.eigh(gram)
    return squares.flip(0), vectors.flip(1)


def _shares(squares: Tensor, total: float) -> list[float]:
    """Share of the energy in the first directions, for every number of them."""
    if total <= 0:
        return [1.0] * len(squares)
    return (squares.double().clamp(min=0).cumsum(0) / total).clamp(max=1.0).tolist()


def _rank_for(shares: list[float], rank: int, energy: float) -> int:
    most = min(rank or len(shares), len(shares))
    if not energy:
        return most
    # What is left of a share is known to rounding only, and a LoRA that needs r directions shall get r.
    return next((r for r in range(1, most) if shares[r - 1] >= energy - 1e-9), most)


def _at(shares: list[float], whole: bool) -> dict[int, float]:
    """Shares at RANKS; `whole` says that there are no directions beyond those of `shares`."""
    return {r: shares[min(r, len(shares)) - 1] for r in RANKS if whole or r <= len(shares)}


def share_kept(layers: Mapping[str, Retained]) -> float:
    """Share of the energy that all layers together keep; 1 where there is none."""
    return _together(layers, lambda layer: layer.kept)


def _together(layers: Mapping[str, Retained], share: Callable[[Retained], float]) -> float:
    total = math.fsum(layer.energy for layer in layers.values())
    return math.fsum(layer.energy * share(layer) for layer in layers.values()) / total if total > 0 else 1.0


def retained_report(layers: Mapping[str, Retained]) -> str:
    """What the ranks cost as text: all layers together, at other ranks, then each layer, the costliest first."""
    if not layers:
        return "no layers"
    ranks = [layer.rank for layer in layers.values()]
    kept = share_kept(layers)
    span = f"rank {min(ranks)}" if min(ranks) == max(ranks) else f"ranks {min(ranks)} to {max(ranks)}"
    count = f"{len(layers)} layer{'s' * (len(layers) > 1)}"
    lines = [f"{count}, {span}: {kept:.2%} of the energy kept, relative error {_error(kept)}"]
    others = {
        r: _together(layers, lambda layer, r=r: layer.at[r]) for r in RANKS if all(r in k.at for k in layers.values())
    }
    if others:
        lines.append("at rank " + ", ".join(f"{r}: {share:.2%}" for r, share in others.items()))
    lines += [
        f"{module}: rank {layer.rank}, {layer.kept:.2%} kept, relative error {_error(layer.kept)}"
        for module, layer in sorted(layers.items(), key=lambda item: item[1].kept)
    ]
    return "\n".join(lines)


def _error(kept: float) -> str:
    return f"{math.sqrt(max(0.0, 1 - kept)):.3g}"
