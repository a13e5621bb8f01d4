"""Merging LoRAs: the weighted sum of their true deltas, kept whole or re-compressed to a rank."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import AtelierError
from .factors import truncate, weighted_sum
from .kinds import plain
from .provenance import inherit
from .record import Lora

log = logging.getLogger("flux_atelier")
NOT_LINEAR = ("lora_mid.weight", ".diff", ".diff_b", "lokr_t2", "hada_t1")


@dataclass(frozen=True)
class Merged:
    """A merged LoRA, and the share of the sum's energy it keeps over all layers."""

    lora: Lora
    kept: float


def merge(loras: Sequence[tuple[str, float, Lora]], rank: int = 0) -> Merged:
    """Add LoRAs up: sum of weight * delta, layer by layer.

    A layer that some of them lack gets the sum of the others.

    loras  (name, weight, LoRA) of each
    rank   of the result; 0 keeps the sum exact, with the ranks added
    Raises AtelierError if there are none, or they fit different base models.
    """
    if not loras:
        raise AtelierError("There is no LoRA to merge. Connect at least one.")
    for name, _, lora in loras:
        _refuse_unknown(name, lora)
    modules, kept, total = {}, 0.0, 0.0
    for module in dict.fromkeys(m for _, _, lora in loras for m in lora.modules):
        summed = weighted_sum([(w, plain(lora.modules[module])) for _, w, lora in loras if module in lora.modules])
        energy = ((summed.up.T @ summed.up).double() * (summed.down @ summed.down.T).double()).sum().item()
        modules[module], share = truncate(summed, rank) if rank else (summed, 1.0)
        kept, total = kept + share * energy, total + energy
    recipe = {"merge": [{"name": name, "weight": weight} for name, weight, _ in loras], "rank": rank}
    return Merged(
        Lora(modules, "kohya", inherit([lora for _, _, lora in loras], recipe)), kept / total if total > 0 else 1.0
    )


def _refuse_unknown(name: str, lora: Lora) -> None:
    """Refuse what is not a sum of low-rank deltas, and tell what a merge leaves out."""
    odd = next((k for k in lora.unknown if k.endswith(NOT_LINEAR)), None)
    if odd:
        raise AtelierError(
            f"{name} has {odd}, so it is no plain LoRA and adding it up would be wrong. Merge plain LoRAs only."
        )
    if lora.unknown:
        log.warning("%s: %d tensors are left out, such as %s", name, len(lora.unknown), lora.unknown[0])
