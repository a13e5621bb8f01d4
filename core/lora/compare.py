"""LoRAs beside each other: cosines, shared subspaces and conflicts of sign, from the factors alone.

<U_a D_a, U_b D_b> = sum((U_a^T U_b) * (D_a D_b^T)), so that small Gram matrices say all of it exactly, in float64. One
walk over the layers holds one layer of every LoRA at a time.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from ..counting import counted
from ..errors import AtelierError
from .factors import Factors
from .kinds import plain
from .places import place_of
from .record import Lora
from .svd import orthonormal

SAMPLES = 512  # entries of a layer whose signs are looked at; over 304 layers the estimate is good to some per mille

ROWS = 512  # of all factors side by side in float64 at a time, which stay in the cache


@dataclass(frozen=True)
class Shared:
    """Two changes of one layer.

    inner        Frobenius inner product
    left, right  between orthonormal bases of their column spaces and of their row spaces, [k, l]; the singular values
                 are the cosines of the principal angles
    of_first     share of the first's energy inside both spaces of the second; of_second the other way
    """

    inner: float
    left: Tensor
    right: Tensor
    of_first: float
    of_second: float


@dataclass
class _Sums:
    """What is added up over the layers, [K, K] each; `common` counts layers that both have."""

    count: int
    inner: Tensor = field(init=False)
    shared: Tensor = field(init=False)
    left: Tensor = field(init=False)
    right: Tensor = field(init=False)
    common: Tensor = field(init=False)
    conflict: Tensor = field(init=False)
    entries: Tensor = field(init=False)

    def __post_init__(self) -> None:
        for name in ("inner", "shared", "left", "right", "common", "conflict", "entries"):
            setattr(self, name, torch.zeros(self.count, self.count, dtype=torch.float64))


@dataclass(frozen=True)
class Comparison:
    """Matrices [K, K] over K LoRAs; rows and columns in the order of `names`.

    cosine    of the whole changes of weights, -1..1; 0 with a LoRA that changes nothing
    blocks    the same by block
    shared    share of the row's energy inside the spaces that the column's LoRA uses, 0..1
    left      mean squared cosine of the principal angles between column spaces, over the layers that both have, 0..1
    right     the same of row spaces
    conflict  estimated share of the entries that both change in which they pull in opposite directions, 0..1
    common    number of layers that both have
    """

    names: tuple[str, ...]
    norms: tuple[float, ...]
    cosine: Tensor
    blocks: Mapping[str, Tensor]
    shared: Tensor
    left: Tensor
    right: Tensor
    conflict: Tensor
    common: Tensor

    def as_dict(self) -> dict[str, object]:
        """Everything as plain values, for JSON."""
        matrices = {
            name: getattr(self, name).tolist() for name in ("cosine", "shared", "left", "right", "conflict", "common")
        }
        blocks = {block: matrix.tolist() for block, matrix in self.blocks.items()}
        return {"names": list(self.names), "norms": list(self.norms), **matrices, "blocks": blocks}


def compare(
    loras: Sequence[tuple[str, Lora]], seed: int = 0, seen: Callable[[int], None] = lambda _: None
) -> Comparison:
    """Compare LoRAs pair by pair over all layers; a layer that one lacks is a change of zero there.

    loras  name and LoRA of each, of the same base model
    seed   of the entries that are sampled for the conflicts of sign
    seen   called with the number of layers done
    Raises AtelierError for fewer than two, another base, or a layer that is no plain sum of directions.
    """
    _refuse(loras)
    rng = torch.Generator().manual_seed(seed)
    modules = list(dict.fromkeys(m for _, lora in loras for m in lora.modules))
    total, blocks = _Sums(len(loras)), {}
    for done, module in enumerate(modules, 1):
        layers = {i: plain(lora.modules[module]) for i, (_, lora) in enumerate(loras) if module in lora.modules}
        _check_sizes(module, layers, loras)
        inner = _add_layer(total, layers)
        block = place_of(module).block
        blocks[block] = blocks.get(block, 0.0) + inner
        _add_conflicts(total, layers, rng)
        seen(done)
    energy = total.inner.diagonal()
    return Comparison(
        tuple(name for name, _ in loras),
        tuple(energy.clamp(min=0).sqrt().tolist()),
        _cosines(total.inner),
        {block: _cosines(inner) for block, inner in blocks.items()},
        _over(total.shared, energy[:, None]).clamp(0, 1),
        _over(total.left, total.common),
        _over(total.right, total.common),
        _over(total.conflict, total.entries),
        total.common,
    )


def _refuse(loras: Sequence[tuple[str, Lora]]) -> None:
    if len(loras) < 2:
        raise AtelierError(f"There is {len(loras)} LoRA to compare. Give two or more LoRAs.")
    bases = {lora.base: name for name, lora in loras}
    if len(bases) > 1:
        (first, a), (second, b) = list(bases.items())[:2]
        raise AtelierError(f"{a} is for {first} and {b} for {second}. Compare LoRAs of the same base model.")


def _check_sizes(module: str, layers: Mapping[int, Factors], loras: Sequence[tuple[str, Lora]]) -> None:
    sizes = {(f.up.shape[0], f.down.shape[1]): loras[i][0] for i, f in layers.items()}
    if len(sizes) > 1:
        (first, a), (second, b) = list(sizes.items())[:2]
        raise AtelierError(
            f"{module} is {first[0]} x {first[1]} in {a} and {second[0]} x {second[1]} in {b}. "
            "Compare LoRAs of the same base model."
        )


def _cosines(inner: Tensor) -> Tensor:
    """Cosines from inner products, [K, K]."""
    norms = inner.diagonal().clamp(min=0).sqrt()
    return _over(inner, norms[:, None] * norms).clamp(-1, 1)


def _over(above: Tensor, below: Tensor) -> Tensor:
    """A quotient that is 0 where there is nothing to divide by."""
    return torch.where(below > 0, above / below.clamp(min=torch.finfo(torch.float64).tiny), 0.0)


@dataclass(frozen=True)
class _Spans:
    """One layer of several LoRAs: inner products of the columns of `up` and of the rows of `down` of each pair, and what
    makes each one's spans orthonormal, [R, k]."""

    up: dict[tuple[int, int], Tensor]
    down: dict[tuple[int, int], Tensor]
    left: list[Tensor]
    right: list[Tensor]

    @classmethod
    def of(cls, layers: Sequence[Factors]) -> "_Spans":
        up, down = _grams([f.up for f in layers]), _grams([f.down.T for f in layers])
        up = {(a, b): layers[a].scale * layers[b].scale * value for (a, b), value in up.items()}
        each = range(len(layers))
        return cls(up, down, [_whitener(up[i, i]) for i in each], [_whitener(down[i, i]) for i in each])

    def between(self, a: int, b: int) -> Shared:
        up, down = self.up[a, b], self.down[a, b]
        left, right = self.left[a].T @ up @ self.left[b], self.right[a].T @ down @ self.right[b]
        of_first = (self.left[b].T @ up.T @ down @ self.right[b]).square().sum()
        of_second = (self.left[a].T @ up @ down.T @ self.right[a]).square().sum()
        return Shared((up * down).sum().item(), left, right, of_first.item(), of_second.item())


def _grams(matrices: Sequence[Tensor]) -> dict[tuple[int, int], Tensor]:
    """a^T b of every pair a <= b of matrices [n, R], each value cast to float64 once, a few rows at a time."""
    ends = list(accumulate((m.shape[1] for m in matrices), initial=0))
    at = [slice(first, last) for first, last in pairwise(ends)]
    total = torch.zeros(ends[-1], ends[-1], dtype=torch.float64)
    for start in range(0, len(matrices[0]), ROWS):
        rows = torch.cat([m[start : start + ROWS].double() for m in matrices], 1)
        for mine in at:
            total[mine, mine.start :].addmm_(rows[:, mine].T, rows[:, mine.start :])
    pairs = ((a, b) for a in range(len(at)) for b in range(a, len(at)))
    return {(a, b): total[at[a], at[b]] for a, b in pairs}


def _whitener(square: Tensor) -> Tensor:
    """W [R, k] with W^T square W = 1, directions at rounding left out; [R, 0] for a zero matrix."""
    if not square.any():
        return square[:, :0]
    vectors, roots = orthonormal(square)
    return vectors / roots


def _add_layer(total: _Sums, layers: Mapping[int, Factors]) -> Tensor:
    """Add one layer to the sums; gives its inner products [K, K]."""
    spans, places = _Spans.of(list(layers.values())), list(layers)
    inner = torch.zeros_like(total.inner)
    for a, i in enumerate(places):
        for b, j in enumerate(places[a:], a):
            found = spans.between(a, b)
            fewer = max(1, min(found.left.shape), min(found.right.shape))
            near = [found.left.square().sum() / fewer, found.right.square().sum() / fewer]
            for row, column, shared in [(i, j, found.of_first), (j, i, found.of_second)][: 1 if i == j else 2]:
                inner[row, column] = found.inner
                total.shared[row, column] += shared
                total.left[row, column] += near[0]
                total.right[row, column] += near[1]
                total.common[row, column] += 1
    total.inner += inner
    return inner


def _add_conflicts(total: _Sums, layers: Mapping[int, Factors], rng: torch.Generator) -> None:
    """Sample entries of one layer and count those in which two LoRAs disagree, weighed by the layer's size."""
    first = next(iter(layers.values()))
    out, width = first.up.shape[0], first.down.shape[1]
    rows = torch.randint(out, (SAMPLES,), generator=rng)
    columns = torch.randint(width, (SAMPLES,), generator=rng)
    signs = {
        i: ((f.up[rows].float() * f.scale) * f.down[:, columns].T.float()).sum(1).sign() for i, f in layers.items()
    }
    size = out * width
    for i, mine in signs.items():
        for j, theirs in signs.items():
            both = mine * theirs
            moved = (both != 0).double().mean().item()
            total.conflict[i, j] += size * (both < 0).double().mean().item()
            total.entries[i, j] += size * moved


def principal_angles(a: Factors, b: Factors) -> tuple[Tensor, Tensor]:
    """Angles between what two changes write and between what they read (Bjorck and Golub 1973).

    a, b  of one layer
    ->    angles in radians, rising, of the column spaces and of the row spaces, float64; as many as the smaller has
          dimensions. Angles below about 1e-7 are not told from 0.
    """
    found = _Spans.of([a, b]).between(0, 1)
    left, right = (torch.linalg.svdvals(m).clamp(0, 1).arccos() for m in (found.left, found.right))
    return left, right


def cosine(a: Lora, b: Lora) -> float:
    """Cosine between the whole changes of two LoRAs, -1..1."""
    return compare([("first", a), ("second", b)]).cosine[0, 1].item()


def told(comparison: Comparison) -> str:
    """The pairs in words, the most alike first."""
    names, lines = comparison.names, []
    pairs = [(i, j) for i in range(len(names)) for j in range(i + 1, len(names))]
    for i, j in sorted(pairs, key=lambda p: -abs(comparison.cosine[p].item())):
        angle = math.degrees(math.acos(comparison.cosine[i, j].item()))
        lines.append(
            f"{names[i]} and {names[j]}: cosine {comparison.cosine[i, j]:.4f} ({angle:.1f} degrees), "
            f"{comparison.shared[i, j]:.2%} of the first and {comparison.shared[j, i]:.2%} of the second in the other's "
            f"space, signs against each other in {comparison.conflict[i, j]:.2%}, "
            f"{counted(int(comparison.common[i, j]), 'layer')} in common"
        )
    return "\n".join(lines)
