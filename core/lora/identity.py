"""By what a LoRA is known, whatever file it lies in: a digest of what it changes.

The layouts name layers differently and keep the scale in different places, and a LORA_MODEL on a wire is wider than the
file it came from. So the digest is of the layers under their original names, with alpha / rank folded into `up`, and
each value as a 16-bit file holds it. Copies in the three layouts have the same identity, and so has what a loader puts
on a wire; other ranks, weights or precisions below 16 bits are other LoRAs, and so is a LoKr written as plain factors.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .factors import Factors
from .kinds import Layer, kind_of
from .record import Lora

DIGEST = 16  # bytes


@dataclass(frozen=True)
class Survey:
    """What one pass over a LoRA's layers tells; alpha is None where the layers differ or have none."""

    identity: str
    kinds: tuple[str, ...]
    rank: int
    alpha: float | None
    layers: int


def identity(lora: Lora) -> str:
    """The digest of what a LoRA changes, in hex; the same for its copies in other layouts."""
    return survey(lora).identity


def survey(lora: Lora) -> Survey:
    """Look at every layer of a LoRA once: its identity, its kinds by how many layers have them, rank and alpha."""
    total = hashlib.blake2b(digest_size=DIGEST)
    kinds, alphas, rank = Counter[str](), set[float | None](), 0
    for name in sorted(lora.modules):
        layer = lora.modules[name]
        kinds[kind_of(layer)] += 1
        alphas.add(float(layer.alpha) if isinstance(layer, Factors) else None)
        rank = max(rank, layer.rank)
        for part, value in _parts(layer):
            _add(total, f"{name} {part}", value)
    for name in sorted(lora.vectors):
        _add(total, name, as_half(lora.vectors[name]))
    alpha = alphas.pop() if len(alphas) == 1 else None
    return Survey(total.hexdigest(), tuple(k for k, _ in kinds.most_common()), rank, alpha, len(lora.modules))


def _parts(layer: Layer) -> Iterator[tuple[str, Tensor]]:
    if not isinstance(layer, Factors):
        for name, value in sorted(layer.tensors(torch.float16).items()):
            yield name, as_half(value)
        return
    precision = torch.bfloat16 if is_bfloat16(layer.up) else torch.float16
    # Rounded, scaled and rounded again is what a layout that folds the scale into `up` makes of a file's values.
    up = layer.up.to(precision)
    up = up if layer.scale == 1 else (up.float() * layer.scale).to(precision)
    yield "up", as_half(up)
    yield "down", as_half(layer.down)
    for name in ("magnitude", "dora_scale"):
        norm = getattr(layer, name)
        if norm is not None:
            yield name, as_half(norm)


def as_half(value: Tensor) -> Tensor:
    """Values in float16, with no minus before a zero."""
    return value.detach().to("cpu", torch.float16) + 0.0


def is_bfloat16(value: Tensor) -> bool:
    """Whether every value fits into bfloat16, judged by the values: a wire holds a bfloat16 file in float32."""
    if value.dtype == torch.bfloat16:
        return True
    # A few values nearly always settle it.
    parts = (value.flatten()[:64], value)
    return not any((p.detach().float().contiguous().view(torch.int32) & 0xFFFF).any().item() for p in parts)


def _add(total, name: str, value: Tensor) -> None:
    total.update(f"{name} {list(value.shape)}".encode())
    total.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
