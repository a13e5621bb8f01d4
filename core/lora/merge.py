"""Merging LoRAs: what they do, combined layer by layer, kept whole or re-compressed to a rank.

The methods in `spans` work in the factors and are exact; those in `elementwise` look at every value and give a change
that no LoRA holds exactly, so they need a rank or a share of energy, and the report says what that costs. All of them
work on the true deltas: to merge the factors by themselves (the sum of the ups times the sum of the downs) mixes each
LoRA's up with the others' down and is off by half or more.
"""

import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field, model_validator

from ..counting import counted
from ..errors import AtelierError
from ..options import Options
from . import elementwise, spans
from .blocks import BlockWeights, check_weights, parse_weights
from .elementwise import Part, Pruning
from .factors import Factors, weighted_sum
from .kinds import Layer, kind_of, plain
from .provenance import inherit
from .recompress import Retained, recompress, recompress_dense, retained_report, share_kept
from .record import Layers, Lora

log = logging.getLogger("flux_atelier")
NOT_LINEAR = ("lora_mid.weight", ".diff", ".diff_b", "lokr_t2", "hada_t1")
Method = Literal[
    "linear", "average", "interpolate", "slerp", "difference", "negate", "orthogonal",
    "knots_ties", "ties", "dare_linear", "dare_ties", "della", "della_linear", "magnitude", "breadcrumbs",
]  # fmt: skip
PAIRS = ("interpolate", "slerp")
RANDOM = ("dare_linear", "dare_ties", "della", "della_linear")
USED_BY: dict[str, tuple[str, ...]] = {
    "t": PAIRS,
    "density": ("knots_ties", *elementwise.METHODS),
    "epsilon": ("della", "della_linear"),
    "gamma": ("breadcrumbs",),
}
NOTHING = "All weights are 0, so nothing is left of the merge. Give one of the LoRAs a weight."
OF_ONE = re.compile(r"\s*(?:lora)?(\d+)\s*:(.*)", re.DOTALL)


class MergeOptions(Options):
    """How LoRAs are merged. An option that the method does not use must keep its default; only the seed may be any."""

    method: Method = Field(
        default="linear", description="How the LoRAs are combined; the help page has a line on each."
    )
    block_weights: str = Field(
        default="",
        description="Weights by block, one line each: double.0-18 = 0.5 for every LoRA, lora0: single = 0 for the first.",
    )
    energy: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Share of energy to keep, 0 to 1, with rank as the limit; 0 goes by rank alone.",
    )
    density: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="Share of the values that pruning keeps: ties, dare, della, magnitude, breadcrumbs.",
    )
    t: float = Field(
        default=0.5, ge=0, le=1, description="Way from the first LoRA (0) to the second (1): interpolate, slerp."
    )
    epsilon: float = Field(
        default=0.15,
        ge=0,
        le=0.5,
        description="How far chances to stay differ from density, up and down: della, della_linear.",
    )
    gamma: float = Field(default=0.01, ge=0, lt=1, description="Share of largest values that is dropped: breadcrumbs.")
    seed: int = Field(
        default=0, ge=0, le=2**63 - 1, description="Seed of what is dropped; dare and della only, else unused."
    )

    @model_validator(mode="after")
    def _fits(self):
        for name, methods in USED_BY.items():
            value, usual = getattr(self, name), type(self).model_fields[name].default
            if self.method not in methods and value != usual:
                raise ValueError(
                    f"{name} is {value}, which {self.method} does not use. Set it to {usual} or choose {_any(methods)}"
                )
        if self.method in USED_BY["epsilon"] and self.density < 1:
            least, most = self.density - self.epsilon, self.density + self.epsilon
            if least <= 0 or most > 1:
                raise ValueError(
                    f"density {self.density:g} with epsilon {self.epsilon:g} gives chances from {least:g} to {most:g}. "
                    "Choose them so that these are above 0 and at most 1"
                )
        if self.method == "breadcrumbs" and self.density < 1 < self.density + self.gamma:
            raise ValueError(
                f"density {self.density:g} and gamma {self.gamma:g} are more than all values together. Lower one"
            )
        return self


@dataclass(frozen=True)
class Merged:
    """A merged LoRA, the share of the merge's energy it keeps over all layers, and what each layer's rank costs."""

    lora: Lora
    kept: float
    layers: Mapping[str, Retained] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        """The highest rank of any layer, without making the layers again."""
        return max((layer.rank for layer in self.layers.values()), default=0)

    def report(self) -> str:
        """What the rank costs, in all and by layer, the costliest layer first."""
        return retained_report(self.layers)


def merge(
    loras: Sequence[tuple[str, float, Lora]],
    rank: int = 0,
    options: MergeOptions | None = None,
    each: Callable[[int, int], None] | None = None,
) -> Merged:
    """Merge what LoRAs do, layer by layer.

    A layer that one of them lacks counts as no change in it, and so does a weight of 0. Changes of biases and norms
    are merged as their layers are.

    loras    (name, weight, LoRA) of each, of one base
    rank     of the result; 0 keeps a method of the span exact, with at most the sum of the ranks
    options  the method and what it needs; a weighted sum without
    each     called with the number of layers done and of all
    Raises AtelierError if there are none, they fit different base models, or are no plain LoRAs.
    """
    options = options or MergeOptions()
    check_request([(name, weight) for name, weight, _ in loras], rank, options)
    _refuse_other_bases(loras)
    blocks = read_block_weights(options.block_weights, [lora for _, _, lora in loras])
    job = _Job(loras, rank, options, _weights(loras, options), blocks)
    names = list(dict.fromkeys(m for _, _, lora in loras for m in lora.modules))
    modules: dict[str, Callable[[], Layer]] = {}
    layers: dict[str, Retained] = {}
    for done, module in enumerate(names, 1):
        made = job.layer(module)
        if made:
            factors, layers[module] = made
            modules[module] = job.maker(module, factors)
        if each:
            each(done, len(names))
    vectors = {name: job.vector(name) for name in dict.fromkeys(v for _, _, lora in loras for v in lora.vectors)}
    kept = {name: value for name, value in vectors.items() if value is not None}
    if not modules and not kept:
        raise AtelierError(NOTHING)
    metadata = inherit([lora for _, _, lora in loras], recipe(loras, rank, options))
    lora = Lora(Layers(modules), "kohya", metadata, vectors=kept, base=loras[0][2].base)
    return Merged(lora, share_kept(layers), layers)


def summary(loras: Sequence[tuple[str, float, Lora]], merged: Merged, options: MergeOptions) -> str:
    """A merge in a line or two: how many LoRAs, how merged, what is kept, what was left out."""
    unknown = sum(len(lora.unknown) for _, _, lora in loras)
    base = "no layer of the base model"
    left = counted(unknown, f"tensor that is {base} was", f"tensors that are {base} were")
    left_out = f"\n{left} left out" if unknown else ""
    made, what = ("", "sum") if options.method == "linear" else (f"{options.method} of ", "merge")
    return f"{made}{counted(len(loras), 'LoRA')}, rank {merged.rank}, {merged.kept:.2%} of the {what}'s energy kept{left_out}"


@dataclass(frozen=True)
class _Job:
    """One merge: its LoRAs with their signed weights and block weights."""

    loras: Sequence[tuple[str, float, Lora]]
    rank: int
    options: MergeOptions
    weights: Sequence[float]
    blocks: Sequence[BlockWeights]

    def layer(self, module: str) -> tuple[Factors, Retained] | None:
        """A merged layer and what its rank costs, or None where nothing is left of it."""
        parts = self._parts(module, partial(_plain, module))
        if not parts:
            return None
        combined = self._combined(parts, module)
        if isinstance(combined, Factors):
            return recompress(combined, self.rank, self.options.energy)
        factors, cost = recompress_dense(combined, self.rank, self.options.energy)
        return Factors(factors.up, factors.down, factors.alpha, kernel=parts[0].factors.kernel), cost

    def maker(self, module: str, factors: Factors) -> Callable[[], Layer]:
        """How to come by a layer later: exact sums are made again, so that their ranks do not add up in memory."""
        summed = self.options.method in spans.LINEAR and not self.rank and not self.options.energy
        return (lambda: self._sum(module)) if summed else (lambda: factors)

    def _sum(self, module: str) -> Factors:
        parts = self._parts(module, partial(_plain, module))
        return weighted_sum([(part.weight, part.factors) for part in parts])

    def vector(self, name: str) -> torch.Tensor | None:
        """A merged change of a bias or norm: a layer of one row, which is of rank 1 whatever is done to it."""
        parts = self._parts(name, partial(_row, name))
        if not parts:
            return None
        combined = self._combined(parts, name)
        return (combined.delta() if isinstance(combined, Factors) else combined)[0]

    def _parts(self, name: str, factors_of: Callable[[Lora, str], Factors | None]) -> list[Part]:
        """What the LoRAs have of a layer, each with its weight there, the weights of 0 left out."""
        parts = []
        met: dict[str, int] = {}
        for place, ((told, _, lora), weight, blocks) in enumerate(
            zip(self.loras, self.weights, self.blocks, strict=True)
        ):
            weight *= blocks.of(name)
            met[told] = met.get(told, -1) + 1
            factors = factors_of(lora, told) if weight else None
            if factors:
                factors = factors.folded()
                if not math.isfinite((factors.up.sum() + factors.down.sum()).item()):
                    raise AtelierError(f"{told} has values in {name} that are no numbers. Leave this LoRA out.")
                parts.append(Part(weight, factors, place, f"{told} {met[told]}"))
        _refuse_other_shapes(parts)
        return parts

    def _combined(self, parts: list[Part], name: str) -> Factors | torch.Tensor:
        options = self.options
        if options.method in spans.LINEAR:
            return weighted_sum([(part.weight, part.factors) for part in parts])
        if options.method == "slerp":
            return spans.slerp(parts, options.t)
        if options.method == "orthogonal":
            return spans.orthogonal_sum(parts)
        pruning = Pruning(options.density, options.gamma, options.epsilon, (options.seed, name))
        if options.method == "knots_ties":
            basis, inside = spans.shared_basis(parts)
            merged = elementwise.merge_values("ties", inside, pruning)
            return Factors(basis, merged, float(len(merged)), kernel=parts[0].factors.kernel)
        return elementwise.merge_values(options.method, parts, pruning)


def _weights(loras: Sequence[tuple[str, float, Lora]], options: MergeOptions) -> list[float]:
    """The signed weight of each LoRA, 0 for one that the method leaves out."""
    weights = [weight for _, weight, _ in loras]
    if options.method == "slerp" and options.t in (0, 1):
        weights[1 - int(options.t)] = 0.0
    return spans.coefficients(options.method, weights, options.t)


def read_block_weights(text: str, loras: Sequence[Lora]) -> list[BlockWeights]:
    """Block weights of each LoRA.

    text   lines, or parts between |, as `blocks` reads them; `lora0:` before a line makes it the first LoRA's alone, and
           what stands without counts for all. A LoRA's own lines come after those for all, so they win.
    loras  in the order of the numbers
    Raises AtelierError for a number that no LoRA has, and for what is no block weight.
    """
    texts = _texts(text, len(loras))
    return [parse_weights(text, lora.base) for text, lora in zip(texts, loras, strict=True)]


def check_block_weights(text: str, count: int) -> None:
    """Raise AtelierError for block weights that no LoRAs of any base could have; read as read_block_weights does."""
    for one in dict.fromkeys(_texts(text, count)):
        check_weights(one)


def _texts(text: str, count: int) -> list[str]:
    """The block weights of each LoRA as a text of its own."""
    common: list[str] = []
    own: list[list[str]] = [[] for _ in range(count)]
    for line in re.split(r"[\n|]", text):
        found = OF_ONE.fullmatch(line.partition("#")[0])
        if not found:
            common.append(line)
        elif int(found[1]) < count:
            own[int(found[1])].append(found[2])
        else:
            there = f"there {'is' if count == 1 else 'are'} {counted(count, 'LoRA')}"
            raise AtelierError(f"The block weights name lora{found[1]}, and {there}. Count them from lora0.")
    return ["\n".join([*common, *lines]) for lines in own]


def recipe(loras: Sequence[tuple[str, float, Lora]], rank: int, options: MergeOptions) -> dict[str, Any]:
    """What was done, as the header keeps it: the options that had a part in it."""
    told: dict[str, Any] = {"merge": [{"name": name, "weight": weight} for name, weight, _ in loras], "rank": rank}
    if options.method != "linear":
        told["method"] = options.method
    told |= {name: getattr(options, name) for name, methods in USED_BY.items() if options.method in methods}
    if options.method in RANDOM:
        told["seed"] = options.seed
    return told | {name: value for name in ("energy", "block_weights") if (value := getattr(options, name))}


def check_request(weights: Sequence[tuple[str, float]], rank: int, options: MergeOptions) -> None:
    """Raise AtelierError for a merge that cannot be, whatever its LoRAs hold.

    weights  name and weight of each LoRA
    rank     as merge takes it
    """
    if not weights:
        raise AtelierError("There is no LoRA to merge. Connect at least one.")
    if rank < 0:
        raise AtelierError(f"The rank is {rank}. Choose 0 for an exact merge, or a rank of 1 or more.")
    odd = next(((name, weight) for name, weight in weights if not math.isfinite(weight)), None)
    if odd:
        raise AtelierError(f"The weight of {odd[0]} is {odd[1]}. Give a number such as 0.8.")
    if options.method in PAIRS and len(weights) != 2:
        there = "is 1" if len(weights) == 1 else f"are {len(weights)}"
        raise AtelierError(f"{options.method} is between two LoRAs, and there {there}. Give two.")
    if options.method in elementwise.METHODS and not rank and not options.energy:
        raise AtelierError(
            f"{options.method} gives a change that no LoRA holds exactly. Set rank, such as 64, or energy above 0."
        )
    if not any(weight for _, weight in weights):
        raise AtelierError(NOTHING)
    if options.method == "average" and not math.fsum(weight for _, weight in weights):
        raise AtelierError("The weights add up to 0, so they have no average. Use linear or change a weight.")


def _refuse_other_bases(loras: Sequence[tuple[str, float, Lora]]) -> None:
    bases: dict[str, str] = {}
    for name, _, lora in loras:
        bases.setdefault(lora.base, name)
        _refuse_unknown(name, lora)
    if len(bases) > 1:
        told = ", ".join(f"{name} ({base})" for base, name in bases.items())
        raise AtelierError(f"The LoRAs are for different base models: {told}. Merge LoRAs of the same base model.")


def _plain(module: str, lora: Lora, name: str) -> Factors | None:
    """A LoRA's layer in factors, or None; raises AtelierError with the LoRA's name for what is no sum of factors."""
    layer = lora.modules.get(module)  # `in` would make a lazy layer a second time
    if layer is None:
        return None
    kind = kind_of(layer)
    if kind in ("DoRA", "OFT", "BOFT"):
        raise AtelierError(
            f"{name} is a {kind}, whose change depends on the base model. "
            "Make a plain LoRA of it with Convert to Plain LoRA and the base model, and merge that."
        )
    if kind == "difference":
        raise AtelierError(
            f"{name} has whole differences in place of factors, in {module}. "
            "Make a plain LoRA of it with Convert to Plain LoRA and the base model, and merge that."
        )
    return plain(layer)


def _row(vector: str, lora: Lora, name: str) -> Factors | None:
    """A LoRA's change of a bias or norm as a layer of one row, or None."""
    if vector not in lora.vectors:
        return None
    return Factors(torch.ones(1, 1), lora.vectors[vector].float().reshape(1, -1), 1.0)


def _refuse_other_shapes(parts: Sequence[Part]) -> None:
    """Let weighted_sum name the sizes that differ, before a method sees them."""
    if len({(p.factors.up.shape[0], p.factors.down.shape[1]) for p in parts}) > 1:
        weighted_sum([(part.weight, part.factors) for part in parts])


def _refuse_unknown(name: str, lora: Lora) -> None:
    """Refuse what is not a sum of low-rank deltas, and tell what a merge leaves out."""
    odd = next((k for k in lora.unknown if k.endswith(NOT_LINEAR)), None)
    if odd:
        raise AtelierError(
            f"{name} has {odd}, so it is no plain LoRA and adding it up would be wrong. Merge plain LoRAs only."
        )
    if lora.unknown:
        log.warning("%s: %d tensors are left out, such as %s", name, len(lora.unknown), lora.unknown[0])


def _any(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
