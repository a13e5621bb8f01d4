"""The other ways to write a low-rank delta: Kronecker (LoKr) and Hadamard (LoHa) products of small factors.

Both are low rank themselves, so both become plain factors exactly; what works on factors works on them.
Source: LyCORIS, arXiv:2309.14859.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import AtelierError
from .factors import Factors

WIDEST = 2048  # rank up to which a delta is still worth writing as plain factors
PARTS = (
    "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b",
    "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b",
)  # fmt: skip


@dataclass(frozen=True)
class Kron:
    """One layer's LoKr: delta = scale * kron(w1, w2), w1 [l, m], w2 = w2_a [k, R] @ w2_b [R, n] or whole [k, n]."""

    w1: Tensor
    w2: tuple[Tensor, ...]
    scale: float

    @property
    def rank(self) -> int:
        return self.w2[0].shape[1] if len(self.w2) == 2 else min(self.w2[0].shape)

    def delta(self) -> Tensor:
        """The dense delta, [l k, m n] float32."""
        second = self.w2[0].float() @ self.w2[1].float() if len(self.w2) == 2 else self.w2[0].float()
        return self.scale * torch.kron(self.w1.float(), second)

    def factors(self) -> Factors:
        """The same delta as plain factors of rank m R, exactly: kron(w1, a b) = kron(w1, a) kron(1, b)."""
        if len(self.w2) == 1:
            raise AtelierError(
                "A LoKr layer has a whole second factor, which no plain LoRA holds. "
                "Save it in the kohya or comfy layout, or train it with a lower rank."
            )
        a, b = (part.float() for part in self.w2)
        rank = self.w1.shape[1] * self.rank
        refuse_wide(rank, "LoKr")
        up = self.scale * torch.kron(self.w1.float(), a.contiguous())
        return Factors(up, torch.kron(torch.eye(self.w1.shape[1]), b.contiguous()), float(rank))

    def tensors(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Names and values as files have them; the scale goes into w1, so that no alpha is needed."""
        second = {"lokr_w2": self.w2[0]} if len(self.w2) == 1 else {"lokr_w2_a": self.w2[0], "lokr_w2_b": self.w2[1]}
        return {"lokr_w1": (self.w1.float() * self.scale).to(dtype), **{k: v.to(dtype) for k, v in second.items()}}


@dataclass(frozen=True)
class Hada:
    """One layer's LoHa: delta = scale * (w1_a @ w1_b) * (w2_a @ w2_b), a [out, R], b [R, in]."""

    first: tuple[Tensor, Tensor]
    second: tuple[Tensor, Tensor]
    scale: float

    @property
    def rank(self) -> int:
        return self.first[1].shape[0]

    def delta(self) -> Tensor:
        """The dense delta, [out, in] float32."""
        one, two = (a.float() @ b.float() for a, b in (self.first, self.second))
        return self.scale * one * two

    def factors(self) -> Factors:
        """The same delta as plain factors of rank R^2, exactly: row-wise and column-wise Kronecker products."""
        rank = self.rank * self.second[1].shape[0]
        refuse_wide(rank, "LoHa")
        up, down = hadamard_factors(*(t.float() for t in (*self.first, *self.second)))
        return Factors(self.scale * up, down, float(rank))

    def tensors(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Names and values as files have them; the scale goes into w1_a, and alpha equals the rank."""
        parts = (self.first[0].float() * self.scale, self.first[1], *self.second)
        names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
        return {name: part.to(dtype) for name, part in zip(names, parts, strict=True)}


Layer = Factors | Kron | Hada


def hadamard_factors(a1: Tensor, b1: Tensor, a2: Tensor, b2: Tensor) -> tuple[Tensor, Tensor]:
    """up [out, R1 R2] and down [R1 R2, in] with up @ down = (a1 @ b1) * (a2 @ b2)."""
    up = (a1[:, :, None] * a2[:, None, :]).flatten(1)
    return up, (b1[:, None, :] * b2[None, :, :]).flatten(0, 1)


def refuse_wide(rank: int, kind: str) -> None:
    if rank > WIDEST:
        raise AtelierError(f"A {kind} layer is a plain LoRA of rank {rank}. Keep it in the kohya or comfy layout.")


def plain(layer: Layer) -> Factors:
    """Any layer as plain factors; raises AtelierError for a DoRA, whose change is no sum of its factors."""
    if isinstance(layer, Factors):
        if layer.normed:
            raise AtelierError(
                "The LoRA is a DoRA, whose change depends on the base model. Extract a plain LoRA from it first."
            )
        return layer
    return layer.factors()


def layer_of(parts: Mapping[str, Tensor], alpha: float | None, where: str) -> Kron | Hada:
    """A LoKr or LoHa layer from its tensors by name.

    alpha  counts where a factor is decomposed, as in LyCORIS and ComfyUI; None for a scale of 1
    Raises AtelierError if a part is missing.
    """
    try:
        if "hada_w1_a" in parts:
            first, second = (parts["hada_w1_a"], parts["hada_w1_b"]), (parts["hada_w2_a"], parts["hada_w2_b"])
            return Hada(first, second, 1.0 if alpha is None else alpha / first[1].shape[0])
        rank = next((parts[k].shape[0] for k in ("lokr_w2_b", "lokr_w1_b") if k in parts), None)
        w1 = parts["lokr_w1"] if "lokr_w1" in parts else parts["lokr_w1_a"].float() @ parts["lokr_w1_b"].float()
        w2 = (parts["lokr_w2"],) if "lokr_w2" in parts else (parts["lokr_w2_a"], parts["lokr_w2_b"])
        return Kron(w1, w2, 1.0 if alpha is None or rank is None else alpha / rank)
    except KeyError as missing:
        raise AtelierError(f"{where} has no {missing.args[0]}. The file is damaged; save it again.") from None
