"""A LoRA split into what it shares with others and what is its own; the two add up to it.

Shared is the part that reads from and writes to the subspaces that the others use: P_left delta P_right, with the
orthogonal projections onto the sum of the others' column spaces and row spaces.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import AtelierError
from .factors import Factors
from .kinds import Layer, plain
from .provenance import inherit
from .record import Lora
from .svd import energy_of, gram, orthonormal, svd_of


@dataclass(frozen=True)
class Split:
    """The shared and the private part, and the shared one's share of the energy, 0..1."""

    shared: Lora
    private: Lora
    share: float


def split_shared(
    lora: Lora, others: Sequence[Lora], energy: float = 1.0, seen: Callable[[int], None] = lambda _: None
) -> Split:
    """Split a LoRA by the subspaces that other LoRAs use, layer by layer, exactly.

    The shared part has at most the LoRA's rank, the private one at most twice that. Changes of biases and norms stay in
    the private part.

    energy  above 0, up to 1; the others' directions count from the strongest up to this share of their energy in a
            layer, because the faint ones are noise
    seen    called with the number of layers done
    Raises AtelierError without others, for another base or size, or for a layer that is no plain sum of directions.
    """
    _refuse(lora, others, energy)
    shared: dict[str, Layer] = {}
    private: dict[str, Layer] = {}
    whole = inside = 0.0
    for done, (module, layer) in enumerate(lora.modules.items(), 1):
        factors = plain(layer)
        spaces = [_space(plain(o.modules[module]), energy) for o in others if module in o.modules]
        _check_sizes(module, factors, spaces)
        whole += _energy(factors)
        private[module] = factors.folded()
        if spaces:
            inner, private[module] = split_layer(factors, spaces)
            inside += _energy(inner)
            shared[module] = inner
        seen(done)
    told = {"energy": energy, "others": len(others)}
    return Split(
        Lora(shared, "kohya", inherit([lora], {"part": "shared", **told}), base=lora.base),
        Lora(private, "kohya", inherit([lora], {"part": "private", **told}), vectors=lora.vectors, base=lora.base),
        inside / whole if whole else 0.0,
    )


def split_layer(factors: Factors, spaces: Sequence[tuple[Tensor, Tensor]]) -> tuple[Factors, Factors]:
    """One layer's shared and private part, float32 with alpha equal to the rank.

    spaces  left [out, k] and right [k, in] singular vectors of each other change
    """
    left, right = _basis([space for space, _ in spaces]), _basis([space.T for _, space in spaces])
    up, down = factors.up.double() * factors.scale, factors.down.double()
    up_in, down_in = left @ (left.T @ up), (down @ right) @ right.T
    rank, kernel = factors.rank, factors.kernel
    shared = Factors(up_in.float(), down_in.float(), float(rank), kernel=kernel)
    # What is written outside the spaces, and what is written inside but read outside.
    up_out, down_out = torch.cat([up - up_in, up_in], 1), torch.cat([down, down - down_in])
    return shared, Factors(up_out.float(), down_out.float(), 2.0 * rank, kernel=kernel)


def _refuse(lora: Lora, others: Sequence[Lora], energy: float) -> None:
    if not others:
        raise AtelierError("There is no other LoRA to share with. Give at least one.")
    if not 0 < energy <= 1:
        raise AtelierError(f"The energy is {energy}. Give a share above 0 and up to 1.")
    odd = next((other.base for other in others if other.base != lora.base), None)
    if odd:
        raise AtelierError(f"The LoRAs are for {lora.base} and {odd}. Split by LoRAs of the same base model.")


def _check_sizes(module: str, factors: Factors, spaces: Sequence[tuple[Tensor, Tensor]]) -> None:
    mine = factors.up.shape[0], factors.down.shape[1]
    theirs = next((s for left, right in spaces if (s := (left.shape[0], right.shape[1])) != mine), None)
    if theirs:
        raise AtelierError(
            f"{module} is {mine[0]} x {mine[1]} in one LoRA and {theirs[0]} x {theirs[1]} in another. "
            "Split by LoRAs of the same base model."
        )


def _space(factors: Factors, energy: float) -> tuple[Tensor, Tensor]:
    """The strongest singular vectors of a change, up to a share of its energy; none of a zero change."""
    svd = svd_of(factors.up, factors.down, factors.scale)
    sums = svd.sigma.square().cumsum(0)
    count = int((sums < energy * sums[-1] * (1 - 1e-12)).sum()) + 1 if sums[-1] > 0 else 0
    return svd.left(factors.up, torch.float64)[:, :count], svd.right(factors.down, torch.float64)[:count]


def _basis(vectors: Sequence[Tensor]) -> Tensor:
    """Orthonormal columns [n, k] with the span of several sets of orthonormal columns, float64."""
    vectors = [v for v in vectors if v.shape[1]] or vectors[:1]
    if len(vectors) == 1:
        return vectors[0]
    joined = torch.cat(vectors, 1)
    for _ in range(2):  # once loses digits where sets are nearly parallel (CholeskyQR2)
        turn, roots = orthonormal(gram(joined))
        joined = joined @ (turn / roots)
    return joined


def _energy(factors: Factors) -> float:
    return energy_of(factors.up, factors.down, factors.scale)
