"""Merges that look at every single value of the true deltas: TIES, DARE, DELLA, Breadcrumbs, magnitude pruning.

A low-rank delta that is pruned is no longer low rank, so these methods need dense values, and they are never right on
the factors alone. They walk over one layer in blocks of rows that the factors give anew on each pass: what is held is
the result and one block. Thresholds over a whole layer are exact all the same, by a radix select on the bits.

A method is what is pruned of each delta, and how the pruned deltas are added: METHODS.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..files import digest_of
from .factors import Factors

CHUNK = 1 << 22  # values of all deltas together that are dense at a time, besides the result
HALF = 16  # bits that one pass of the radix select settles
Prune = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Part:
    """One LoRA's delta of one layer in a merge.

    weight   what it is multiplied by; never 0
    factors  float32, with the scale folded in
    place    of the LoRA in the merge, from 0
    key      what its random numbers depend on, besides the seed and the layer
    """

    weight: float
    factors: Factors
    place: int = 0
    key: str = ""


@dataclass(frozen=True)
class Pruning:
    """What pruning needs to know: density, gamma and epsilon as MergeOptions has them, and the layer's random seed."""

    density: float
    gamma: float = 0.0
    epsilon: float = 0.0
    seed: tuple[object, ...] = ()


def merge_values(method: str, parts: Sequence[Part], pruning: Pruning) -> Tensor:
    """Merge deltas value by value.

    method  one of METHODS
    parts   of one layer, all [out, in]
    ->      the dense merged delta, [out, in] float32
    """
    prune, combine = METHODS[method]
    step = max(1, CHUNK // (parts[0].factors.down.shape[1] * len(parts)))
    pruned = [prune(part, pruning, step) for part in parts]
    weights = torch.tensor([part.weight for part in parts]).reshape(-1, 1, 1)
    merged = torch.empty(parts[0].factors.up.shape[0], parts[0].factors.down.shape[1])
    walks = [rows_of(part.factors, step) for part in parts]
    for start, *deltas in zip(range(0, len(merged), step), *walks, strict=True):
        stack = torch.stack([cut(delta) for cut, delta in zip(pruned, deltas, strict=True)])
        merged[start : start + step] = combine(stack, weights)
    return merged


def rows_of(factors: Factors, step: int) -> Iterator[Tensor]:
    """A delta's rows, `step` at a time, [step, in] float32; the same values on every walk."""
    for up in factors.up.split(step):
        yield up @ factors.down


def kth_magnitude(factors: Factors, k: int, step: int) -> float:
    """The k-th largest magnitude of a delta's values, exactly, in two walks over its rows.

    A radix select: float32 values that are not negative are ordered as their bits are. The first walk counts the upper
    halves of the bits, the second the lower halves where the upper ones are those of the value looked for.

    k  1 to the number of values
    """
    upper, before = _select(rows_of(factors, step), k, lambda bits: bits >> HALF)
    lower, _ = _select(rows_of(factors, step), k - before, lambda bits: bits[bits >> HALF == upper] & ((1 << HALF) - 1))
    return torch.tensor(upper << HALF | lower, dtype=torch.int32).view(torch.float32).item()


def _select(walk: Iterator[Tensor], k: int, digits: Callable[[Tensor], Tensor]) -> tuple[int, int]:
    """The digit of the k-th largest value, and how many values have a larger digit."""
    counts = torch.zeros(1 << HALF, dtype=torch.int64)
    for delta in walk:
        counts += torch.bincount(digits(delta.abs().view(torch.int32)).flatten(), minlength=1 << HALF)
    from_top = counts.flip(0).cumsum(0)
    place = int(torch.searchsorted(from_top, k).item())
    return (1 << HALF) - 1 - place, int(from_top[place - 1].item()) if place else 0


def trim(part: Part, pruning: Pruning, step: int) -> Prune:
    """Keep the values of largest magnitude, a share `density` of them (TIES, arXiv:2306.01708, section 4)."""
    count = part.factors.up.shape[0] * part.factors.down.shape[1]
    keep = int(pruning.density * count)
    if keep == count:
        return lambda delta: delta
    least = kth_magnitude(part.factors, keep, step) if keep else float("inf")
    return lambda delta: torch.where(delta.abs() >= least, delta, 0.0)


def trim_both_tails(part: Part, pruning: Pruning, step: int) -> Prune:
    """Drop a share `gamma` of largest magnitude, keep a share `density` of what follows (Breadcrumbs, arXiv:2312.06795).

    With a density of 1 nothing is dropped.
    """
    count = part.factors.up.shape[0] * part.factors.down.shape[1]
    top, keep = int(pruning.gamma * count), int(pruning.density * count)
    if keep == count:
        return lambda delta: delta
    most = kth_magnitude(part.factors, top + 1, step)
    least = kth_magnitude(part.factors, min(count, top + keep), step) if keep else float("inf")
    return lambda delta: torch.where((delta.abs() >= least) & (delta.abs() <= most), delta, 0.0)


def drop(part: Part, pruning: Pruning, step: int) -> Prune:
    """Drop values at random, keep a share `density` and divide it by that (DARE, arXiv:2311.03099)."""
    if pruning.density == 1:
        return lambda delta: delta
    rng = _rng(part, pruning)
    return lambda delta: delta * (torch.rand(delta.shape, generator=rng) < pruning.density) / pruning.density


def drop_by_rank(part: Part, pruning: Pruning, step: int) -> Prune:
    """Drop values at random, small ones of a row rather than large ones, and divide each by its chance to stay.

    The chance goes in even steps from density - epsilon for a row's smallest magnitude to density + epsilon for its
    largest (DELLA's MAGPRUNE, arXiv:2406.11617, as its authors' code has it).
    """
    if pruning.density == 1:
        return lambda delta: delta
    rng = _rng(part, pruning)
    width = part.factors.down.shape[1]
    chances = torch.linspace(pruning.density - pruning.epsilon, pruning.density + pruning.epsilon, width)
    if width == 1:
        chances = torch.full((1,), pruning.density)

    def dropped(delta: Tensor) -> Tensor:
        order = delta.abs().argsort(dim=1, stable=True)
        chance = torch.empty_like(delta).scatter_(1, order, chances.expand_as(delta))
        return delta * (torch.rand(delta.shape, generator=rng) < chance) / chance

    return dropped


def _rng(part: Part, pruning: Pruning) -> torch.Generator:
    """Random numbers of one LoRA in one layer, whatever the order of layers and LoRAs."""
    return torch.Generator().manual_seed(int(digest_of(*pruning.seed, part.key, size=7), 16))


def add(stack: Tensor, weights: Tensor) -> Tensor:
    """The weighted sum: stack [K, rows, in], weights [K, 1, 1] -> [rows, in]."""
    return (stack * weights).sum(0)


def elect_and_merge(stack: Tensor, weights: Tensor) -> Tensor:
    """TIES' last two steps: elect each value's sign by the sum of the deltas, then average those that have it.

    The deltas vote as they are; the weights scale what is averaged, as in peft.
    """
    elected = torch.where(stack.sum(0) >= 0, 1.0, -1.0)
    agrees = stack.sign() == elected
    return (stack * weights * agrees).sum(0) / agrees.sum(0).clamp(min=1)


METHODS: dict[str, tuple[Callable[[Part, Pruning, int], Prune], Callable[[Tensor, Tensor], Tensor]]] = {
    "magnitude": (trim, add),
    "ties": (trim, elect_and_merge),
    "dare_linear": (drop, add),
    "dare_ties": (drop, elect_and_merge),
    "della_linear": (drop_by_rank, add),
    "della": (drop_by_rank, elect_and_merge),
    "breadcrumbs": (trim_both_tails, add),
}
