"""Pruning a LoRA: leaving out layers that are named or hold little, and singular directions that are small."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..errors import AtelierError
from .blocks import parse_weights
from .kinds import plain
from .record import Lora
from .resize import (
    LayerCut,
    LayerRule,
    Part,
    Resized,
    Rule,
    Watch,
    check_rules,
    layer_energy,
    part_of,
    rebuilt,
    rule_for,
)
from .svd import svd_of


@dataclass(frozen=True)
class Pruning:
    """What to leave out of a LoRA; at least one of the three.

    layers     patterns of layers to drop, as in block weights, separated by commas or lines
    share      of the whole energy that may go with whole layers, 0..1: those with the least are dropped while it lasts
    threshold  singular directions below this part of the LoRA's largest singular value are dropped, 0..1
    """

    layers: str = ""
    share: float = 0.0
    threshold: float = 0.0

    def __post_init__(self) -> None:
        for name in ("share", "threshold"):
            if not 0 <= getattr(self, name) < 1:
                raise AtelierError(f"The {name} to prune is {getattr(self, name):g}. Give 0 or more and less than 1.")
        if not (self.layers.strip() or self.share or self.threshold):
            raise AtelierError("There is nothing to prune. Name layers to drop, or give a share or a threshold.")


def prune(lora: Lora, pruning: Pruning, watch: Watch | None = None) -> Resized:
    """Leave out layers and directions of a LoRA; what is left of a layer is not changed otherwise.

    A pattern leaves out the vectors of its layers as well.

    watch  called with the number of layers looked at
    Raises AtelierError if a pattern is about no layer, if a share or a threshold is wanted of a layer whose change
    depends on the base model, and if nothing is left.
    """
    rules = _rules(lora, pruning.layers)
    parts: dict[str, Part] = {}
    for done, (name, layer) in enumerate(lora.modules.items(), 1):
        measured = pruning.share > 0 or pruning.threshold > 0
        named = rule_for(name, rules) is not None
        energy = layer_energy(plain(layer) if measured and not named else layer)
        rank = 0 if named else layer.rank
        parts[name] = Part(0 if named else None, LayerCut(name, layer.rank, rank, energy, float(not named)))
        if watch:
            watch(done)
    if pruning.share:
        parts |= _weakest(parts, pruning.share)
    if pruning.threshold:
        parts |= _above(lora, [n for n, p in parts.items() if p.rank is None], pruning.threshold)
    told = {"layers": pruning.layers, "share": pruning.share, "threshold": pruning.threshold}
    return rebuilt(lora, parts, rules, {"prune": told})


def _rules(lora: Lora, patterns: str) -> tuple[LayerRule, ...]:
    """A rule that drops what each pattern names."""
    words = (word.strip() for line in patterns.splitlines() for word in line.partition("#")[0].split(","))
    drop = Rule("rank", 0)
    rules = tuple(LayerRule(w, parse_weights(f"default = 0, {w} = 1", lora.base), drop) for w in words if w)
    check_rules(lora, rules)
    return rules


def _weakest(parts: Mapping[str, Part], share: float) -> dict[str, Part]:
    """The plan for the layers of least energy, dropped while their sum is within a share of the whole."""
    room = share * sum(part.cut.energy for part in parts.values())
    dropped = {}
    for name, part in sorted(parts.items(), key=lambda item: item[1].cut.energy):
        if part.rank is not None:
            continue
        room -= part.cut.energy
        if room < 0:
            break
        cut = part.cut
        dropped[name] = Part(0, LayerCut(name, cut.before, 0, cut.energy, 0.0))
    return dropped


def _above(lora: Lora, names: Sequence[str], threshold: float) -> dict[str, Part]:
    """The plan for layers whose directions must reach a part of the largest singular value of all."""
    spectra: dict[str, Tensor] = {}
    for name in names:
        factors = plain(lora.modules[name])
        spectra[name] = svd_of(factors.up, factors.down, factors.scale).sigma
    largest = max((sigma[0].item() for sigma in spectra.values()), default=0.0)
    parts = {}
    for name, sigma in spectra.items():
        rank = int((sigma >= threshold * largest).sum())
        if rank < len(sigma):
            factors = plain(lora.modules[name])
            parts[name] = part_of(name, factors.rank, svd_of(factors.up, factors.down, factors.scale), rank)
    return parts
