"""Low-rank deltas as factors: what a LoRA says about one layer, and exact algebra on it.

A delta is `scale * up @ down`, and a weighted sum of deltas is again up @ down with the ranks added. Its best
approximation of a lower rank (Eckart-Young) needs no dense matrix: Gram matrices of the factors in float64 and the SVD
of a small core give it exactly.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import AtelierError
from .svd import svd_of


@dataclass(frozen=True)
class Factors:
    """One layer's delta: up [out, R], down [R, in], alpha; delta = alpha / R * up @ down.

    A convolution's `in` is channels times the `kernel`'s size, flattened. A DoRA has row norms besides, [out]: `magnitude` as the paper and peft have it, for |W + delta|; `dora_scale` as
    ComfyUI reads it, for |W|. A file holds the one or the other; only with the base model do they follow from each other.
    """

    up: Tensor
    down: Tensor
    alpha: float
    magnitude: Tensor | None = None
    dora_scale: Tensor | None = None
    kernel: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.up.dim() != 2 or self.down.dim() != 2 or self.up.shape[1] != self.down.shape[0]:
            raise AtelierError(
                f"A layer has up {list(self.up.shape)} and down {list(self.down.shape)}, which do not fit together. "
                "The file is damaged or not a plain LoRA; save it again."
            )

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @property
    def normed(self) -> bool:
        """Whether it is a DoRA."""
        return self.magnitude is not None or self.dora_scale is not None

    def folded(self) -> "Factors":
        """The same delta in float32 with its scale in `up`, so that alpha equals the rank."""
        up = self.up.float() * self.scale
        return replace(self, up=up, down=self.down.float(), alpha=float(self.rank))

    def delta(self) -> Tensor:
        """The dense delta, [out, in] float32."""
        return self.scale * (self.up.float() @ self.down.float())


def weighted_sum(parts: Sequence[tuple[float, Factors]]) -> Factors:
    """Sum of weight * delta, exactly: the factors side by side, ranks added.

    parts  weights and factors of one layer; same in and out sizes
    ->     float32 factors with alpha equal to the rank
    Raises AtelierError if the sizes differ.
    """
    shapes = {(p.up.shape[0], p.down.shape[1]) for _, p in parts}
    if len(shapes) > 1:
        (a, b), (c, d) = sorted(shapes)[:2]
        raise AtelierError(f"The LoRAs change layers of {a} x {b} and {c} x {d}. Merge LoRAs of the same base model.")
    up = torch.cat([weight * p.scale * p.up.float() for weight, p in parts], 1)
    down = torch.cat([p.down.float() for _, p in parts], 0)
    return Factors(up, down, float(down.shape[0]), kernel=parts[0][1].kernel)


def truncate(factors: Factors, rank: int) -> tuple[Factors, float]:
    """The best approximation of a delta at a lower rank, in the Frobenius norm.

    factors  any
    rank     1 or more; what already fits is kept as it is
    ->       float32 factors with alpha equal to the rank, and the share of the delta's energy they keep in 0..1
    Source: Eckart and Young 1936, on Gram matrices in float64.
    """
    if rank < 1:
        raise AtelierError(f"The rank is {rank}. Choose a rank of 1 or more.")
    if factors.rank <= rank:
        return factors.folded(), 1.0
    svd = svd_of(factors.up, factors.down, factors.scale)
    total, kept = svd.sigma.square().sum().item(), svd.sigma[:rank].square().sum().item()
    first = svd.balanced(rank)
    up, down = first.left(factors.up), first.right(factors.down)
    cut = Factors(up, down, float(up.shape[1]), kernel=factors.kernel)
    return cut, (kept / total if total else 1.0)


def singular_factors(factors: Factors) -> tuple[Tensor, Tensor, Tensor]:
    """Thin SVD of a delta from its factors: left [out, k], sigma [k] falling, right [k, in], float64.

    k is the number of directions that stand above rounding, at least 1.
    """
    svd = svd_of(factors.up, factors.down, factors.scale)
    return svd.left(factors.up, torch.float64), svd.sigma, svd.right(factors.down, torch.float64)
