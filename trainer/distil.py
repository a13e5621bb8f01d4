"""Several LoRAs distilled into one: a student of a given rank learns to move the model as their sum does.

What is learnt is the velocity of the model with the whole sum laid on, at the same noised latents, noise levels and
texts (knowledge distillation, Hinton et al. 2015, arXiv:1503.02531, on outputs of the network instead of labels). The
student starts from the sum's best approximation of its rank (Eckart-Young), so training begins where merging and
truncating ends. Truncation is the best in the weights; what is trained is the error in what the model says.
"""

import json
import logging
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import AtelierError
from ..core.files import write_json
from ..core.flux.layout import FluxShape
from ..core.lora.factors import Factors
from ..core.lora.formats.names import is_text
from ..core.lora.kinds import plain
from ..core.lora.merge import MergeOptions, merge
from ..core.lora.provenance import RECIPE, TAGS, TRIGGER, inherit
from ..core.lora.record import Lora
from ..core.options import leaves, nest, parse
from . import adapter
from .config import TrainOptions
from .flux.tree import FluxTree
from .flux.view import ProxyLinear, fitting_layer
from .memory import computes_in_half
from .run import Run
from .session import Session

log = logging.getLogger("flux_atelier")
NUMBERED = re.compile(r"(\w+_blocks)\.(\d+)\.(.+)")
OWN = ("alpha", "targets", "layer_rules")  # set by the distillation, from the LoRAs and the rank


@dataclass(frozen=True)
class Lesson:
    """The LoRAs to learn, each with its weight, and block weights as merging reads them."""

    loras: Sequence[tuple[str, float, Lora]]
    blocks: str = ""

    @cached_property
    def sum(self) -> Lora:
        """The exact sum of what is learnt, which is what layers of the transformer do.

        Raises AtelierError as merge does, and if nothing of the LoRAs is in the transformer.
        """
        merged = merge(self.loras, 0, MergeOptions(block_weights=self.blocks)).lora
        left = [name for name in merged.modules if is_text(name)] + list(merged.vectors)
        if left:
            log.warning("%d changes of text encoders, biases and norms are not learnt, such as %s", len(left), left[0])
        modules = {name: plain(layer) for name, layer in merged.modules.items() if not is_text(name)}
        if not modules:
            raise AtelierError("The LoRAs change no layer of the transformer. Distil LoRAs of a Flux.1 model.")
        return replace(merged, modules=modules, vectors={})

    def options(self, values: Mapping[str, Any], shape: FluxShape, where: str) -> TrainOptions:
        """The options of the student's training, on just the layers that the LoRAs change.

        values  options by their bare names, the rank among them
        shape   of the model
        where   what errors call the values' source
        Raises AtelierError if a layer does not fit the model, or values set what the distillation does.
        """
        defaults = {name: field.default for name, field in leaves(TrainOptions).items()}
        rank = int(values.get("rank", defaults["rank"]))
        if values.get("layer_rules", "").strip():
            raise AtelierError(
                "layer_rules are set, but a distillation trains the LoRAs' own layers. Leave them empty."
            )
        with torch.device("meta"):
            tree = FluxTree(shape)
        ranks = {}
        for name, factors in self.sum.modules.items():
            assert isinstance(factors, Factors)
            layer = fitting_layer(tree, name, factors)
            ranks[name] = min(rank, factors.rank, layer.out_features, layer.in_features)
        linears = {name for name, module in tree.named_modules() if isinstance(module, nn.Linear)}
        rules = layer_rules(ranks, others=bool(linears - ranks.keys()))
        given = {k: v for k, v in values.items() if k not in OWN}
        chosen = {"result": "best", **given, "alpha": float(rank), "layer_rules": rules}
        return parse(TrainOptions, nest(TrainOptions, chosen), where)

    def header(self, own: Mapping[str, str], options: TrainOptions) -> dict[str, str]:
        """The distilled LoRA's metadata: of its training, with its sources' trigger words, tags and recipes."""
        recipe: dict[str, object] = {
            "distil": [{"name": name, "weight": weight} for name, weight, _ in self.loras],
            "rank": options.adapter.rank,
            "steps": options.steps,
        }
        kept = inherit(
            [lora for _, _, lora in self.loras], recipe | ({"block_weights": self.blocks} if self.blocks else {})
        )
        return {**kept, **own, **{key: kept[key] for key in (TRIGGER, TAGS, RECIPE) if key in kept}}


def layer_rules(ranks: Mapping[str, int], others: bool) -> str:
    """Rules that train exactly these layers, blocks of a kind in one line.

    ranks   rank by original module name
    others  whether the model has layers besides, which are left out
    """
    groups: dict[tuple[str, str, int], list[str]] = defaultdict(list)
    for name, rank in ranks.items():
        found = NUMBERED.fullmatch(name)
        kind, number, tail = found.groups() if found else ("", "", name)
        groups[kind, tail, rank].append(number)
    lines = []
    for (kind, tail, rank), numbers in groups.items():
        start = rf"{kind}\.({'|'.join(numbers)})\." if kind else ""
        lines.append(f"{start}{re.escape(tail)}: rank={rank}")
    return "\n".join([*lines, *([".*: rank=0"] if others else [])])


class LoraTeacher:
    """A Teacher: the model with LoRAs laid on it, and the student away."""

    def __init__(self, lora: Lora):
        self.lora = lora
        self._pairs: list[tuple[ProxyLinear, tuple[Tensor, Tensor]]] = []

    def begin(self, session: Session) -> None:
        """Before the first step, measure how far the model alone and the truncated sum are from the LoRAs."""
        dtype = torch.float32
        if computes_in_half(session.options, session.device):
            dtype = torch.float16 if session.options.precision == "float16" else torch.bfloat16
        self._pairs = []
        for name, layer in self.lora.modules.items():
            folded = plain(layer).folded()
            pair = folded.down.to(session.device, dtype), folded.up.to(session.device, dtype)
            self._pairs.append((_proxy(session.tree.get_submodule(name)), pair))
        if session.step or session.validation is None:
            return
        with adapter.disabled(session.tree):
            alone, _ = session.validation.loss(session)
        truncated, _ = session.validation.loss(session)
        if session.world.first:
            write_json(errors_file(session.run), {"alone": alone, "truncated": truncated})

    @torch.no_grad()
    def velocity(self, session: Session, *given: Tensor | None) -> Tensor:
        """The velocity of the model with the LoRAs, for what Session.velocity is given."""
        away = nullcontext() if _student_is_away(session.tree) else adapter.disabled(session.tree)
        with away, self._laid():
            return session.velocity(*given)

    @contextmanager
    def _laid(self) -> Iterator[None]:
        before = [layer.assistant for layer, _ in self._pairs]
        for layer, pair in self._pairs:
            layer.assistant = pair
        try:
            yield
        finally:
            for (layer, _), kept in zip(self._pairs, before, strict=True):
                layer.assistant = kept


def _proxy(module: nn.Module) -> ProxyLinear:
    """The layer below an adapter."""
    return getattr(module, "base_layer", module)


def _student_is_away(tree: nn.Module) -> bool:
    return any(getattr(module, "disable_adapters", False) for module in tree.modules())


def errors_file(run: Run):
    return run.folder / "distil.json"


@dataclass(frozen=True)
class Errors:
    """Mean squared velocity errors against the LoRAs, on the run's fixed validation triples."""

    alone: float
    truncated: float
    distilled: float

    def line(self) -> str:
        """What the distillation came to, in a line."""
        shares = [value / self.alone if self.alone else 0.0 for value in (self.truncated, self.distilled)]
        told = (
            f"of what the LoRAs do to the model, {shares[0]:.3%} of the square is lost by truncation "
            f"and {shares[1]:.3%} by distillation"
        )
        if self.distilled < self.truncated:
            return told
        return f"{told}; it made nothing better, so take more steps, another learning rate, or Merge LoRAs"


def errors_of(run: Run, result: str = "best") -> Errors | None:
    """What a distillation came to; None while nothing has been measured.

    result  best for the lowest error, last for the newest
    """
    measured = [record["validation"] for record in run.metrics() if "validation" in record]
    if not measured or not errors_file(run).is_file():
        return None
    before = json.loads(errors_file(run).read_text(encoding="utf-8"))
    return Errors(before["alone"], before["truncated"], min(measured) if result == "best" else measured[-1])
