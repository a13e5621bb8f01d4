"""Resizing a LoRA to a file size: over all layers, the singular directions that hold the most energy per byte."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from ..errors import AtelierError
from ..flux.checkpoint import Weights, spans
from .factors import Factors
from .formats import to_layout
from .kinds import Layer, plain
from .provenance import inherit
from .record import Layout, Lora
from .resize import LayerRule, Part, Resized, Watch, check_limits, check_rules, part_of, plan_layer, rebuilt, rule_for
from .svd import svd_of

MIB = 1 << 20
ENTRY = 72  # bytes of a tensor's entry in the header, beside its name
FRAME = 256  # of the header beside what the LoRA says: its length, padding, title, date, rank and alpha


@dataclass(frozen=True)
class Budget:
    """The size of a LoRA's file, and how it is to be spent.

    mib     of the file that write_lora makes in the layout and dtype
    least   directions that every layer keeps in any case; 0 lets whole layers go
    most    directions of a layer at most, 0 for no limit
    norm    Frobenius or spectral norm of the base weight of a layer, by its name: then a direction counts by its size
            relative to the weight that it changes
    """

    mib: float
    least: int = 1
    most: int = 0
    layout: Layout = "kohya"
    dtype: torch.dtype = torch.float16
    norm: Callable[[str], float] | None = None

    def __post_init__(self) -> None:
        if not self.mib > 0:
            raise AtelierError(f"The size to resize to is {self.mib:g} MiB. Give a size above 0.")
        check_limits(self.least, self.most)


@dataclass(frozen=True)
class Spectrum:
    """A layer that shares the budget: its singular values, its rank, and its bytes in all and per direction."""

    sigma: Tensor
    before: int
    fixed: int
    each: int


def resize_to_size(lora: Lora, budget: Budget, rules: Sequence[LayerRule] = (), watch: Watch | None = None) -> Resized:
    """Bring a LoRA to a file size, keeping the directions with the most energy per byte over all layers.

    rules  layers with a rule of their own are served first, and the others share what is left
    watch  called with the number of layers done
    Raises AtelierError as resize does, and if the size is below what `least` and the rules ask for.
    """
    check_rules(lora, rules)
    parts: dict[str, Part] = {}
    shared: dict[str, Spectrum] = {}
    told = {"method": "size", "value": budget.mib, "least": budget.least, "most": budget.most}
    told |= {"relative": budget.norm is not None, "rules": [r.text for r in rules]}
    recipe = {"resize": told}
    spent = _bytes(replace(lora, modules={}), budget) + len(json.dumps(inherit([lora], recipe))) + FRAME
    for done, (name, layer) in enumerate(lora.modules.items(), 1):
        own = rule_for(name, rules)
        if own:
            parts[name] = plan_layer(name, layer, own.rule)
            spent += _spent(name, layer, parts[name], budget, lora)
        else:
            shared[name] = _spectrum(name, plain(layer), budget, lora)
        if watch:
            watch(done)
    ranks = _share_out(shared, budget, spent)
    for name, rank in ranks.items():
        factors = plain(lora.modules[name])
        parts[name] = part_of(name, factors.rank, svd_of(factors.up, factors.down, factors.scale), rank)
    return rebuilt(lora, {name: parts[name] for name in lora.modules}, rules, recipe)


def _share_out(shared: Mapping[str, Spectrum], budget: Budget, spent: int) -> dict[str, int]:
    """Ranks by layer: first what every layer keeps, then direction by direction while there is room."""
    ranks = {name: min(budget.least, len(one.sigma)) for name, one in shared.items()}
    room = budget.mib * MIB - spent - sum(_cost(shared[name], rank) for name, rank in ranks.items())
    if room < 0:
        least = (budget.mib * MIB - room) / MIB
        raise AtelierError(
            f"The LoRA at its lowest ranks takes {least:.4g} MiB, above the size of {budget.mib:g} MiB. "
            "Give a larger size, or a lowest rank of 0, which lets whole layers go."
        )
    full: set[str] = set()  # layers whose next direction has no room; the ones after it weigh the same
    for name in _by_worth(shared, budget):
        if name in full:
            continue
        cost = _cost(shared[name], ranks[name] + 1) - _cost(shared[name], ranks[name])
        if cost <= room:
            ranks[name] += 1
            room -= cost
        else:
            full.add(name)
    return ranks


def _by_worth(shared: Mapping[str, Spectrum], budget: Budget) -> list[str]:
    """The layer of each direction beyond the lowest rank, those with the most energy per byte first."""
    names, worth = [], []
    for name, one in shared.items():
        sigma = one.sigma[: budget.most or None]
        norm = budget.norm(name) if budget.norm else 1.0
        if not norm > 0:
            raise AtelierError(f"The base weight of {name} has norm {norm:g}. Give the model that the LoRA is for.")
        names += [name] * max(0, len(sigma) - budget.least)
        worth.append(sigma[budget.least :].square() / (norm * norm * one.each))
    order = torch.cat(worth).argsort(descending=True, stable=True).tolist() if worth else []
    return [names[i] for i in order]


def _cost(one: Spectrum, rank: int) -> int:
    return one.fixed + one.each * rank if rank else 0


def _spectrum(name: str, factors: Factors, budget: Budget, lora: Lora) -> Spectrum:
    one, two = (_bytes(_probe(name, factors, rank, lora), budget) for rank in (1, 2))
    sigma = svd_of(factors.up, factors.down, factors.scale).sigma
    return Spectrum(sigma, factors.rank, 2 * one - two, two - one)


def _probe(name: str, factors: Factors, rank: int, lora: Lora) -> Lora:
    """A LoRA of one layer of some rank, to see what it takes in a file."""
    up, down = torch.ones(len(factors.up), rank), torch.ones(rank, factors.down.shape[1])
    return replace(lora, modules={name: Factors(up, down, 1.0, kernel=factors.kernel)}, vectors={})


def _spent(name: str, layer: Layer, part: Part, budget: Budget, lora: Lora) -> int:
    """What a layer with a rule of its own takes."""
    if part.rank == 0:
        return 0
    if part.rank is None:
        return _bytes(replace(lora, modules={name: layer}, vectors={}), budget)
    return _bytes(_probe(name, plain(layer), part.rank, lora), budget)


def _bytes(lora: Lora, budget: Budget) -> int:
    """What a LoRA's tensors take in a file, with their entries in the header."""
    return sum(v.nbytes + len(k) + ENTRY for k, v in to_layout(lora, budget.layout, budget.dtype).items())


def norms_of(weights: Weights) -> Callable[[str], float]:
    """Frobenius norms of a base model's weights by layer, for a budget's `norm`; each is read once, in pieces.

    weights  of the model that the LoRA is for
    ->       raises AtelierError for a layer that the model lacks
    """

    @cache
    def norm(layer: str) -> float:
        name = f"{layer}.weight"
        if name not in weights.shapes:
            raise AtelierError(
                f"The LoRA changes {layer}, which the base model has not. Give the model that the LoRA is for, or a rule "
                "for that layer."
            )
        pieces = (weights.rows(name, *span) for span in spans(weights.shapes[name]))
        return math.sqrt(sum(piece.double().square().sum().item() for piece in pieces))

    return norm
